"""The names of the adapters that runs make."""

from __future__ import annotations

from types import MappingProxyType

import pytest

from service.access.caller import Caller, Scope
from service.errors import BadRequest, Forbidden
from service.registry.catalog import AdapterEntry, Catalog, CatalogSnapshot
from service.training.authorization import adapter_name

CALLER = Caller("k1", "shop", frozenset({Scope.TRAIN}))


def catalog() -> Catalog:
    """Its project "old" has an adapter with the embedder's name."""
    made = Catalog("base", 0, "meaning")
    had_it_first = AdapterEntry("meaning", 0, MappingProxyType({}), {})
    made.replace(CatalogSnapshot(MappingProxyType({("old", "meaning"): had_it_first})))
    return made


@pytest.mark.parametrize(
    ("name", "code"), [("base", "name_reserved"), ("meaning", "name_reserved"), ("No Name", "name_invalid")]
)
def test_a_name_that_no_adapter_can_have(name: str, code: str) -> None:
    with pytest.raises(BadRequest) as refused:
        adapter_name(CALLER, name, "suffix", catalog=catalog(), action="train")
    assert (refused.value.param, refused.value.code) == ("suffix", code)


def test_an_adapter_that_had_the_embedders_name_first_is_trained_further() -> None:
    caller = Caller("k1", "old", frozenset({Scope.TRAIN}))
    assert adapter_name(caller, "meaning", "suffix", catalog=catalog(), action="train") == "meaning"


def test_a_name_outside_the_keys_globs() -> None:
    narrow = Caller("k1", "shop", frozenset({Scope.TRAIN}), adapters=("voice-*",))
    assert adapter_name(narrow, "voice-1", "suffix", catalog=catalog(), action="train") == "voice-1"
    with pytest.raises(Forbidden, match="may only train adapters whose names match `voice-"):
        adapter_name(narrow, "other", "suffix", catalog=catalog(), action="train")
