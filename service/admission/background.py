"""The engine as proofs, canaries of adapters and warming see it: through the gate, in the lower class."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Final, Protocol

from service.admission.gate import Gate
from service.admission.ticket import Ticket

PROJECT: Final = ""
"""Of the gateway itself: no project has an empty name."""
KEY: Final = "hatrack"
PATIENCE_S: Final = 110.0
"""Longest wait at the gate, s; whoever asks gives up after 60 or 120 s by itself."""
BYTES_A_TOKEN: Final = 4


class Probed(Protocol):
    """Gives log-probabilities: `service.engine.client.EngineClient`."""

    async def logprobs(self, model: str, texts: Sequence[str]) -> list[list[float]]:
        """For each text the log-probabilities (nats) of its tokens but the first."""
        ...


class GatedEngine:
    """Asks the engine in the background: behind callers, in their company, and counted like them.

    Args:
        engine: Who is asked.
        gate: Where the questions wait.
        base_name: The base's served name: it needs no slot.
    """

    def __init__(self, engine: Probed, gate: Gate, base_name: str) -> None:
        self._engine = engine
        self._gate = gate
        self._base_name = base_name

    async def logprobs(self, model: str, texts: Sequence[str]) -> list[list[float]]:
        """For each text the log-probabilities (nats) of its tokens but the first.

        Raises:
            Unavailable: No place in the engine came free in time, or the queue is full.
            HatrackError: As the engine says.
        """
        tokens = max(1, sum(len(text) for text in texts) // BYTES_A_TOKEN)
        adapter = None if model == self._base_name else model
        ticket = Ticket(PROJECT, KEY, adapter, tokens, background=True, prompt=tokens)
        place = await self._gate.enter(ticket, asyncio.get_running_loop().time() + PATIENCE_S)
        used: int | None = None
        try:
            rows = await self._engine.logprobs(model, texts)
            used = sum(len(row) + 1 for row in rows)
            return rows
        finally:
            place.leave(used)
