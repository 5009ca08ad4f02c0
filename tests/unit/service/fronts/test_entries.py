"""Keys and adapters cross from a gateway to its fronts unchanged."""

from __future__ import annotations

from types import MappingProxyType
from typing import Any

import orjson
import pytest

from service.access.authentication import KeyEntry
from service.access.caller import Caller, Limits, Scope
from service.fronts.entries import dump_adapter, dump_key, load_adapter, load_key
from service.grounding.config import GroundingSettings
from service.registry.catalog import AdapterEntry, PromptExample, Servable, VersionEntry, VersionSettings
from service.registry.split import Split

PLAIN = Caller("key_a", "default", frozenset({Scope.INFER}))
FULL = Caller(
    "key_b",
    "acme",
    frozenset({Scope.ADMIN, Scope.TRAIN}),
    ("voice-*",),
    (),
    Limits(requests_per_minute=3, tokens_per_day=9),
    background=True,
    limited_as="key_a",
    filters={"tenant": "x", "level": 3.0, "open": True},
)


@pytest.mark.parametrize("entry", [KeyEntry(PLAIN), KeyEntry(FULL, 1_900_000_000)])
def test_a_key_crosses(entry: KeyEntry) -> None:
    crossed = load_key(orjson.loads(orjson.dumps(dump_key(entry))))
    assert crossed == entry
    assert dict(crossed.caller.filters) == dict(entry.caller.filters)


def parts(entry: AdapterEntry, former: AdapterEntry | None, max_bytes: int = 10**6) -> list[dict[str, Any]]:
    """What is told of an adapter, as a front reads it."""
    return [orjson.loads(orjson.dumps(part)) for part in dump_adapter(entry, former, max_bytes)]


def cross(entry: AdapterEntry, former: AdapterEntry | None, max_bytes: int = 10**6) -> AdapterEntry | None:
    """What a front makes of an adapter of which it has been told ``former``."""
    known = former
    for part in parts(entry, former, max_bytes):
        known = load_adapter(part, known)
    return known


def version(number: int, prompt: str = "x") -> VersionEntry:
    return VersionEntry(number, None, VersionSettings(system_prompt=prompt), Servable.OK, 6, flow=f"f{number}")


def adapter(*versions: VersionEntry, **aliases: int) -> AdapterEntry:
    made = MappingProxyType({each.number: each for each in versions})
    return AdapterEntry("voice", 4, made, MappingProxyType(aliases))


def test_large_versions_cross_in_parts() -> None:
    large = adapter(*(version(number, "x" * 1000) for number in range(1, 8)), live=7)
    told = parts(large, None, 2500)
    assert [len(part["versions"]) for part in told] == [2, 2, 2, 1]
    assert cross(large, None, 2500) == large
    assert [len(part["versions"]) for part in parts(large, None, 10)] == [1] * 7, "a version is not divided"


def test_only_what_has_changed_crosses() -> None:
    former = adapter(version(1), version(2), version(3), live=1)
    now = adapter(version(1), version(2, "another"), version(4), live=4)
    [part] = parts(now, former)
    assert ([each["number"] for each in part["versions"]], part["drop"]) == ([2, 4], [3])
    assert cross(now, former) == now
    promoted = adapter(version(1), version(2), version(3), live=2)
    assert [part["versions"] for part in parts(promoted, former)] == [[]]
    assert cross(promoted, former) == promoted
    assert parts(adapter(version(1), version(2), version(3), live=1), former) == []


def test_an_adapter_crosses_with_its_versions_aliases_and_splits() -> None:
    settings = VersionSettings(
        system_prompt="You are a pirate.",
        examples=(PromptExample(user="a", assistant="b"),),
        sampling={"temperature": 0.5},
        grounding=GroundingSettings.model_validate({"vector_store_ids": ["vs_1"]}),
    )
    versions = {
        1: VersionEntry(1, "d" * 64, VersionSettings(), Servable.OTHER_BASE, 5),
        2: VersionEntry(2, None, settings, Servable.OK, 6, flow="default/voice@2", base="tiny"),
    }
    entry = AdapterEntry("voice", 4, versions, {"live": 2, "both": Split.of({1: 3, 2: 7})}, pinned_at=9)
    crossed = cross(entry, None)
    assert crossed is not None
    assert (crossed.name, crossed.created_at, crossed.pinned_at) == ("voice", 4, 9)
    assert dict(crossed.versions) == versions
    assert dict(crossed.aliases) == dict(entry.aliases)
