"""Restores a backup into an empty home, all or nothing, and says what a restore that was cut off has left.

HOME/RESTORE-UNFINISHED   from before the first file until after the last: no gateway starts in such a home
HOME/.restore/            what has been read and checked so far; moved into place once all of it is there
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Final

from pydantic import BaseModel

from adapters.blobs import fsync_directory
from adapters.database.backend import DatabaseFault
from adapters.database.marker import MARKER as DATABASE_MARKER
from adapters.database.marker import Location
from adapters.database.marker import Marker as DatabaseMarker
from adapters.database.migrations import newer_revision
from service.config import Settings
from service.errors import SettingsError
from service.objects.marker import mark
from service.objects.owner import TAKE_OVER
from service.server.instance import LOCK, InstanceLock
from service.storage import layout
from service.storage.archive import CHUNK_BYTES, Manifest, Progress, Readable, check_members, read_manifest, room_on
from service.storage.errors import BackupError, BackupNewer, NoRoom, TargetNotEmpty
from service.storage.objects import listed, opened
from service.storage.references import references

MARKER: Final = "RESTORE-UNFINISHED"
STAGING: Final = ".restore"
SPARE: Final = 1.05
"""Of the backup's size: what must be free for it."""


class Marker(BaseModel):
    """What the marker says, to a person and to the next `hatrack restore`."""

    what_to_do: str
    backup: str
    started_at: int
    entries: tuple[str, ...]
    """What the restore creates in the home. None of it was there before."""


@dataclass(frozen=True, slots=True)
class Restored:
    """A finished restore."""

    home: Path
    manifest: Manifest
    notes: tuple[str, ...]
    """What the operator must know of it."""


def restore(settings: Settings, backup: Path, progress: Progress) -> Restored:
    """Restore a backup into the home, which must hold no state yet. A base that is prepared there may stay.

    A restore that was cut off is begun anew.

    Raises:
        BackupDamaged: The file is not whole. Nothing is left of the attempt.
        BackupNewer: A newer release wrote it.
        TargetNotEmpty: The home holds state; nothing of it was touched.
        BackupError: A gateway runs in the home.
        NoRoom: There is no room for it. Nothing is left of the attempt.
    """
    home = settings.home
    manifest = read_manifest(backup)
    _refuse_newer(settings, backup, manifest)
    with room_on(home / STAGING):
        home.mkdir(parents=True, exist_ok=True, mode=0o700)
    with _no_gateway_starts(home):
        _remove_unfinished(home)
        occupied = [name for name in (*layout.BACKED_UP, DATABASE_MARKER) if _holds_something(home / name)]
        if occupied:
            raise TargetNotEmpty(
                f"{home} holds state already ({', '.join(occupied)}), and a restore never mixes two. Set HATRACK_HOME "
                "to another directory, or stop the gateway and move this one away"
            )
        _demand_room(home, manifest)
        on_servers = _on_servers(home / STAGING, manifest)
        written = [each.path.relative_to(home / STAGING).as_posix() for each in on_servers]
        written += [member.path for member in manifest.members]
        entries = tuple(sorted({name.partition("/")[0] for name in written}))
        try:
            _write_marker(home, backup, entries)
            _extract(home / STAGING, backup, manifest, progress)
            _mark_servers(on_servers)
        except BaseException:
            _remove_unfinished(home)
            raise
        _move_into_place(home, entries)
        if manifest.store_url:
            mark(home, manifest.store_url)
    return Restored(home, manifest, tuple(_notes(settings, manifest)))


@contextmanager
def _no_gateway_starts(home: Path) -> Iterator[None]:
    """Raise BackupError if a gateway, or another restore, works in this home."""
    try:
        with room_on(home / LOCK):
            lock = InstanceLock(home, "hatrack restore")
    except SettingsError as error:
        raise BackupError(f"{error}. Nothing was restored") from error
    try:
        yield
    finally:
        lock.release()


def unfinished_restore(home: Path) -> str | None:
    """What to do about a restore that was cut off, as a sentence; None if there is none."""
    if not (home / MARKER).exists():
        return None
    try:
        backup = Marker.model_validate_json((home / MARKER).read_bytes()).backup
    except ValueError:  # killed while it was written: nothing else is there
        backup = "FILE"
    return (
        f"{home} holds a restore that was cut off, and no gateway starts in it. Run `hatrack restore {backup}` again: "
        "it removes what is there of the first attempt and starts anew"
    )


def _refuse_newer(settings: Settings, backup: Path, manifest: Manifest) -> None:
    for name, (_, migrations) in layout.databases(settings).items():
        revision = manifest.schemas.get(name)
        if revision is not None and newer_revision(name, revision, migrations) is not None:
            raise BackupNewer(
                f"{backup} was written by Hatrack {manifest.hatrack}: {name} in it has the schema {revision}, which "
                "this release does not know yet. Restore it with that release"
            )


def _holds_something(path: Path) -> bool:
    if path.is_dir() and not path.is_symlink():
        return any(path.iterdir())
    return path.exists() or path.is_symlink()


def _demand_room(home: Path, manifest: Manifest) -> None:
    needed, free = int(manifest.bytes * SPARE), shutil.disk_usage(home).free
    if needed > free:
        raise NoRoom(f"the backup needs {needed} bytes under {home}, and {free} are free. Nothing was restored")


def _write_marker(home: Path, backup: Path, entries: tuple[str, ...]) -> None:
    marker = Marker(
        what_to_do="A restore into this directory did not finish. Run `hatrack restore` again, with the same "
        "HATRACK_HOME and the backup named below; it removes what is here of the first attempt and starts anew.",
        backup=str(backup.absolute()),
        started_at=int(time.time()),
        entries=entries,
    )
    with room_on(home / MARKER), _new_file(home / MARKER) as file:
        file.write(marker.model_dump_json(indent=1).encode() + b"\n")
        file.flush()
        os.fsync(file.fileno())
    fsync_directory(home)


def _extract(staging: Path, backup: Path, manifest: Manifest, progress: Progress) -> None:
    directories = {staging}

    def write(name: str, content: Readable) -> None:
        path = staging / name
        with room_on(staging):
            for parent in [parent for parent in path.parents if parent.is_relative_to(staging)][::-1]:
                parent.mkdir(exist_ok=True, mode=0o700)
                directories.add(parent)
            path.unlink(missing_ok=True)  # an earlier one of the same name
            with _new_file(path) as file:
                shutil.copyfileobj(content, file, CHUNK_BYTES)
                file.flush()
                os.fsync(file.fileno())

    with room_on(staging):
        staging.mkdir(mode=0o700)
    check_members(backup, manifest, progress, write)
    for directory in directories:
        fsync_directory(directory)


def _on_servers(staging: Path, manifest: Manifest) -> list[DatabaseMarker]:
    """The markers of the databases that are not in the backup, and of which it has the content."""
    markers = layout.markers(staging)
    has_runs = any(member.path.startswith(f"{layout.TRAINER}/") for member in manifest.members)
    return [
        marker
        for setting, marker in markers.items()
        if setting in manifest.outside and (setting == "database_url" or has_runs)
    ]


def _mark_servers(markers: Iterable[DatabaseMarker]) -> None:
    """Have no gateway start without a server on a home whose database is on one: a new file would name nothing.

    On which one is for the settings to say: it may be another one than before.
    """
    try:
        for marker in markers:
            marker.write(Location(None, None))
    except DatabaseFault as error:
        raise BackupError(f"{error}. Nothing was restored") from error


def _move_into_place(home: Path, entries: Iterable[str]) -> None:
    for name in entries:
        target = home / name
        if target.is_dir():
            target.rmdir()  # an empty one, as `_holds_something` has seen
        (home / STAGING / name).rename(target)
    (home / STAGING).rmdir()
    fsync_directory(home)
    (home / MARKER).unlink()
    fsync_directory(home)


def _remove_unfinished(home: Path) -> None:
    """Remove what an unfinished restore has created, and only that."""
    path = home / MARKER
    if not path.exists():
        return
    try:
        entries: tuple[str, ...] = Marker.model_validate_json(path.read_bytes()).entries
    except ValueError:
        entries = ()
    for name in (STAGING, *(entry for entry in entries if entry in (*layout.BACKED_UP, DATABASE_MARKER))):
        target = home / name
        if target.is_dir() and not target.is_symlink():
            shutil.rmtree(target)
        else:
            target.unlink(missing_ok=True)
    fsync_directory(home)
    path.unlink()


def _new_file(path: Path) -> BinaryIO:
    return os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600), "wb")


def _store_notes(settings: Settings, manifest: Manifest) -> Iterable[str]:
    """What is to be done about the object store, and what of the restored database it does not have."""
    if settings.store_url is not None and not manifest.store_url:
        yield "HATRACK_STORE_URL is set, and the backup has adapters and files in itself: run `hatrack move-store`"
    if manifest.store_url and settings.store_url != manifest.store_url:
        yield f"Adapters and files are in the object store {manifest.store_url}: set HATRACK_STORE_URL to it"
    elif manifest.store_url and layout.DATABASE in {member.path for member in manifest.members}:
        try:
            objects = opened(settings)
            named = references(settings.home / layout.DATABASE)
            missing = [] if objects is None else listed(objects).missing(named)
        except BackupError as error:
            yield f"{error}. What it should hold was not checked"
            return
        yield from (f"{name} is missing in the object store" for name in missing)


def _notes(settings: Settings, manifest: Manifest) -> Iterable[str]:
    base = manifest.base.get("source", "")
    if base and base != settings.base_source:
        yield (
            f"The backup is of a gateway with the base {base}; this machine's settings name {settings.base_source}. "
            "Adapters serve only with the base that they were made for: set HATRACK_BASE_MODEL"
        )
    if settings.database_url is not None and layout.DATABASE in {member.path for member in manifest.members}:
        yield (
            "HATRACK_DATABASE_URL is set, and the gateway reads that database, not the restored hatrack.db: unset it, "
            "or run `hatrack move-database` with an empty one (deploy/POSTGRESQL.md)"
        )
    yield from (layout.OUTSIDE[name] for name in manifest.outside if name in layout.OUTSIDE)
    yield from _store_notes(settings, manifest)
    if manifest.store_url:
        yield (
            "The object store belongs to the installation that was backed up. Once that is gone for good, take it: "
            f"`{TAKE_OVER}`"
        )
    if manifest.reindexed:
        yield f"{manifest.reindexed} documents of vector stores are indexed again at the first start"
    yield from manifest.faults
