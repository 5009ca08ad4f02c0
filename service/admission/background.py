"""The engine for proofs, canaries and warming: admitted as background requests."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager, nullcontext, suppress
from typing import Final

from service.admission.ports import Queue
from service.admission.request import AdmissionRequest
from service.engine.busy import EngineClock, EngineTime
from service.engine.client import EngineClient, RenderedChat
from service.errors import Conflict, RateLimited, Timeout, Unavailable
from service.objects.adapters import StoredAdapters

PROJECT: Final = ""
"""The gateway itself; no project has an empty name."""
KEY: Final = "hatrack"
MAX_WAIT_S: Final = 110.0
"""Longest wait in the queue, s; less than ASK_TIMEOUT_S, so that a full queue reports itself."""
ASK_TIMEOUT_S: Final = 120.0
"""Timeout of one request, including the wait in the queue, s: a cold adapter is loaded, and up to about 600 tokens are
read."""
NEIGHBOUR_MAX_WAIT_S: Final = 1.0
"""Longest wait for a slot for the neighbour, s, while the first adapter holds its place."""
BYTES_PER_TOKEN: Final = 4


class BackgroundEngine:
    """Sends background requests to the engine; they yield to callers and are counted like theirs.

    Args:
        engine: The engine's client.
        queue: The queue that requests wait in.
        base_name: The base's served name; it needs no slot.
        clock: Measures the engine's time; None: one of its own.
        adapters: Brings adapters' files to where the engine reads them; None: they are there.
    """

    def __init__(
        self,
        engine: EngineClient,
        queue: Queue,
        base_name: str,
        clock: EngineTime | None = None,
        adapters: StoredAdapters | None = None,
    ) -> None:
        self._engine = engine
        self.adapters = adapters
        self._clock = clock or EngineClock()
        self._queue = queue
        self._base_name = base_name

    def require_ready(self) -> None:
        """Raise EngineUnavailable if the engine is not running; asks nothing of it."""
        self._queue.require_open()

    async def render_chat(self, messages: Sequence[Mapping[str, str]]) -> RenderedChat:
        """The prompt that the base's chat template makes of these messages. No model runs, so nothing is admitted.

        Raises:
            EngineRefused: The template refuses them.
            EngineUnavailable, BadGateway, Timeout: The engine cannot be asked.
        """
        return await self._engine.render_chat(self._base_name, messages)

    async def logprobs(self, model: str, texts: Sequence[str]) -> list[list[float]]:
        """For each text the log-probabilities (nats) of its tokens but the first, under a digest or the base's name.

        The texts go one after another: together they would fill a step of the engine, and a caller who comes meanwhile
        waits for its end.

        Raises:
            Unavailable: The engine is not running, the wait was too long, or the queue is full.
            Timeout: It took longer than ASK_TIMEOUT_S.
            AdapterNotFinite: The engine reports NaN or Infinity under the adapter.
            HatrackError: As the engine reports.
        """
        adapter = None if model == self._base_name else model
        async with _with_timeout(), self._held(adapter), self._admitted(adapter, _tokens(texts)) as used:
            rows: list[list[float]] = []
            for text in texts:
                answer = await self._engine.logprobs(model, [text])
                used.add(answer)
                rows += answer
            return rows

    async def logprobs_together(
        self, adapter: str, neighbour: str | None, texts: Sequence[str]
    ) -> tuple[list[list[float]], list[list[float]], list[list[float]] | None]:
        """``logprobs`` of the base, an adapter and a neighbour, all at the same time.

        Base and adapter share one place, so that they are in one batch. The neighbour's result is None if it gets no
        slot within a second or if the engine fails under it.

        Raises as ``logprobs``.
        """
        async with _with_timeout(), AsyncExitStack() as places:
            await places.enter_async_context(self._held(adapter))
            used = await places.enter_async_context(self._admitted(adapter, 2 * _tokens(texts)))
            models = [self._base_name, adapter]
            if neighbour is not None:
                with suppress(Unavailable, RateLimited, Conflict):
                    await places.enter_async_context(self._held(neighbour))
                    await places.enter_async_context(self._admitted(neighbour, _tokens(texts), NEIGHBOUR_MAX_WAIT_S))
                    models.append(neighbour)
            answers = await asyncio.gather(
                *(self._engine.logprobs(model, texts) for model in models), return_exceptions=True
            )
            base, under = (_result_or_raise(answer) for answer in answers[:2])
            used.add(base)
            used.add(under)
            beside = answers[2] if len(answers) > 2 else None
            return base, under, None if isinstance(beside, BaseException) else beside

    def _held(self, adapter: str | None) -> AbstractAsyncContextManager[None]:
        """Have an adapter's files where the engine reads them."""
        return nullcontext() if self.adapters is None else self.adapters.held(adapter)

    @asynccontextmanager
    async def _admitted(self, adapter: str | None, tokens: int, patience_s: float = MAX_WAIT_S) -> AsyncIterator[_Used]:
        request = AdmissionRequest(PROJECT, KEY, adapter, tokens, background=True, prompt=tokens)
        place = await self._queue.enter(request, asyncio.get_running_loop().time() + patience_s)
        used = _Used()
        try:
            with self._clock.own():
                yield used
        finally:
            place.leave(used.tokens)


@asynccontextmanager
async def _with_timeout() -> AsyncIterator[None]:
    try:
        async with asyncio.timeout(ASK_TIMEOUT_S):
            yield
    except TimeoutError:
        raise Timeout(f"the engine did not return log-probabilities within {ASK_TIMEOUT_S:g} s") from None


class _Used:
    """Counts the tokens sent to the engine; None: nothing was sent."""

    def __init__(self) -> None:
        self.tokens: int | None = None

    def add(self, rows: list[list[float]]) -> None:
        self.tokens = (self.tokens or 0) + sum(len(row) + 1 for row in rows)


def _tokens(texts: Sequence[str]) -> int:
    return max(1, sum(len(text) for text in texts) // BYTES_PER_TOKEN)


def _result_or_raise(answer: list[list[float]] | BaseException) -> list[list[float]]:
    if isinstance(answer, BaseException):
        raise answer
    return answer
