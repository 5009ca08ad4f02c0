"""How much the registry holds, for the metrics: counted at each change, so that reading costs nothing."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

from service.registry.catalog import CatalogSnapshot, Servable

UNREADY: Final = ("proving", "rejected")


@dataclass(frozen=True, slots=True)
class RegistryCounts:
    """All projects together, as of the last change.

    Attributes:
        adapters: Adapters that have a ready version.
        ready: Ready versions by whether they can serve; every value of ``Servable`` is there.
        unready: Versions in each state of ``UNREADY``; both are there.
        pins: Adapters whose live version is kept warm.
        splits: Aliases that split their requests.
    """

    adapters: int
    ready: Mapping[Servable, int]
    unready: Mapping[str, int]
    pins: int
    splits: int

    @classmethod
    def of(cls, snapshot: CatalogSnapshot, states: Mapping[str, int]) -> RegistryCounts:
        """Count the catalog's versions, and take the rest from the database's number of versions by state."""
        entries = snapshot.adapters.values()
        ready = Counter(version.servable for entry in entries for version in entry.versions.values())
        return cls(
            adapters=len(snapshot.adapters),
            ready=MappingProxyType({servable: ready[servable] for servable in Servable}),
            unready=MappingProxyType({state: states.get(state, 0) for state in UNREADY}),
            pins=sum(entry.pinned_at is not None for entry in entries),
            splits=sum(not isinstance(target, int) for entry in entries for target in entry.aliases.values()),
        )


NO_COUNTS: Final = RegistryCounts.of(CatalogSnapshot(), {})
