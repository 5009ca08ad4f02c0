"""The record of a finished inference request, and the accounts that receive it."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, Literal

from service.access.caller import Caller
from service.access.refusals import REFUSED, Refusals
from service.grounding.outcome import GroundingResult
from service.http.stream import TokenUsage
from service.registry.catalog import Target
from service.telemetry.logs import FIELDS, only_handler

if TYPE_CHECKING:
    from service.telemetry.traces import RequestSpan

_MESSAGE: Final = "inference request"
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
        fields = _fields(record)
        handler = only_handler(self._log)
        binary = None if handler is None else handler.binary()
        if handler is not None and binary is not None:
            handler.write_line(binary, self._log.name, _MESSAGE, fields)
            return
        # made by hand: the logger would walk the stack for the caller's name, which this line does not show
        line = logging.LogRecord(self._log.name, logging.INFO, "", 0, _MESSAGE, None, None)
        vars(line)[FIELDS] = fields
        self._log.handle(line)


def _fields(record: Record) -> dict[str, object]:
    """What a request's line shows; none of the values is None."""
    caller, target, usage = record.caller, record.target, record.usage
    fields: dict[str, object] = {"request_id": record.request_id, "route": record.route}
    if caller is not None:
        fields["project"], fields["key_id"] = caller.project, caller.key_id
    if target is not None:
        fields["model"] = target.name
        if target.digest is not None:
            fields["digest"] = target.digest
    fields["stream"], fields["status"], fields["outcome"] = record.stream, record.status, record.outcome
    if record.code is not None:
        fields["code"] = record.code
    if usage is not None:
        fields["prompt_tokens"], fields["completion_tokens"] = usage.prompt_tokens, usage.completion_tokens
        fields["cached_tokens"], fields["usage_exact"] = usage.cached_tokens, usage.exact
    if record.first_byte_s is not None:
        fields["first_byte_s"] = record.first_byte_s
    fields["total_s"], fields["engine_s"] = record.total_s, record.engine_s
    return fields
