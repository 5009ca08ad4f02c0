"""Where everything is in a home, and which of it a backup holds.

    hatrack.db                               the gateway's database
    database.json, trainer/database.json     which server has the database in place of the file
    admin.key, key.secret                    secrets
    adapters/DIGEST/, files/ID               write-once content, named by the database
    grounding/STORE.db                       passages and vectors of a vector store
    batches/ID/                              answers of a batch that runs
    trainer/*.db                             the trainer's database; older trainers had two more
    trainer/{jobs,evaluations,ladders}/ID/   the runs' folders
    trainer/spent*/ID                        keys of ended runs that are still to be revoked

Not in a backup: `base/` and `base-cache/` (prepared again from the base's source), `database.json` (a restore writes
it), `engine/`, `sources/`, logs, locks and sockets.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Final

from adapters.database.backend import Backend
from adapters.database.database import backend_for
from adapters.database.marker import Marker
from service.config import Settings
from service.database import MIGRATIONS, SCHEMA, STATE
from service.training.config import DATABASE as TRAINER_DATABASE

DATABASE: Final = "hatrack.db"
ADMIN_KEY: Final = "admin.key"
SECRETS: Final = (ADMIN_KEY, "key.secret")
ADAPTERS: Final = "adapters"
FILES: Final = "files"
STORES: Final = "grounding"
BATCHES: Final = "batches"
TRAINER: Final = "trainer"
TRAINER_SCHEMA: Final = "hatrack_trainer"
"""Of the trainer's database on a PostgreSQL server."""
RUNS: Final = ("trainer/jobs", "trainer/evaluations", "trainer/ladders")
SPENT_KEYS: Final = ("trainer/spent", "trainer/spent-evaluations", "trainer/spent-ladders")
BACKED_UP: Final = (DATABASE, *SECRETS, ADAPTERS, FILES, STORES, BATCHES, TRAINER)
"""The entries of a home that a backup holds, and that must not be there before it is restored."""
TRAINER_LOCK: Final = "trainer/trainer.lock"
"""Locked while a trainer runs in the home."""
WORKER_LOCK: Final = "worker.lock"
"""In a run's folder; empty of meaning on another machine."""
BACKUP_NAME: Final = "hatrack-%Y%m%dT%H%M%SZ.tar"
"""A backup's name by its time (UTC), where none is given."""
OUTSIDE: Final = {
    "database_url": "HATRACK_DATABASE_URL is set: the gateway's database is not in the backup. Dump it by its own "
    "means (`pg_dump`, or your provider's snapshots) right before each backup, and restore both together "
    "(deploy/POSTGRESQL.md).",
    "trainer_database_url": "HATRACK_TRAINER_DATABASE_URL is set: the trainer's database is not in the backup. Dump it "
    "as the gateway's (deploy/POSTGRESQL.md).",
    "store_url": "HATRACK_STORE_URL is set: adapters' weights and uploaded files are in that bucket, and not in the "
    "backup. Protect them by the bucket's own means (versioning and a retention lock, or replication; "
    "deploy/OBJECT_STORE.md).",
    "trainer_url": "HATRACK_TRAINER_URL is set: the database and the runs of that trainer are in its own `--home`, and "
    "only in the backup if that is this HATRACK_HOME. Else back that home up, too.",
}
"""What is kept elsewhere, by the setting that says where."""


def outside(settings: Settings) -> dict[str, str]:
    """What these settings keep outside the home, by the setting's name: a sentence for the operator."""
    return {name: text for name, text in OUTSIDE.items() if getattr(settings, name, None)}


def databases(settings: Settings, *, trainer_anywhere: bool = False) -> dict[str, tuple[Backend, Path]]:
    """The databases that are migrated, by their places in a home: where they are, and Alembic's script directory.

    Args:
        trainer_anywhere: Hold the trainer's to its marker, too, if the gateway does not start it (HATRACK_TRAINER_URL,
            HATRACK_TRAINER): then only its own settings need say where its database is, for a gateway to start.
    """
    gateway = backend_for(settings.home / DATABASE, settings.database_address, SCHEMA, STATE)
    found = {DATABASE: (gateway, MIGRATIONS)}
    trainer = find_spec("trainer")  # is not imported: it may be installed without the packages that it needs
    if trainer is not None and trainer.submodule_search_locations:
        migrations = Path(trainer.submodule_search_locations[0]) / "migrations"
        path, url = settings.home / TRAINER_DATABASE, settings.trainer_database_address
        runs = [Path(name).name for name in RUNS]
        backend = backend_for(path, url, TRAINER_SCHEMA, runs)
        if (settings.trainer_url or settings.trainer == "off") and not trainer_anywhere:
            backend.marker = None
        found[TRAINER_DATABASE] = (backend, migrations)
    return found


def markers(home: Path) -> dict[str, Marker]:
    """What says on which server a database is, by the setting that names that server."""
    return {
        "database_url": Marker(home / DATABASE, SCHEMA),
        "trainer_database_url": Marker(home / TRAINER_DATABASE, TRAINER_SCHEMA),
    }


def is_leftover(name: str) -> bool:
    """Whether a file or folder in a run's folder is what a killed process left of a replacement."""
    return name.startswith(".") and name.endswith((".partial", ".retired"))


def files_below(directory: Path) -> Iterator[Path]:
    """The regular files of a run or a batch, sorted; no locks, no leftovers. What goes away meanwhile is left out."""
    try:
        entries = sorted(directory.iterdir())
    except FileNotFoundError:
        return
    for entry in entries:
        if entry.is_symlink() or is_leftover(entry.name) or entry.name == WORKER_LOCK:
            continue
        if entry.is_dir():
            yield from files_below(entry)
        elif entry.is_file():
            yield entry


def files_of(directory: Path) -> list[Path]:
    """The files in a directory that are not hidden, sorted; none where it does not exist."""
    try:
        return sorted(entry for entry in directory.iterdir() if not entry.name.startswith(".") and entry.is_file())
    except FileNotFoundError:
        return []


def folders(directory: Path) -> list[Path]:
    """The folders in a directory that are not hidden, sorted; none where it does not exist."""
    try:
        return sorted(entry for entry in directory.iterdir() if not entry.name.startswith(".") and entry.is_dir())
    except FileNotFoundError:
        return []


def file_states(folder: Path) -> dict[str, tuple[int, int]]:
    """Size and time of change (ns) of every file in a folder, by its path there; none if there is no such folder."""
    files = {}
    for path in files_below(folder):
        with suppress(FileNotFoundError):
            status = path.stat()
            files[path.relative_to(folder).as_posix()] = (status.st_size, status.st_mtime_ns)
    return files


def bytes_below(home: Path) -> int:
    """Bytes of everything that a backup of the home may hold."""
    total = 0
    for name in BACKED_UP:
        path = home / name
        with suppress(OSError):
            if path.is_file():
                total += path.stat().st_size
            else:
                total += sum(size for size, _ in file_states(path).values())
    return total
