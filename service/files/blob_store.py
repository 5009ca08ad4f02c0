"""Where the bytes of files are: one file an id, named by it, whole or absent.

    HOME/files/<id>               complete and durable
    HOME/files/.incoming/<uuid>   an upload in progress
    files/<id>                    in the object store, if there is one: HOME/files is then a cache of it

A file that is there under its id is complete, whatever was killed and when; whether it exists for anyone is said by its
row in the database. It is in the object store before it is here. Everything here blocks: run it in a thread.
"""

from __future__ import annotations

import hashlib
import os
import uuid
from collections.abc import Collection, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Final

from adapters.blobs import BlobWriter, disk_errors, fsync_directory
from adapters.errors import Damaged
from service.errors import DiskFull, StoreUnavailable, TooLarge
from service.objects.client import NoSuchObject, ObjectStore, demand_room

INCOMING: Final = ".incoming"
FOLDER: Final = "files"
CHUNK_BYTES: Final = 1 << 20


class Incoming(BlobWriter):
    """An upload in progress. ``discard`` removes it, unless ``keep`` has stored it.

    Args:
        store: Where it goes.
        max_bytes: Most bytes that are taken.
    """

    def __init__(self, store: BlobStore, *, max_bytes: int) -> None:
        self._store = store
        super().__init__(store.incoming / uuid.uuid4().hex, max_bytes=max_bytes)

    def too_large(self) -> TooLarge:
        return TooLarge(f"`file` has more than {self.max_bytes} bytes", param="file")

    def disk_full(self) -> DiskFull:
        return _disk_full()

    def chunks(self) -> Iterator[bytes]:
        """Everything written so far, from the beginning."""
        offset = 0
        while data := os.pread(self._fd, CHUNK_BYTES, offset):
            yield data
            offset += len(data)

    def keep(self, file_id: str) -> None:
        """Move it into the store; durable when this returns. Raises DiskFull, StoreUnavailable."""
        self.finish()
        self._store.upload(self.path, file_id)
        self.settle(file_id)

    def settle(self, file_id: str) -> None:
        """Move it into the local store alone; durable when this returns. Raises DiskFull."""
        self.finish()
        with disk_errors(_disk_full):
            self.path.rename(self._store.path(file_id))
            fsync_directory(self._store.root)

    def discard(self) -> None:
        """Close it, and remove it unless it was kept. May be called twice."""
        self.close()
        self.path.unlink(missing_ok=True)


class BlobStore:
    """The files under ``root``, named by their ids. For one process; its threads may write at once.

    Args:
        objects: The object store that they are a cache of; None: there is none.
    """

    def __init__(self, root: Path, objects: ObjectStore | None = None) -> None:
        self.root = root
        self.objects = objects
        self.incoming = root / INCOMING

    def open(self, stored_ids: Collection[str]) -> int:
        """Create the directories; remove unfinished uploads and files whose id is not in ``stored_ids``.

        Returns:
            How many files were removed.
        """
        with disk_errors(_disk_full):
            self.incoming.mkdir(parents=True, exist_ok=True)
            self.root.chmod(0o700)
            fsync_directory(self.root.parent)
        orphans = [
            *self.incoming.iterdir(),
            *(path for path in self.root.iterdir() if path.is_file() and path.name not in stored_ids),
        ]
        for path in orphans:
            path.unlink(missing_ok=True)
        return len(orphans)

    def receive(self, *, max_bytes: int) -> Incoming:
        """Begin an upload. Raises DiskFull."""
        return Incoming(self, max_bytes=max_bytes)

    def adopt(self, source: Path, file_id: str) -> str:
        """Store a complete file under an id, by a hard link where the disk has them; durable when this returns.

        The source stays. Returns the hex SHA-256 of its bytes. Raises DiskFull, StoreUnavailable.
        """
        with disk_errors(_disk_full), source.open("rb") as file:
            sha256 = hashlib.file_digest(file, "sha256").hexdigest()
            self.upload(source, file_id)
            try:
                os.link(source, self.path(file_id))
            except OSError:
                self._copy(source, file_id)
            else:
                os.fsync(file.fileno())
                fsync_directory(self.root)
        return sha256

    def _copy(self, source: Path, file_id: str) -> None:
        incoming = self.receive(max_bytes=source.stat().st_size)
        try:
            with source.open("rb") as file:
                while data := file.read(CHUNK_BYTES):
                    incoming.write(data)
            incoming.settle(file_id)
        finally:
            incoming.discard()

    def upload(self, path: Path, file_id: str) -> None:
        """Have a complete file in the object store, if there is one. Raises StoreUnavailable."""
        if self.objects is not None:
            self.objects.upload(object_name(file_id), path)

    def fetch(self, file_id: str, sha256: str) -> int:
        """Bring a file here from the object store; returns its bytes. It appears whole, once it is verified.

        Raises:
            Damaged: The object store does not have it, or has other bytes.
            DiskFull, StoreUnavailable: It cannot be fetched now.
        """
        assert self.objects is not None  # noqa: S101  there are copies
        try:
            described = self.objects.stat(object_name(file_id))
            demand_room(self.root, described)
            incoming = self.receive(max_bytes=described.bytes)
            try:
                for chunk in self.objects.chunks(described):
                    incoming.write(chunk)
                if incoming.sha256 != sha256:
                    raise Damaged(f"The object store has other bytes for {file_id} than were uploaded.")
                incoming.settle(file_id)
                return incoming.bytes_written
            finally:
                incoming.discard()
        except NoSuchObject as error:
            raise Damaged(f"The object store has no {error}.") from error

    def sizes(self) -> dict[str, int]:
        """The bytes of each file that is here, the oldest first."""
        found = [(path.stat(), path.name) for path in self.root.iterdir() if path.is_file()]
        return {name: status.st_size for status, name in sorted(found, key=lambda each: each[0].st_mtime)}

    def drop(self, file_id: str) -> None:
        """Remove the local copy alone; open readers are not affected."""
        self.path(file_id).unlink(missing_ok=True)

    def path(self, file_id: str) -> Path:
        """The path of a file's bytes; ``file_id`` must be the id of a row."""
        return self.root / file_id

    def remove(self, file_ids: Collection[str]) -> None:
        """Remove the bytes of these files; open readers are not affected.

        What an object store that does not answer keeps of them, `hatrack gc` removes later.
        """
        for file_id in file_ids:
            self.drop(file_id)
        if self.objects is not None:
            with suppress(StoreUnavailable):
                self.objects.delete(map(object_name, file_ids))


def object_name(file_id: str) -> str:
    """The name of a file's object."""
    return f"{FOLDER}/{file_id}"


def _disk_full() -> DiskFull:
    return DiskFull("the disk is full; the file was not stored")
