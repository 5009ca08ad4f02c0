"""Finds and removes what nothing names any more: what crashes have left, and what was deleted while it was in use.

The gateway and the trainer clean up at their starts, and as they delete; this is for what has gathered since, and says
how much that is. What is younger than the grace stays: an upload has its bytes on the disk before its row is written.
An adapter's files are left to the next start of the engine while a gateway or an engine runs in this home, since an
engine that has loaded them may read them again. An engine at an address (HATRACK_ENGINE_URL) may run anywhere: they
stay as long as one is set.

With an object store, what it holds of adapters and files is held against the database, and the local folders, which
are only a cache of it, are left to the gateway. Its objects can go while engines run: these read the local copies.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from adapters.database.backend import Backend, DatabaseFault
from adapters.database.postgresql import PostgresServer
from adapters.names import is_digest
from adapters.store import STAGING, no_engine
from service.config import Settings
from service.config.engines import engine_dirs, engine_settings
from service.engine.process import is_running
from service.errors import SettingsError, StoreUnavailable
from service.files.blob_store import INCOMING
from service.objects.client import ObjectStore, StoredObject
from service.objects.marker import marked_url
from service.objects.owner import claim
from service.server.instance import InstanceLock, holder
from service.storage import GRACE_S, layout
from service.storage.agreement import require_agreement, require_own
from service.storage.errors import BackupError
from service.storage.objects import listed, opened, remove_if_older
from service.storage.references import References, references, run_statuses
from service.training.config import DATABASE as TRAINER_DATABASE

WHEN_ENGINE_STARTS: Final = "when the engine next starts"
WITHOUT_ENGINE_URL: Final = "once no engine runs: HATRACK_ENGINE_URL= hatrack gc"
WITHOUT_AGENT: Final = "once no agent runs: HATRACK_ENGINE_AGENT= hatrack gc"
WITHOUT_ENGINES: Final = "once none of its engines runs elsewhere: HATRACK_ENGINES= hatrack gc"
WHEN_TRAINER_STARTS: Final = "when the trainer next starts, which revokes its key"
CACHED: Final = ("adapter", "file")
"""Kinds of which the home has only copies where there is an object store."""
_STORE_SUFFIXES: Final = ("", "-wal", "-shm")


@dataclass(frozen=True, slots=True)
class Garbage:
    """Something on the disk that nothing names.

    Attributes:
        kind: What it was: `adapter`, `upload`, `file`, `vector store`, `batch`, `run` or `leftover`.
        paths: Its files or directories; none of what is in the object store.
        bytes: Their size.
        later: When it goes by itself, if it cannot be removed now; else None.
        objects: The names of its objects in the object store.
    """

    kind: str
    paths: tuple[Path, ...]
    bytes: int
    later: str | None = None
    objects: tuple[str, ...] = ()

    @property
    def key(self) -> tuple[tuple[Path, ...], tuple[str, ...]]:
        """What tells it from everything else."""
        return self.paths, self.objects


@dataclass(frozen=True, slots=True)
class _Found:
    """Something that is not named, before its age and size are known."""

    kind: str
    paths: tuple[Path, ...]
    later: str | None = None


def find_garbage(settings: Settings, *, grace_s: float = GRACE_S) -> list[Garbage]:
    """What nothing names any more, and is older than ``grace_s`` seconds. Changes nothing.

    Raises:
        BackupError: The database that names everything is not there, or does not answer; or an object store.
    """
    with no_engine(settings.store_dir) as no_engine_runs:
        return _find(settings, grace_s, is_alone=no_engine_runs and holder(settings.home) is None)


def remove_garbage(
    settings: Settings,
    *,
    grace_s: float = GRACE_S,
    removed: Callable[[Garbage], object],
    failed: Callable[[Garbage, str], object] = lambda garbage, reason: None,
    shown: Iterable[Garbage] | None = None,
) -> int:
    """Remove what `find_garbage` finds now; returns the bytes that are gone. No gateway and no engine can start
    meanwhile.

    Args:
        removed: Called with each that was removed, all of it.
        failed: Called with each of which something is still there, and the first reason.
        shown: What somebody has agreed to: nothing else is removed. None: whatever is found.

    Raises:
        BackupError: As `find_garbage`.
    """
    freed = 0
    agreed = None if shown is None else {each.key for each in shown}
    objects = opened(settings)
    with _no_gateway_starts(settings.home) as is_ours, no_engine(settings.store_dir) as no_engine_runs:
        for each in _find(settings, grace_s, is_alone=is_ours and no_engine_runs):
            if each.later is not None or (agreed is not None and each.key not in agreed):
                continue
            oldest = time.time() - grace_s
            if each.objects and not (objects is not None and remove_if_older(objects, each.objects, oldest)):
                continue
            problems = [problem for path in each.paths for problem in _remove(path)]
            if problems:
                freed += each.bytes - sum(map(_size, each.paths))
                failed(each, problems[0])
            else:
                freed += each.bytes
                removed(each)
    return freed


def _remove(path: Path) -> list[str]:
    """Remove a file, or a directory with all that can be removed of it; returns what could not, with the reasons."""
    problems = []

    def note(_function: object, name: str, failure: tuple[object, BaseException, object]) -> None:
        error = failure[1]
        if not isinstance(error, FileNotFoundError):
            problems.append(f"{name}: {error.strerror if isinstance(error, OSError) else error}")

    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, onerror=note)
        return problems
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        problems.append(f"{path}: {error.strerror}")
    return problems


def _find(settings: Settings, grace_s: float, *, is_alone: bool) -> list[Garbage]:
    home = settings.home
    require_agreement(settings)
    objects = opened(settings)
    if objects is not None:
        _demand_ours(objects, home)
    databases = layout.databases(settings)
    database, _ = databases[layout.DATABASE]
    source = database if isinstance(database, PostgresServer) else home / layout.DATABASE
    if isinstance(source, PostgresServer):
        _demand_schema(source)
    elif not source.is_file():
        raise BackupError(f"there is no home at {home}: {home / layout.DATABASE} does not exist (HATRACK_HOME)")
    require_own(settings)
    # the disk before the databases: what is registered in between is named, and stays
    listing = None if objects is None else listed(objects)
    candidates, folders = list(_candidates(home)), {parent: _entries(home / parent) for parent in layout.RUNS}
    named = references(source)
    # one without any run is a new one in the place of one that was lost: its folders are not garbage
    leftovers = _runs(folders, _run_statuses(home, databases) or None)
    found = [*(each for each in candidates if not _is_named(each, named)), *leftovers]
    adapters_later = _adapters_later(settings, is_alone=is_alone)
    oldest = time.time() - grace_s
    return [
        Garbage(each.kind, each.paths, sum(map(_size, each.paths)), _later(each, adapters_later))
        for each in found
        if not (listing is not None and each.kind in CACHED) and _changed_at(each.paths) <= oldest
    ] + ([] if listing is None else [_object_garbage(*each) for each in listing.unnamed(named, oldest)])


def _demand_ours(objects: ObjectStore, home: Path) -> None:
    """Raise BackupError unless this home's content is in the store, and nobody else's: it would be garbage."""
    try:
        if marked_url(home) != objects.url:
            raise BackupError(
                f"the content of {home} is not in the object store {objects.url} (HATRACK_STORE_URL), so nothing was "
                "removed; see `hatrack doctor`"
            )
        claim(objects, home)
    except SettingsError as error:
        raise BackupError(f"{error}. Nothing was removed") from error
    except StoreUnavailable as error:
        raise BackupError(f"the object store {objects.url} does not say whose it is: {error.reason}") from error


def _object_garbage(kind: str, objects: list[StoredObject]) -> Garbage:
    return Garbage(kind, (), sum(each.bytes for each in objects), objects=tuple(each.name for each in objects))


def _run_statuses(home: Path, databases: Mapping[str, tuple[Backend, Path]]) -> dict[str, bool] | None:
    trainer, _ = databases.get(TRAINER_DATABASE, (None, None))
    if isinstance(trainer, PostgresServer):
        return run_statuses(trainer)
    path = home / TRAINER_DATABASE
    return run_statuses(path) if path.is_file() else {}


def _demand_schema(server: PostgresServer) -> None:
    """Raise BackupError if nothing is there: an empty database names nothing, and all content would be garbage."""
    try:
        revision = server.revision()
    except DatabaseFault as error:
        raise BackupError(f"{error}. Nothing was removed") from error
    if revision is None:
        raise BackupError(
            f"{server.place} has no tables in the schema `{server.schema}`, so nothing can be told, and nothing was "
            "removed. Is HATRACK_DATABASE_URL the gateway's?"
        )


@contextmanager
def _no_gateway_starts(home: Path) -> Iterator[bool]:
    """Hold the home's lock, if no gateway does; yields whether it is held here."""
    try:
        lock = InstanceLock(home, "hatrack gc")
    except SettingsError:
        yield False
        return
    try:
        yield True
    finally:
        lock.release()


def _candidates(home: Path) -> Iterator[_Found]:
    """Everything on the disk that the gateway's database must name."""
    adapters = home / layout.ADAPTERS
    for folder in layout.folders(adapters):
        if is_digest(folder.name):
            yield _Found("adapter", (folder,))
    for path in _entries(adapters / STAGING):
        if not _is_locked(path):
            yield _Found("upload", (path,))
    for path in _entries(home / layout.FILES / INCOMING):
        yield _Found("upload", (path,))
    for path in _entries(home / layout.FILES):
        if path.is_file():
            yield _Found("file", (path,))
    for path in _entries(home / layout.STORES):
        if path.suffix == ".db":
            yield _Found("vector store", tuple(path.with_name(path.name + suffix) for suffix in _STORE_SUFFIXES))
    for folder in layout.folders(home / layout.BATCHES):
        yield _Found("batch", (folder,))


def _is_named(found: _Found, named: References) -> bool:
    name = found.paths[0].name
    return {
        "adapter": name in named.digests,
        "file": name in named.files,
        "vector store": name.removesuffix(".db") in named.generations,
        "batch": name in named.batches,
    }.get(found.kind, False)


def _runs(folders: Mapping[str, list[Path]], runs: Mapping[str, bool] | None) -> Iterator[_Found]:
    """Folders of runs that the trainer's database does not have, and what killed processes left in the others."""
    if runs is None:
        return
    for paths in folders.values():
        for path in paths:
            if path.name.startswith(".new-"):
                yield _Found("leftover", (path,))
            elif path.is_dir() and path.name not in runs:
                yield _Found("run", (path,), WHEN_TRAINER_STARTS if (path / "key").exists() else None)
            elif runs.get(path.name):
                for below in _entries(path):
                    if layout.is_leftover(below.name):
                        yield _Found("leftover", (below,))


def _adapters_later(settings: Settings, *, is_alone: bool) -> str | None:
    """When adapters can go, if not now: what an engine elsewhere has loaded is not known. Raises BackupError."""
    if settings.engine_url:
        return WITHOUT_ENGINE_URL
    if settings.engine_agent:
        return WITHOUT_AGENT
    try:
        if any(each.engine_is_elsewhere for each in engine_settings(settings)):
            return WITHOUT_ENGINES
    except SettingsError as error:
        raise BackupError(f"{error}. Nothing was removed") from error
    runs = any(is_running(directory) for directory in engine_dirs(settings))
    return None if is_alone and not runs else WHEN_ENGINE_STARTS


def _later(found: _Found, adapters_later: str | None) -> str | None:
    return adapters_later if found.kind == "adapter" else found.later


def _entries(directory: Path) -> list[Path]:
    try:
        return sorted(directory.iterdir())
    except (FileNotFoundError, NotADirectoryError):
        return []


def _is_locked(path: Path) -> bool:
    """Whether the process that stages this upload lives."""
    try:
        lock = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except OSError:
        return True
    try:
        fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(lock)
    return False


def _changed_at(paths: Iterable[Path]) -> float:
    """When the newest of these, or of what is in them, was written or linked, Unix seconds."""
    newest = 0.0
    for path in paths:
        for each in (path, *(path.rglob("*") if path.is_dir() else ())):
            with suppress(OSError):
                status = each.stat(follow_symlinks=False)
                newest = max(newest, status.st_mtime, status.st_ctime)
    return newest


def _size(path: Path) -> int:
    total = 0
    for each in (path, *(path.rglob("*") if path.is_dir() else ())):
        with suppress(OSError):
            if each.is_file():
                total += each.stat().st_size
    return total
