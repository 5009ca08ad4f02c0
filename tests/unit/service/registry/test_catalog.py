"""What the catalog keeps of names that were resolved, for as long as nothing has changed."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace
from typing import Any

import pytest

from service.access.caller import Caller, Scope
from service.errors import Conflict, HatrackError, ModelNotFound
from service.registry import catalog as catalogs
from service.registry.catalog import NO_SETTINGS, AdapterEntry, Catalog, CatalogSnapshot, Servable, VersionEntry
from service.registry.split import Split

CALLER = Caller("key-1", "team", frozenset({Scope.INFER}))
VERSIONS = {
    1: VersionEntry(1, "a" * 64, NO_SETTINGS, Servable.OK, 1),
    2: VersionEntry(2, "b" * 64, NO_SETTINGS, Servable.DAMAGED, 1),
    3: VersionEntry(3, "c" * 64, NO_SETTINGS, Servable.OK, 1),
}
VOICE = AdapterEntry("voice", 1, VERSIONS, {"live": 1, "damaged": 2, "canary": Split(((1, 1), (3, 1)))})


def snapshot(entry: AdapterEntry = VOICE, project: str = "team") -> CatalogSnapshot:
    return CatalogSnapshot({(project, entry.name): entry})


def catalog() -> Catalog:
    catalog = Catalog("smol", 1)
    catalog.replace(snapshot())
    return catalog


@pytest.mark.parametrize("model", ["voice", "voice:live", "voice@3"])
def test_a_name_is_resolved_once(model: str) -> None:
    names = catalog()
    assert names.resolved(CALLER, model) is None
    target = names.resolve(CALLER, model)
    assert names.resolved(CALLER, model) is target
    assert target.label == model
    assert names.resolved(replace(CALLER, project="other"), model) is None


@pytest.mark.parametrize("globs", [("brand-*",), ("voice-*", "v"), ()])
def test_globs_count_for_a_name_that_another_key_has_resolved(globs: tuple[str, ...]) -> None:
    names = catalog()
    names.resolve(CALLER, "voice")
    restricted = replace(CALLER, key_id="key-2", adapters=globs)
    assert names.resolved(restricted, "voice") is None
    with pytest.raises(ModelNotFound):
        names.resolve(restricted, "voice")
    assert names.resolved(replace(restricted, adapters=("v*",)), "voice") is not None


@pytest.mark.parametrize(
    ("model", "more"),
    [
        *(("voice:canary", {"sticky": sticky}) for sticky in (None, "a")),
        *((model, {}) for model in ("smol", "voice:damaged", "voice@2", "voice@9", "voice:none", "none", "")),
        ("smol", {"adapter": "voice"}),
    ],
)
def test_a_split_and_what_cannot_serve_are_resolved_anew(model: str, more: dict[str, Any]) -> None:
    names = catalog()
    for _ in range(2):
        with suppress(HatrackError):
            names.resolve(CALLER, model, **more)
        assert names.resolved(CALLER, model) is None


def test_a_change_is_seen_by_the_next_request() -> None:
    names = catalog()
    assert names.resolve(CALLER, "voice").version == 1
    names.replace(snapshot(replace(VOICE, aliases={"live": 3})))
    assert names.resolved(CALLER, "voice") is None
    assert names.resolve(CALLER, "voice").version == 3
    names.replace(snapshot(replace(VOICE, aliases={"live": 2})))
    with pytest.raises(Conflict, match="damaged"):
        names.resolve(CALLER, "voice")
    assert names.resolved(CALLER, "voice") is None


def test_what_is_resolved_during_a_change_is_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    names = catalog()
    find = names.find

    def find_and_change(*args: Any, **kwargs: Any) -> Any:
        resolved = find(*args, **kwargs)
        names.replace(snapshot(replace(VOICE, aliases={"live": 3})))
        return resolved

    monkeypatch.setattr(names, "find", find_and_change)
    assert names.resolve(CALLER, "voice").version == 1
    assert names.resolved(CALLER, "voice") is None


def test_the_kept_names_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(catalogs, "MAX_TARGETS", 2)
    names = catalog()
    for model in ("voice", "voice:live", "voice@1", "voice@3"):
        names.resolve(CALLER, model)
        assert len(names._targets) <= 2
        assert names.resolved(CALLER, model) is not None
