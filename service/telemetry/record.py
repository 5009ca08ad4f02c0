"""The record of a finished inference request, and the accounts that receive it."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from service.access.caller import Caller
from service.access.refusals import REFUSED, Refusals
from service.grounding.outcome import GroundingResult
from service.http.stream import TokenUsage
from service.registry.catalog import Target
from service.telemetry.logs import FIELDS

if TYPE_CHECKING:
    from service.telemetry.traces import RequestSpan

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
    usage: TokenUsage | None = None
    first_byte_s: float | None = None
    """Of a stream: of its first token."""
    total_s: float = 0.0
    queue_s: float | None = None
    """Time in the admission queue; None if it was never queued."""
    fetch_s: float = 0.0
    """Time that it waited for its adapter's files from the object store."""
    sent_s: float | None = None
    """When it was sent to the engine; None if it was not."""
    engine_s: float = 0.0
    """Its share of the engine's time (`service.engine.busy`)."""
    estimate: int = 0
    """Estimated tokens of prompt and answer."""
    prompt: int = 0
    """Estimated tokens of the prompt."""
    counted: int = 0
    """Tokens that the engine tokenized without running the model: charged to the key, but not counted as usage."""
    gaps: list[float] = field(default_factory=list)
    """Of a stream: times between events with tokens, s."""
    reached: bool = False
    """The engine accepted it."""
    fallback_tokens: int | None = None
    """Tokens to charge if the engine gave no count; None: nothing was sent to it."""
    span: RequestSpan | None = None
    grounded: GroundingResult | None = None
    """The result of retrieval; None if the request was not grounded."""
    peer: str = ""
    """The client's address."""
    forwarded: bool = False
    """A front has passed it to its gateway, which counts it."""

    @property
    def tokens(self) -> int | None:
        """Tokens to charge: the engine's count, else ``fallback_tokens``; None: nothing was sent to the engine."""
        if self.usage is not None:
            return self.usage.prompt_tokens + self.usage.completion_tokens + self.counted
        return self.fallback_tokens


Account = Callable[[Record], None]
"""Called with the record of every inference request once it is over; must be quick and must not raise."""


class Accounts:
    """Calls several accounts in order; an exception in one does not affect the others."""

    def __init__(self, *accounts: Account) -> None:
        self._accounts = accounts
        self._log = logging.getLogger("hatrack.inference")

    def __call__(self, record: Record) -> None:
        for account in self._accounts:
            try:
                account(record)
            except Exception:
                self._log.exception("an account failed", extra={"request_id": record.request_id})


class RefusalAccount:
    """Counts requests that were denied access, for the audit log."""

    def __init__(self, refusals: Refusals) -> None:
        self._refusals = refusals

    def __call__(self, record: Record) -> None:
        if record.status in REFUSED:
            self._refusals.note(record.status, record.code, record.caller, record.peer, record.route, record.request_id)


class LogAccount:
    """Logs one structured line per request, without prompts and answers."""

    def __init__(self, logger: logging.Logger | None = None) -> None:
        self._log = logger or logging.getLogger("hatrack.inference")

    def __call__(self, record: Record) -> None:
        if not self._log.isEnabledFor(logging.INFO):
            return
        caller, target, usage = record.caller, record.target, record.usage
        # made by hand: the logger would walk the stack for the caller's name, which this line does not show
        line = logging.LogRecord(self._log.name, logging.INFO, "", 0, "inference request", None, None)
        fields = {
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
            "engine_s": record.engine_s,
        }
        vars(line)[FIELDS] = {name: value for name, value in fields.items() if value is not None}
        self._log.handle(line)
