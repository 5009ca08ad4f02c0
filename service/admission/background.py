"""The engine as proofs, canaries of adapters and warming see it: through the gate, in the lower class."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from typing import Final

from service.admission.gate import Gate
from service.admission.ticket import Ticket
from service.engine.client import EngineClient
from service.errors import RateLimited, Timeout, Unavailable

PROJECT: Final = ""
"""Of the gateway itself: no project has an empty name."""
KEY: Final = "hatrack"
PATIENCE_S: Final = 110.0
"""Longest wait at the gate, s; less than ASK_TIMEOUT_S, so that a full gate says so itself."""
ASK_TIMEOUT_S: Final = 120.0
"""Longest time for one question, the wait at the gate included, s: a cold adapter loads, and up to about 600 tokens are
read."""
NEIGHBOUR_PATIENCE_S: Final = 1.0
"""Longest wait for a slot for one more adapter, s, while the first has its place."""
BYTES_A_TOKEN: Final = 4


class GatedEngine:
    """Asks the engine in the background: behind callers, in their company, and counted like them.

    Args:
        engine: Who is asked.
        gate: Where the questions wait.
        base_name: The base's served name: it needs no slot.
    """

    def __init__(self, engine: EngineClient, gate: Gate, base_name: str) -> None:
        self._engine = engine
        self._gate = gate
        self._base_name = base_name

    async def logprobs(self, model: str, texts: Sequence[str]) -> list[list[float]]:
        """For each text the log-probabilities (nats) of its tokens but the first, under a digest or the base's name.

        Raises:
            Unavailable: There is no engine, no place in it came free in time, or the queue is full.
            Timeout: It took longer than ASK_TIMEOUT_S.
            AdapterNotFinite: The engine says that the adapter's numbers are not numbers.
            HatrackError: As the engine says.
        """
        async with _in_time(), self._place(None if model == self._base_name else model, _tokens(texts)) as used:
            rows = await self._engine.logprobs(model, texts)
            used.add(rows)
            return rows

    async def logprobs_together(
        self, adapter: str, neighbour: str | None, texts: Sequence[str]
    ) -> tuple[list[list[float]], list[list[float]], list[list[float]] | None]:
        """The same of the base, of an adapter and of its neighbour, all at the same time.

        Base and adapter share one place: two that waited for each other's prompt to be read would never meet. The
        neighbour is left out (None) where it gets no slot at once, and where the engine does not answer under it.

        Raises as ``logprobs``.
        """
        async with _in_time(), AsyncExitStack() as places:
            used = await places.enter_async_context(self._place(adapter, 2 * _tokens(texts)))
            models = [self._base_name, adapter]
            if neighbour is not None:
                with suppress(Unavailable, RateLimited):
                    await places.enter_async_context(self._place(neighbour, _tokens(texts), NEIGHBOUR_PATIENCE_S))
                    models.append(neighbour)
            answers = await asyncio.gather(
                *(self._engine.logprobs(model, texts) for model in models), return_exceptions=True
            )
            base, under = (_raised(answer) for answer in answers[:2])
            used.add(base)
            used.add(under)
            beside = answers[2] if len(answers) > 2 else None
            return base, under, None if isinstance(beside, BaseException) else beside

    @asynccontextmanager
    async def _place(self, adapter: str | None, tokens: int, patience_s: float = PATIENCE_S) -> AsyncIterator[_Used]:
        ticket = Ticket(PROJECT, KEY, adapter, tokens, background=True, prompt=tokens)
        place = await self._gate.enter(ticket, asyncio.get_running_loop().time() + patience_s)
        used = _Used()
        try:
            yield used
        finally:
            place.leave(used.tokens)


@asynccontextmanager
async def _in_time() -> AsyncIterator[None]:
    try:
        async with asyncio.timeout(ASK_TIMEOUT_S):
            yield
    except TimeoutError:
        raise Timeout(f"the engine gave no log-probabilities within {ASK_TIMEOUT_S:g} s") from None


class _Used:
    """How many tokens a place was used for; None: nothing reached the engine."""

    def __init__(self) -> None:
        self.tokens: int | None = None

    def add(self, rows: list[list[float]]) -> None:
        self.tokens = (self.tokens or 0) + sum(len(row) + 1 for row in rows)


def _tokens(texts: Sequence[str]) -> int:
    return max(1, sum(len(text) for text in texts) // BYTES_A_TOKEN)


def _raised(answer: list[list[float]] | BaseException) -> list[list[float]]:
    if isinstance(answer, BaseException):
        raise answer
    return answer
