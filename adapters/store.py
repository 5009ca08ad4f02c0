"""The content-addressed store: a directory for each adapter, named by its digest.

    <root>/<digest>/adapter_config.json          canonical
    <root>/<digest>/adapter_model.safetensors    as it was uploaded
    <root>/.staging/<uuid>/                      uploads in progress, and what is being removed

An adapter is written in `.staging`, made durable (fsync of the files, then of their directory) and then renamed into
place, so that a name which is there is complete, whatever is killed and when. What a crash leaves in `.staging` is
cleaned by recover(). Nothing in an adapter's directory ever changes. Everything here blocks: run it in a thread.
"""

import contextlib
import errno
import fcntl
import hashlib
import os
import shutil
import time
import uuid
from collections.abc import Collection, Iterator
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from adapters.blobs import BlobWriter, disk_errors, fsync_directory
from adapters.errors import AdapterError, Damaged, DiskFull, NotInStore, TooLarge
from adapters.manifest import MAX_CONFIG_BYTES, Manifest
from adapters.names import is_digest
from adapters.tensorfile import read_header

CONFIG_FILE: Final = "adapter_config.json"
WEIGHTS_FILE: Final = "adapter_model.safetensors"
DEFAULT_MAX_WEIGHTS_BYTES: Final = 2 * 1024**3

STAGING: Final = ".staging"
_HASH_CHUNK_BYTES: Final = 1 << 20
_OCCUPIED: Final = frozenset({errno.ENOTEMPTY, errno.EEXIST})
_COMMIT_ATTEMPTS: Final = 5


def digest_of(config: bytes, weights_sha256: str) -> str:
    """An adapter's digest: sha256 over a version tag, its canonical config, and the hex sha256 of its weights file."""
    return hashlib.sha256(b"hatrack-adapter-v1\n" + config + b"\n" + weights_sha256.encode("ascii")).hexdigest()


class Writer(BlobWriter):
    """Writes one of an adapter's files; raises the store's errors."""

    def too_large(self) -> TooLarge:
        return TooLarge(f"{self.path.name} is larger than {self.max_bytes} bytes.", param=self.path.name)

    def disk_full(self) -> DiskFull:
        return _disk_full()


class Staging:
    """One upload in progress: a context manager that removes everything unless commit() succeeded.

    Write the weights to `weights` as they come; `weights.path` may be inspected after `weights.finish()`.
    """

    def __init__(self, store: "Store", *, max_weights_bytes: int) -> None:
        self._store = store
        self._path, self._lock = store._new_staging()
        try:
            self.weights = Writer(self._path / WEIGHTS_FILE, max_bytes=max_weights_bytes)
        except BaseException:
            self.discard()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.discard()

    def commit(self, manifest: Manifest) -> str:
        """Put the adapter into the store and return its digest; durable when this returns.

        `manifest` should be the inspection's (resolved), so that equal adapters get equal digests. Committing what is
        there already changes nothing. Raises DiskFull, TooLarge.
        """
        config = manifest.canonical()
        self.weights.finish()
        digest = digest_of(config, self.weights.sha256)
        self.publish(config, digest)
        return digest

    def publish(self, config: bytes, digest: str) -> None:
        """As commit(), for an adapter that comes from another store, with its canonical config and its digest.

        Raises Damaged if what was written is not what the digest says; DiskFull, TooLarge.
        """
        self.weights.finish()
        if digest_of(config, self.weights.sha256) != digest:
            raise Damaged(f"What came for {digest} does not match that digest.", param=digest)
        writer = Writer(self._path / CONFIG_FILE, max_bytes=MAX_CONFIG_BYTES)
        try:
            writer.write(config)
            writer.finish()
        finally:
            writer.close()
        _fsync_directory(self._path)
        self._store._publish(self._path, digest)
        self.discard()

    def discard(self) -> None:
        """Remove what was staged. A second call, or one after commit(), does nothing."""
        if hasattr(self, "weights"):
            self.weights.close()
        shutil.rmtree(self._path, ignore_errors=True)
        if self._lock >= 0:
            lock, self._lock = self._lock, -1
            os.close(lock)


class Store:
    """The adapters under `root`. One process writes; threads of it may do so at once; any process may read."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._staging = root / STAGING
        with disk_errors(_disk_full):
            self._staging.mkdir(parents=True, exist_ok=True)
            _fsync_directory(root)
            _fsync_directory(root.parent)

    def recover(self) -> int:
        """Remove what crashed uploads left behind and return how many there were. Running uploads are kept."""
        count = 0
        with self._gate(fcntl.LOCK_EX):
            for leftover in list(self._staging.iterdir()):
                with contextlib.suppress(BlockingIOError), _locked(leftover):
                    _remove(leftover)
                    count += 1
        return count

    def stage(self, *, max_weights_bytes: int = DEFAULT_MAX_WEIGHTS_BYTES) -> Staging:
        """Begin an upload. Raises DiskFull."""
        return Staging(self, max_weights_bytes=max_weights_bytes)

    def path(self, digest: str) -> Path:
        """The directory of an adapter. Raises NotInStore if there is none, or `digest` is not a digest."""
        if not self.exists(digest):
            raise NotInStore("The store has no adapter with this digest.", param=digest[:64])
        return self.root / digest

    def exists(self, digest: str) -> bool:
        """Whether the store has this digest."""
        return is_digest(digest) and (self.root / digest).is_dir()

    def check(self, digest: str) -> None:
        """Check an adapter without reading its weights: both files, and the length that the header declares.

        Raises NotInStore, Damaged.
        """
        directory = self.path(digest)
        try:
            config = (directory / CONFIG_FILE).read_bytes()
            Manifest.parse(config, max_rank=2**31)
            read_header(directory / WEIGHTS_FILE)
        except (OSError, AdapterError) as error:
            raise Damaged(f"The files of {digest} are damaged: {error}", param=digest) from error

    def verify(self, digest: str) -> None:
        """Hash both files again (seconds per gigabyte). Raises NotInStore, Damaged."""
        directory = self.path(digest)
        sha256 = hashlib.sha256()
        try:
            config = (directory / CONFIG_FILE).read_bytes()
            with (directory / WEIGHTS_FILE).open("rb") as file:
                while chunk := file.read(_HASH_CHUNK_BYTES):
                    sha256.update(chunk)
        except OSError as error:
            raise Damaged(f"Cannot read the files of {digest}: {error.strerror}.", param=digest) from error
        if digest_of(config, sha256.hexdigest()) != digest:
            raise Damaged(f"The files of {digest} do not match their digest.", param=digest)

    def digests(self) -> list[str]:
        """Every digest in the store, sorted."""
        return sorted(entry.name for entry in self.root.iterdir() if is_digest(entry.name) and entry.is_dir())

    def remove(self, digest: str) -> None:
        """Remove an adapter, atomically for readers. Raises NotInStore.

        The caller must make sure that the engine will not load it again.
        """
        trash = self._retire(self.path(digest))
        if trash is None:
            raise NotInStore("The store has no adapter with this digest.", param=digest)
        _fsync_directory(self.root)
        _remove(trash)

    def collect(self, referenced: Collection[str], *, min_age_s: float = 0.0) -> list[str]:
        """Remove each adapter that is not in `referenced`, and return their digests.

        Adapters committed less than `min_age_s` seconds ago stay: their version may not be recorded yet.
        """
        removed = []
        newest = time.time() - min_age_s
        for digest in self.digests():
            if digest in referenced:
                continue
            with contextlib.suppress(NotInStore, FileNotFoundError):
                if (self.root / digest).stat().st_mtime <= newest:
                    self.remove(digest)
                    removed.append(digest)
        return removed

    def _new_staging(self) -> tuple[Path, int]:
        """A new directory, and a descriptor that locks it while this process lives."""
        path = self._staging / uuid.uuid4().hex
        with self._gate(fcntl.LOCK_SH), disk_errors(_disk_full):
            path.mkdir(mode=0o700)
            lock = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            fcntl.flock(lock, fcntl.LOCK_EX)
        return path, lock

    def _publish(self, staged: Path, digest: str) -> None:
        """Rename a complete, durable directory into place, unless an intact one is there already."""
        target = self.root / digest
        for _ in range(_COMMIT_ATTEMPTS):
            try:
                with disk_errors(_disk_full):
                    staged.rename(target)
            except OSError as error:
                if error.errno not in _OCCUPIED:
                    raise
                if self._is_sound(digest):
                    with contextlib.suppress(FileNotFoundError):
                        os.utime(target)  # collect() counts its age from the last commit
                        break
                trash = self._retire(target)
                if trash is not None:
                    _remove(trash)
            else:
                break
        else:
            raise Damaged(f"Could not store {digest}: another process keeps replacing it.", param=digest)
        _fsync_directory(self.root)

    def _is_sound(self, digest: str) -> bool:
        try:
            self.verify(digest)
        except (Damaged, NotInStore):
            return False
        return True

    def _retire(self, directory: Path) -> Path | None:
        """Move a directory into the staging area; None if it is already gone."""
        trash = self._staging / uuid.uuid4().hex
        try:
            directory.rename(trash)
        except FileNotFoundError:
            return None
        return trash

    @contextlib.contextmanager
    def _gate(self, mode: int) -> Iterator[None]:
        """Keeps recover() away from a staging directory between its making and its locking."""
        fd = os.open(self._staging, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            fcntl.flock(fd, mode)
            yield
        finally:
            os.close(fd)


def hold_for_engine(root: Path) -> int:
    """Lock the store for an engine that reads it: nobody removes an adapter from it as long as the descriptor is open.

    The descriptor stays open over an execve, and is closed with the process. Waits while something is being removed.
    Raises OSError.
    """
    descriptor = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH)
    except OSError:
        os.close(descriptor)
        raise
    os.set_inheritable(descriptor, True)
    return descriptor


@contextlib.contextmanager
def no_engine(root: Path) -> Iterator[bool]:
    """Keep engines that call `hold_for_engine` from starting; False if one holds the store, or that cannot be told."""
    try:
        descriptor = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except FileNotFoundError:
        yield True  # there is no store
        return
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:  # held; or a file system without locks
            yield False
        else:
            yield True
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Lock a leftover. Raises BlockingIOError if its owner is alive."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    finally:
        os.close(fd)


def _disk_full() -> DiskFull:
    return DiskFull("The disk is full: the adapter could not be stored.")


def _fsync_directory(path: Path) -> None:
    with disk_errors(_disk_full):
        fsync_directory(path)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
