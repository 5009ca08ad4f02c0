"""Files that are being fetched: kept when a fetch breaks off, so that the next one asks for the rest.

    <home>/sources/<key>.part    what has come so far
    <home>/sources/<key>.json    {"offset", "total", "etag"}: what of it counts, and of which file it is a part

Only the bytes up to `offset` count, which were on the disk before the record was: after a `kill -9`, and also after a
power failure, the rest is cut off. Everything here blocks: run it in a thread.
"""

from __future__ import annotations

import contextlib
import hashlib
import math
import os
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from pydantic import BaseModel, Field, ValidationError

from adapters.blobs import disk_errors, fsync_directory
from adapters.errors import DiskFull

MAX_AGE_S: Final = 24 * 3600.0
MAX_PARTIALS: Final = 16
MAX_PROJECT_PARTIALS: Final = 4
CHECKPOINT_BYTES: Final = 16 * 1024 * 1024
READ_BYTES: Final = 1 << 20
_PART: Final = ".part"
_RECORD: Final = ".json"


def _disk_full() -> DiskFull:
    return DiskFull("The disk is full: what has come so far is kept; make room and push again.")


@dataclass(frozen=True, slots=True)
class Checksums:
    """Of a whole file: SHA-256 of its bytes, and the SHA-1 that Git gives it as a blob, both in hex."""

    sha256: str
    git: str


class _Record(BaseModel):
    offset: int = Field(ge=0)
    total: int | None
    etag: str | None


class Partial:
    """One file that is being fetched.

    `offset`: bytes that have come. `total`: size of the whole, None if it is not known. `etag`: the strong validator
    of the answer that they are from, None if it had none.
    """

    def __init__(self, path: Path) -> None:
        self.path = path.with_suffix(_PART)
        self._record = path.with_suffix(_RECORD)
        self.offset, self.total, self.etag = self._read_record()
        with disk_errors(_disk_full):
            self._fd = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            self.offset = min(self.offset, os.fstat(self._fd).st_size)
            os.ftruncate(self._fd, self.offset)
        self._durable = self.offset

    def _read_record(self) -> tuple[int, int | None, str | None]:
        try:
            record = _Record.model_validate_json(self._record.read_bytes())
        except (OSError, ValidationError):
            return 0, None, None
        return record.offset, record.total, record.etag

    def restart(self, total: int | None, etag: str | None) -> None:
        """Throw away what has come: a file of `total` bytes begins. Raises DiskFull."""
        self.offset, self.total, self.etag = 0, total, etag
        os.ftruncate(self._fd, 0)
        if self._durable:  # the record speaks of another file's bytes
            self.checkpoint()

    def write(self, data: bytes | bytearray) -> None:
        """Append. Raises DiskFull."""
        rest = memoryview(data)
        with disk_errors(_disk_full):
            while rest:
                written = os.pwrite(self._fd, rest, self.offset)
                rest, self.offset = rest[written:], self.offset + written
        if self.offset - self._durable >= CHECKPOINT_BYTES:
            self.checkpoint()

    def checkpoint(self) -> None:
        """Make what has come durable, and write down that it counts. Raises DiskFull."""
        new = self._record.with_suffix(".new")
        with disk_errors(_disk_full):
            os.fsync(self._fd)
            record = _Record(offset=self.offset, total=self.total, etag=self.etag)
            with new.open("wb") as file:
                file.write(record.model_dump_json().encode())
                file.flush()
                os.fsync(file.fileno())
            new.replace(self._record)
            fsync_directory(self._record.parent)
        self._durable = self.offset

    def pieces(self) -> Iterator[bytes]:
        """The bytes that have come, from the first."""
        at = 0
        while at < self.offset and (piece := os.pread(self._fd, min(READ_BYTES, self.offset - at), at)):
            at += len(piece)
            yield piece

    def checksums(self) -> Checksums:
        """The checksums of what has come."""
        sha256, git = hashlib.sha256(), hashlib.sha1(b"blob %d\0" % self.offset, usedforsecurity=False)
        for piece in self.pieces():
            sha256.update(piece)
            git.update(piece)
        return Checksums(sha256.hexdigest(), git.hexdigest())

    def close(self) -> None:
        """Close the file; what has come is kept if it can be."""
        if self._fd >= 0 and self.offset == 0:
            self.discard()
        elif self._fd >= 0:
            with contextlib.suppress(OSError, DiskFull):
                if self.offset != self._durable:
                    self.checkpoint()
            self._close()

    def discard(self) -> None:
        """Remove the file and its record."""
        self._close()
        self._record.unlink(missing_ok=True)
        self.path.unlink(missing_ok=True)

    def _close(self) -> None:
        if self._fd >= 0:
            fd, self._fd = self._fd, -1
            os.close(fd)


def key_of(project: str, *parts: str) -> str:
    """The name of the partial file of a project's fetch; its beginning is the project's alone."""
    owner, whole = (hashlib.sha256("\n".join(texts).encode()).hexdigest() for texts in ((project,), (project, *parts)))
    return f"{owner[:16]}-{whole}"


class Partials:
    """The files of all fetches. The caller opens each key once at a time.

    Args:
        root: Their directory.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self._open: set[str] = set()

    def open(self, key: str) -> Partial:
        """The partial file of a key, new or as an earlier fetch left it; ``close`` gives it back. Raises DiskFull."""
        with disk_errors(_disk_full):
            self.root.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._open.add(key)
        try:
            self.sweep(for_key=key)
            return Partial(self.root / key)
        except BaseException:
            self._open.discard(key)
            raise

    def close(self, partial: Partial) -> None:
        """Close a file; what has come of it is kept, unless it was discarded."""
        try:
            partial.close()
        finally:
            self._open.discard(partial.path.stem)

    def remove(self, key: str) -> None:
        """Remove the file of a key, unless a fetch has it open."""
        if key not in self._open:
            for suffix in (_PART, _RECORD, ".new"):
                (self.root / f"{key}{suffix}").unlink(missing_ok=True)

    def sweep(self, *, for_key: str | None = None) -> int:
        """Remove what nobody came back for; returns how many files.

        Those go that are older than ``MAX_AGE_S``, a project's oldest beyond ``MAX_PROJECT_PARTIALS``, and beyond
        ``MAX_PARTIALS`` of all the oldest of the project that ``for_key`` is opened for, or, where it has none, of the
        one with the most. Files that a fetch has open count and are kept.
        """
        ages: dict[str, float] = {}
        for path in self._files():
            if path.stem not in self._open:
                ages[path.stem] = min(_age_s(path), ages.get(path.stem, math.inf))
        removed = [key for key, age in ages.items() if age > MAX_AGE_S]
        closed: dict[str, list[str]] = {}
        for key in sorted(ages.keys() - set(removed), key=lambda key: ages[key]):
            closed.setdefault(_owner(key), []).append(key)  # newest first
        opened = Counter(map(_owner, self._open))
        for owner, keys in closed.items():
            kept = max(0, MAX_PROJECT_PARTIALS - opened[owner])
            removed += keys[kept:]
            del keys[kept:]
        while sum(map(len, closed.values())) > max(0, MAX_PARTIALS - opened.total()):
            own = closed.get(_owner(for_key)) if for_key is not None else None
            most = max(closed.values(), key=lambda keys: (len(keys), ages[keys[-1]] if keys else 0.0))
            removed.append((own or most).pop())
        for key in removed:
            self.remove(key)
        return len(removed)

    def _files(self) -> list[Path]:
        try:
            return list(self.root.iterdir())
        except FileNotFoundError:
            return []


def _owner(key: str) -> str:
    """What the keys of a project have in common; an earlier release's keys name none, and are one project's here."""
    return key.rpartition("-")[0]


def _age_s(path: Path) -> float:
    """Seconds since the file was last written; 0 if it has gone."""
    try:
        return max(0.0, time.time() - path.stat().st_mtime)
    except FileNotFoundError:
        return 0.0
