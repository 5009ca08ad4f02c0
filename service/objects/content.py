"""The object store of a gateway with its cache, as the settings say: for the composition root."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

from service.config import GIB, Settings
from service.errors import SettingsError, StoreRefused, StoreUnavailable
from service.objects.cache import LocalCache
from service.objects.client import ObjectStore, open_object_store
from service.objects.marker import check_agreement, require_agreement
from service.objects.owner import claim


@dataclass(frozen=True, slots=True)
class Objects:
    """An object store, and what bounds the local copies of its objects."""

    store: ObjectStore
    cache: LocalCache

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Keep the cache's bound while it is open."""
        async with self.cache.running():
            try:
                yield
            finally:
                self.store.close()


def objects_for(settings: Settings) -> Objects | None:
    """The object store of this home; None: its content is in the local folders.

    Raises:
        SettingsError: The settings and the home disagree on where the content is, or the URL cannot be used.
    """
    require_agreement(settings)
    store = open_object_store(settings)
    return None if store is None else Objects(store, LocalCache(int(settings.store_cache_gib * GIB)))


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
