"""The adapters in the engine's memory, which a proof can use as neighbours."""

from __future__ import annotations

from collections.abc import Sequence

from service.engine.client import EngineClient
from service.errors import HatrackError
from service.registry.catalog import Catalog, Servable


class LoadedAdapters:
    """A callable that returns the digests, of all projects, that are loaded and can serve; empty if the engine fails.

    Args:
        catalog: Which adapters can serve.
        residency: Which of them the engine has loaded.
    """

    def __init__(self, catalog: Catalog, residency: EngineClient) -> None:
        self._catalog = catalog
        self._residency = residency

    async def __call__(self) -> Sequence[str]:
        try:
            loaded = (await self._residency.report(loaded=True)).get("loaded", ())
        except HatrackError:
            return ()
        entries = self._catalog.snapshot.adapters.values()
        servable = {
            version.digest
            for entry in entries
            for version in entry.versions.values()
            if version.servable is Servable.OK and version.digest is not None
        }
        return [digest for digest in loaded if digest in servable]
