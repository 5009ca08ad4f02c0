"""What the API of every kind does with its runs: made once, listed, cancelled, paused, resumed."""

from __future__ import annotations

import asyncio
import errno
import secrets
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

import sqlalchemy as sa
from pydantic import BaseModel

from trainer.config import Settings
from trainer.database import Database
from trainer.errors import Broken, Missing, NoSpace, WrongState
from trainer.http import CurrentCaller, list_object
from trainer.runs import journal, records
from trainer.runs.directories import RunDirectories
from trainer.runs.idempotency import Retry, made_before
from trainer.runs.kind import Kind
from trainer.runs.notifier import Notifier
from trainer.runs.protocol import Control
from trainer.runs.records import NO_FILTER, Draft
from trainer.runs.state import Run, Status

SETTLE_S: Final = 10.0
"""How long an answer to cancel, pause and resume waits for the worker, which looks between two steps."""
LOOK_S: Final = 0.5
TOO_MANY_RETRY_S: Final = 60


@dataclass(frozen=True, slots=True)
class RunKey:
    """The key that the gateway has minted for a run."""

    secret: str
    id: str


class RunService(ABC):
    """The runs of one kind, for its routes."""

    def __init__(self, kind: Kind[Any], settings: Settings, database: Database, notifier: Notifier) -> None:
        self.kind = kind
        self._settings = settings
        self._database = database
        self._notifier = notifier
        self._given_up: set[str] = set()
        """Ids of keys that the gateway revokes, because no run had been made with them when it asked."""

    @property
    def directories(self) -> RunDirectories:
        """The directories of its runs."""
        return self.kind.directories

    @abstractmethod
    async def show(self, run: Run) -> dict[str, Any]:
        """A run as the API shows it."""

    # making

    def new_id(self, prefix: str) -> str:
        """An id that no run has had."""
        return f"{prefix}-{secrets.token_hex(12)}"

    async def made_before(self, caller: CurrentCaller, retry: Retry | None) -> Run | None:
        """The run that the same request has made before. Raises KeyReused."""
        return await self._database.run(partial(self._made_before, caller=caller, retry=retry))

    async def make(
        self,
        caller: CurrentCaller,
        draft: Draft,
        spec: BaseModel,
        key: RunKey,
        retry: Retry | None,
        message: str | None,
    ) -> tuple[Run, bool]:
        """Make a run, whole or not at all.

        Args:
            draft: The run on record.
            spec: What its worker is to do.
            key: What its worker shows the gateway.
            retry: The Idempotency-Key that it is asked for with.
            message: Its first event.

        Returns:
            The run, and whether it was made now: another request with the same key may have been quicker.

        Raises:
            KeyReused: The Idempotency-Key came with another body.
            TooMany: The project has enough runs that are not over.
            NoSpace: The disk is full.
            Broken: The directory could not be made, or the gateway has given up.
        """
        try:
            await asyncio.to_thread(self.directories.make, draft.id, spec, key.secret)
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise NoSpace("the trainer's disk is full; nothing was made") from error
            raise Broken(f"the {self.kind.noun}'s folder could not be made") from error
        made = False
        try:
            run, made = await self._database.run(
                partial(self._add, caller=caller, draft=draft, retry=retry, message=message)
            )
        finally:
            if not made:
                await asyncio.to_thread(self.directories.discard, draft.id)
        self._notifier.notify()
        return run, made

    def _add(
        self, db: sa.Connection, caller: CurrentCaller, draft: Draft, retry: Retry | None, message: str | None
    ) -> tuple[Run, bool]:
        known = self._made_before(db, caller, retry)
        if known is not None:
            return known, False
        if draft.run_key_id in self._given_up:
            raise Broken(f"the gateway has stopped waiting for this {self.kind.noun}; nothing was made")
        limit = self._settings.max_queued
        if records.open_runs(db, self.kind.name, caller.project) >= limit:
            raise self.kind.too_many(
                f"the project has {limit} {self.kind.noun}s that are not over: wait, or cancel one",
                retry_after_s=TOO_MANY_RETRY_S,
            )
        run = records.add(db, draft, retry)
        return (run if message is None else journal.record_event(db, run, message)), True

    def _made_before(self, db: sa.Connection, caller: CurrentCaller, retry: Retry | None) -> Run | None:
        run_id = made_before(db, caller.project, self.kind.name, retry, time.time())
        return None if run_id is None else records.get(db, run_id)

    async def claim(self, caller: CurrentCaller, run_key_id: str) -> dict[str, Any] | None:
        """The run that was made with a key; None where there is none, and then there never will be.

        A gateway that has got no answer asks this before it revokes the key.
        """

        def ask(db: sa.Connection) -> Run | None:
            run = records.made_with(db, self.kind.name, caller.project, run_key_id)
            if run is None:  # a creation may still be under way: in this thread, after this
                self._given_up.add(run_key_id)
            return run

        run = await self._database.run(ask)
        return None if run is None else await self.show(run)

    # looking

    async def get(self, caller: CurrentCaller, run_id: str) -> dict[str, Any]:
        """One run. Raises Missing."""
        return await self.show(await self.row(caller, run_id))

    async def row(self, caller: CurrentCaller, run_id: str) -> Run:
        """One run as it is on record. Raises Missing: it is not there, or of an adapter that the key may not use."""
        return await self._database.run(lambda db: self.find(db, caller, run_id))

    def find(self, db: sa.Connection, caller: CurrentCaller, run_id: str) -> Run:
        """The same inside ``Database.run``. Raises Missing."""
        run = records.find(db, self.kind.name, caller.project, run_id)
        if run is None or not caller.may_see(run.adapters):
            raise Missing(f"there is no {self.kind.described} {run_id[:64]!r}", param=self.kind.param)
        return run

    async def page(
        self, caller: CurrentCaller, *, after: str | None, limit: int, metadata: Mapping[str, str] | None = NO_FILTER
    ) -> dict[str, Any]:
        """The project's runs, newest first; ``metadata`` as in ``records.page``. Raises Missing."""

        def read(db: sa.Connection) -> list[Run]:
            before = self.find(db, caller, after).number if after is not None else None
            return records.page(
                db,
                self.kind.name,
                caller.project,
                before=before,
                limit=limit + 1,
                may_see=lambda run: caller.may_see(run.adapters),
                metadata=metadata,
            )

        runs = await self._database.run(read)
        return list_object([await self.show(run) for run in runs[:limit]], len(runs) > limit)

    # changing

    async def cancel(self, caller: CurrentCaller, run_id: str) -> dict[str, Any]:
        """End a run for good. Raises Missing, WrongState."""
        return await self._want(caller, run_id, Control.CANCEL)

    async def pause(self, caller: CurrentCaller, run_id: str) -> dict[str, Any]:
        """Have a run stand still and give the device away. Raises Missing, WrongState."""
        return await self._want(caller, run_id, Control.PAUSE)

    async def resume(self, caller: CurrentCaller, run_id: str) -> dict[str, Any]:
        """Have a paused run go on, in its turn. Raises Missing, WrongState."""
        return await self._want(caller, run_id, Control.RUN)

    async def _want(self, caller: CurrentCaller, run_id: str, wanted: Control) -> dict[str, Any]:
        def note(db: sa.Connection) -> Run:
            run = self.find(db, caller, run_id)
            self._check_allowed(run, wanted)
            return records.change(db, run.id, wanted=wanted)

        run = await self._database.run(note)
        self._notifier.notify()
        deadline = time.monotonic() + SETTLE_S
        while not _settled(run) and run.wanted is wanted and time.monotonic() < deadline:
            await self._notifier.wait(LOOK_S)
            run = await self.row(caller, run_id)
        return await self.show(run)

    def _check_allowed(self, run: Run, wanted: Control) -> None:
        """Raise WrongState where that cannot be wanted of the run. Wanting the same again is no fault."""
        if run.over and not (wanted is Control.CANCEL and run.status is Status.CANCELLED):
            raise WrongState(f"the {self.kind.noun} `{run.id}` has ended: it is {run.status}")
        if wanted is not Control.CANCEL and run.wanted is Control.CANCEL:
            raise WrongState(f"the {self.kind.noun} `{run.id}` is being cancelled")


def _settled(run: Run) -> bool:
    """Whether what is wanted of the run has come true."""
    if run.wanted is Control.RUN:
        return run.status is not Status.PAUSED
    return run.over or (run.wanted is Control.PAUSE and run.status is Status.PAUSED)
