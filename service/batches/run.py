"""One batch from its validation to its end; begun again where a killed gateway left it."""

from __future__ import annotations

import asyncio
import logging
import shutil
import time
from collections.abc import Callable, Coroutine
from contextlib import AsyncExitStack, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Final, TypeVar

import sqlalchemy as sa

from service.access.audit import SYSTEM, note
from service.access.authentication import Authenticator
from service.access.caller import Caller
from service.batches import records
from service.batches.asker import AskContext, Asker
from service.batches.lines import ENVELOPE_BYTES, InputLines
from service.batches.pace import Pace
from service.batches.records import BatchRow, Ending
from service.batches.results import ERRORS, OUTPUT, Result, ResultLog, ResultWriter, refused_line
from service.batches.validation import check_input
from service.concurrency import in_thread
from service.database import Database, OutcomeUnknown
from service.errors import HatrackError, Internal, TooLarge, Unauthenticated, Unprocessable
from service.files import records as file_records
from service.files.holds import release_batch
from service.files.purposes import Purpose
from service.files.records import NewFile
from service.files.service import AdoptedFile, Charge, Files
from service.inference.relay import EMBEDDINGS

T = TypeVar("T")
RETRY_S: Final = 5.0
MAX_RETRY_S: Final = 300.0
MAX_FAILURES: Final = 3
"""Unexpected failures without a result in between, after which a batch fails."""
ENDINGS: Final[dict[str, Ending]] = {
    "done": "completed",
    "expired": "expired",
    "stopped": "cancelled",
    "key_gone": "failed",
}
"""How a batch ends, by why no more of its requests are asked."""
NOT_EXECUTED: Final = {
    "expired": ("batch_expired", "This request could not be executed before the completion window expired."),
    "failed": ("batch_failed", "This request was not executed, because the batch failed; its `errors` say why."),
}
"""Code and message of requests without a response, by how the batch ends."""
NAMES: Final = {OUTPUT: "output", ERRORS: "error"}
"""What a result file is in the batch's fields and its own name."""
_LOG: Final = logging.getLogger("hatrack.batches")


@dataclass(frozen=True, slots=True)
class RunContext(AskContext):
    """What all batches run with.

    ``keys`` has the batches' callers; ``max_body`` is in bytes.
    """

    database: Database
    files: Files
    root: Path
    keys: Authenticator
    check_budget: Callable[[Caller], None]
    engine_trouble: Callable[[], str | None]
    max_requests: int
    max_body: int


class BatchRun:
    """Runs one batch.

    Args:
        row: As it is stored.
    """

    def __init__(self, context: RunContext, row: BatchRow) -> None:
        self._context = context
        self.row = row
        self._log = ResultLog(context.root / row.id, row.id)
        # the embedder needs no engine; a request that does is refused and waited for like one whose engine is just gone
        trouble = context.engine_trouble if row.endpoint != EMBEDDINGS else lambda: None
        self.pace = Pace(self._caller, context.check_budget, trouble)
        self._writer = ResultWriter(self._log, self.pace.no_room)
        self.asker = Asker(context, self.pace, self._log, self._writer)

    @property
    def counts(self) -> dict[str, int]:
        """What it has done so far, by the columns of its row."""
        return self._log.tally.columns

    def cancel(self, row: BatchRow) -> None:
        """Begin no more requests, as the stored ``row`` says already."""
        self.row = replace(self.row, status=row.status, cancelling_at=row.cancelling_at)
        self.asker.stopping.set()

    async def run(self) -> None:
        """Run it to its end. What fails unexpectedly is begun again where it was, a few times."""
        failures, results = 0, 0
        while self.row.ended_at is None:
            try:
                if failures >= MAX_FAILURES and self.row.ending is None:
                    await self._fail(Internal("the gateway failed; its log has the reason"))
                await self._run()
                return
            except HatrackError as error:  # the database or the disk: neither is the batch's fault
                _LOG.warning("a batch waits: %s", error.message, extra={"batch": self.row.id})
                self.pace.no_room(error)
            except Exception:
                _LOG.exception("a batch failed unexpectedly", extra={"batch": self.row.id})
                if self._results > results:
                    failures, results = 0, self._results
                failures += 1
            await asyncio.sleep(min(RETRY_S * 2**failures, MAX_RETRY_S))

    @property
    def _results(self) -> int:
        return self._log.tally.completed + self._log.tally.failed

    async def _run(self) -> None:
        with self._context.files.charging(self.row.project) as charge:
            async with AsyncExitStack() as stack:
                with suppress(Unprocessable):  # lost: then it ends as one whose input was removed
                    await stack.enter_async_context(self._context.files.local(self.row.input_file_id))
                await self._ask(charge)
            await self._finish()

    async def _ask(self, charge: Charge) -> None:
        if self.row.status == "validating" and self.row.ending is None:
            await self._validate()
        if self.row.in_progress_at is not None:
            await self._answer_all(charge)
        elif self.row.ending is None:
            await self._decide("cancelled")

    async def _answer_all(self, charge: Charge) -> None:
        """Ask until it is decided how the batch ends, and write all that is to be in its result files."""
        await in_thread(self._log.open)
        self._writer.charge_to(charge)
        self.pace.no_room(None)
        if self.row.ending is None:
            reason = "stopped" if self.row.status == "cancelling" else await self._ask_all()
            await self._decide(ENDINGS[reason])
        await self._writer.finish()  # answers that waited for room are results, too
        if self.row.ending in NOT_EXECUTED:
            await self._write_not_executed(*NOT_EXECUTED[self.row.ending])
        await self._writer.finish()

    def _caller(self) -> Caller:
        return self._context.keys.caller_with_id(self.row.key_id, self.row.project, self.row.admin_hmac)

    def _input(self) -> InputLines:
        path = self._context.files.path(self.row.input_file_id)
        return InputLines(path, self._context.max_body + ENVELOPE_BYTES)

    async def _validate(self) -> None:
        """Check the input file: then the batch is in progress, or it is decided that it fails."""
        try:
            checked = await self._unless_stopped(
                check_input(self._input(), self.row.endpoint, self._context.max_requests, self._check_body)
            )
        except _KeyGone as gone:
            await self._fail(gone.error)
            return
        if checked is not None and checked.errors:
            await self._decide("failed", errors=checked.errors)
        elif checked is not None:
            found = {"total": checked.total, "model": checked.model}
            await self._update(("validating",), status="in_progress", in_progress_at=_now(), **found)

    def _check_body(self, body: bytes) -> str:
        if len(body) > self._context.max_body:
            raise TooLarge(f"the body has more than {self._context.max_body} bytes (HATRACK_MAX_BODY_MIB)")
        try:
            caller = self._caller()
        except Unauthenticated as error:
            raise _KeyGone(error) from None
        return self._context.ask.check(caller, self.row.endpoint, body)

    async def _unless_stopped(self, work: Coroutine[Any, Any, T]) -> T | None:
        """The result of ``work``; None if the batch is stopped before it is there."""
        working, stopping = asyncio.create_task(work), asyncio.create_task(self.asker.stopping.wait())
        try:
            await asyncio.wait({working, stopping}, return_when=asyncio.FIRST_COMPLETED)
            return working.result() if working.done() else None
        finally:
            working.cancel()
            stopping.cancel()
            await asyncio.gather(working, stopping, return_exceptions=True)

    async def _ask_all(self) -> str:
        reason = await self.asker.ask_all(self._input, self.row.endpoint, self.row.expires_at)
        error = self.asker.key_error
        if reason == "key_gone" and error is not None:
            await self._fail(error, f"; {self._results} of {self.row.total} requests have a result")
        return reason

    async def _fail(self, error: HatrackError, more: str = "") -> None:
        shown = {"code": error.code or "internal_error", "message": error.message + more, "param": None, "line": None}
        await self._decide("failed", errors=[shown])

    async def _decide(self, ending: Ending, **values: Any) -> None:
        """Write down how the batch will end, unless that stands already; a cancellation that was answered counts more.

        A batch that was never in progress has no `finalizing_at`: it has nothing to finalize.
        """
        if self.row.in_progress_at is not None:
            values |= {"status": "finalizing", "finalizing_at": _now()}
        await self._update(("validating", "in_progress"), ending=ending, **values)
        await self._update(("cancelling",), ending="cancelled")

    async def _update(self, only: tuple[str, ...], **values: Any) -> None:
        """Change the stored batch if its status is one of ``only``; ``row`` is then as it is stored."""

        def work(db: sa.Connection) -> BatchRow:
            row = records.find(db, self.row.id)
            if row is None:
                raise Internal(f"the batch {self.row.id} is missing in the database")
            return records.update(db, row.id, **values) if row.status in only else row

        self.row = await self._context.database.run(work)

    async def _write_not_executed(self, code: str, message: str) -> None:
        """Write the requests that have no result to the error file; none if the input is gone: the batch ends all the
        same."""
        parts = self._input().requests(self.row.endpoint, self._log.tally.has)
        error = {"code": code, "message": message}
        while True:
            try:
                part = await in_thread(next, parts, None)
            except FileNotFoundError:
                _LOG.exception("the input file of a batch is missing", extra={"batch": self.row.id})
                return
            if part is None:
                return
            results = (
                Result(line.number, False, (refused_line(self._log.id_of(line.number), line.custom_id, error),))
                for line in part
            )
            await self._writer.add(*results)

    async def _finish(self) -> None:
        """List the result files and end the batch, both in one transaction."""
        context, row, counts = self._context, self.row, self._log.tally.columns
        adopted: dict[str, AdoptedFile] = {}

        def saved(db: sa.Connection) -> BatchRow | None:
            stored = records.find(db, row.id)
            return stored if stored is not None and stored.ended_at is not None else None

        def work(db: sa.Connection) -> BatchRow:
            if (ended := saved(db)) is not None:
                return ended  # by an attempt of which it was not known
            ids = {f"{NAMES[name]}_file_id": file.id for name, file in adopted.items()}
            for name, file in adopted.items():
                file_records.add(db, _result_file(row, NAMES[name], file))
            release_batch(db, row.id)
            detail = {"status": row.ending, "total": row.total, "completed": counts["completed"]} | ids
            note(db, replace(SYSTEM, project=row.project), "batch.end", row.id, detail)
            return records.update(db, row.id, status=row.ending, ended_at=_now(), **counts, **ids)

        try:
            for name, path in self._log.files().items():
                adopted[name] = await context.files.adopt(path)
            self.row = await context.database.run_or_ask(work, saved)
        except OutcomeUnknown:  # they may be listed; if not, they go at the next start, or by `hatrack gc`
            raise
        except Exception:  # whatever it is, all of it is done again
            await context.files.discard([file.id for file in adopted.values()])
            raise
        listed = (self.row.output_file_id, self.row.error_file_id)
        if unlisted := [file.id for file in adopted.values() if file.id not in listed]:
            await context.files.discard(unlisted)
        await in_thread(shutil.rmtree, self._log.directory, ignore_errors=True)
        await context.files.try_collect()


class _KeyGone(Exception):
    """The key is not valid any more, which is not the fault of a line."""

    def __init__(self, error: Unauthenticated) -> None:
        self.error = error


def _result_file(row: BatchRow, name: str, file: AdoptedFile) -> NewFile:
    return NewFile(
        project=row.project,
        filename=f"{row.id}_{name}.jsonl",
        purpose=Purpose.BATCH_OUTPUT,
        expires_after_s=row.output_expires_s,
        key_id=row.key_id,
        **asdict(file),
    )


def _now() -> int:
    return int(time.time())
