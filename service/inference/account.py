"""What is known of a request when it is over, and who wants to know."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from typing import Literal, Protocol

from service.access.caller import Caller
from service.grounding.outcome import Grounded
from service.inference.ports import Span
from service.inference.relay import Usage
from service.registry.catalog import Target

Outcome = Literal["ok", "refused", "failed", "cut", "left"]
"""answered · 4xx · 5xx before the answer began · error event in a stream · the client left"""


@dataclass(slots=True)
class Record:
    """One inference request. Times are in seconds since its arrival."""

    request_id: str
    route: str
    caller: Caller | None = None
    target: Target | None = None
    stream: bool = False
    status: int = 0
    outcome: Outcome = "ok"
    code: str | None = None
    usage: Usage | None = None
    first_byte_s: float | None = None
    """Of a stream: of its first token."""
    total_s: float = 0.0
    queue_s: float | None = None
    """At the gate; None where it did not come that far."""
    sent_s: float | None = None
    """When it went to the engine; None where it did not."""
    estimate: int = 0
    """Tokens of prompt and answer, guessed."""
    prompt: int = 0
    """Tokens of the prompt, guessed."""
    gaps: list[float] = field(default_factory=list)
    """Of a stream: what passed between two events that brought tokens, s."""
    reached: bool = False
    """The engine took it."""
    span: Span | None = None
    grounded: Grounded | None = None
    """What was retrieved for it; None where nothing was asked for."""

    @property
    def tokens(self) -> int | None:
        """Tokens used: the engine's count, else the estimate; None where nothing reached the engine."""
        if self.usage is not None:
            return self.usage.prompt_tokens + self.usage.completion_tokens
        return self.estimate if self.reached else None


class Account(Protocol):
    """Is told of every request to an inference route once it is over; must be quick and must not raise."""

    def __call__(self, record: Record, /) -> None:
        """Take note of ``record``."""


class Accounts:
    """Several accounts as one: each is told, in order, and none suffers from another that raises."""

    def __init__(self, *accounts: Account) -> None:
        self._accounts = accounts
        self._log = logging.getLogger("hatrack.inference")

    def __call__(self, record: Record) -> None:
        for account in self._accounts:
            try:
                account(record)
            except Exception:
                self._log.exception("an account failed", extra={"request_id": record.request_id})


class LogAccount:
    """Writes one structured line for each request; prompts and answers are in none."""

    def __init__(self, logger: logging.Logger | None = None) -> None:
        self._log = logger or logging.getLogger("hatrack.inference")

    def __call__(self, record: Record) -> None:
        if not self._log.isEnabledFor(logging.INFO):
            return
        caller, target, usage = record.caller, record.target, record.usage
        # made by hand: the logger would walk the stack for the caller's name, which this line does not show
        line = logging.LogRecord(self._log.name, logging.INFO, "", 0, "inference request", None, None)
        vars(line).update(
            {
                "request_id": record.request_id,
                "route": record.route,
                "project": caller.project if caller else None,
                "key_id": caller.key_id if caller else None,
                "model": target.name if target else None,
                "digest": target.digest if target else None,
                "stream": record.stream,
                "status": record.status,
                "outcome": record.outcome,
                "code": record.code,
                "prompt_tokens": usage.prompt_tokens if usage else None,
                "completion_tokens": usage.completion_tokens if usage else None,
                "cached_tokens": usage.cached_tokens if usage else None,
                "usage_exact": usage.exact if usage else None,
                "first_byte_s": record.first_byte_s,
                "total_s": record.total_s,
            }
        )
        self._log.handle(line)
