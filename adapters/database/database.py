"""Runs units of work on a database, each in a transaction of its own, on worker threads: the event loop never waits.

All units that may write run one after the other on one thread, in the order in which they were asked for, whichever the
database is: what depends on that order (a snapshot is read again after each write) need not know. SQLite gains that no
write ever meets ``SQLITE_BUSY``; on PostgreSQL, where other processes may write too, a lock does the same between them.
"""

from __future__ import annotations

import asyncio
import logging
import sqlite3
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Final, TypeVar

import sqlalchemy as sa

from adapters.database.backend import Backend, DatabaseFault, Fault, TakenOver
from adapters.database.marker import Marker
from adapters.database.migrations import newer_revision, upgrade
from adapters.database.postgresql import PostgresServer
from adapters.database.resync import Resync
from adapters.database.sqlite import SqliteFile

T = TypeVar("T")
HOLD_CHECK_S: Final = 5.0
"""Seconds between two looks at whether this process still has the database to itself."""
CLOSE_S: Final = 10.0
"""How long closing waits for units that run before their connections to a server are cut."""
_LOG: Final = logging.getLogger("hatrack.database")


def backend_for(path: Path, url: str | None, schema: str, state: Sequence[str] = ()) -> Backend:
    """The schema of the server that ``url`` names, or the file at ``path`` where there is none.

    Args:
        state: Directories beside the file whose content the database names.
    """
    beside = [path.with_name(name) for name in state]
    marker = Marker(path, schema)
    return PostgresServer(url, schema, path.parent, (path, *beside), marker) if url else SqliteFile(path, marker)


def unusable(backend: Backend, revision: str | None, migrations: Path) -> str | None:
    """What is wrong with using a database that is at a revision, or has none, as a sentence; None if nothing is."""
    if (problem := backend.misplaced() or backend.foreign()) is not None:
        return problem
    return backend.unmoved() if revision is None else newer_revision(backend.place, revision, migrations)


class Database:
    """Runs units of work, each a function of one connection.

    A subclass names the errors that its users see; each takes a message.

    Args:
        backend: Where it is.
        migrations: Alembic's script directory.
        thread_name: Of the worker threads.
        json_deserializer: Reads stored JSON values; None: `json.loads`.

    Attributes:
        resync: Whoever keeps in memory what is stored here adds what reads it again.
    """

    title: ClassVar[str]
    """What its errors call it."""
    open_error: ClassVar[type[Exception]]
    disk_full_error: ClassVar[type[Exception]]
    unavailable_error: ClassVar[type[Exception]]
    query_error: ClassVar[type[Exception]]
    unknown_error: ClassVar[type[Exception]]
    """Of a unit that may have been saved, and the database does not say: what its row would name must stay."""

    def __init__(
        self,
        backend: Backend,
        *,
        migrations: Path,
        thread_name: str,
        json_deserializer: Callable[[str], Any] | None = None,
    ) -> None:
        self.backend = backend
        self.resync = Resync()
        self._is_closing = False
        self._migrations = migrations
        self._is_away = False
        self._watch: asyncio.Task[None] | None = None
        try:
            self._engine = backend.create_engine(json_deserializer)
        except DatabaseFault as error:
            raise self.open_error(str(error)) from error
        self._writer = ThreadPoolExecutor(max_workers=1, thread_name_prefix=thread_name)
        self._readers = (
            ThreadPoolExecutor(max_workers=backend.readers, thread_name_prefix=f"{thread_name}-read")
            if backend.readers
            else self._writer
        )

    async def open(self, on_taken: Callable[[], None] | None = None) -> None:
        """Create what is not there yet and bring it to the newest schema.

        Args:
            on_taken: Keep the database to this process alone, and call this, once, should another one take it all the
                same, after the server was away; from then on nothing is written. None: others may use it, too.

        Raises:
            open_error: It cannot be reached, is no database that this release can use, was written by a newer one, or
                another process keeps it to itself.
        """
        self.backend.prepare()
        loop = asyncio.get_running_loop()
        await loop.run_in_executor(self._writer, self._open, on_taken is not None)
        if on_taken is not None:
            self._watch = asyncio.create_task(self._watch_hold(on_taken), name="database-hold")

    def _open(self, alone: bool) -> None:
        try:
            if alone:
                self.backend.hold()
            self._migrate()
        except DatabaseFault as error:
            raise self.open_error(str(error)) from error
        except BaseException:
            self.backend.release()
            raise

    async def _watch_hold(self, on_taken: Callable[[], None]) -> None:
        failing = False
        while True:
            await asyncio.sleep(HOLD_CHECK_S)
            try:
                await asyncio.to_thread(self.backend.check_hold)
                failing = False
            except TakenOver as error:
                _LOG.error("%s: nothing is written any more, and this process ends", error)
                on_taken()
                return
            except DatabaseFault as error:
                if not failing:
                    _LOG.warning("%s; nothing is written until it is taken again", error)
                failing = True
            except Exception:
                _LOG.exception("it could not be checked whether the database is this process's alone")

    def check_schema(self) -> None:
        """Refuse a database that a newer release has written, or an empty one where there is state, before anything
        else is done. Raises open_error."""
        try:
            revision = self.backend.revision()
        except DatabaseFault as error:
            raise self.open_error(str(error)) from error
        if (problem := unusable(self.backend, revision, self._migrations)) is not None:
            raise self.open_error(problem)

    def _migrate(self) -> None:
        self.check_schema()
        try:
            with self._engine.begin() as connection:
                self.backend.begin_migration(connection)
                upgrade(connection, self._migrations, self.backend.directory)
                self.backend.mark(connection)
                self.backend.settle(connection)
        except DatabaseFault as error:
            raise self.open_error(str(error)) from error
        except (sa.exc.DBAPIError, sqlite3.DatabaseError) as error:
            reason = self.backend.reason(error)
            raise self.open_error(f"{self.backend.place} cannot be opened as {self.title}: {reason}") from error

    async def run(self, work: Callable[[sa.Connection], T], *, read_only: bool = False) -> T:
        """Run ``work`` in one transaction: committed when it returns, rolled back when it raises.

        A caller that is cancelled leaves the transaction to finish by itself: work is never cut in the middle.

        Args:
            read_only: It writes nothing, and need not see what was asked for before it and is not done yet: it may run
                beside the others.

        Raises:
            disk_full_error: The disk is full.
            unavailable_error: The server cannot be reached, or is busy. Nothing is saved then, nor will be, unless the
                connection was lost, or the server fell silent, in the moment of saving.
            query_error: It could not be used for another reason.
        """
        executor = self._readers if read_only else self._writer
        loop, timeout_s = asyncio.get_running_loop(), self.backend.answer_timeout_s
        unit = _Unit(loop, read_only)
        running = loop.run_in_executor(executor, self._attempt, work, unit)
        running.add_done_callback(_retrieve)
        try:
            done, _ = await asyncio.wait({running}, timeout=timeout_s)
        except asyncio.CancelledError:
            if timeout_s is not None:
                unit.orphan(partial(unit.while_running, self.backend.cut), timeout_s)
            raise
        if not done:
            saved = "nothing was saved" if self._give_up(unit) else "what was being saved may be saved"
            raise self.unavailable_error(f"{self.title} does not answer; {saved}")
        return running.result()

    async def run_or_ask(self, work: Callable[[sa.Connection], T], saved: Callable[[sa.Connection], T | None]) -> T:
        """`run` for work whose failure removes something: where it may have been saved all the same, ask.

        Args:
            saved: What ``work`` would have returned, had it been saved; None: it was not.

        Raises:
            unknown_error: It may have been saved.
            Exception: As `run`. It was not saved.
        """
        try:
            return await self.run(work)
        except (self.unavailable_error, self.query_error) as error:
            try:
                # a unit that may write: it begins when the failed one has ended, also on the server
                result = await self.run(saved)
            except (self.unavailable_error, self.query_error, self.disk_full_error):
                raise self.unknown_error(
                    f"{self.title} cannot be reached now, and may have saved this; look before you repeat it"
                ) from error
            if result is None:
                raise
            return result

    def _give_up(self, unit: _Unit) -> bool:
        """Have a unit fail that its caller no longer waits for, so that others do not wait for it either; whether
        nothing of it is saved."""
        is_lost = unit.abandon()
        if not is_lost and not unit.is_read_only:
            self.resync.request()
        unit.while_running(self.backend.cut)
        return is_lost

    def _attempt(self, work: Callable[[sa.Connection], T], unit: _Unit) -> T:
        unit.begin()
        try:
            result = self._transaction(work, unit.is_read_only, unit)
        except BaseException:
            if unit.is_in_doubt:
                unit.on_loop(self.resync.request)
            raise
        finally:
            unit.end()
        if unit.is_given_up:  # its caller has been told to try again, and it is saved
            unit.on_loop(self.resync.request)
        if self._is_away:
            self._is_away = False
            _LOG.info("%s answers again", self.backend.place)
            unit.on_loop(self.resync.wake)
        return result

    def _transaction(self, work: Callable[[sa.Connection], T], read_only: bool, unit: _Unit) -> T:
        if unit.abandoned or self._is_closing:  # while it waited for others
            raise self.unavailable_error(f"{self.title} does not answer; nothing was saved")
        try:
            with self._engine.begin() as connection:
                self.backend.begin(connection, read_only=read_only)
                result = work(connection)
                if not unit.begin_commit():
                    raise self.unavailable_error(f"{self.title} does not answer; nothing was saved")
        except (DatabaseFault, TakenOver) as error:
            # callers need not learn where it is; `_watch_hold` logs it
            raise self.unavailable_error(f"{self.title} is not held by this process now; nothing was saved") from error
        except sa.exc.DBAPIError as error:
            takes_no_writes = self.backend.takes_no_writes(error)
            fault = self.backend.fault(error)
            if fault is None or (takes_no_writes and read_only):
                raise
            if takes_no_writes:
                self._engine.dispose()  # its connections are good, and would be used for ever
            raise self._error(fault, error) from error
        return result

    def _error(self, fault: Fault, error: sa.exc.DBAPIError) -> Exception:
        if fault is Fault.DISK_FULL:
            return self.disk_full_error(self.backend.disk_full_message())
        if fault is Fault.UNAVAILABLE:
            if not self._is_away:  # once, not at every attempt
                _LOG.warning("%s cannot be used: %s", self.backend.place, self.backend.reason(error))
            self._is_away = True
            return self.unavailable_error(f"{self.title} cannot be reached now; try again")
        return self.query_error(f"{self.title} could not be used ({type(error.orig).__name__})")

    async def close(self) -> None:
        """Wait for queued work and close the connections. What a server that has fallen silent keeps from ending is
        cut off after CLOSE_S."""
        await self.resync.close()
        if self._watch is not None:
            self._watch.cancel()
            await asyncio.gather(self._watch, return_exceptions=True)
        if self._readers is not self._writer:
            await self._end(self._readers.shutdown, None)
        await self._end(self._engine.dispose, self._writer)
        await self._end(self.backend.release, self._writer)
        self._writer.shutdown(wait=True)

    async def _end(self, step: Callable[[], None], executor: ThreadPoolExecutor | None) -> None:
        """Do a step of closing, after what is queued in the executor."""
        ending = asyncio.ensure_future(asyncio.get_running_loop().run_in_executor(executor, step))
        if self.backend.answer_timeout_s is not None:
            await asyncio.wait({ending}, timeout=CLOSE_S)
            while not ending.done():
                self._is_closing = True  # for what is queued
                self.backend.cut()
                await asyncio.wait({ending}, timeout=1.0)
        await ending


class _Unit:
    """Whether a unit's caller has been told that there is no answer: then it must not be saved later, since the caller
    may do the same again, and a count would be added twice.

    Args:
        loop: The caller's.
        is_read_only: It writes nothing.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, is_read_only: bool) -> None:
        self.abandoned = False
        self.is_read_only = is_read_only
        self.is_given_up = False
        """Its caller was told that it may be saved."""
        self._commits = False
        self._thread: int | None = None
        self._when_begun: Callable[[], object] | None = None
        self._loop = loop
        self._lock = threading.Lock()

    @property
    def is_in_doubt(self) -> bool:
        """Whether it may be saved though it has failed."""
        return self._commits and not self.is_read_only

    def begin(self) -> None:
        """This thread runs it."""
        with self._lock:
            self._thread = threading.get_ident()
            if self._when_begun is not None:
                self.on_loop(self._when_begun)

    def orphan(self, end: Callable[[], None], after_s: float) -> None:
        """Its caller was cancelled, and it goes on alone: ``end`` it so long from now, or after it begins."""
        with self._lock:
            self._when_begun = partial(self._loop.call_later, after_s, end)
            self._when_begun()

    def end(self) -> None:
        """This thread goes on to other units."""
        with self._lock:
            self._thread = None

    def while_running(self, act: Callable[[int], None]) -> None:
        """Do something to the thread that runs it, if one does, before that goes on to another."""
        with self._lock:
            if self._thread is not None:
                act(self._thread)

    def on_loop(self, call: Callable[[], object]) -> None:
        """Call something on the event loop, unless that is closed."""
        with suppress(RuntimeError):
            self._loop.call_soon_threadsafe(call)

    def abandon(self) -> bool:
        """The caller waits no longer; False if it is too late to keep the unit from being saved."""
        with self._lock:
            self.abandoned = not self._commits
            self.is_given_up = self._commits
            return self.abandoned

    def begin_commit(self) -> bool:
        """Whether it may be saved: its caller still waits, or was cancelled."""
        with self._lock:
            self._commits = not self.abandoned
            return self._commits


def _retrieve(running: asyncio.Future[Any]) -> None:
    """Its caller may have gone, and then nobody else asks how it ended."""
    if not running.cancelled():
        running.exception()
