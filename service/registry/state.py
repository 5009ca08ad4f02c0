"""What the registry's parts share: the database, the store, locks by name, and how rows become what others see."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from types import MappingProxyType
from typing import Any, Final, TypeVar

import sqlalchemy as sa

from adapters.base import Fingerprint
from adapters.errors import AdapterError, StoreError
from adapters.names import is_checkpoint_alias, parse_alias, parse_name, parse_version
from adapters.store import CONFIG_FILE, WEIGHTS_FILE
from service.agents import Bases
from service.concurrency import Locks, in_thread
from service.database import Database
from service.errors import AdapterNotFound, Conflict, NotFound, Unavailable, Unprocessable
from service.objects.adapters import StoredAdapters
from service.registry import corrupt_records, records, verdict_records
from service.registry.catalog import AdapterEntry, Catalog, CatalogSnapshot, Servable, equal_json
from service.registry.counts import NO_COUNTS, RegistryCounts
from service.registry.objects import catalog_entry, held_back_reason, version_object
from service.registry.records import AdapterWithVersions, VersionRow
from service.registry.revalidation import Freshness, RevalidationState
from service.registry.split import AliasTarget, Split
from service.registry.verdict_records import VerdictRow, VerdictStatus

T = TypeVar("T")
MAX_REMEMBERED: Final = 100_000
"""Digests whose files are remembered as sound: some 30 MB."""
_LOG: Final = logging.getLogger("hatrack.registry")


class RegistryState:
    """Reads adapters from the database, computes what can serve, and keeps the catalog up to date."""

    def __init__(
        self, database: Database, adapters: StoredAdapters, catalog: Catalog, bases: Bases, freshness: Freshness
    ) -> None:
        self.database = database
        self.adapters = adapters
        self.catalog = catalog
        self.bases = bases
        self.freshness = freshness
        self.counts: RegistryCounts = NO_COUNTS
        self.store_lock = asyncio.Lock()
        """Held while an upload is counted, stored locally and kept, and while unused files are removed."""
        self._locks = Locks()
        self._uncertain: set[tuple[str, str]] = set()  # a change of them met an outage, and they wait for a refresh
        self._rebuilding: list[set[tuple[str, str]]] = []  # for each rebuild that goes on: what was refreshed since
        self._sound: dict[str, tuple[tuple[int, int, int], ...]] = {}

    @asynccontextmanager
    async def lock(self, project: str, name: str) -> AsyncIterator[None]:
        """Serialises changes of one adapter. Behind one that met an outage, and may be saved all the same, the catalog
        is refreshed first: whoever repeats it may be told that nothing is left to do, and then it is in force."""
        key = project, name
        async with self._locks.hold(key):
            if key in self._uncertain:
                await self.refresh(project, name)
            try:
                yield
            except Unavailable:
                self._uncertain.add(key)
                raise

    async def adapter(self, project: str, name: str) -> AdapterWithVersions:
        """The adapter with its versions.

        Raises:
            NotFound: There is none in this project.
        """
        try:
            name = parse_name(name)
        except AdapterError:
            raise adapter_not_found(name) from None
        adapter = await self.database.run(lambda db: records.find(db, project, name))
        if adapter is None:
            raise adapter_not_found(name)
        return adapter

    async def version(self, project: str, name: str, number: str | int) -> tuple[AdapterWithVersions, VersionRow]:
        """The adapter and one of its versions.

        Raises:
            NotFound: There is no such adapter, or version of it.
        """
        adapter = await self.adapter(project, name)
        message = f"the adapter `{name}` has no version {str(number)[:20]}"
        version_number = parse_or_404(parse_version, str(number), message, "version_not_found")
        row = adapter.version(version_number)
        if row is None:
            raise NotFound(message, code="version_not_found")
        return adapter, row

    async def shown_version(self, project: str, name: str, number: str | int) -> dict[str, Any]:
        """One version in the API's form. Raises NotFound."""
        return await self.version_object(*await self.version(project, name, number))

    async def servability(self, rows: Iterable[VersionRow], *, for_catalog: bool = False) -> dict[int, Servable]:
        """Whether each version can serve now, by row id; depends on the base, the files and corrupt digests.

        Args:
            for_catalog: Files that the object store lacks are left to the request that needs them: it tries again, and
                serves once they are back.
        """
        rows = list(rows)
        engines = [base.fingerprint.digest for base in self.bases]

        def read(db: sa.Connection) -> dict[str, set[str]]:
            return {engine: corrupt_records.corrupt_digests(db, engine) for engine in engines}

        return await in_thread(self._servability, rows, await self.database.run(read), for_catalog)

    def _servability(
        self, rows: list[VersionRow], corrupt: dict[str, set[str]], for_catalog: bool
    ) -> dict[int, Servable]:
        return {row.id: self._servability_of(row, corrupt, for_catalog) for row in rows}

    def _servability_of(self, row: VersionRow, corrupt: dict[str, set[str]], for_catalog: bool) -> Servable:
        base = self.bases.serving(row.base)
        if base is None:
            return Servable.OTHER_BASE
        if row.digest is None:
            return Servable.OK  # the base answers, and the engine is watched
        if self.adapters.copies is not None:
            is_sound = for_catalog or not self.adapters.is_lost(row.digest)  # what is not here can be fetched
        else:
            is_sound = self._is_sound(row.digest)
        if not is_sound:
            return Servable.DAMAGED
        return Servable.CORRUPT if row.digest in corrupt[base.fingerprint.digest] else Servable.OK

    def _is_sound(self, digest: str) -> bool:
        """``Store.check``, done again only where a file's size, time or inode has changed since it last passed."""
        directory = self.adapters.store.root / digest
        try:
            stats = [(directory / name).stat() for name in (CONFIG_FILE, WEIGHTS_FILE)]
            file_states = tuple((stat.st_size, stat.st_mtime_ns, stat.st_ino) for stat in stats)
            if self._sound.get(digest) != file_states:
                self.adapters.store.check(digest)
                if len(self._sound) >= MAX_REMEMBERED:
                    self._sound.clear()
                self._sound[digest] = file_states
        except (OSError, StoreError):
            self._sound.pop(digest, None)
            return False
        return True

    def engine_of(self, fingerprint: dict[str, Any]) -> str:
        """The digest of the base's fingerprint as it is served now, for a version's stored one."""
        return (self.bases.serving(fingerprint) or self.bases.default).fingerprint.digest

    async def is_servable(self, row: VersionRow) -> bool:
        """Whether the version is ready and can serve now."""
        return row.state == "ready" and (await self.servability([row]))[row.id] is Servable.OK

    async def require_servable(self, name: str, row: VersionRow) -> None:
        """Raise Conflict unless the version is ready and can serve now."""
        if row.state != "ready":
            raise Conflict(
                f"the version `{name}@{row.number}` is `{row.state}`, but must be `ready`", code="version_not_ready"
            )
        servable = (await self.servability([row]))[row.id]
        if servable is not Servable.OK:
            raise Conflict(
                f"the version `{name}@{row.number}` cannot serve now: {servable.reason}",
                code=f"version_{servable.value}",
            )

    # the catalog

    @contextmanager
    def followed(self) -> Iterator[None]:
        """Reads what the catalog must follow after a change is saved; should that fail, it is read again, with all
        else, until it succeeds: whoever repeats the change is told that nothing is left to do."""
        try:
            yield
        except Exception:
            self.database.resync.request()
            raise

    async def refresh(self, project: str, name: str) -> None:
        """Update the catalog's entry of one adapter; the caller holds its lock."""
        with self.followed():
            adapter = await self.database.run(lambda db: records.find(db, project, name))
            entry = None if adapter is None else (await self._entries([adapter]))[0]
            self.catalog.replace(self._snapshot({(project, name): entry}), changed={(project, name)})
            for refreshed in self._rebuilding:
                refreshed.add((project, name))
            await self.recount()
        self._uncertain.discard((project, name))

    async def refresh_all(self) -> None:
        """Rebuild the catalog from the database."""
        refreshed: set[tuple[str, str]] = set()
        self._rebuilding.append(refreshed)
        try:
            adapters = await self.database.run(records.load_adapters)
            built = await self._entries(adapters)
        finally:
            self._rebuilding.remove(refreshed)
        keys = [(adapter.row.project, adapter.row.name) for adapter in adapters]
        entries = dict.fromkeys(self.catalog.snapshot.adapters) | dict(zip(keys, built, strict=True))
        # what was refreshed meanwhile is newer
        self.catalog.replace(self._snapshot({key: entry for key, entry in entries.items() if key not in refreshed}))
        await self.recount()

    def _snapshot(self, entries: Mapping[tuple[str, str], AdapterEntry | None]) -> CatalogSnapshot:
        """The catalog's with these entries; None: without it."""
        changed = {**self.catalog.snapshot.adapters, **entries}
        return CatalogSnapshot(MappingProxyType({key: entry for key, entry in changed.items() if entry is not None}))

    def warn_of_hidden(self) -> None:
        """Log which names are hidden: adapters that are named like a base that came later, and an embedder that is
        named like an adapter."""
        for base in self.bases.names:
            hidden = sorted(project for project, taken in self.catalog.snapshot.adapters if taken == base)
            if hidden:
                _LOG.warning(
                    "an adapter is hidden by a base of its name: give the base another, HATRACK_BASE_NAME",
                    extra={"name_taken": base, "projects": hidden[:20]},
                )
        name = self.catalog.embedder_name
        projects = sorted(project for project, taken in self.catalog.snapshot.adapters if taken == name)
        if projects:
            _LOG.warning(
                "the embedder is hidden where an adapter has its name: set HATRACK_EMBEDDINGS_NAME to another",
                extra={"name_taken": name, "projects": projects[:20]},
            )

    async def recount(self) -> None:
        """Update ``counts``."""
        states = await self.database.run(records.states)
        self.counts = RegistryCounts.of(self.catalog.snapshot, states)

    async def _entries(self, adapters: list[AdapterWithVersions]) -> list[AdapterEntry | None]:
        """Each adapter as the data path sees it; None for one that has no ready version."""
        servable = await self.servability(
            (row for adapter in adapters for row in adapter.versions if row.state == "ready"), for_catalog=True
        )
        return [catalog_entry(adapter, servable, self.bases) for adapter in adapters]

    # what clients see

    async def version_object(self, adapter: AdapterWithVersions, row: VersionRow) -> dict[str, Any]:
        """One version in the API's form."""
        verdict_status = await self.verdict_status([adapter])
        return self._version_object(adapter, row, (await self.servability([row]))[row.id], verdict_status.get(row.id))

    async def verdict_status(self, adapters: list[AdapterWithVersions]) -> dict[int, VerdictStatus]:
        """The verdicts on these adapters' versions, by row id; versions that were never judged are left out."""
        ids = [adapter.row.id for adapter in adapters]
        return await self.database.run(lambda db: verdict_records.verdict_status(db, ids))

    async def adapter_objects(
        self, adapters: list[AdapterWithVersions], only: RevalidationState | None = None
    ) -> list[dict[str, Any]]:
        """Adapters in the API's form, with their versions except rejected ones.

        Args:
            only: Show no versions but those that are in this state.
        """
        servable = await self.servability(row for adapter in adapters for row in adapter.versions)
        verdict_status = await self.verdict_status(adapters)
        return [
            {
                "object": "adapter",
                "name": adapter.row.name,
                "created_at": adapter.row.created_at,
                "aliases": {alias: _number(target) for alias, target in adapter.aliases.items()},
                "splits": {
                    alias: target.shown() for alias, target in adapter.aliases.items() if isinstance(target, Split)
                },
                "pinned": adapter.row.pinned_at is not None,
                "versions": [
                    self._version_object(adapter, row, servable[row.id], verdict_status.get(row.id))
                    for row in adapter.versions
                    if row.state != "rejected" and self.is_in(only, verdict_status.get(row.id))
                ],
            }
            for adapter in adapters
        ]

    def is_in(self, state: RevalidationState | None, verdict_status: VerdictStatus | None) -> bool:
        """Whether a version with these verdicts is in ``state``; True if that is None."""
        revalidation = self.freshness.state(verdict_status)
        return state is None or (revalidation is not None and revalidation.state is state)

    def _version_object(
        self, adapter: AdapterWithVersions, row: VersionRow, servable: Servable, verdict_status: VerdictStatus | None
    ) -> dict[str, Any]:
        revalidation = self.freshness.state(verdict_status)
        base = self.bases.serving(row.base)
        shown = version_object(adapter, row, servable)
        shown["base_name"] = None if base is None else base.name
        shown["verdict"] = None if verdict_status is None else verdict_object(adapter, row, verdict_status.latest)
        shown["revalidation"] = None if revalidation is None else revalidation.shown()
        return shown


def adapter_not_found(name: str, similar: str | None = None) -> AdapterNotFound:
    """The error for an adapter that does not exist or that the key may not see.

    Args:
        similar: What was probably meant, which the key may see.
    """
    hint = "" if similar is None else f"; did you mean `{similar}`?"
    return AdapterNotFound(f"the adapter `{name[:100]}` does not exist{hint}")


def _number(target: AliasTarget) -> int | None:
    """An alias's version; None while it is split."""
    return target if isinstance(target, int) else None


def parse_or_404(parse: Callable[[str], T], text: str, message: str, code: str) -> T:
    """Parse a part of the path with ``parse``; raises NotFound if it is not a valid name."""
    try:
        return parse(text)
    except AdapterError:
        raise NotFound(message, code=code) from None


def parse_alias_path(text: str, name: str) -> str:
    """Parse an alias in a path. Raises NotFound if it is not a valid name."""
    return parse_or_404(parse_alias, text, f"the adapter `{name}` has no alias `{text[:100]}`", "alias_not_found")


def held_back_numbers(adapter: AdapterWithVersions) -> frozenset[int]:
    """The numbers of the versions that `live` does not move to unless it is forced to."""
    return frozenset(row.number for row in adapter.versions if held_back_reason(row) is not None)


def verdict_object(adapter: AdapterWithVersions, row: VersionRow, verdict: VerdictRow) -> dict[str, Any]:
    """A verdict in the API's form, without the body of its evaluation."""
    return {
        "object": "adapter.verdict",
        "id": verdict.id,
        "adapter": adapter.row.name,
        "version": row.number,
        "verdict": verdict.verdict,
        "sentence": verdict.sentence,
        "metric": verdict.metric,
        "examples": verdict.examples,
        "kind": verdict.kind,
        "evaluation_id": verdict.evaluation_id,
        "files": verdict.files,
        "base": verdict.base,
        "key_id": verdict.key_id,
        "created_at": verdict.created_at,
        "rule": verdict.rule,
        "compared_with": verdict.compared_with,
        "holds": verdict.holds,
    }


def require_weights(name: str, row: VersionRow) -> str:
    """The version's digest. Raises NotFound if it has no weights."""
    if row.digest is None:
        raise NotFound(f"the version `{name}@{row.number}` has no weights, only settings", code="version_has_no_files")
    return row.digest


def require_unused(aliases: list[str], force: bool) -> None:
    """Raise Unprocessable if aliases other than checkpoints' point to what is to be deleted, and no ``force``."""
    used = sorted(alias for alias in aliases if not is_checkpoint_alias(alias))
    if used and not force:
        raise Unprocessable(
            f"still in use by the alias {', '.join(f'`{alias}`' for alias in used)}; "
            "move or delete it first, or force the deletion",
            code="version_in_use",
        )


def find_equal_version(
    adapter: AdapterWithVersions | None,
    digest: str | None,
    settings: dict[str, Any],
    base: dict[str, Any],
) -> VersionRow | None:
    """The version that an upload of this digest, settings and base would repeat, preferably a ready one; or None.

    Versions without weights have the digest None: those of equal settings are the same.
    """
    if adapter is None:
        return None
    fingerprint = Fingerprint.model_validate(base)
    sent = [row for row in adapter.versions if row.digest == digest and equal_json(row.settings, settings)]
    same = [row for row in sent if Fingerprint.model_validate(row.base).servable_with(fingerprint)]
    order = ("ready", "proving", "rejected")
    return min(same, key=lambda row: (order.index(row.state), row.number), default=None)
