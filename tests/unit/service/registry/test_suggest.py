"""Unknown models: the name that was probably meant, of those that the key may see, for a bounded effort."""

from __future__ import annotations

from types import MappingProxyType

import pytest

from service.access.caller import Caller, Scope
from service.errors import ModelNotFound, no_such_route
from service.registry.catalog import AdapterEntry, Catalog, CatalogSnapshot, Servable, VersionEntry, VersionSettings
from service.registry.suggest import FEW, MAX_EDITED, one_character_off

BASE = "Org/Some-Base"
CALLER = Caller("key_1", "shop", frozenset({Scope.INFER}))


def catalog_of(*names: str, project: str = "shop") -> Catalog:
    version = VersionEntry(3, "d" * 64, VersionSettings(), Servable.OK, 0)
    entries = {
        (project, name): AdapterEntry(name, 0, MappingProxyType({3: version}), {"live": 3, "canary": 3})
        for name in names
    }
    catalog = Catalog(BASE, 0)
    catalog.replace(CatalogSnapshot(MappingProxyType(entries)))
    return catalog


def meant(catalog: Catalog, name: str, caller: Caller = CALLER) -> str | None:
    """The name that the error suggests."""
    with pytest.raises(ModelNotFound) as refused:
        catalog.resolve(caller, name)
    assert refused.value.code == "model_not_found"
    _, hint, suggested = refused.value.message.partition("did you mean `")
    assert hint or refused.value.message.endswith("the list of models has those that it may use")
    return suggested.rstrip("`?") if hint else None


@pytest.mark.parametrize(
    ("asked", "suggested"),
    [
        ("tidewatr", "tidewater"),
        ("tidewaterr", "tidewater"),
        ("tidwater", "tidewater"),
        ("tidewaetr", "tidewater"),
        ("Tidewater", "tidewater"),
        ("brand_voice", "brand-voice"),
        ("tidewatr@3", "tidewater"),
        ("tidewater@4", "tidewater@3"),
        ("tidewater:canry", "tidewater:canary"),
        ("tidewater:elsewhere", None),
        ("gpt-4o", None),
        ("Org/some-base", BASE),
        ("", None),
        ("x" * 100_000, None),
    ],
)
@pytest.mark.parametrize("more", [0, 1000])
def test_what_was_meant(asked: str, suggested: str | None, more: int) -> None:
    catalog = catalog_of("tidewater", "brand-voice", *(f"adapter-{number}-of-many" for number in range(more)))
    if more and asked == "Org/some-base":
        suggested = BASE
    assert meant(catalog, asked) == suggested


@pytest.mark.parametrize("more", [0, 1000])
def test_only_names_that_the_key_may_use_are_suggested(more: int) -> None:
    names = ("tidewater", *(f"adapter-{number}-of-many" for number in range(more)))
    limited = Caller("key_2", "shop", frozenset({Scope.INFER}), adapters=("brand-*",))
    assert meant(catalog_of(*names), "tidewatr", limited) is None
    assert meant(catalog_of(*names, project="other"), "tidewatr") is None


def test_the_effort_does_not_grow_with_the_number_of_adapters() -> None:
    lookups = 0

    def unknown(_name: str) -> bool:
        nonlocal lookups
        lookups += 1
        return False

    for length in range(1, 65):
        lookups = 0
        assert one_character_off("n" * length, unknown) is None
        assert lookups <= 80 * MAX_EDITED + 80
    lookups = 0
    assert one_character_off("n" * 10_000, unknown) is None
    assert lookups == 0
    assert FEW <= 64


GROUPS = ("chat", "models")


@pytest.mark.parametrize(
    ("path", "hint"),
    [
        ("/v1/v1/chat/completions", "`/v1` is there more than once: did you mean /v1/chat/completions?"),
        ("/chat/completions", "`/v1` is missing: did you mean /v1/chat/completions?"),
        ("/openai/v1/models", "`/v1` must come first: did you mean /v1/models?"),
        ("/v1/chat/nothing", "The API is under /v1"),
        ("/nothing", "The API is under /v1"),
        ("/v1", "The API is under /v1"),
        ("/", "The API is under /v1"),
    ],
)
def test_a_path_with_a_wrong_v1_is_named(path: str, hint: str) -> None:
    error = no_such_route("POST", path, GROUPS)
    assert error.message.startswith(f"No such route: POST {path}. {hint}")
    assert error.code == "unknown_route"
    assert len(no_such_route("POST", path + "x" * 10_000, GROUPS).message) < 400
