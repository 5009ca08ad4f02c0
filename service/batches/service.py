"""Batches: create, list, show, cancel; and the tasks that run them, taken up again at every start."""

from __future__ import annotations

import asyncio
import secrets
import shutil
import string
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from typing import Any, Final, Protocol

import sqlalchemy as sa
from prometheus_client.metrics_core import Metric as Family

from service.access.audit import ADMIN_ID, Actor, note
from service.access.caller import Caller
from service.batches import records
from service.batches.asking import DataPath
from service.batches.records import UNFINISHED, BatchRow
from service.batches.run import BatchRun, RunContext
from service.batches.schemas import WINDOWS_S, BatchRequest, batch_object
from service.concurrency import in_thread
from service.config import MIB, Settings
from service.database import Database
from service.engine.watched import EngineState
from service.errors import BadRequest, Conflict, NotFound, RateLimited, TooLarge
from service.files.holds import hold_for_batch
from service.files.purposes import Purpose
from service.files.service import Files, not_found
from service.inference.routes import InferenceApp
from service.telemetry import metrics


class Engines(Protocol):
    """What answers the requests: one engine or several."""

    @property
    def ready(self) -> bool:
        """Whether any accepts requests."""

    @property
    def state(self) -> EngineState:
        """Why, if not."""

    def trouble_of(self, base: str) -> str | None:
        """Why no engine of this base accepts requests; None: one does."""


ID_CHARS: Final = 24
_ID_ALPHABET: Final = string.digits + string.ascii_letters


class Batches:
    """The batches of all projects.

    Args:
        context: What they run with.
        max_unfinished: Batches of a project that may not have ended.
        max_file_bytes: Largest input file.
    """

    def __init__(self, context: RunContext, *, max_unfinished: int, max_file_bytes: int) -> None:
        self._context = context
        self._database = context.database
        self._max_unfinished = max_unfinished
        self._max_file_bytes = max_file_bytes
        self._runs: dict[str, BatchRun] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    @classmethod
    def from_settings(
        cls,
        settings: Settings,
        database: Database,
        files: Files,
        inference: InferenceApp,
        engines: Engines,
        check_budget: Callable[[Caller], None],
    ) -> Batches:
        """The batches of a gateway; their requests go through ``inference``."""
        context = RunContext(
            database=database,
            files=files,
            root=settings.batches_dir,
            ask=DataPath(inference),
            keys=inference.pipeline.authenticator,
            check_budget=check_budget,
            engine_trouble=lambda: None if engines.ready else engines.state.reason,
            slots=asyncio.Semaphore(settings.batch_concurrency),
            concurrency=settings.batch_concurrency,
            answered={"completed": 0, "failed": 0},
            base_trouble=engines.trouble_of,
            max_requests=settings.batch_requests,
            max_body=int(settings.max_body_mib * MIB),
        )
        return cls(
            context,
            max_unfinished=settings.batch_unfinished,
            max_file_bytes=int(settings.batch_file_mib * MIB),
        )

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Run every batch that has not ended while this is open; then the requests in progress are cut, and asked again
        after the next start."""
        rows = await self._database.run(records.unfinished)
        await in_thread(self._remove_leftovers, {row.id for row in rows})
        for row in rows:
            self._start(row)
        self._database.resync.add(self._reload)
        try:
            yield
        finally:
            await self._database.resync.remove(self._reload)
            tasks = set(self._tasks)
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _reload(self) -> None:
        """Follow the database, which may have saved a batch, or a cancellation, whose request has failed."""
        for row in await self._database.run(records.unfinished):
            self._start(row)
            if row.status == "cancelling" and (run := self._runs[row.id]).row.status in ("validating", "in_progress"):
                run.cancel(row)

    def _remove_leftovers(self, unfinished: set[str]) -> None:
        root = self._context.root
        root.mkdir(parents=True, exist_ok=True, mode=0o700)
        for directory in root.iterdir():
            if directory.name not in unfinished:
                shutil.rmtree(directory, ignore_errors=True)

    def _start(self, row: BatchRow) -> None:
        if row.id in self._runs:
            return
        run = self._runs[row.id] = BatchRun(self._context, row)
        task = asyncio.create_task(self._run(run), name="batch")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _run(self, run: BatchRun) -> None:
        try:
            await run.run()
        finally:
            del self._runs[run.row.id]

    # reading

    async def show(self, caller: Caller, batch_id: str) -> dict[str, Any]:
        """One batch. Raises NotFound."""
        row = await self._database.run(lambda db: records.find(db, batch_id, caller))
        if row is None:
            raise _not_found(batch_id)
        return self._shown(row)

    async def page(self, caller: Caller, *, after: str | None, limit: int) -> dict[str, Any]:
        """A page of the batches that the caller may see, newest first. Raises BadRequest if ``after`` is none."""
        rows = await self._database.run(lambda db: records.page(db, caller, after, limit + 1))
        if rows is None:
            raise BadRequest("`after` is not the id of a batch in this list", param="after")
        data = [self._shown(row) for row in rows[:limit]]
        return {
            "object": "list",
            "data": data,
            "first_id": data[0]["id"] if data else None,
            "last_id": data[-1]["id"] if data else None,
            "has_more": len(rows) > limit,
        }

    def _shown(self, row: BatchRow) -> dict[str, Any]:
        run = self._runs.get(row.id)
        if run is None or row.status not in UNFINISHED:
            return batch_object(row)
        waiting = run.pace.waiting if row.status == "in_progress" else None
        return batch_object(row, run.counts, None if waiting is None else waiting.shown)

    # changing

    async def create(self, caller: Caller, request: BatchRequest, *, actor: Actor) -> dict[str, Any]:
        """Create a batch; its input file is checked, and its requests are asked, after the answer.

        Raises:
            NotFound: The caller has no such file.
            BadRequest: The file is for something else.
            TooLarge: The file is too large, or the project's files leave no room for results.
            RateLimited: The project has too many batches that have not ended.
            QuotaSpent: The project's budget is spent.
        """
        file = await self._context.files.named(caller, request.input_file_id, (Purpose.BATCH,), "input_file_id")
        if file.bytes > self._max_file_bytes:
            raise TooLarge(
                f"`input_file_id`: the file has {file.bytes} bytes; a batch's may have at most {self._max_file_bytes} "
                "(HATRACK_BATCH_FILE_MIB). Split it",
                param="input_file_id",
            )
        await self._context.files.demand_any_room(caller.project)
        self._context.check_budget(caller)
        created_at = int(time.time())
        expiry = request.output_expires_after
        row = BatchRow(
            id="batch_" + "".join(secrets.choice(_ID_ALPHABET) for _ in range(ID_CHARS)),
            project=caller.project,
            key_id=caller.key_id,
            endpoint=request.endpoint,
            input_file_id=file.id,
            completion_window=request.completion_window,
            metadata=request.metadata,
            output_expires_s=None if expiry is None else expiry.seconds,
            created_at=created_at,
            expires_at=created_at + WINDOWS_S[request.completion_window],
            admin_hmac=self._context.keys.admin_hmac if caller.key_id == ADMIN_ID else None,
        )

        def work(db: sa.Connection) -> BatchRow:
            if (unfinished := records.count_unfinished(db, row.project)) >= self._max_unfinished:
                raise RateLimited(
                    f"the project has {unfinished} batches that have not ended, the maximum "
                    "(HATRACK_BATCH_UNFINISHED); wait for one to end, or cancel one",
                    code="too_many_batches",
                )
            if not hold_for_batch(db, row.project, row.id, file.id):
                raise not_found(file.id, "input_file_id")
            records.add(db, row)
            note(db, actor, "batch.create", row.id, {"endpoint": row.endpoint, "input_file_id": file.id})
            return row

        await self._database.run_or_ask(work, lambda db: records.find(db, row.id))
        self._start(row)
        return batch_object(row)

    async def cancel(self, caller: Caller, batch_id: str, *, actor: Actor) -> dict[str, Any]:
        """Cancel a batch: requests that are being answered may finish. One that is being cancelled is left as it is.

        Raises:
            NotFound: There is none.
            Conflict: It has ended, or is about to.
        """

        def work(db: sa.Connection) -> BatchRow:
            row = records.find(db, batch_id, caller)
            if row is None:
                raise _not_found(batch_id)
            if row.status in ("cancelling", "cancelled"):
                return row
            if row.status not in ("validating", "in_progress") or row.ending is not None:
                about = "" if row.ending is None else f" and about to be `{row.ending}`"
                raise Conflict(
                    f"the batch {row.id} cannot be cancelled: its status is `{row.status}`{about}", code="batch_final"
                )
            note(db, actor, "batch.cancel", row.id)
            return records.update(db, row.id, status="cancelling", cancelling_at=int(time.time()))

        row = await self._database.run(work)
        run = self._runs.get(row.id)
        if run is not None and row.status == "cancelling":
            run.cancel(row)
        return self._shown(row)

    # metrics

    name = "batches"

    async def families(self) -> Iterator[Family]:
        """Metrics: batches that have not ended, their requests in the gateway, and those answered since the start."""
        runs = list(self._runs.values())
        statuses = [run.row.status for run in runs]
        return iter(
            [
                metrics.BATCHES.values(((status,), statuses.count(status)) for status in UNFINISHED),
                metrics.BATCH_IN_FLIGHT.value(sum(run.asker.answering for run in runs)),
                metrics.BATCH_ANSWERED.values(((name,), count) for name, count in self._context.answered.items()),
            ]
        )


def _not_found(batch_id: str) -> NotFound:
    return NotFound(f"no such batch: {batch_id[:80]!r}", param="batch_id", code="batch_not_found")
