"""One request at the gate."""

from __future__ import annotations

from asyncio import Future
from enum import Enum, auto

from service.admission.fair import Flow
from service.admission.ticket import Ticket


class Stage(Enum):
    """Where a request stands; it only moves down this list."""

    NEW = auto()
    WAITING = auto()
    IN = auto()
    OUT = auto()


class Entry:
    """A ticket and what the gate knows of it. Times are on the gate's clock, seconds."""

    __slots__ = ("came", "charge", "cold", "entered", "leaf", "prefill", "stage", "started", "ticket", "waiter")

    def __init__(self, ticket: Ticket, leaf: Flow, came: float) -> None:
        self.ticket = ticket
        self.leaf = leaf
        self.came = came
        self.entered = 0.0
        self.stage = Stage.NEW
        self.charge = 0.0
        """Tokens that its flow was charged when it was let in."""
        self.prefill = ticket.prompt or ticket.tokens
        """Prompt tokens that the engine has to read before its first token."""
        self.cold = False
        """Its adapter was not in the engine's memory when it was let in: the first request for it loads it."""
        self.started = False
        """The engine has shown its first token."""
        self.waiter: Future[None] | None = None
