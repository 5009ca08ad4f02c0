"""The list of models is written once for all who see the same, and is what it would be if it were written each time."""

from __future__ import annotations

from types import MappingProxyType

import orjson
import pytest

from service.access.caller import Caller, Scope
from service.errors import RateLimited
from service.inference import models
from service.inference.models import WrittenLists, list_models
from service.registry.catalog import NO_SETTINGS, AdapterEntry, Catalog, CatalogSnapshot, Servable, VersionEntry


def caller(key: str, project: str = "ours", globs: tuple[str, ...] | None = None) -> Caller:
    return Caller(key, project, frozenset({Scope.INFER}), globs)


CALLERS = (
    caller("a"),
    caller("b"),
    caller("c", globs=("voice-*",)),
    caller("d", globs=("voice-*",)),
    caller("e", globs=()),
    caller("f", "theirs"),
    caller("g", "nobody"),
)
SEEN = 5
"""How many different lists they see."""


def adapter(name: str, alias: str = "live") -> AdapterEntry:
    version = VersionEntry(1, "0" * 64, NO_SETTINGS, Servable.OK, 100)
    return AdapterEntry(name, 100, {1: version}, {alias: 1})


def snapshot(*adapters: tuple[str, AdapterEntry]) -> CatalogSnapshot:
    return CatalogSnapshot(MappingProxyType({(project, entry.name): entry for project, entry in adapters}))


@pytest.fixture
def catalog() -> Catalog:
    catalog = Catalog("base", 1, "embedder")
    theirs, unborn = ("theirs", adapter("embedder")), ("ours", adapter("unborn", "beta"))
    catalog.replace(snapshot(("ours", adapter("voice-a")), ("ours", adapter("intents")), theirs, unborn))
    return catalog


@pytest.fixture
def written(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The keys for which a list was written."""
    keys: list[str] = []

    def noted(catalog: Catalog, caller: Caller) -> dict[str, object]:
        keys.append(caller.key_id)
        return list_models(catalog, caller)

    monkeypatch.setattr(models, "list_models", noted)
    return keys


def test_callers_who_see_the_same_share_a_list_until_the_catalog_changes(catalog: Catalog, written: list[str]) -> None:
    lists = WrittenLists(catalog)
    changes = [("ours", adapter("voice-a")), ("ours", adapter("voice-b"))]
    for number in (1, 2):
        for _ in range(2):
            for each in CALLERS:
                assert orjson.loads(lists.body(each, "")) == list_models(catalog, each)
        assert len(written) == number * SEEN
        catalog.replace(snapshot(*changes))
    assert [card["id"] for card in orjson.loads(lists.body(CALLERS[0], ""))["data"]] == [
        "base", "voice-a", "voice-b", "embedder",
    ]  # fmt: skip


def test_the_lists_that_are_kept_have_a_bound(
    catalog: Catalog, written: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    lists, first = WrittenLists(catalog), CALLERS[0]
    size = len(lists.body(first, ""))
    monkeypatch.setattr(models, "MAX_KEPT_BYTES", 3 * size)
    for number in range(20):
        lists.body(caller("x", globs=("*", f"x{number}")), "")  # as long as the first
        lists.body(first, "")
    assert (written.count("a"), written.count("x")) == (1, 20), "what is asked for stays"
    assert len(lists._written) == 3
    lists.body(caller("x", globs=("*", "x19")), "")
    assert written.count("x") == 20
    lists.body(caller("x", globs=("*", "x17")), "")
    assert written.count("x") == 21, "of the others the oldest has gone"


def test_the_time_that_goes_to_lists_is_bounded_by_key_and_by_client(
    catalog: Catalog, written: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Keys whose lists push each other out of what is kept: each list takes 30 ms of the loop by this clock."""
    now = [100.0]
    count = models.list_models

    def slow(catalog: Catalog, caller: Caller) -> dict[str, object]:
        now[0] += 0.03
        return count(catalog, caller)

    monkeypatch.setattr(models, "list_models", slow)
    monkeypatch.setattr(models, "MAX_KEPT_BYTES", 1)
    lists, waits = WrittenLists(catalog, lambda: now[0]), set[str]()

    def asks(times: int, peer: str, key: str = "") -> int:
        """How many of so many requests, of one key or of ever new ones, are answered."""
        answered = 0
        for _ in range(times):
            try:
                lists.body(caller(key or f"k{now[0]}", globs=(f"x{now[0]}",)), peer)
            except RateLimited as error:
                waits.add(error.headers["retry-after"])
                continue
            answered += 1
        return answered

    assert asks(300, "10.0.0.1") in range(100, 110), "3 s of the loop, however many keys it has"
    assert (asks(1, "10.0.0.1", "z"), waits) == (0, {"1"})
    assert asks(10, "10.0.0.2") == 10
    assert sum(asks(1, f"10.0.1.{number}", "a") for number in range(300)) in range(100, 110), "from whatever addresses"
    assert asks(1, "10.0.0.3", "b") == 1
    now[0] += 60
    assert asks(1, "10.0.0.1", "z") == 1


def test_a_list_that_is_kept_costs_nothing(catalog: Catalog, written: list[str]) -> None:
    lists = WrittenLists(catalog, lambda: 0.0)
    bodies = {lists.body(CALLERS[0], "10.0.0.1") for _ in range(1000)}
    assert (len(bodies), len(written)) == (1, 1)
