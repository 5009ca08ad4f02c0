"""Keys and adapters as a feed carries them."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import Any

import orjson

from service.access.authentication import KeyEntry
from service.access.caller import NO_FILTERS, NO_LIMITS, Caller, Limits, Scope
from service.registry.catalog import NO_SETTINGS, AdapterEntry, Servable, VersionEntry, VersionSettings
from service.registry.split import AliasTarget, Split


def dump_key(entry: KeyEntry) -> dict[str, Any]:
    """A key as JSON values."""
    caller = entry.caller
    return {
        "id": caller.key_id,
        "project": caller.project,
        "scopes": sorted(caller.scopes),
        "adapters": caller.adapters,
        "stores": caller.stores,
        "limits": caller.limits.model_dump(exclude_none=True),
        "background": caller.background,
        "limited_as": caller.limited_as,
        "filters": dict(caller.filters),
        "expires_at": None if math.isinf(entry.expires_at) else entry.expires_at,
    }


def load_key(dumped: dict[str, Any]) -> KeyEntry:
    """The key that was dumped. Raises KeyError, ValueError or TypeError for what is none."""
    globs = {name: None if dumped[name] is None else tuple(dumped[name]) for name in ("adapters", "stores")}
    caller = Caller(
        dumped["id"],
        dumped["project"],
        frozenset(map(Scope, dumped["scopes"])),
        globs["adapters"],
        globs["stores"],
        Limits.model_validate(dumped["limits"]) if dumped["limits"] else NO_LIMITS,
        dumped["background"],
        dumped["limited_as"],
        dumped["filters"] or NO_FILTERS,
    )
    return KeyEntry(caller, math.inf if dumped["expires_at"] is None else dumped["expires_at"])


def dump_adapter(entry: AdapterEntry, former: AdapterEntry | None, max_bytes: int) -> Iterator[dict[str, Any]]:
    """What of an adapter is new or another since it was told last, as JSON values; nothing, if nothing is.

    In parts, as a version's prompt and examples may be large: the versions of a part have at most ``max_bytes``, or it
    is a single one.
    """
    head = _dump_head(entry)
    told: Mapping[int, VersionEntry] = {} if former is None else former.versions
    gone = [number for number in told if number not in entry.versions]
    versions: list[orjson.Fragment] = []
    size = 0
    for number, version in entry.versions.items():
        if told.get(number) == version:
            continue
        dumped = orjson.dumps(_dump_version(version))
        if versions and size + len(dumped) > max_bytes:
            yield {**head, "versions": versions, "drop": []}
            versions, size = [], 0
        versions.append(orjson.Fragment(dumped))
        size += len(dumped)
    if versions or gone or former is None or head != _dump_head(former):
        yield {**head, "versions": versions, "drop": gone}


def _dump_head(entry: AdapterEntry) -> dict[str, Any]:
    return {
        "name": entry.name,
        "created_at": entry.created_at,
        "pinned_at": entry.pinned_at,
        "aliases": {alias: _dump_target(target) for alias, target in entry.aliases.items()},
    }


def load_adapter(dumped: dict[str, Any], former: AdapterEntry | None) -> AdapterEntry:
    """The adapter as it is with a part that was dumped, and with all that was told of it before.

    Raises KeyError, ValueError or TypeError for what is no part.
    """
    versions = {} if former is None else dict(former.versions)
    versions.update((version["number"], _load_version(version)) for version in dumped["versions"])
    for number in dumped["drop"]:
        versions.pop(number, None)
    aliases = {alias: _load_target(target) for alias, target in dumped["aliases"].items()}
    return AdapterEntry(
        dumped["name"],
        dumped["created_at"],
        MappingProxyType(versions),
        MappingProxyType(aliases),
        dumped["pinned_at"],
    )


def _dump_version(version: VersionEntry) -> dict[str, Any]:
    return {
        "number": version.number,
        "digest": version.digest,
        "settings": None if version.settings is NO_SETTINGS else version.settings.stored(),
        "servable": version.servable.value,
        "created_at": version.created_at,
        "flow": version.flow,
        "base": version.base,
    }


def _load_version(dumped: dict[str, Any]) -> VersionEntry:
    settings = dumped["settings"]
    return VersionEntry(
        number=dumped["number"],
        digest=dumped["digest"],
        settings=NO_SETTINGS if settings is None else VersionSettings.model_validate(settings),
        servable=Servable(dumped["servable"]),
        created_at=dumped["created_at"],
        flow=dumped["flow"],
        base=dumped["base"],
    )


def _dump_target(target: AliasTarget) -> Any:
    return list(map(list, target.weights)) if isinstance(target, Split) else target


def _load_target(dumped: Any) -> AliasTarget:
    return dumped if isinstance(dumped, int) else Split.of({int(version): weight for version, weight in dumped})
