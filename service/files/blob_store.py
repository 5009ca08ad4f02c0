"""Where the bytes of files are: one file an id, named by it, whole or absent.

    HOME/files/<id>               complete and durable
    HOME/files/.incoming/<uuid>   an upload in progress

A file that is there under its id is complete, whatever was killed and when; whether it exists for anyone is said by its
row in the database. Everything here blocks: run it in a thread.
"""

from __future__ import annotations

import hashlib
import os
import uuid
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Final

from adapters.blobs import BlobWriter, disk_errors, fsync_directory
from service.errors import DiskFull, TooLarge

INCOMING: Final = ".incoming"
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
        """Move it into the store; durable when this returns. Raises DiskFull."""
        self.finish()
        with disk_errors(_disk_full):
            self.path.rename(self._store.path(file_id))
            fsync_directory(self._store.root)

    def discard(self) -> None:
        """Close it, and remove it unless it was kept. May be called twice."""
        self.close()
        self.path.unlink(missing_ok=True)


class BlobStore:
    """The files under ``root``, named by their ids. For one process; its threads may write at once."""

    def __init__(self, root: Path) -> None:
        self.root = root
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

        The source stays. Returns the hex SHA-256 of its bytes. Raises DiskFull.
        """
        with disk_errors(_disk_full), source.open("rb") as file:
            sha256 = hashlib.file_digest(file, "sha256").hexdigest()
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
            incoming.keep(file_id)
        finally:
            incoming.discard()

    def path(self, file_id: str) -> Path:
        """The path of a file's bytes; ``file_id`` must be the id of a row."""
        return self.root / file_id

    def remove(self, file_ids: Collection[str]) -> None:
        """Remove the bytes of these files; open readers are not affected."""
        for file_id in file_ids:
            self.path(file_id).unlink(missing_ok=True)


def _disk_full() -> DiskFull:
    return DiskFull("the disk is full; the file was not stored")
