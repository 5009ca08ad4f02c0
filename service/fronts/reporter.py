"""Reports to the gateway what a front's requests used, several times a second, each of them once."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from typing import Any, Final

from service.access.caller import Caller
from service.access.refusals import REFUSED
from service.fronts.link import GatewayAway, GatewayLink
from service.fronts.wire import REPORT_PATH
from service.telemetry.record import Record
from service.usage.counter import UsageCounter
from service.usage.records import UsageCounts

REPORT_S: Final = 0.25
"""Seconds between two reports: a front that is killed loses the usage of at most this much."""
ANSWER_S: Final = 10.0
RETRY_S: Final = 1.0
LAST_S: Final = 5.0
"""How long a front that stops goes on trying, s."""
MAX_REFUSED: Final = 1000
"""Refused requests in one report; more are not told apart in the audit, and nobody fills the memory with them."""
MAX_SUSPECTS: Final = 100
MAX_ROWS: Final = 10_000
"""Rows of usage in one report; the next one has the others."""
_COUNTS: Final = UsageCounts.__slots__
_LOG: Final = logging.getLogger("hatrack.front")


class Reporter:
    """Counts as an ``Account``, and reports.

    A batch has a number and is sent until the gateway says that it is applied; the next one has the next number. So
    nothing is counted twice, and nothing is lost while either side goes away and comes back.

    Args:
        link: To the gateway.
    """

    def __init__(self, link: GatewayLink) -> None:
        self._link = link
        self._usage = UsageCounter()
        self._refused: deque[list[Any]] = deque(maxlen=MAX_REFUSED)
        self._suspects: dict[tuple[str, str], None] = {}
        self._number = 0
        self._batch: dict[str, Any] | None = None
        """Sent, and not known to be applied."""
        self._failing = False

    @property
    def pending_rows(self) -> int:
        """Rows of usage that the gateway does not have yet."""
        return self._usage.pending_rows + (0 if self._batch is None else len(self._batch["rows"]))

    def __call__(self, record: Record) -> None:
        """Count a finished request; what the gateway answered, it has counted."""
        if record.forwarded:
            return
        self._usage(record)
        self.note(record.status, record.code, record.caller, record.peer, record.route, record.request_id)

    def note(
        self, status: int, code: str | None, caller: Caller | None, peer: str, path: str, request_id: str | None = None
    ) -> None:
        """Count a request answered with ``status``, if that refuses access, for the audit."""
        if status in REFUSED:
            key = None if caller is None else [caller.key_id, caller.project]
            self._refused.append([status, code, key, peer, path[:256], request_id])

    def suspect(self, digest: str, base: str) -> None:
        """An adapter's request failed in the engine."""
        if len(self._suspects) < MAX_SUSPECTS:
            self._suspects[digest, base] = None

    async def run(self) -> None:
        """Report until cancelled."""
        while True:
            await asyncio.sleep(REPORT_S)
            try:
                is_reported = await self.report()
            except Exception:  # whatever it is: nobody else reports
                _LOG.exception("usage could not be reported, and is kept")
                is_reported = False
            if not is_reported:
                await asyncio.sleep(RETRY_S)

    async def close(self) -> None:
        """Report what is left, if the gateway answers in time."""
        try:
            async with asyncio.timeout(LAST_S):
                while self.pending_rows or self._batch is not None:
                    if not await self.report():
                        await asyncio.sleep(RETRY_S / 4)
        except TimeoutError:
            _LOG.error("the usage of the last requests is lost", extra={"rows": self.pending_rows})

    async def report(self) -> bool:
        """Send what was counted, or the last batch once more; True unless that failed."""
        if self._batch is None:
            self._batch = self._next()
        if self._batch is None:
            return True
        try:
            await self._link.post(REPORT_PATH, self._batch, timeout_s=ANSWER_S)
        except GatewayAway as error:
            if not self._failing:
                _LOG.warning("usage cannot be reported, and is kept", extra={"reason": error.message})
            self._failing = True
            return False
        if self._failing:
            _LOG.info("usage is reported again")
        self._batch, self._failing = None, False
        self._usage.written()
        return True

    def _next(self) -> dict[str, Any] | None:
        counted = list(self._usage.take_rows().items())
        rows = counted[:MAX_ROWS]
        if len(rows) < len(counted):
            self._usage.put_back(dict(counted[MAX_ROWS:]))
        refused, suspects = list(self._refused), list(self._suspects)
        if not (rows or refused or suspects):
            return None
        self._refused.clear()
        self._suspects.clear()
        self._number += 1
        return {
            "number": self._number,
            "rows": [[*key, *(getattr(counts, name) for name in _COUNTS)] for key, counts in rows],
            "refused": refused,
            "suspects": suspects,
        }
