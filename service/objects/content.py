"""The object store of a gateway with its cache, as the settings say: for the composition root."""

from __future__ import annotations

import fcntl
import os
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from service.config import GIB, Settings
from service.errors import SettingsError, StoreRefused, StoreUnavailable
from service.objects.cache import LocalCache
from service.objects.client import ObjectStore, open_object_store
from service.objects.marker import check_agreement, require_agreement
from service.objects.owner import claim

LOCK: Final = ".cache.lock"


@dataclass(frozen=True, slots=True)
class Objects:
    """An object store, and what bounds the local copies of its objects."""

    store: ObjectStore
    cache: LocalCache
    folder: Path
    """Of the adapters' copies."""

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Keep the cache's bound while it is open.

        Raises:
            SettingsError: Another process has come to manage the folder.
        """
        with _managing(self.folder):
            async with self.cache.running():
                try:
                    yield
                finally:
                    self.store.close()


def objects_for(settings: Settings) -> Objects | None:
    """The object store of this home; None: its content is in the local folders.

    Raises:
        SettingsError: The settings and the home disagree on where the content is, or the URL cannot be used; or another
            process manages the folder with the adapters' copies.
    """
    require_agreement(settings)
    store = open_object_store(settings)
    if store is None:
        return None
    with _managing(settings.store_dir):
        return Objects(store, LocalCache(int(settings.store_cache_gib * GIB)), settings.store_dir)


@contextmanager
def _managing(folder: Path) -> Iterator[None]:
    """Be the only process that adds copies to a folder and removes them.

    Of two, such as a gateway and an agent with HATRACK_ENGINE_URL in one home, each would remove what the other one
    believes to be there.

    Raises:
        SettingsError: Another one does.
    """
    with ExitStack() as stack:
        with suppress(OSError):  # one that cannot be written: whoever needs to says what is wrong
            folder.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            stack.callback(os.close, descriptor)
            _lock(descriptor, folder)
        yield


def _lock(descriptor: int, folder: Path) -> None:
    """Raises SettingsError if another process has the lock, and OSError on a file system without locks."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        pid = os.pread(descriptor, 32, 0).decode("ascii", "replace").strip() or "unknown"
        raise SettingsError(
            f"{folder} is the cache of adapters of another gateway or agent (process {pid}), and two would remove each "
            "other's copies. With HATRACK_STORE_URL, an agent with HATRACK_ENGINE_URL and the engine there must have a "
            "HATRACK_HOME of their own"
        ) from None
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)


def refuse_unusable_store(settings: Settings) -> None:
    """Check before the start that the store takes the gateway's credentials, and that no other installation uses it;
    one that is away is waited for.

    Raises:
        SettingsError: It answers, and refuses; it belongs to another installation; or this home's content is elsewhere.
    """
    store = open_object_store(settings)
    if store is None:
        return
    check_agreement(settings)  # or a home whose content is not there would take it
    try:
        store.check()
        claim(store, settings.home)
    except StoreRefused as error:
        raise SettingsError(f"HATRACK_STORE_URL ({settings.store_url}) refuses the gateway: {error.reason}") from error
    except StoreUnavailable:
        return  # what is in the cache is served meanwhile; the log has the reason
