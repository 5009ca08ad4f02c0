"""The file of a backup: a plain tar whose first member says what it is, and whose last ones say that it is whole.

    backup.json        format, release and time; read before anything else
    hatrack.db, …      the home's files under their places in it; of members with one name the last one counts
    manifest.json      `Manifest`: size and SHA-256 of every file
    manifest.sha256    of manifest.json

A file without its last two members was cut off. Nothing but regular files is written, and nothing else is read.
"""

from __future__ import annotations

import errno
import hashlib
import io
import os
import re
import tarfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, ClassVar, Final, Protocol

from pydantic import BaseModel, ConfigDict, ValidationError

from adapters.blobs import disk_errors
from service.storage import layout
from service.storage.errors import BackupDamaged, BackupError, BackupNewer, NoRoom

FORMAT: Final = 1
HEADER: Final = "backup.json"
MANIFEST: Final = "manifest.json"
MANIFEST_DIGEST: Final = "manifest.sha256"
CHUNK_BYTES: Final = 1 << 20
MAX_MANIFEST_BYTES: Final = 1 << 30
_PART: Final = re.compile(r"[^/\x00-\x1f\x7f]{1,255}")
"""One part of a path: what a file may be called, without control characters."""


class Readable(Protocol):
    """What a file's bytes are read from."""

    def read(self, size: int = -1, /) -> bytes:
        """The next bytes; none at the end."""


Progress = Callable[[int, int | None, str], None]
"""Is told the bytes done, those in all (None: unknown) and what is being done."""


class _Model(BaseModel):
    model_config: ClassVar[ConfigDict] = ConfigDict(frozen=True, extra="ignore")


class Header(_Model):
    """What a reader must know before it reads on."""

    format: int
    hatrack: str
    """The release that wrote it."""
    created_at: int
    """Unix seconds."""


class Member(_Model):
    """One file of the home."""

    path: str
    bytes: int
    sha256: str


class Manifest(Header):
    """What a backup holds.

    Attributes:
        schemas: The revision of each database, by its place in the home; None for one before Alembic.
        base: The base model: its source and the name under which it was served.
        members: In the order of the file, each path once.
        outside: Settings whose state is kept elsewhere, and not here.
        reindexed: Documents of vector stores that the restored gateway indexes again.
        faults: What was missing or damaged in the home already.
        store_url: The object store that adapters and files were in; empty: they are here.
    """

    schemas: dict[str, str | None]
    base: dict[str, str]
    members: tuple[Member, ...]
    outside: tuple[str, ...] = ()
    reindexed: int = 0
    faults: tuple[str, ...] = ()
    store_url: str = ""

    @property
    def bytes(self) -> int:
        """The size of all members together."""
        return sum(member.bytes for member in self.members)


class _Hashed:
    """Reads exactly ``size`` bytes of a file, hashing them; a file that has become shorter is filled up with zeros."""

    def __init__(self, file: IO[bytes], size: int, moved: Callable[[int], None]) -> None:
        self._file, self._left, self._moved = file, size, moved
        self.hash = hashlib.sha256()
        self.is_short = False

    def read(self, size: int = -1, /) -> bytes:
        size = self._left if size < 0 else min(size, self._left)
        data = self._file.read(size)
        if len(data) < size:
            self.is_short = True
            data += bytes(size - len(data))
        self._left -= size
        self.hash.update(data)
        self._moved(size)
        return data


class ArchiveWriter:
    """Writes a backup. Its file is for its owner alone, and means nothing before `finish`. Raises NoRoom.

    Args:
        path: Must not exist.
        header: Becomes the first member.
        moved: Is told the bytes of each piece that was copied.
    """

    def __init__(self, path: Path, header: Header, moved: Callable[[int], None]) -> None:
        self._header = header
        self._moved = moved
        self.members: dict[str, Member] = {}
        with room_on(path):
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            self._file = os.fdopen(descriptor, "w+b")
            self._tar = tarfile.TarFile(
                mode="w", fileobj=self._file, format=tarfile.PAX_FORMAT, copybufsize=CHUNK_BYTES
            )
        self._path = path
        self._add_text(HEADER, header.model_dump_json())

    def add(self, name: str, source: Path) -> Member | None:
        """Copy a file. None if it does not exist, or became shorter while it was read: then it does not count."""
        try:
            file = source.open("rb")
        except FileNotFoundError:
            return None
        with file:
            status = os.fstat(file.fileno())
            reader = _Hashed(file, status.st_size, self._moved)
            with room_on(self._path):
                self._tar.addfile(_info(name, status.st_size, int(status.st_mtime)), reader)
        if reader.is_short:
            self.members.pop(name, None)
            return None
        self.members[name] = Member(path=name, bytes=status.st_size, sha256=reader.hash.hexdigest())
        return self.members[name]

    def finish(self, **facts: Any) -> Manifest:
        """Write the manifest, and make the file durable. ``facts``: the manifest's own fields."""
        manifest = Manifest(**self._header.model_dump(), members=tuple(self.members.values()), **facts)
        text = manifest.model_dump_json(indent=1)
        self._add_text(MANIFEST, text)
        self._add_text(MANIFEST_DIGEST, hashlib.sha256(text.encode()).hexdigest() + "\n")
        with room_on(self._path):
            self._tar.close()
            self._file.flush()
            os.fsync(self._file.fileno())
        self._file.close()
        return manifest

    def close(self) -> None:
        """Close the file, finished or not."""
        self._file.close()

    def _add_text(self, name: str, text: str) -> None:
        content = text.encode()
        with room_on(self._path):
            self._tar.addfile(_info(name, len(content), int(time.time())), io.BytesIO(content))


def _info(name: str, size: int, mtime: int) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.size, info.mtime, info.mode = size, mtime, 0o600
    return info


def read_manifest(path: Path) -> Manifest:
    """What a backup says that it holds, without reading it all.

    Raises:
        BackupNewer: A newer release wrote it, in a form that this one does not know.
        BackupDamaged: It was cut off, or is no backup.
    """
    with _reading(path) as tar:
        header = _header(tar, path)
        texts: dict[str, bytes] = {}
        for info in tar:
            if info.name in (MANIFEST, MANIFEST_DIGEST):
                texts[info.name] = _text(tar, info, path)
    if len(texts) < 2:
        raise BackupDamaged(
            f"{path} was cut off: it ends before its manifest. Nothing of it can be trusted; use another backup"
        )
    if hashlib.sha256(texts[MANIFEST]).hexdigest() != texts[MANIFEST_DIGEST].decode("ascii", "replace").strip():
        raise BackupDamaged(f"{path} is damaged: its manifest is not what was written. Use another backup")
    try:
        manifest = Manifest.model_validate_json(texts[MANIFEST])
    except ValidationError as error:
        raise BackupDamaged(f"{path} is damaged: its manifest cannot be read ({error.error_count()} errors)") from error
    for member in manifest.members:
        _check_path(member.path, path)
    if any(getattr(manifest, name) != getattr(header, name) for name in Header.model_fields):
        raise BackupDamaged(f"{path} is damaged: its manifest belongs to another backup")
    return manifest


def check_members(
    path: Path, manifest: Manifest, progress: Progress, write: Callable[[str, Readable], None] | None = None
) -> None:
    """Read every member, and hold it to the manifest.

    Args:
        write: Is given each file that counts, to copy it; it must read it to its end.

    Raises:
        BackupDamaged: One is missing or other than the manifest says; the first of them is named.
    """
    expected = {member.path: member for member in manifest.members}
    digests: dict[str, str] = {}
    done, total, doing = 0, manifest.bytes, "verifying" if write is None else "restoring"

    def moved(size: int) -> None:
        nonlocal done
        done += size
        progress(min(done, total), total, doing)

    with _reading(path) as tar:
        for info in tar:
            if info.name in (HEADER, MANIFEST, MANIFEST_DIGEST):
                continue
            file = tar.extractfile(info) if info.isreg() else None
            if file is None or info.name not in expected:
                continue  # something that grew shorter while it was copied, and was left out
            reader = _Hashed(file, info.size, moved)
            if write is None:
                while reader.read(CHUNK_BYTES):
                    pass
            else:
                write(info.name, reader)
            digests[info.name] = reader.hash.hexdigest() if not reader.is_short else ""
    for name, member in expected.items():
        if digests.get(name) != member.sha256:
            what = "is missing from it" if name not in digests else "is not what was written"
            raise BackupDamaged(f"{path} is damaged: {name} {what}. Nothing was restored; use another backup")


def _header(tar: tarfile.TarFile, path: Path) -> Header:
    first = tar.next()
    if first is None or first.name != HEADER:
        raise BackupDamaged(f"{path} is no backup of Hatrack: it does not begin with {HEADER}")
    try:
        header = Header.model_validate_json(_text(tar, first, path))
    except ValidationError as error:
        raise BackupDamaged(f"{path} is damaged: its {HEADER} cannot be read") from error
    if header.format > FORMAT:
        raise BackupNewer(
            f"{path} was written by Hatrack {header.hatrack}, in format {header.format}; this release reads formats up "
            f"to {FORMAT}. Use Hatrack {header.hatrack} or newer"
        )
    return header


def _text(tar: tarfile.TarFile, info: tarfile.TarInfo, path: Path) -> bytes:
    file = tar.extractfile(info) if info.isreg() and info.size <= MAX_MANIFEST_BYTES else None
    content = b"" if file is None else file.read()
    if file is None or len(content) != info.size:
        raise BackupDamaged(f"{path} is damaged: its {info.name} is not whole")
    return content


def _check_path(name: str, path: Path) -> None:
    """Raise BackupDamaged where a backup does not write: what restores it creates nothing else in the home."""
    parts = name.split("/")
    is_file = parts[0] in (layout.DATABASE, *layout.SECRETS)
    if (
        parts[0] not in layout.BACKED_UP
        or is_file != (len(parts) == 1)
        or not all(_PART.fullmatch(part) and part not in (".", "..") for part in parts)
    ):
        raise BackupDamaged(f"{path} is damaged: {name[:200]!r} is no place of a backup's files in a home")


@contextmanager
def _reading(path: Path) -> Iterator[tarfile.TarFile]:
    """The tar, open for reading. Raises BackupError (it cannot be opened), BackupDamaged."""
    try:
        with tarfile.open(path, "r:") as tar:
            yield tar
    except tarfile.TarError as error:
        raise BackupDamaged(f"{path} is no whole backup: {error}") from error
    except EOFError as error:
        raise BackupDamaged(f"{path} was cut off") from error
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.EACCES, errno.EISDIR):
            raise BackupError(f"cannot read {path}: {error.strerror}") from error
        raise


@contextmanager
def room_on(path: Path) -> Iterator[None]:
    """Raise NoRoom where the disk of ``path`` turns out to be full."""
    with disk_errors(lambda: NoRoom(f"the disk that holds {path.parent} is full")):
        yield
