"""What the APIs of all kinds share: creating, listing, cancelling, pausing and resuming runs."""

from __future__ import annotations

import asyncio
import errno
import time
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Collection, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

import sqlalchemy as sa

from adapters.protocol.reports import Waiting
from trainer.config import Settings
from trainer.database import Database, OutcomeUnknown
from trainer.errors import DiskFull, InternalError, InvalidState, NotFinished, NotFound
from trainer.http import CurrentCaller, list_object
from trainer.runs import journal, records
from trainer.runs.directories import RunDirectories
from trainer.runs.idempotency import Retry, find_previous_run, retry_of
from trainer.runs.kind import Kind, RunDraft
from trainer.runs.notifier import Notifier
from trainer.runs.protocol import Control
from trainer.runs.records import NO_FILTER, NewRun
from trainer.runs.state import Event, Run, Status
from trainer.runs.waiting import WaitingLines

SETTLE_S: Final = 10.0
"""How long a response to cancel, pause or resume waits for the worker, which checks between steps."""
POLL_S: Final = 0.5
TOO_MANY_RETRY_S: Final = 60


@dataclass(frozen=True, slots=True)
class RunKey:
    """The API key that the gateway has created for a run."""

    secret: str
    id: str


class RunService(ABC):
    """The runs of one kind, for its routes."""

    def __init__(
        self, kind: Kind[Any], settings: Settings, database: Database, notifier: Notifier, lines: WaitingLines
    ) -> None:
        self.kind = kind
        self._lines = lines
        self._settings = settings
        self._database = database
        self._notifier = notifier
        self._abandoned_keys: set[str] = set()
        """Ids of keys that the gateway revokes because they had no run yet when it asked."""

    @property
    def directories(self) -> RunDirectories:
        """The directories of the kind's runs."""
        return self.kind.directories

    @abstractmethod
    async def show(self, run: Run, waiting: Waiting | None) -> dict[str, Any]:
        """The API object of a run; ``waiting`` is what it waits for, None if it waits for nothing."""

    async def show_to(self, caller: CurrentCaller, *runs: Run) -> list[dict[str, Any]]:
        """The API objects of runs, for this caller."""
        waiting = await self._lines.of(self.kind, caller, runs)
        return [await self.show(run, waiting.get(run.id)) for run in runs]

    # creating

    async def find_previous_run(self, caller: CurrentCaller, retry: Retry | None) -> Run | None:
        """The run that an earlier request with this Idempotency-Key created. Raises IdempotencyKeyReused."""
        return await self._database.run(partial(self._made_before, caller=caller, retry=retry))

    async def create_once(
        self,
        caller: CurrentCaller,
        content: object,
        key: RunKey,
        idempotency_key: str | None,
        draft: Callable[[], Awaitable[RunDraft]],
    ) -> tuple[dict[str, Any], bool]:
        """Create a run, unless an earlier request with this Idempotency-Key has created it.

        Args:
            content: The request's body.
            key: The key that the run's worker uses at the gateway.
            draft: Checks the request and describes the run; called only if it is new.

        Returns:
            The run's API object, and whether it already existed.

        Raises:
            IdempotencyKeyReused: The Idempotency-Key was used with a different body. Also what `draft` and `create_run`
                raise.
        """
        retry = retry_of(idempotency_key, content)
        previous = await self.find_previous_run(caller, retry)
        made = False
        if previous is None:
            previous, made = await self.create_run(caller, await draft(), key, retry)
        return (await self.show_to(caller, previous))[0], not made

    async def create_run(
        self, caller: CurrentCaller, draft: RunDraft, key: RunKey, retry: Retry | None
    ) -> tuple[Run, bool]:
        """Create a run atomically: its directory and its record.

        Returns:
            The run, and whether this call created it: a concurrent request with the same key may have been faster.

        Raises:
            IdempotencyKeyReused: The Idempotency-Key was used with a different body.
            TooManyRequests: The project has the maximum number of unfinished runs.
            DiskFull: The disk is full.
            InternalError: The directory could not be created, or the gateway has given up on the request.
            OutcomeUnknown: The database went away, and may have saved the run.
        """
        new_run = draft.new_run(
            self.kind.stages[0].waits_as, project=caller.project, key_id=caller.key_id, run_key_id=key.id
        )
        try:
            await asyncio.to_thread(self.directories.create, draft.id, draft.spec, key.secret)
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise DiskFull("the trainer's disk is full; nothing was created") from error
            raise InternalError(f"could not create the {self.kind.noun}'s directory") from error
        made = False
        try:
            run, made = await self._database.run_or_ask(
                partial(self._add, caller=caller, new_run=new_run, retry=retry),
                partial(self._added, run_id=new_run.id),
            )
        except (asyncio.CancelledError, OutcomeUnknown):
            made = True  # the transaction may be committed; if it is not, the next start removes the directory
            raise
        finally:
            if not made:
                await asyncio.to_thread(self.directories.discard, new_run.id)
        self._notifier.notify()
        return run, made

    def _add(self, db: sa.Connection, caller: CurrentCaller, new_run: NewRun, retry: Retry | None) -> tuple[Run, bool]:
        known = self._made_before(db, caller, retry)
        if known is not None:
            return known, False
        if new_run.run_key_id in self._abandoned_keys:
            raise InternalError(f"the gateway has stopped waiting for this {self.kind.noun}; nothing was created")
        limit = self._settings.max_queued
        if records.open_runs(db, self.kind.name, caller.project) >= limit:
            raise self.kind.too_many(
                f"the project has {limit} unfinished {self.kind.noun}s, the maximum: wait for one to end or cancel one",
                retry_after_s=TOO_MANY_RETRY_S,
            )
        run, message = records.add(db, new_run, retry), self.kind.created(new_run.id)
        return (run if message is None else journal.record_event(db, run, message)), True

    def _added(self, db: sa.Connection, run_id: str) -> tuple[Run, bool] | None:
        run = records.find_by_id(db, run_id)
        return None if run is None else (run, True)

    def _made_before(self, db: sa.Connection, caller: CurrentCaller, retry: Retry | None) -> Run | None:
        run_id = find_previous_run(db, caller.project, self.kind.name, retry, time.time())
        return None if run_id is None else records.get(db, run_id)

    async def claim(self, caller: CurrentCaller, run_key_id: str) -> dict[str, Any] | None:
        """The run that was created with a key; None if there is none, and then none can be created with it any more.

        A gateway that got no response to a creation calls this before it revokes the key.
        """

        def claim(db: sa.Connection) -> Run | None:
            run = records.find_by_run_key(db, self.kind.name, caller.project, run_key_id)
            if run is None:  # a creation under way must fail: its transaction runs after this one
                self._abandoned_keys.add(run_key_id)
            return run

        run = await self._database.run(claim)
        return None if run is None else (await self.show_to(caller, run))[0]

    def abandon(self, run_key_ids: Collection[str]) -> None:
        """No run can be created with these keys any more. To be called inside ``Database.run``, as in `claim`."""
        self._abandoned_keys |= set(run_key_ids)

    # reading

    async def get(self, caller: CurrentCaller, run_id: str) -> dict[str, Any]:
        """One run. Raises NotFound."""
        return (await self.show_to(caller, await self.row(caller, run_id)))[0]

    async def row(self, caller: CurrentCaller, run_id: str) -> Run:
        """One run as recorded. Raises NotFound if there is none, or if the key may not use its adapters."""
        return await self._database.run(lambda db: self.find(db, caller, run_id))

    def find(self, db: sa.Connection, caller: CurrentCaller, run_id: str) -> Run:
        """The same as `row`, to be called inside ``Database.run``. Raises NotFound."""
        run = records.find(db, self.kind.name, caller.project, run_id)
        if run is None or not caller.may_see(run.ownership):
            raise NotFound(f"no {self.kind.display_name} with the id {run_id[:64]!r}", param=self.kind.param)
        return run

    async def page(
        self, caller: CurrentCaller, *, after: str | None, limit: int, metadata: Mapping[str, str] | None = NO_FILTER
    ) -> dict[str, Any]:
        """A page of the project's runs, newest first; ``metadata`` as in ``records.page``. Raises NotFound."""

        def read(db: sa.Connection) -> list[Run]:
            before = self.find(db, caller, after).number if after is not None else None
            return records.page(
                db,
                self.kind.name,
                before=before,
                limit=limit + 1,
                caller=caller,
                metadata=metadata,
            )

        runs = await self._database.run(read)
        return list_object(await self.show_to(caller, *runs[:limit]), len(runs) > limit)

    async def events_page(
        self,
        caller: CurrentCaller,
        run_id: str,
        *,
        limit: int,
        show: Callable[[Event], dict[str, Any]],
        before: Callable[[Run], int | None] = lambda _run: None,
    ) -> dict[str, Any]:
        """A page of a run's events, newest first.

        Args:
            show: Gives the API object of an event.
            before: Gives the number of the event before which the page begins; None for the newest.

        Raises:
            NotFound: There is no such run. Also what `before` raises.
        """

        def read(db: sa.Connection) -> list[Event]:
            run = self.find(db, caller, run_id)
            return journal.newest(db, run.id, before=before(run), limit=limit + 1)

        events = await self._database.run(read)
        return list_object([show(event) for event in events[:limit]], len(events) > limit)

    async def output(self, caller: CurrentCaller, run_id: str, name: str) -> bytes:
        """The content of a file that a run has when it has succeeded, such as its report.

        Raises:
            NotFound: There is no such run, or it did not succeed, or the file is gone.
            NotFinished: The run has not ended.
        """
        run = await self.row(caller, run_id)
        noun = self.kind.noun
        if not run.over:
            raise NotFinished(f"the {noun} `{run.id}` is {run.shown_status} and has no report yet", retry_after_s=5)
        content = await asyncio.to_thread(self.directories.read_bytes, run.id, name)
        if run.status is not Status.SUCCEEDED or content is None:
            raise NotFound(f"the {noun} `{run.id}` is {run.status} and has no report", param="id")
        return content

    # changing

    async def cancel(self, caller: CurrentCaller, run_id: str) -> dict[str, Any]:
        """Cancel a run for good. Raises NotFound, InvalidState."""
        return await self._request_control(caller, run_id, Control.CANCEL)

    async def pause(self, caller: CurrentCaller, run_id: str) -> dict[str, Any]:
        """Pause a run and free the device. Raises NotFound, InvalidState."""
        return await self._request_control(caller, run_id, Control.PAUSE)

    async def resume(self, caller: CurrentCaller, run_id: str) -> dict[str, Any]:
        """Put a paused run back into the queue. Raises NotFound, InvalidState."""
        return await self._request_control(caller, run_id, Control.RUN)

    async def _request_control(self, caller: CurrentCaller, run_id: str, control: Control) -> dict[str, Any]:
        def record(db: sa.Connection) -> Run:
            run = self.find(db, caller, run_id)
            self._check_allowed(run, control)
            return records.request_control(db, run.id, control)

        run = await self._database.run(record)
        self._notifier.notify()
        deadline = time.monotonic() + SETTLE_S
        while not _settled(run) and run.wanted is control and time.monotonic() < deadline:
            await self._notifier.wait(POLL_S)
            run = await self.row(caller, run_id)
        return (await self.show_to(caller, run))[0]

    def _check_allowed(self, run: Run, control: Control) -> None:
        """Raise InvalidState if the run cannot be controlled this way now. Repeating the same request is allowed."""
        if run.over and not (control is Control.CANCEL and run.status is Status.CANCELLED):
            raise InvalidState(f"the {self.kind.noun} `{run.id}` cannot change any more: its status is {run.status}")
        if control is not Control.CANCEL and run.wanted is Control.CANCEL:
            raise InvalidState(f"the {self.kind.noun} `{run.id}` is being cancelled")


def _settled(run: Run) -> bool:
    """Whether the run is in the requested state. A run that waits has no worker of its own to wait for."""
    if run.wanted is Control.RUN:
        return run.shown_status is not Status.PAUSED
    return run.over or (run.wanted is Control.PAUSE and run.shown_status is Status.PAUSED)
