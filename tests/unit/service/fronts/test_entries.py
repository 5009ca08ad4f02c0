"""Keys and adapters cross from a gateway to its fronts unchanged."""

from __future__ import annotations

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
    crossed = load_adapter(orjson.loads(orjson.dumps(dump_adapter(entry))))
    assert (crossed.name, crossed.created_at, crossed.pinned_at) == ("voice", 4, 9)
    assert dict(crossed.versions) == versions
    assert dict(crossed.aliases) == dict(entry.aliases)
