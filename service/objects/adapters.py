"""Adapters by digest: in the local store alone, or in the object store with the local one as its cache.

    adapters/<digest>/adapter_model.safetensors    written first
    adapters/<digest>/adapter_config.json          written last: with it the adapter exists

The digest covers both, so what is fetched is verified by its name. Writing one again writes the same bytes, which is
how two gateways may push the same adapter at once, and how a damaged object is mended.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Collection, Iterable
from contextlib import AbstractAsyncContextManager, asynccontextmanager, nullcontext
from pathlib import Path
from typing import Final

from adapters.errors import AdapterError, Damaged, NotInStore
from adapters.manifest import MAX_CONFIG_BYTES, Manifest
from adapters.names import is_digest
from adapters.store import CONFIG_FILE, WEIGHTS_FILE, Staging, Store, digest_of
from service.concurrency import in_thread
from service.errors import Conflict, Unavailable
from service.objects.cache import Copies, LocalCache
from service.objects.client import NoSuchObject, ObjectStore, StoredObject, demand_room

FOLDER: Final = "adapters"
_LOG: Final = logging.getLogger("hatrack.objects")


def object_names(digest: str) -> tuple[str, str]:
    """The names of an adapter's config and weights."""
    return f"{FOLDER}/{digest}/{CONFIG_FILE}", f"{FOLDER}/{digest}/{WEIGHTS_FILE}"


def put_adapter(objects: ObjectStore, digest: str, config: bytes, weights: Path) -> None:
    """Write an adapter's objects; it exists, whole, once this returns. Raises StoreUnavailable."""
    config_name, weights_name = object_names(digest)
    objects.upload(weights_name, weights)
    if not objects.create(config_name, config):
        # it is there: written again, it is as young as this push, and no collection takes it before it is recorded
        objects.replace(config_name, config)
    # one that had looked at the same adapter, which nothing named, before it was written again may have taken it since
    if not _is_there(objects, weights_name):
        objects.upload(weights_name, weights)
    if not _is_there(objects, config_name):
        objects.create(config_name, config)


def _is_there(objects: ObjectStore, name: str) -> bool:
    try:
        objects.stat(name)
    except NoSuchObject:
        return False
    return True


def complete_digests(listed: Iterable[StoredObject]) -> dict[str, list[StoredObject]]:
    """The adapters among the objects of FOLDER that have a config, which makes them exist, with their objects."""
    found: dict[str, list[StoredObject]] = {}
    for each in listed:
        digest = each.name.split("/")[1]
        if is_digest(digest):
            found.setdefault(digest, []).append(each)
    return {digest: each for digest, each in found.items() if {one.name for one in each} >= {object_names(digest)[0]}}


class StoredAdapters:
    """The adapters' files, wherever they are.

    Args:
        store: The local store.
        objects: The object store that it is a cache of; None: there is none.
        cache: What bounds the local copies; with ``objects``.
        kept: Digests whose copies must stay (``Copies``).
    """

    def __init__(
        self,
        store: Store,
        objects: ObjectStore | None = None,
        cache: LocalCache | None = None,
        kept: Callable[[], Collection[str] | None] = frozenset,
    ) -> None:
        self.store = store
        self._objects = objects
        self.copies: Copies | None = None
        """The local copies; None: everything is local."""
        if objects is not None and cache is not None:
            self.copies = Copies(cache, "adapter", self._fetch_copy, self._remove_copy, kept)

    async def open(self) -> None:
        """Clean up after a crash, and find the copies that are here."""
        await in_thread(self.store.recover)
        if self.copies is not None:
            self.copies.found(await in_thread(self._scan))

    def _scan(self) -> dict[str, int]:
        """Bytes of each sound copy, the oldest first; others are removed."""
        found = []
        for digest in self.store.digests():
            try:
                self.store.check(digest)
                found.append((self.store.path(digest).stat().st_mtime, digest, self._size(digest)))
            except (AdapterError, OSError):
                self._remove_copy(digest)
        return {digest: size for _, digest, size in sorted(found)}

    async def commit(self, staging: Staging, manifest: Manifest) -> None:
        """Store an upload; durable, and in the object store, when this returns.

        Raises:
            DiskFull, Damaged: As ``Staging.commit``.
            StoreUnavailable: The object store does not answer; nothing was stored that anybody sees.
        """
        if self.copies is None:
            await in_thread(staging.commit, manifest)
            return
        digest = digest_of(manifest.canonical(), staging.weights.sha256)
        async with self.copies.writing(digest):
            size = await self.copies.cache.run(self._commit, staging, manifest)
            self.copies.added(digest, size)
        self.copies.cache.trim_soon()

    def _commit(self, staging: Staging, manifest: Manifest) -> int:
        assert self._objects is not None  # noqa: S101  there are copies
        staging.weights.finish()
        config = manifest.canonical()
        digest = digest_of(config, staging.weights.sha256)
        put_adapter(self._objects, digest, config, staging.weights.path)
        return self._size(staging.commit(manifest))

    def exists(self, digest: str) -> bool:
        """Whether it is here, as far as is known without asking the object store; blocks."""
        return self.store.exists(digest)

    async def digests(self) -> set[str]:
        """Every digest that is stored; copies do not count. Raises StoreUnavailable."""
        if self.copies is None or self._objects is None:
            return set(await in_thread(self.store.digests))
        objects = self._objects
        return await self.copies.cache.run(lambda: set(complete_digests(objects.list(FOLDER))))

    def is_lost(self, digest: str) -> bool:
        """Whether the object store was found to have no such adapter, or another content."""
        return self.copies is not None and self.copies.is_failed(digest)

    async def recheck(self, digest: str) -> None:
        """Hash the local copy, if there is one; a damaged one, and one that was not found, is fetched again."""
        if self.copies is None:
            return
        self.copies.retry(digest)
        if self.copies.try_hold(digest):
            try:
                await in_thread(self.store.verify, digest)
            except AdapterError:
                self.copies.dropped(digest)  # the next one to need it replaces it
            finally:
                self.copies.release(digest)

    # using one

    def held(self, *digests: str | None) -> AbstractAsyncContextManager[None]:
        """Have adapters in the local store for as long as the context; None is skipped.

        Raises:
            StoreUnavailable: One has to be fetched, and the object store does not answer.
            Conflict: The object store does not have it, or has something else under its name.
        """
        return nullcontext() if self.copies is None else _held(self.copies, digests)

    async def path(self, digest: str) -> Path:
        """The adapter's local directory, at least for a minute. Raises NotInStore, and as ``held``."""
        if self.copies is not None:
            await self.copies.lend(digest)
        return self.store.path(digest)

    # the copies

    async def _fetch_copy(self, digest: str) -> int:
        assert self.copies is not None  # noqa: S101  they ask
        try:
            return await self.copies.cache.run(self._fetch, digest)
        except (Damaged, NotInStore) as error:
            _LOG.error("an adapter cannot be fetched", extra={"digest": digest, "reason": error.message})
            raise Conflict(
                f"the adapter cannot serve now: its files in the object store are missing or damaged ({error.code}); "
                "push the same files again",
                code="version_damaged",
            ) from error

    def _fetch(self, digest: str) -> int:
        """Bring an adapter into the local store; it appears there whole, once it is verified."""
        assert self._objects is not None  # noqa: S101  there are copies
        config_name, weights_name = object_names(digest)
        try:
            config = self._objects.read(config_name, MAX_CONFIG_BYTES)
            weights = self._objects.stat(weights_name)
            demand_room(self.store.root, weights)
            with self.store.stage(max_weights_bytes=weights.bytes) as staging:
                for chunk in self._objects.chunks(weights):
                    staging.weights.write(chunk)
                staging.publish(config, digest)
        except NoSuchObject as error:
            raise NotInStore(f"The object store has no {error}.", param=digest) from error
        return self._size(digest)

    def _remove_copy(self, digest: str) -> None:
        """Remove a copy, also while an engine holds the store: before a request names it again, it is back."""
        try:
            self.store.remove(digest)
        except NotInStore:
            return

    def _size(self, digest: str) -> int:
        directory = self.store.path(digest)
        return sum((directory / name).stat().st_size for name in (CONFIG_FILE, WEIGHTS_FILE))


async def hold_before(copies: Copies, digest: str, deadline: float) -> None:
    """Hold an adapter's copy, as ``Copies.hold`` does, for a request that waits no longer than until ``deadline``.

    The fetch goes on without it, for whoever asks next.

    Args:
        deadline: On the event loop's clock, s.

    Raises:
        Unavailable: The files have not come by then: ``queue_timeout``, as in the queue that the request would wait in.
        StoreUnavailable, Conflict: As ``StoredAdapters.held``.
    """
    try:
        async with asyncio.timeout_at(deadline):
            await copies.hold(digest)
    except TimeoutError:
        raise Unavailable(
            "the adapter's files did not come from the object store in time (HATRACK_QUEUE_TIMEOUT_S); they are still "
            "being fetched, so a later request may find them",
            code="queue_timeout",
        ) from None


@asynccontextmanager
async def _held(copies: Copies, digests: Collection[str | None]) -> AsyncIterator[None]:
    held: list[str] = []
    try:
        for digest in digests:
            if digest is not None:
                if not copies.try_hold(digest):
                    await copies.hold(digest)
                held.append(digest)
        yield
    finally:
        for digest in held:
            copies.release(digest)
