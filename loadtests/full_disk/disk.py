"""A small file system, and its room taken and given back."""

from __future__ import annotations

import sqlite3
import subprocess
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Final

SIZE_MIB: Final = 64
FILLER: Final = "filler"
CHUNK_BYTES: Final = 1 << 16


class FullDisk:
    """Takes the room of a home's file system, and gives it back.

    Args:
        home: The mount point.
    """

    def __init__(self, home: Path) -> None:
        self._home = home

    @contextmanager
    def leaving(self, room: int) -> Iterator[None]:
        """Take all but ``room`` bytes, with SQLite's write-ahead logs cut to nothing before."""
        for database in [*self._home.glob("*.db"), *self._home.glob("*/*.db")]:
            with closing(sqlite3.connect(database, timeout=60)) as connection:
                connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        filler = self._home / FILLER
        with filler.open("wb", buffering=0) as file:
            with suppress(OSError):  # what is full says so
                while True:
                    file.write(bytes(CHUNK_BYTES))
            file.truncate(max(0, file.tell() - room))
        try:
            yield
        finally:
            filler.unlink()


@contextmanager
def small_disk(mount_point: Path, size_mib: int = SIZE_MIB) -> Iterator[None]:
    """A file system of that size, mounted; needs root."""
    mount_point.mkdir(parents=True)
    options = ["-t", "tmpfs", "-o", f"size={size_mib}m,mode=700", "tmpfs"]
    subprocess.run(["mount", *options, str(mount_point)], check=True, capture_output=True)
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", str(mount_point)], check=True, capture_output=True)
