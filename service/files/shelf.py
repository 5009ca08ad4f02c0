"""Where the bytes of files are: one file an id, named by it, whole or absent.

    HOME/files/<id>               complete and durable
    HOME/files/.incoming/<uuid>   an upload in progress

A file that is there under its id is complete, whatever was killed and when; whether it exists for anyone is said by its
row in the database. Everything here blocks: run it in a thread.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import uuid
from collections.abc import Collection, Iterator
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from service.errors import DiskFull, TooLarge

INCOMING: Final = ".incoming"
CHUNK_BYTES: Final = 1 << 20
_NO_ROOM: Final = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})


class Incoming:
    """One upload in progress: a context manager that leaves nothing behind unless ``keep`` was reached.

    Args:
        shelf: Where it goes.
        max_bytes: Most bytes that are taken.
    """

    def __init__(self, shelf: Shelf, *, max_bytes: int) -> None:
        self._shelf = shelf
        self._max_bytes = max_bytes
        self._hash = hashlib.sha256()
        self._path = shelf.incoming / uuid.uuid4().hex
        self.bytes = 0
        with _disk_errors():
            self._fd = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)

    @property
    def sha256(self) -> str:
        """The hex sha256 of everything written so far."""
        return self._hash.hexdigest()

    def write(self, data: bytes) -> None:
        """Append. Raises TooLarge (nothing of ``data`` is written), DiskFull."""
        if self.bytes + len(data) > self._max_bytes:
            raise TooLarge(f"`file` has more than {self._max_bytes} bytes", param="file")
        rest = memoryview(data)
        with _disk_errors():
            while rest:
                rest = rest[os.write(self._fd, rest) :]
        self._hash.update(data)
        self.bytes += len(data)

    def chunks(self) -> Iterator[bytes]:
        """Everything written so far, again."""
        offset = 0
        while data := os.pread(self._fd, CHUNK_BYTES, offset):
            yield data
            offset += len(data)

    def keep(self, file_id: str) -> None:
        """Put it in its place; durable when this returns. Raises DiskFull."""
        with _disk_errors():
            os.fsync(self._fd)
            self._path.rename(self._shelf.path(file_id))
            _fsync_directory(self._shelf.root)

    def discard(self) -> None:
        """Close it, and remove it where it was not kept. A second call does nothing."""
        if self._fd >= 0:
            fd, self._fd = self._fd, -1
            os.close(fd)
            self._path.unlink(missing_ok=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.discard()


class Shelf:
    """The files under ``root``; one process writes, threads of it may do so at once."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.incoming = root / INCOMING

    def open(self, kept: Collection[str]) -> int:
        """Make the directories, and remove what a crash left: unfinished uploads, and files that are not ``kept``.

        Returns:
            How many files were removed.
        """
        with _disk_errors():
            self.incoming.mkdir(parents=True, exist_ok=True)
            self.root.chmod(0o700)
            _fsync_directory(self.root.parent)
        left = [*self.incoming.iterdir(), *(p for p in self.root.iterdir() if p.is_file() and p.name not in kept)]
        for path in left:
            path.unlink(missing_ok=True)
        return len(left)

    def receive(self, *, max_bytes: int) -> Incoming:
        """Begin an upload. Raises DiskFull."""
        return Incoming(self, max_bytes=max_bytes)

    def path(self, file_id: str) -> Path:
        """Where the bytes of ``file_id`` are, which must be an id of a row."""
        return self.root / file_id

    def remove(self, file_ids: Collection[str]) -> None:
        """Remove the bytes; what reads one of them at this moment reads on."""
        for file_id in file_ids:
            self.path(file_id).unlink(missing_ok=True)


@contextlib.contextmanager
def _disk_errors() -> Iterator[None]:
    """Turns "no room" into DiskFull; any other OSError passes."""
    try:
        yield
    except OSError as error:
        if error.errno in _NO_ROOM:
            raise DiskFull("the disk is full: nothing of the file was kept") from error
        raise


def _fsync_directory(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
