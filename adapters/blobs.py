"""Write-once files: bounded in size, hashed while they are written, and made durable before they are used.

Shared by the adapter store and `service.files`. Everything here blocks: run it in a thread.
"""

import contextlib
import errno
import hashlib
import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

_NO_ROOM: Final = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})


class BlobWriter(ABC):
    """A new file of at most `max_bytes`, readable by its owner only."""

    def __init__(self, path: Path, *, max_bytes: int) -> None:
        self.path = path
        self.max_bytes = max_bytes
        self.bytes_written = 0
        self._hash = hashlib.sha256()
        with disk_errors(self.disk_full):
            self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)

    @abstractmethod
    def too_large(self) -> Exception:
        """The error for more than `max_bytes`."""

    @abstractmethod
    def disk_full(self) -> Exception:
        """The error for a full disk."""

    def write(self, data: bytes | memoryview) -> None:
        """Append `data`. Raises `too_large` (nothing of it is written), `disk_full`."""
        if self.bytes_written + len(data) > self.max_bytes:
            raise self.too_large()
        rest = memoryview(data)
        with disk_errors(self.disk_full):
            while rest:
                rest = rest[os.write(self._fd, rest) :]
        self._hash.update(data)
        self.bytes_written += len(data)

    @property
    def sha256(self) -> str:
        """The hex sha256 of everything written so far."""
        return self._hash.hexdigest()

    def finish(self) -> None:
        """Make the content durable and close the file. A second call does nothing. Raises `disk_full`."""
        if self._fd >= 0:
            with disk_errors(self.disk_full):
                os.fsync(self._fd)
            self.close()

    def close(self) -> None:
        """Close the file, durable or not. A second call does nothing."""
        if self._fd >= 0:
            fd, self._fd = self._fd, -1
            os.close(fd)


@contextlib.contextmanager
def disk_errors(disk_full: Callable[[], Exception]) -> Iterator[None]:
    """Raise `disk_full()` if the disk is full or the quota is exhausted; other OSErrors pass."""
    try:
        yield
    except OSError as error:
        if error.errno in _NO_ROOM:
            raise disk_full() from error
        raise


def fsync_directory(path: Path) -> None:
    """Make the entries of a directory durable."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
