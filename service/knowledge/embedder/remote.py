"""Text into vectors, by asking an OpenAI-compatible endpoint."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Final

import aiohttp
import numpy as np
import orjson

from service.http.connection_errors import ConnectionErrors
from service.knowledge.documents.chunks import Tokens
from service.knowledge.embedder.model import (
    TOO_LONG,
    InputRefused,
    ModelBusy,
    ModelError,
    check_total,
    normalised,
    word_tokens,
)
from service.knowledge.segment import Vectors

REMOTE_TIMEOUT_S: Final = 60.0
REMOTE_BATCH: Final = 64
CONNECT_TIMEOUT_S: Final = 5.0
REFUSING: Final = frozenset({400, 413, 422})
"""Answers of an endpoint that does not like what it was asked."""
PASSING: Final = frozenset({408, 425, 429, *range(500, 600)})
"""Answers of an endpoint that is busy, is being started, or has a fault of its own."""
MAX_REASON: Final = 500
"""Characters of an endpoint's reason that a caller is shown."""


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


class EndpointRefused(ModelError):
    """The endpoint does not take what it was asked; ``reason`` is what it says, ``code`` OpenAI's where it has one."""

    def __init__(self, status: int, answer: bytes) -> None:
        super().__init__(f"the embeddings endpoint returned status {status}")
        try:
            error = orjson.loads(answer)["error"]
            reason, code = error["message"], error.get("code")
        except (ValueError, KeyError, TypeError, AttributeError):
            reason, code = None, None
        self.reason = reason[:MAX_REASON] if isinstance(reason, str) else f"its endpoint returned status {status}"
        self.code = TOO_LONG if code == TOO_LONG else "invalid_value"


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
            (await self._ask(list(texts[at : at + REMOTE_BATCH])))[0] for at in range(0, len(texts), REMOTE_BATCH)
        ]  # one after the other: what is fair to the endpoint
        return normalised(np.concatenate(parts))

    async def embed_inputs(self, texts: Sequence[str], dimensions: int | None) -> tuple[Vectors, int]:
        """As the endpoint counts tokens; where it does not, words and signs. Its own window and dimensions hold."""
        parts, tokens = [], 0
        wish = {} if dimensions is None else {"dimensions": dimensions}
        for begin in range(0, len(texts), REMOTE_BATCH):
            some = list(texts[begin : begin + REMOTE_BATCH])
            try:
                vectors, counted = await self._ask(some, **wish)
            except EndpointRefused as error:
                raise InputRefused(f"was refused by the embedding model: {error.reason}", code=error.code) from error
            parts.append(vectors)
            tokens += await asyncio.to_thread(_count_words, some) if counted is None else counted
            check_total(tokens, begin + len(some), len(texts))
        return normalised(np.concatenate(parts)), tokens

    async def close(self) -> None:
        if self._session is not None:
            await self._session.close()

    async def _ask(self, texts: list[str], **wish: int) -> tuple[Vectors, int | None]:
        """The texts' vectors, and the endpoint's count of their tokens; None: it has told none."""
        if self._session is None:
            timeout = aiohttp.ClientTimeout(total=REMOTE_TIMEOUT_S, connect=CONNECT_TIMEOUT_S)
            self._session = aiohttp.ClientSession(timeout=timeout, headers=self._headers)
        body = {"model": self._name, "input": texts, "encoding_format": "float", **wish}
        try:
            with _ERRORS:
                async with self._session.post(self._url, json=body, allow_redirects=False) as response:
                    if response.status in PASSING:
                        raise ModelBusy(f"the embeddings endpoint returned status {response.status}")
                    answer = await response.read()
                    if response.status in REFUSING:
                        raise EndpointRefused(response.status, answer)
                    if response.status != 200:
                        raise ModelError(f"the embeddings endpoint returned status {response.status}")
            content = orjson.loads(answer)
            rows = sorted(content["data"], key=lambda row: row["index"])
            vectors = np.array([row["embedding"] for row in rows], dtype=np.float32)
        except (ValueError, KeyError, TypeError) as error:
            raise ModelError("the embeddings endpoint's response is not a list of vectors") from error
        if vectors.shape[:1] != (len(texts),) or vectors.ndim != 2 or not np.isfinite(vectors).all():
            raise ModelError(
                f"the embeddings endpoint returned an array of shape {vectors.shape} for {len(texts)} texts"
            )
        usage = content.get("usage")
        counted = usage.get("prompt_tokens") if isinstance(usage, dict) else None
        return vectors, counted if type(counted) is int and counted >= 0 else None


def _count_words(texts: Sequence[str]) -> int:
    return sum(len(word_tokens(text)) for text in texts)
