"""A version demands a filter, a key carries one: what a search is restricted to, and which requests are refused."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

import numpy as np
import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.access.caller import Caller
from service.errors import BadRequest, Forbidden, HatrackError
from service.grounding.config import GroundingSettings
from service.grounding.filters import Column, check_filters, mask
from service.grounding.provider import Passage
from service.grounding.required_filters import EVERYONE, allows, required_values, restrict, without_values
from service.inference.prompt import RENDER_PATH
from service.registry.catalog import AdapterEntry, CatalogSnapshot, VersionSettings
from tests.unit.service.grounding.fakes import Known, Told, hook, key
from tests.unit.service.inference.fakes import BASE, DONE, World, completion, token, usage_event, version

MINE = Passage("p-1", "MT-1 arrives on Monday", 0.9, "c-1.csv", "vs_a", "file-1", {"customer": "c-1"})
THEIRS = Passage("p-2", "MT-2 arrives on Friday", 0.8, "c-2.csv", "vs_a", "file-2", {"customer": "c-2"})
POLICY = Passage("p-3", "Returns take 30 days", 0.7, "returns.md", "vs_a", "file-3", {"customer": EVERYONE})
UNLABELLED = Passage("p-4", "MT-3 arrives never", 0.6, "lost.csv", "vs_a", "file-4")
FENCED = GroundingSettings(vector_store_ids=("vs_a",), required_filters=("customer",))
EQ = {"type": "eq", "key": "customer", "value": "c-1"}
OTHER = {**EQ, "value": "c-2"}
EU = {"type": "eq", "key": "region", "value": "eu"}


def both(*parts: Mapping[str, Any]) -> dict[str, Any]:
    return {"type": "and", "filters": list(parts)}


def either(*parts: Mapping[str, Any]) -> dict[str, Any]:
    return {"type": "or", "filters": list(parts)}


def within(value: Any, name: str = "customer") -> dict[str, Any]:
    return {"type": "in", "key": name, "value": [value, EVERYONE]}


class Filtering(Told):
    """Gives the passages that match the query's filter, as the embedded stores do."""

    async def retrieve(self, query: Any, deadline: float) -> Sequence[Passage]:
        passages: Sequence[Passage] = await super().retrieve(query, deadline)
        if query.filters is None:
            return passages
        check_filters(query.filters)
        rows = mask(query.filters, lambda name: column(passages, name))
        return [passage for passage, matches in zip(passages, rows, strict=True) if matches]


def column(passages: Sequence[Passage], name: str) -> Column:
    values = [None, *(passage.attributes.get(name) for passage in passages)]
    codes = [0 if passage.attributes.get(name) is None else at for at, passage in enumerate(passages, 1)]
    return Column(values, np.array(codes, dtype=np.int32))


def world(settings: GroundingSettings | None, caller: Caller | None = None, **more: Any) -> World:
    made = World(Known(caller) if caller else None, hook=hook(more.pop("provider", shop()), **more))
    versions = {3: version(3, VersionSettings(system_prompt="You are a shop.", grounding=settings))}
    entries = {("default", "voice"): AdapterEntry("voice", 800, MappingProxyType(versions), {"live": 3})}
    made.catalog.replace(CatalogSnapshot(MappingProxyType(entries)))
    made.engine.chunks = [completion("Ahoy [1]")]
    return made


def shop() -> Filtering:
    return Filtering(MINE, THEIRS, POLICY, UNLABELLED)


def cited(answer: Any) -> list[str]:
    return [citation["id"] for citation in answer.json()["citations"]]


# what a search is restricted to


@pytest.mark.parametrize(
    ("filters", "rest"),
    [
        (EQ, None),
        (both(EQ, EU), both(EU)),
        (both(EU, both(EQ)), both(EU)),
        (both(EQ, either(EQ, EU)), both(either(EQ, EU))),
    ],
)
def test_a_value_is_taken_from_what_always_holds(filters: dict[str, Any], rest: dict[str, Any] | None) -> None:
    assert required_values(["customer"], {}, filters, "filters") == {"customer": "c-1"}
    assert without_values(filters, ["customer"]) == rest


@pytest.mark.parametrize(
    "filters",
    [
        None,
        EU,
        either(EQ, EU),
        either(EQ),
        both(EU, either(EQ, EU)),
        {**EQ, "type": "ne"},
        {**EQ, "type": "in", "value": ["c-1"]},
        {**EQ, "type": "gte"},
        {**EQ, "value": ""},
        {**EQ, "key": "Customer"},
    ],
)
def test_what_need_not_hold_gives_no_value(filters: dict[str, Any] | None) -> None:
    with pytest.raises(HatrackError) as caught:
        required_values(["customer"], {}, filters, "grounding.filters")
    assert (caught.value.status, caught.value.code) == (400, "required_filter_missing")
    assert "`customer`" in caught.value.message
    assert "`grounding.filters`" in caught.value.message


def test_two_values_are_refused() -> None:
    with pytest.raises(HatrackError) as caught:
        required_values(["customer"], {}, both(EQ, OTHER), "filters")
    assert (caught.value.status, caught.value.code) == (400, "invalid_value")


@pytest.mark.parametrize("asked", [OTHER, both(EU, OTHER), both(EQ, OTHER), {**EQ, "value": EVERYONE}])
def test_a_keys_value_cannot_be_overridden(asked: dict[str, Any]) -> None:
    with pytest.raises(HatrackError) as caught:
        required_values([], {"customer": "c-1"}, asked, "filters")
    assert (caught.value.status, caught.value.code, caught.value.param) == (403, "filter_not_allowed", "filters")
    assert "`customer`" in caught.value.message
    assert "c-1" not in caught.value.message


def test_kinds_of_values_differ() -> None:
    assert required_values([], {"n": 1.0}, {"type": "eq", "key": "n", "value": 1}, "filters") == {"n": 1.0}
    for value in ("1", True):
        with pytest.raises(HatrackError):
            required_values([], {"n": 1}, {"type": "eq", "key": "n", "value": value}, "filters")
        assert not allows({"n": 1}, {"n": value})


NAMES, VALUES = st.sampled_from(["customer", "region"]), st.sampled_from(["c-1", "c-2", EVERYONE, "eu", ""])
COMPARISONS = st.one_of(
    st.fixed_dictionaries({"type": st.sampled_from(["eq", "ne", "gt", "lte"]), "key": NAMES, "value": VALUES}),
    st.fixed_dictionaries(
        {"type": st.sampled_from(["in", "nin"]), "key": NAMES, "value": st.lists(VALUES, min_size=1, max_size=3)}
    ),
)
FILTERS = st.recursive(
    COMPARISONS,
    lambda parts: st.fixed_dictionaries(
        {"type": st.sampled_from(["and", "or"]), "filters": st.lists(parts, min_size=1, max_size=3)}
    ),
    max_leaves=6,
)
ROWS = [
    Passage(f"{customer}-{region}", "x", 1.0, "x", attributes={k: v for k, v in pair.items() if v is not None})
    for customer in ("c-1", "c-2", EVERYONE, "", None)
    for region in ("eu", "us", None)
    for pair in [{"customer": customer, "region": region}]
]


@given(filters=FILTERS, demanded=st.booleans())
def test_no_filter_widens_a_search_past_the_key(filters: dict[str, Any], demanded: bool) -> None:
    names = ["customer"] if demanded else []
    try:
        values = required_values(names, {"customer": "c-1"}, filters, "filters")
    except (BadRequest, Forbidden):
        return
    restricted = restrict(without_values(filters, names), values)
    assert restricted is not None
    found = [row for row, hit in zip(ROWS, mask(restricted, lambda name: column(ROWS, name)), strict=True) if hit]
    assert {row.attributes["customer"] for row in found} <= {"c-1", EVERYONE}
    assert all(allows(values, row.attributes) for row in found)


# in the data path


async def test_a_request_gives_the_value_and_gets_its_own_documents_and_everyones() -> None:
    made = world(FENCED)
    answer = await made.chat(grounding={"filters": EQ})
    assert (answer.status, cited(answer)) == (200, ["p-1", "p-3"])
    prompt = orjson.dumps(made.engine.last.body).decode()
    assert "Monday" in prompt
    assert not re.search("Friday|never", prompt)


async def test_a_request_without_the_value_is_refused_before_anything_is_searched() -> None:
    provider = shop()
    made = world(FENCED, provider=provider)
    for grounding in (None, {"filters": either(EQ, EU)}, {"required_filters": ["customer"]}):
        answer = await made.chat(**({} if grounding is None else {"grounding": grounding}))
        error = answer.json()["error"]
        assert (answer.status, error["code"], error["param"]) == (
            400,
            "required_filter_missing",
            "grounding.filters",
        )
        assert "`customer`" in error["message"]
    assert provider.asked == []
    assert made.engine.asked == []


async def test_a_key_carries_the_value() -> None:
    made = world(FENCED, key(filters={"customer": "c-1"}))
    for grounding in ({}, {"grounding": {"filters": EQ}}, {"grounding": {"filters": either(OTHER, EU, EQ)}}):
        answer = await made.chat(**grounding)
        assert answer.status == 200
        assert set(cited(answer)) <= {"p-1", "p-3"}
        assert "p-1" in cited(answer)
    answer = await made.chat(grounding={"filters": OTHER})
    assert (answer.status, answer.json()["error"]["code"]) == (403, "filter_not_allowed")
    assert answer.json()["error"]["param"] == "grounding.filters"


async def test_a_key_is_restricted_whichever_version_it_asks() -> None:
    made = world(GroundingSettings(vector_store_ids=("vs_a",)), key(filters={"customer": "c-1"}))
    assert cited(await made.chat()) == ["p-1", "p-3"]
    asked = {"model": BASE, "grounding": {"vector_store_ids": ["vs_a"]}}
    assert cited(await made.chat(**asked)) == ["p-1", "p-3"]
    asked["grounding"]["filters"] = {"type": "ne", "key": "customer", "value": "c-1"}  # type: ignore[index]
    assert cited(await made.chat(**asked)) == ["p-3"]


async def test_without_required_filters_all_is_found_as_before() -> None:
    made = world(GroundingSettings(vector_store_ids=("vs_a",)))
    assert len(cited(await made.chat())) == 4
    assert cited(await made.chat(grounding={"filters": EQ})) == ["p-1"]


async def test_values_alone_leave_the_versions_own_filter_in_place() -> None:
    provider = Told(MINE)
    made = world(FENCED.model_copy(update={"filters": EU}), provider=provider)
    await made.chat(grounding={"filters": EQ})
    await made.chat(grounding={"filters": both(EQ, {**EU, "value": "us"})})
    assert [query.filters for query, _ in provider.asked] == [
        both(within("c-1"), EU),
        both(within("c-1"), both({**EU, "value": "us"})),
    ]
    assert provider.asked[0][0].required == {"customer": "c-1"}


async def test_a_request_can_add_to_what_is_demanded_and_take_nothing_away() -> None:
    made = world(FENCED)
    answer = await made.chat(grounding={"filters": EQ, "required_filters": ["region"]})
    assert (answer.status, answer.json()["error"]["code"]) == (400, "required_filter_missing")
    assert "`region`" in answer.json()["error"]["message"]


@pytest.mark.parametrize("name", ["webhook", "faq"])
async def test_a_provider_that_ignores_the_filter_is_not_believed(name: str) -> None:
    careless = Told(MINE, THEIRS, POLICY, UNLABELLED)
    made = world(FENCED, **{name: careless})
    answer = await made.chat(grounding={"provider": name, "filters": EQ})
    assert (answer.status, cited(answer)) == (200, ["p-1", "p-3"])
    [(query, _)] = careless.asked
    assert (query.filters, query.required) == (within("c-1"), {"customer": "c-1"})
    only_theirs = world(FENCED.model_copy(update={"on_failure": "fail_closed"}), **{name: Told(THEIRS, UNLABELLED)})
    answer = await only_theirs.chat(grounding={"provider": name, "filters": EQ})
    assert (answer.status, answer.json()["error"]["code"]) == (503, "grounding_unavailable")
    assert only_theirs.engine.asked == []


async def test_no_search_no_demand() -> None:
    made = world(FENCED)
    assert (await made.chat(grounding=False)).status == 200
    assert "Monday" not in orjson.dumps(made.engine.last.body).decode()


async def test_a_caller_that_always_sends_its_filter_can_ask_a_version_without_stores() -> None:
    made = world(None)
    answer = await made.chat(grounding={"filters": EQ})
    assert answer.status == 200
    assert "citations" not in answer.json()
    answer = await made.chat(grounding={"filters": EQ, "max_num_results": 2})
    assert answer.json()["error"]["code"] == "missing_required_parameter"


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/responses", {"input": "Where is it?"}),
        ("/v1/messages", {"messages": [{"role": "user", "content": "Where is it?"}], "max_tokens": 8}),
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": "Where is it?"}], "stream": True}),
        (RENDER_PATH, {"messages": [{"role": "user", "content": "Where is it?"}]}),
    ],
)
async def test_every_dialect_is_refused_and_restricted(path: str, body: dict[str, Any]) -> None:
    provider = Told(MINE)
    made = world(FENCED, provider=provider)
    made.engine.chunks = [token("Ahoy") + usage_event() + DONE] if body.get("stream") else [completion("Ahoy")]
    refused = await made.ask(path, {"model": "voice", **body})
    assert refused.status == 400
    assert "customer" in refused.json()["error"]["message"]
    await made.ask(path, {"model": "voice", **body, "grounding": {"filters": EQ}})
    [(query, _)] = provider.asked
    assert query.filters == within("c-1")


@pytest.mark.parametrize("settings", [FENCED, None], ids=["version", "base"])
async def test_a_rendered_prompt_is_fenced_as_an_answer_is(settings: GroundingSettings | None) -> None:
    """It shows passages to whoever asks, and no model stands between."""
    mine = key(filters={"customer": "c-1"})
    made = world(settings, mine)
    asked = {"model": "voice", "messages": [{"role": "user", "content": "Where is it?"}]}
    stores = {"vector_store_ids": ["vs_a"]}
    for fields in ({**stores}, {**stores, "filters": either(OTHER, EQ)}, {**stores, "required_filters": ["customer"]}):
        rendered = (await made.ask(RENDER_PATH, {**asked, "grounding": fields})).json()
        assert [each["id"] for each in rendered["grounding"]["citations"]][:1] == ["p-1"]
        shown = orjson.dumps(rendered).decode()
        assert THEIRS.text not in shown
        assert UNLABELLED.text not in shown
    for filters in (OTHER, both(EQ, OTHER)):
        answer = await made.ask(RENDER_PATH, {**asked, "grounding": {**stores, "filters": filters}})
        assert (answer.status, answer.error["code"]) == (403, "filter_not_allowed")
    assert not made.engine.asked
