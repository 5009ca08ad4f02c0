"""Makes a backup of a home as one consistent unit, also while gateway and trainer run and write.

The order makes it one. What is copied later may be newer than what was copied before, and must then look like the state
that a killed process leaves, which every start repairs:

1. the trainer's database, then the runs' folders: a folder is never older than its row. Looks at held-out examples
   have no folder: of those that came since the database is copied again;
2. the batches' answers, before the gateway's database: a batch that ended since is not asked again;
3. the gateway's database: what the trainer has pushed and charged is in it;
4. the vector stores; documents that were replaced since are indexed again after the restore;
5. the write-once content that the gateway's database names.

Content that was deleted between 3 and 5, and runs that ended and looks that came in 1, or before 3, make a round of
their own: the databases are copied anew, of the content only what is new.
"""

from __future__ import annotations

import fcntl
import os
import secrets
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from adapters.blobs import fsync_directory
from adapters.names import is_digest
from adapters.store import CONFIG_FILE, WEIGHTS_FILE, digest_of
from service import __version__
from service.config import Settings
from service.storage import layout
from service.storage.agreement import require_agreement
from service.storage.archive import (
    FORMAT,
    ArchiveWriter,
    Header,
    Manifest,
    Progress,
    check_members,
    read_manifest,
    room_on,
)
from service.storage.errors import BackupError
from service.storage.objects import listed, opened
from service.storage.references import (
    References,
    keys_in_use,
    last_look,
    references,
    reindex,
    run_statuses,
    schema_of,
    snapshot,
    stored_generations,
)
from service.storage.restore import unfinished_restore
from service.training.config import DATABASE as TRAINER_DATABASE

MAX_ROUNDS: Final = 10
ROUND_PAUSE_S: Final = 0.5
PARTIAL: Final = ".partial"


@dataclass(frozen=True, slots=True)
class Backup:
    """A finished backup."""

    path: Path
    bytes: int
    manifest: Manifest


@dataclass(slots=True)
class _Copied:
    """What one round has left for the next: the files of folders as they were copied, and what it could not settle."""

    files: dict[str, dict[str, tuple[int, int]]] = field(default_factory=dict)
    unsettled: frozenset[str] = frozenset()


def make_backup(settings: Settings, target: Path, progress: Progress) -> Backup:
    """Write a backup of the home into the file ``target``, and verify it.

    It gets its name once it is whole; killed before, it leaves a directory `.NAME.partial`, which a later backup
    removes.

    Raises:
        BackupError: There is nothing to back up, a restore into the home was cut off, ``target`` exists, a database is
            damaged, or the settings do not say on which server it is.
        NoRoom: The disk is full; nothing is left of it.
    """
    elsewhere = layout.outside(settings)
    require_agreement(settings, addresses=False)
    _refuse_unusable(settings.home, elsewhere)
    if target.exists():
        raise BackupError(f"{target} exists already; a backup never replaces another one. Choose another name")
    if not target.parent.is_dir():
        raise BackupError(f"the directory {target.parent} does not exist")
    with _partial_directory(target) as scratch:
        maker = _Maker(settings, scratch, progress, elsewhere)
        try:
            manifest = maker.run()
        finally:
            maker.archive.close()
        check_members(maker.path, read_manifest(maker.path), progress)
        size = maker.path.stat().st_size
        try:
            os.link(maker.path, target)  # unlike a rename it never replaces a file that has come meanwhile
        except FileExistsError:
            raise BackupError(f"{target} exists already; a backup never replaces another one") from None
        except OSError:
            maker.path.rename(target)  # a file system without links
        fsync_directory(target.parent)
    return Backup(target, size, manifest)


def _refuse_unusable(home: Path, elsewhere: dict[str, str]) -> None:
    """Raise BackupError if there is nothing to back up, or not the whole of something."""
    if (unfinished := unfinished_restore(home)) is not None:
        raise BackupError(f"{unfinished}. Nothing was backed up")
    if "database_url" in elsewhere or (home / layout.DATABASE).is_file():
        return
    if _is_trainer_alone(home):
        return
    raise BackupError(f"there is nothing to back up: {home / layout.DATABASE} does not exist (HATRACK_HOME)")


def _is_trainer_alone(home: Path) -> bool:
    """Whether a home is that of a trainer elsewhere: it has never been a gateway's."""
    of_a_gateway = (name for name in layout.BACKED_UP if name != layout.TRAINER)
    return (home / TRAINER_DATABASE).is_file() and not any((home / name).exists() for name in of_a_gateway)


class _Maker:
    """One backup while it is written.

    Args:
        scratch: A directory for the archive and the copies of databases.
    """

    def __init__(self, settings: Settings, scratch: Path, progress: Progress, elsewhere: dict[str, str]) -> None:
        self._settings = settings
        self._home = settings.home
        self._scratch = scratch
        self._progress = progress
        self._elsewhere = elsewhere
        self._faults: dict[str, None] = {}
        self._schemas: dict[str, str | None] = {}
        self._done = 0
        self._total = 0
        self._copied = _Copied()
        self.path = scratch / "archive.tar"
        header = Header(format=FORMAT, hatrack=__version__, created_at=int(time.time()))
        self.archive = ArchiveWriter(self.path, header, self._moved)

    def run(self) -> Manifest:
        """Copy everything, in as many rounds as it takes, and finish the archive."""
        self._total = layout.bytes_below(self._home)
        for _ in range(MAX_ROUNDS):
            unsettled, reindexed, copies = self._round()
            if not unsettled or unsettled == self._copied.unsettled:
                break  # what stays is missing in the home itself
            self._copied.unsettled = unsettled
            time.sleep(ROUND_PAUSE_S)
        else:
            raise BackupError(
                f"no consistent copy in {MAX_ROUNDS} rounds: runs end, or files are deleted, faster than they are "
                "copied. Try again at a quieter time"
            )
        for name, copy in copies.items():
            self.archive.add(name, copy)
        if not _is_trainer_alone(self._home):
            self._copy_secrets()
        for name in sorted(unsettled):
            self._faults[f"{name} is missing in the home"] = None
        return self.archive.finish(
            schemas=self._schemas,
            base={"source": self._settings.base_source, "name": self._settings.base_served_name},
            outside=sorted(self._elsewhere),
            reindexed=reindexed,
            faults=tuple(self._faults),
            store_url=self._settings.store_url or "",
        )

    def _round(self) -> tuple[frozenset[str], int, dict[str, Path]]:
        """Copy what has changed.

        Returns:
            What the databases name and the disk has not; documents to index again; the copies of databases by name.
        """
        # a file that was moved to a server is still there, and no longer what the runs' folders belong to
        is_here = "trainer_database_url" not in self._elsewhere
        copies = self._copy_databases(sorted((self._home / layout.TRAINER).glob("*.db")) if is_here else [])
        for parent in layout.RUNS:
            for folder in layout.folders(self._home / parent):
                self._copy_folder(folder)
        for parent in (*layout.SPENT_KEYS, layout.BATCHES):
            self._copy_folder(self._home / parent)
        unsettled = self._newer_in_trainer(copies)
        if "database_url" in self._elsewhere:
            return self._copy_unnamed(copies, unsettled)
        if _is_trainer_alone(self._home):
            return frozenset(unsettled), 0, copies
        copies |= self._copy_databases([self._home / layout.DATABASE])
        named = references(copies[layout.DATABASE])
        if TRAINER_DATABASE in copies:
            dead = keys_in_use(copies[TRAINER_DATABASE]) - named.live_keys
            unsettled |= {f"the key {key_id} of a run that has not ended" for key_id in dead}
        stores = self._copy_databases([self._store_file(store_id) for store_id in sorted(named.generations)])
        reindexed = self._mend_stores(copies[layout.DATABASE], named, stores)
        unsettled |= self._copy_content(named)
        return frozenset(unsettled), reindexed, copies | stores

    def _newer_in_trainer(self, copies: dict[str, Path]) -> set[str]:
        """What has come into the trainer's database since it was copied, and the copied folders may build on."""
        copy, live = copies.get(TRAINER_DATABASE), self._home / TRAINER_DATABASE
        copied = {} if copy is None else run_statuses(copy)
        if copied is None:
            return set()  # an older trainer's
        now = (run_statuses(live) if live.is_file() else None) or {}
        if not copied and not now:
            self._note_lost_runs()
        if copy is None or not now:
            return set()
        newer = {f"the end of {run_id}" for run_id, over in now.items() if over and copied.get(run_id) is False}
        if not copied:  # beside the folders of its first runs it would look like a database that was lost
            newer.add("the first run")
        looks = last_look(live)
        return newer if looks == last_look(copy) else newer | {f"the look {looks}"}

    def _note_lost_runs(self) -> None:
        """Say it where folders of runs lie beside no database, or an empty one: nothing would go on with them."""
        count = sum(len(layout.folders(self._home / parent)) for parent in layout.RUNS)
        if count and not any(name.endswith("database_url") for name in self._elsewhere):
            folders = "1 folder of a run" if count == 1 else f"{count} folders of runs"
            self._faults[f"{TRAINER_DATABASE} is missing in the home, or has no runs, beside {folders}"] = None

    def _copy_secrets(self) -> None:
        for name in layout.SECRETS:
            is_given = name == layout.ADMIN_KEY and self._settings.admin_key is not None
            if self.archive.add(name, self._home / name) is None and not is_given:
                self._faults[f"{name} is missing in the home"] = None

    def _copy_unnamed(
        self, copies: dict[str, Path], unsettled: set[str]
    ) -> tuple[frozenset[str], int, dict[str, Path]]:
        """All local content, where the database that names it is not here."""
        stores = self._copy_databases(sorted((self._home / layout.STORES).glob("*.db")))
        if "store_url" not in self._elsewhere:
            for folder in layout.folders(self._home / layout.ADAPTERS):
                self._copy_folder(folder)
            for path in layout.files_of(self._home / layout.FILES):
                self._copy_once(path.relative_to(self._home).as_posix())
        return frozenset(unsettled), 0, copies | stores

    def _copy_databases(self, paths: list[Path]) -> dict[str, Path]:
        copies: dict[str, Path] = {}
        for path in paths:
            name = path.relative_to(self._home).as_posix()
            if not path.is_file():
                continue  # a store that nothing was put into yet
            copy = self._scratch / name.replace("/", "@")
            snapshot(path, copy, lambda _: None)
            if path.parent.name != layout.STORES:
                self._schemas[name] = schema_of(copy)
            copies[name] = copy
        return copies

    def _mend_stores(self, database: Path, named: References, stores: dict[str, Path]) -> int:
        missing: dict[str, frozenset[str]] = {}
        for store_id, generations in named.generations.items():
            copy = stores.get(self._store_file(store_id).relative_to(self._home).as_posix())
            missing[store_id] = generations - (stored_generations(copy) if copy is not None else set())
        return reindex(database, missing, lambda: secrets.token_hex(12))

    def _copy_folder(self, folder: Path) -> None:
        """Copy a folder whose files are appended to or replaced, until none of them changed meanwhile.

        A worker that writes all the time is left after some attempts, with what a kill at this moment would leave; the
        backup says so.
        """
        name = folder.relative_to(self._home).as_posix()
        restless = f"{name} was still changing when it was copied: its files may be of different moments"
        self._faults.pop(restless, None)  # of the round before
        for _ in range(MAX_ROUNDS):
            files = layout.file_states(folder)
            before = self._copied.files.get(name, {})
            if files == before:
                return
            for path in before.keys() - files.keys():
                self.archive.members.pop(f"{name}/{path}", None)
            for path, version in files.items():
                if before.get(path) != version and self.archive.add(f"{name}/{path}", folder / path) is None:
                    self.archive.members.pop(f"{name}/{path}", None)  # gone: an earlier copy does not count, either
            self._copied.files[name] = files
        if layout.file_states(folder) != self._copied.files[name]:
            self._faults[restless] = None

    def _copy_content(self, named: References) -> set[str]:
        """Copy adapters and files that are not in the archive yet; returns those that are named and not there.

        What is in an object store stays there, and is only looked for.
        """
        gone: set[str] = set()
        if "store_url" in self._elsewhere:
            self._look_for_objects(named)
            return gone
        digests = sorted(named.digests)
        for digest in digests:
            folder = f"{layout.ADAPTERS}/{digest}"
            members = [self._copy_once(f"{folder}/{name}") for name in (CONFIG_FILE, WEIGHTS_FILE)]
            if not all(members):
                gone.add(folder)
        for file_id, sha256 in sorted(named.files.items()):
            name = f"{layout.FILES}/{file_id}"
            if not self._copy_once(name):
                gone.add(name)
            elif self.archive.members[name].sha256 != sha256:
                self._faults[f"{name} is damaged in the home: it is not what was uploaded"] = None
        self._check_digests(digests)
        return gone

    def _look_for_objects(self, named: References) -> None:
        try:
            objects = opened(self._settings)
            missing = [] if objects is None else listed(objects).missing(named)
        except BackupError as error:
            self._faults[f"{error}. What it should hold was not checked"] = None
            return
        for name in missing:
            self._faults[f"{name} is missing in the object store"] = None

    def _copy_once(self, name: str) -> bool:
        return name in self.archive.members or self.archive.add(name, self._home / name) is not None

    def _check_digests(self, digests: list[str]) -> None:
        for digest in digests:
            weights = self.archive.members.get(f"{layout.ADAPTERS}/{digest}/{WEIGHTS_FILE}")
            if weights is None or not is_digest(digest):
                continue
            with suppress(FileNotFoundError):
                config = (self._home / layout.ADAPTERS / digest / CONFIG_FILE).read_bytes()
                if digest_of(config, weights.sha256) != digest:
                    self._faults[f"{layout.ADAPTERS}/{digest} is damaged in the home: not what its digest says"] = None

    def _store_file(self, store_id: str) -> Path:
        return self._home / layout.STORES / f"{store_id}.db"

    def _moved(self, size: int) -> None:
        self._done += size
        self._progress(min(self._done, self._total), self._total, "copying")


@contextmanager
def _partial_directory(target: Path) -> Iterator[Path]:
    """A directory beside ``target``, locked while it is used and removed at the end, whatever that is.

    What killed backups have left there is removed first: that to this name, and those to names that nobody chose.
    """
    scratch = target.with_name(f".{target.name}{PARTIAL}")
    for leftover in {scratch, *target.parent.glob(f".hatrack-*.tar{PARTIAL}")}:
        with suppress(FileNotFoundError, BlockingIOError), _locked(leftover):
            shutil.rmtree(leftover, ignore_errors=True)
    try:
        with room_on(scratch):
            scratch.mkdir(mode=0o700)
    except FileExistsError:
        raise BackupError(f"another `hatrack backup` is writing {target}") from None
    with _locked(scratch):
        try:
            yield scratch
        finally:
            shutil.rmtree(scratch, ignore_errors=True)


@contextmanager
def _locked(directory: Path) -> Iterator[None]:
    """Lock a directory. Raises BlockingIOError if its owner is alive."""
    lock = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    finally:
        os.close(lock)
