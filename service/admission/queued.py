"""A request in the admission queue or in the engine."""

from __future__ import annotations

from asyncio import Future
from enum import Enum, auto

from service.admission.fair import Flow
from service.admission.request import AdmissionRequest


class Stage(Enum):
    """A request's state; it only moves down this list."""

    NEW = auto()
    WAITING = auto()
    ADMITTED = auto()
    DONE = auto()


class QueuedRequest:
    """An admission request and its state in the queue. Times are seconds on the event loop's clock."""

    __slots__ = (
        "admitted_at",
        "arrived_at",
        "charge",
        "cold",
        "leaf",
        "prefill",
        "request",
        "stage",
        "started",
        "waiter",
    )

    def __init__(self, request: AdmissionRequest, leaf: Flow, arrived_at: float, prefill: int) -> None:
        self.request = request
        self.leaf = leaf
        self.arrived_at = arrived_at
        self.admitted_at = 0.0
        self.stage = Stage.NEW
        self.charge = 0.0
        """Tokens that its flow was charged on admission."""
        self.prefill = prefill
        """Prompt tokens that the engine must prefill before the first token, as far as one step may hold them."""
        self.cold = False
        """Its adapter was not in the engine's memory on admission, so this request loads it."""
        self.started = False
        """The engine has returned its first token."""
        self.waiter: Future[None] | None = None


class QueueCounts:
    """Event counts since the start, for telemetry."""

    __slots__ = ("admitted", "background", "cold", "left", "overloaded", "share_full", "timeouts", "withdrawn")

    def __init__(self) -> None:
        self.admitted = 0
        self.background = 0
        """Background requests among those admitted."""
        self.cold = 0
        """Requests admitted to load their adapter from disk."""
        self.left = 0
        self.overloaded = 0
        self.share_full = 0
        self.timeouts = 0
        self.withdrawn = 0
        """Requests that left the queue without being admitted: disconnects, timeouts, and the engine's stop."""
