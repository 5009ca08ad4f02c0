"""How the registry's rows become what others see: the catalog's entries, and the API's objects."""

from __future__ import annotations

from types import MappingProxyType
from typing import Any, Final

from adapters.errors import PerplexityTooHigh
from adapters.json_depth import MAX_LEVELS, too_deep
from adapters.perplexity import HOLD_BACK_RATIO, measured
from service.agents import Bases
from service.registry.catalog import AdapterEntry, Servable, VersionEntry, VersionSettings
from service.registry.records import AdapterWithVersions, VersionRow

TOO_DEEP: Final = f"The metadata is nested more than {MAX_LEVELS} levels deep and is not shown."
"""Of a version from before such metadata was refused."""


def catalog_entry(adapter: AdapterWithVersions, servable: dict[int, Servable], bases: Bases) -> AdapterEntry | None:
    """An adapter as the data path sees it; None if it has no ready version."""
    ready = {
        row.number: VersionEntry(
            number=row.number,
            digest=row.digest,
            settings=VersionSettings.model_validate(row.settings),
            servable=servable[row.id],
            created_at=row.created_at,
            flow=f"{adapter.row.project}/{adapter.row.name}@{row.number}" if row.digest is None else None,
            base="" if (base := bases.serving(row.base)) is None else base.name,
        )
        for row in adapter.versions
        if row.state == "ready"
    }
    if not ready:
        return None
    return AdapterEntry(
        name=adapter.row.name,
        created_at=adapter.row.created_at,
        versions=MappingProxyType(ready),
        aliases=MappingProxyType(dict(adapter.aliases)),
        pinned_at=adapter.row.pinned_at,
    )


def version_object(adapter: AdapterWithVersions, row: VersionRow, servable: Servable) -> dict[str, Any]:
    """One version in the API's form, without what is told of its verdicts."""
    hidden = too_deep(row.metadata) is not None
    shown: dict[str, Any] = {
        "object": "adapter.version",
        "adapter": adapter.row.name,
        "version": row.number,
        "digest": row.digest,
        "state": row.state,
        "servable": servable.value,
        "aliases": adapter.aliases_of(row.number),
        "rank": None if row.digest is None else row.rank,
        "alpha": None if row.digest is None else row.alpha,
        "target_modules": row.target_modules,
        "bytes": row.bytes,
        "base": row.base,
        "created_at": row.created_at,
        "expires_at": row.expires_at,
        "settings": row.settings,
        "metadata": {} if hidden else row.metadata,
        "proof": row.proof,
        "held_back": held_back_reason(row),
        "warnings": [*row.warnings, TOO_DEEP] if hidden else row.warnings,
    }
    if row.state == "rejected":
        shown["reason"] = row.reason
    return shown


def held_back_reason(row: VersionRow) -> dict[str, Any] | None:
    """Why `live` does not move to a version unless it is forced, in the API's form; None: nothing holds it back."""
    perplexity = measured(row.proof)
    if perplexity is None or not perplexity.holds_back:
        return None
    return {
        "code": PerplexityTooHigh.code,
        "message": f"with it, the perplexity of plain text is {perplexity.ratio:,.0f} times the base's",
        "ratio": perplexity.ratio,
        "limit": HOLD_BACK_RATIO,
    }
