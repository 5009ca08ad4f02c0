"""A small client of an object store: S3, Google Cloud Storage, or a directory (`file://`), over obstore.

Everything here blocks: run it in a thread. Each request has a time limit and few retries, so that a store that is away
is noticed within seconds; a large object is read and written in parts, each of which is a request of its own. obstore
reads credentials and endpoints from the environment, as the store's own tools do.
"""

from __future__ import annotations

import logging
import re
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final

from service.config import Settings, inherited_environment
from service.errors import DiskFull, SettingsError, StoreRefused, StoreUnavailable

PART_BYTES: Final = 8 << 20
"""Bytes of a large object that one request carries; a line of 0.3 MB/s still does so within REQUEST_S."""
CONCURRENT_PARTS: Final = 4
CONNECT_S: Final = 3.0
REQUEST_S: Final = 30.0
RETRIES: Final = 2
RETRY_S: Final = 10.0
"""No request is tried again after so many seconds."""
PACKAGE: Final = "obstore"
LIST_CHUNK: Final = 1000
_STATUS: Final = re.compile(r"status code: (\d{3})")
_MISCONFIGURED: Final = ("Missing", "builder error", "NoSuchBucket", "canonicalize filesystem root")
"""Parts of obstore's messages where no retry helps: no credentials, plain HTTP that is not allowed, no such place."""
_TRANSIENT: Final = frozenset({408, 429})
_LOG: Final = logging.getLogger("hatrack.objects")


MIN_FREE_BYTES: Final = 256 << 20
"""What a fetch leaves free of the disk, on which the databases are."""


def demand_room(directory: Path, described: StoredObject) -> None:
    """Raise DiskFull unless the disk has room for a copy of an object: nothing else bounds how large one is."""
    if described.bytes > shutil.disk_usage(directory).free - MIN_FREE_BYTES:
        raise DiskFull(f"the disk of the local cache has no room for {described.name} ({described.bytes} bytes)")


class NoSuchObject(Exception):
    """The store has no object of this name."""


@dataclass(frozen=True, slots=True)
class StoredObject:
    """What the store says of an object; ``modified_at`` in Unix seconds, by the store's clock."""

    name: str
    bytes: int
    modified_at: float


class ObjectStore:
    """The objects under one URL.

    Args:
        url: ``s3://bucket/prefix``, ``gs://bucket/prefix`` or ``file:///directory``.
        allow_http: Let an endpoint of the environment (``AWS_ENDPOINT_URL``) be a plain ``http://``.

    Raises:
        SettingsError: The package obstore is missing, or cannot use the URL.
    """

    def __init__(self, url: str, *, allow_http: bool = False) -> None:
        if find_spec(PACKAGE) is None:
            raise SettingsError("HATRACK_STORE_URL needs the package obstore: pip install 'hatrack[s3]'")
        import obstore  # only where a store is set: it starts threads of its own

        self.url = url
        self._api: Any = obstore
        self._is_closed = False
        try:
            self._store = _connect(url, allow_http=allow_http)
        except (obstore.exceptions.BaseError, ValueError, OSError) as error:
            raise SettingsError(f"HATRACK_STORE_URL cannot be used: {_first_line(error)}") from error

    # writing

    def create(self, name: str, data: bytes) -> bool:
        """Write a small object that must not be there yet; False, and nothing is written, if it is.

        Raises:
            StoreUnavailable: The store is away, or refuses. It may have been written.
        """
        with self._errors(f"write {name}"):
            try:
                self._api.put(self._store, name, data, mode="create")
            except self._api.exceptions.AlreadyExistsError:
                return False
        return True

    def replace(self, name: str, data: bytes) -> None:
        """Write a small object, whatever was there. Raises StoreUnavailable."""
        with self._errors(f"write {name}"):
            self._api.put(self._store, name, data)

    def upload(self, name: str, path: Path) -> None:
        """Write a file as an object, in parts if it is large; whoever reads it sees all of it or nothing.

        Only for names that say what the content is, since it replaces what is there: conditional writes have no parts.

        Raises:
            StoreUnavailable: The store is away, or refuses. It may have been written.
        """
        with self._errors(f"write {name}"):
            self._api.put(
                self._store,
                name,
                path,
                use_multipart=path.stat().st_size > PART_BYTES,
                chunk_size=PART_BYTES,
                max_concurrency=CONCURRENT_PARTS,
            )

    def delete(self, names: Iterable[str]) -> None:
        """Remove objects; those that are not there are no error. Raises StoreUnavailable."""
        for name in names:
            with self._errors(f"delete {name}"):
                try:
                    self._api.delete(self._store, name)
                except FileNotFoundError:
                    continue

    # reading

    def stat(self, name: str) -> StoredObject:
        """What the store says of an object. Raises NoSuchObject, StoreUnavailable."""
        with self._errors(f"read {name}"):
            try:
                return _described(self._api.head(self._store, name))
            except FileNotFoundError:
                raise NoSuchObject(name) from None

    def read(self, name: str, max_bytes: int) -> bytes:
        """A small object's content; of one larger than ``max_bytes`` its beginning. Raises as ``stat``."""
        with self._errors(f"read {name}"):
            try:
                found = self._api.get(self._store, name)
                if found.meta["size"] <= max_bytes:
                    return bytes(found.bytes())
            except FileNotFoundError:
                raise NoSuchObject(name) from None
        return self._range(name, 0, max_bytes)

    def chunks(self, described: StoredObject) -> Iterator[bytes]:
        """An object's content in parts; nothing says that it is what was once written. Raises as ``stat``."""
        for start in range(0, described.bytes, PART_BYTES):
            yield self._range(described.name, start, min(start + PART_BYTES, described.bytes))

    def _range(self, name: str, start: int, end: int) -> bytes:
        with self._errors(f"read {name}"):
            try:
                return bytes(self._api.get_range(self._store, name, start=start, end=end))
            except FileNotFoundError:
                raise NoSuchObject(name) from None

    def list(self, folder: str) -> Iterator[StoredObject]:
        """All objects below ``folder``, in no order. Raises StoreUnavailable."""
        with self._errors(f"list {folder}"):
            for chunk in self._api.list(self._store, folder, chunk_size=LIST_CHUNK):
                yield from map(_described, chunk)

    def check(self) -> None:
        """Whether the store answers, and lists its objects for these credentials.

        Raises:
            StoreRefused: It answers, and will not: credentials, permissions, or no such bucket.
            StoreUnavailable: It does not answer.
        """
        with self._errors("list the store"):
            next(iter(self._api.list(self._store, chunk_size=1)), None)

    def close(self) -> None:
        """Have no more requests made: transfers in other threads end with the one that they are at."""
        self._is_closed = True

    @contextmanager
    def _errors(self, what: str) -> Iterator[None]:
        """Raise obstore's errors, and those of a `file://`, as ours; what was found goes to the log."""
        if self._is_closed:
            raise StoreUnavailable("the gateway is stopping", reason="stopping")
        try:
            yield
        except (NoSuchObject, FileNotFoundError) as error:
            if isinstance(error, NoSuchObject):
                raise
            raise self._refused(what, error) from error  # of a write: there is no such bucket
        except (self._api.exceptions.PermissionDeniedError, self._api.exceptions.UnauthenticatedError) as error:
            raise self._refused(what, error) from error
        except (self._api.exceptions.BaseError, OSError) as error:
            if _is_refusal(str(error)):
                raise self._refused(what, error) from error
            _LOG.warning("the object store does not answer", extra={"attempt": what, "reason": _first_line(error)})
            raise StoreUnavailable(
                "the object store (HATRACK_STORE_URL) does not answer; what is in the local cache works on. Try again",
                reason=_first_line(error),
            ) from error

    def _refused(self, what: str, error: Exception) -> StoreRefused:
        _LOG.error("the object store refuses the gateway", extra={"attempt": what, "reason": _first_line(error)})
        return StoreRefused(
            "the object store (HATRACK_STORE_URL) refuses the gateway: its credentials, permissions or bucket are "
            "wrong, which the operator must correct",
            reason=_first_line(error),
        )


def open_object_store(settings: Settings) -> ObjectStore | None:
    """The object store that the settings name; None: content stays in the local folders.

    Raises:
        SettingsError: It cannot be used, whatever answers there.
    """
    if settings.store_url is None:
        return None
    allow_http = inherited_environment().get("AWS_ALLOW_HTTP", "").lower() in ("1", "true")
    return ObjectStore(settings.store_url, allow_http=allow_http)


def _connect(url: str, *, allow_http: bool) -> Any:
    from obstore.store import from_url

    if url.startswith("file:"):
        return from_url(url)
    client = {
        "timeout": timedelta(seconds=REQUEST_S),
        "connect_timeout": timedelta(seconds=CONNECT_S),
        "allow_http": allow_http,
    }
    backoff = {"init_backoff": timedelta(milliseconds=100), "max_backoff": timedelta(seconds=1), "base": 2}
    retry = {"max_retries": RETRIES, "retry_timeout": timedelta(seconds=RETRY_S), "backoff": backoff}
    return from_url(url, client_options=client, retry_config=retry)


def _described(meta: Any) -> StoredObject:
    return StoredObject(str(meta["path"]), int(meta["size"]), meta["last_modified"].timestamp())


def _is_refusal(message: str) -> bool:
    """Whether the store, or what gives out its credentials, answered that it will not."""
    status = _STATUS.search(message)
    if status is not None:
        return 300 <= int(status[1]) < 500 and int(status[1]) not in _TRANSIENT
    return any(text in message for text in _MISCONFIGURED)


def _first_line(error: Exception) -> str:
    """The first line of obstore's message: the next ones repeat it as its code sees it."""
    return (str(error).splitlines() or [type(error).__name__])[0][:300]
