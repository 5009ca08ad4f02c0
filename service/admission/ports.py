"""A queue before an engine and a place in it, as the data path uses them: here, or at the engine's agent."""

from __future__ import annotations

from typing import Protocol

from service.admission.request import AdmissionRequest
from service.admission.snapshot import QueueSnapshot
from service.engine.residency import ResidencySnapshot


class Permit(Protocol):
    """A place in the engine; see ``service.admission.queue.QueuePermit``."""

    def first_token(self) -> None:
        """The engine has returned the first token, so the prompt has been prefilled."""

    def leave(self, tokens: int | None, *, answered: bool = True) -> None:
        """The request has left the engine and used ``tokens``; None if nothing was sent. Further calls do nothing."""


class Queue(Protocol):
    """Admits requests to the engine; see ``service.admission.queue.AdmissionQueue``."""

    def try_enter(self, request: AdmissionRequest) -> Permit | None:
        """A place in the engine if one is known to be free for it; None: ask `enter`."""

    async def enter(self, request: AdmissionRequest, deadline: float) -> Permit:
        """Wait for a place in the engine, at most until ``deadline`` on the event loop's clock.

        Raises:
            RateLimited, Unavailable, EngineUnavailable: There is none; nothing was sent to the engine.
        """

    def require_open(self) -> None:
        """Raise EngineUnavailable if the engine is not running."""

    def snapshot(self) -> QueueSnapshot:
        """Point-in-time statistics of the queue, of all who use it."""

    @property
    def load(self) -> int:
        """Requests that are in the engine or queued for it."""

    @property
    def callers_load(self) -> tuple[int, int]:
        """Callers' requests that are queued, and that are in the engine."""


class LoadedAdapters(Protocol):
    """Which adapters the engine has in its memory."""

    def snapshot(self) -> ResidencySnapshot:
        """The current state."""
