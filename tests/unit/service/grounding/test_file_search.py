"""OpenAI's tool `file_search` in `/v1/responses`: another way to say `grounding`."""

from __future__ import annotations

from typing import Any

import orjson
import pytest

from service.access.caller import Caller
from service.grounding.config import GroundingSettings
from service.grounding.provider import Query
from tests.unit.service.grounding.fakes import ORDERS, RETURNS, Told, key
from tests.unit.service.grounding.test_citing import TEXT, data_of, response_events, response_object
from tests.unit.service.grounding.test_hook import world
from tests.unit.service.inference import test_responses
from tests.unit.service.inference.fakes import Answer, World

PATH = "/v1/responses"
TOOL: dict[str, Any] = {"type": "file_search", "vector_store_ids": ["vs_a"]}
FUNCTION: dict[str, Any] = {"type": "function", "name": "f", "parameters": {"type": "object", "properties": {}}}
VERSION = GroundingSettings(
    vector_store_ids=("vs_b",), max_num_results=3, score_threshold=0.1, template="So: {passages}"
)
RESULT = {
    "attributes": {},
    "file_id": "file-1",
    "filename": "returns.md",
    "score": 0.9,
    "text": RETURNS.text,
}


async def respond(made: World, **fields: Any) -> Answer:
    tools = [tool for tool in fields.get("tools", []) if tool["type"] != "file_search"]
    item = {"id": "msg_1", "type": "message", "role": "assistant", "status": "completed"}
    text = {"type": "output_text", "text": TEXT, "annotations": []}
    answer = {**response_object([{**item, "content": [text]}]), "tools": tools}
    made.engine.chunks = [orjson.dumps(answer)]
    return await made.ask(PATH, {"model": "voice", "input": "How long?", **fields})


def queries(provider: Told) -> list[Query]:
    return [query for query, _ in provider.asked]


async def test_it_is_the_field_grounding_said_otherwise() -> None:
    filters = {"type": "eq", "key": "region", "value": "eu"}
    tool = {**TOOL, "max_num_results": 2, "filters": filters, "ranking_options": {"score_threshold": 0.2}}
    field = {"vector_store_ids": ["vs_a"], "max_num_results": 2, "filters": filters, "score_threshold": 0.2}
    asked, sent = [], []
    for fields in ({"tools": [tool]}, {"grounding": field}):
        provider = Told(RETURNS)
        made = world(provider, VERSION)
        assert (await respond(made, **fields)).status == 200
        asked += queries(provider)
        sent.append(made.engine.last.body["input"])
        assert not {"tools", "tool_choice", "grounding"} & made.engine.last.body.keys()
    assert asked[0] == asked[1]
    assert sent[0] == sent[1]
    assert (asked[0].k, asked[0].threshold, asked[0].filters) == (2, 0.2, filters)


async def test_what_the_tool_leaves_open_is_the_versions() -> None:
    provider = Told(RETURNS)
    ranking = {"ranker": "auto", "score_threshold": None, "hybrid_search": None}
    tool = {**TOOL, "filters": None, "max_num_results": None, "ranking_options": ranking}
    assert (await respond(world(provider, VERSION), tools=[tool])).status == 200
    [query] = queries(provider)
    assert (query.store_ids, query.k, query.threshold) == (("vs_a",), 3, 0.1)


async def test_the_answer_has_the_call_before_the_message_and_the_tool_as_it_was_sent() -> None:
    tool = {**TOOL, "max_num_results": 2}
    answer = await respond(world(Told(RETURNS, ORDERS)), tools=[FUNCTION, tool], tool_choice="auto")
    response = answer.json()
    call, message = response["output"]
    assert call == {
        "id": call["id"],
        "type": "file_search_call",
        "status": "completed",
        "queries": ["How long?"],
        "results": None,
    }
    assert call["id"].startswith("fs_")
    assert message["content"][0]["annotations"][0]["file_id"] == "file-1"
    assert [each["used"] for each in response["citations"]] == [True, False]
    assert [each["type"] for each in response["tools"]] == ["function", "file_search"]
    assert response["tools"][1] == tool
    assert response["tool_choice"] == "auto"


async def test_results_come_where_they_are_asked_for() -> None:
    made = world(Told(RETURNS, ORDERS))
    include = ["file_search_call.results", "reasoning.encrypted_content"]
    answer = await respond(made, tools=[TOOL], include=include)
    first, second = answer.json()["output"][0]["results"]
    assert first == RESULT
    assert second["attributes"] == {"year": 2026.0}
    assert made.engine.last.body.get("include", []) == []
    made.engine.chunks = [orjson.dumps(response_object([]))]
    plain = await made.ask(PATH, {"model": "voice", "input": "x", "include": ["file_search_call.results"]})
    assert plain.status == 200, "without a search there are none to include"


@pytest.mark.parametrize(
    ("provider", "status", "outcome"),
    [
        (Told(), "completed", "empty"),
        (Told(error=OSError("secret")), "failed", "broken"),
        (Told(late_s=5), "failed", "late"),
    ],
)
async def test_a_search_that_finds_nothing_and_one_that_fails(provider: Told, status: str, outcome: str) -> None:
    answer = await respond(world(provider), tools=[TOOL], include=["file_search_call.results"])
    assert (answer.status, answer.headers["x-hatrack-grounding"]) == (200, outcome)
    response = answer.json()
    assert (response["output"][0]["status"], response["output"][0]["results"]) == (status, [])
    assert response["citations"] == []


@pytest.mark.parametrize("found", [(RETURNS,), ()])
async def test_a_stream_announces_the_call_first_and_shifts_the_others(found: tuple[Any, ...]) -> None:
    made = world(Told(*found))
    pieces = [TEXT[:9], TEXT[9:]]
    made.engine.chunks = [
        test_responses.event(kind, number, **payload) for number, (kind, payload) in enumerate(response_events(pieces))
    ]
    body = {"model": "voice", "input": "How long?", "stream": True, "tools": [TOOL]}
    answer = await made.ask(PATH, {**body, "include": ["file_search_call.results"]})
    payloads = [data_of(sent) for sent in answer.body.split(b"\n\n")[:-1]]
    kinds = [payload["type"].removeprefix("response.") for payload in payloads]
    assert kinds[:8] == [
        "created",
        "in_progress",
        "output_item.added",
        "file_search_call.in_progress",
        "file_search_call.searching",
        "file_search_call.completed",
        "output_item.done",
        "output_item.added",
    ]
    assert [payload["sequence_number"] for payload in payloads] == list(range(len(payloads)))
    assert [payload["output_index"] for payload in payloads[2:-1]] == [0] * 5 + [1] * (len(payloads) - 8)
    done = payloads[6]["item"]
    assert done["results"] == ([RESULT] if found else [])
    assert payloads[2]["item"] == {**done, "status": "in_progress", "results": None}
    assert all(payload["response"]["tools"][0] == TOOL for payload in (*payloads[:2], payloads[-1]))
    assert payloads[-1]["response"]["output"][0] == done
    assert len(payloads[-1]["response"]["output"][1]["content"][0]["annotations"]) == len(found)
    assert kinds.count("output_text.annotation.added") == len(found)


async def test_a_response_that_fails_in_the_engine_has_the_call_the_tool_and_the_citations_too() -> None:
    made = world(Told(RETURNS))
    *events, (_, end) = response_events([TEXT])
    failed = {**end["response"], "status": "failed", "error": {"code": "server_error", "message": "gone"}}
    made.engine.chunks = [
        test_responses.event(kind, number, **payload)
        for number, (kind, payload) in enumerate([*events, ("response.failed", {"response": failed})])
    ]
    answer = await made.ask(PATH, {"model": "voice", "input": "How long?", "stream": True, "tools": [TOOL]})
    payloads = [data_of(sent) for sent in answer.body.split(b"\n\n")[:-1]]
    last = payloads[-1]
    assert (last["type"], last["response"]["error"]["message"]) == ("response.failed", "gone")
    done = [payload for payload in payloads if payload["type"] == "response.output_item.done"]
    assert [item["type"] for item in last["response"]["output"]] == ["file_search_call", "message"]
    assert [payload["output_index"] for payload in done] == [0, 1]
    assert [payload["item"] for payload in done] == last["response"]["output"]
    assert last["response"]["tools"][0] == TOOL
    assert [each["used"] for each in last["response"]["citations"]] == [True]


@pytest.mark.parametrize(
    ("choice", "sent", "echoed"),
    [
        ("auto", "auto", "auto"),
        ("required", None, "required"),
        ({"type": "file_search"}, None, {"type": "file_search"}),
        ({"type": "function", "name": "f"}, {"type": "function", "name": "f"}, "auto"),
    ],
)
async def test_the_search_meets_a_choice_that_demands_a_tool(choice: Any, sent: Any, echoed: Any) -> None:
    made = world(Told(RETURNS))
    answer = await respond(made, tools=[TOOL, FUNCTION], tool_choice=choice)
    assert answer.status == 200
    assert made.engine.last.body.get("tool_choice") == sent
    assert [tool["name"] for tool in made.engine.last.body["tools"]] == ["f"]
    assert answer.json()["tool_choice"] == echoed  # what the fake engine says is always "auto"


@pytest.mark.parametrize("tools", [[TOOL], [FUNCTION, TOOL]])
@pytest.mark.parametrize("settings", [None, VERSION])
async def test_no_tool_may_be_called_means_no_search(tools: list[Any], settings: GroundingSettings | None) -> None:
    provider = Told(RETURNS)
    made = world(provider, settings)
    answer = await respond(made, tools=tools, tool_choice="none")
    assert answer.status == 200
    assert provider.asked == [], "nor for the version's own grounding"
    assert "citations" not in answer.json()
    sent = made.engine.last.body
    assert (sent["tools"], sent["tool_choice"]) == (tools, "none"), "the engine repeats both in its answer"


@pytest.mark.parametrize(
    ("fields", "param", "words"),
    [
        ({"tools": [TOOL], "grounding": {"vector_store_ids": ["vs_a"]}}, "tools.0", "send one of them"),
        ({"tools": [FUNCTION, TOOL], "grounding": False}, "tools.1", "send one of them"),
        ({"tools": [TOOL, TOOL]}, "tools.1", "only one is allowed"),
        ({"tools": [{"type": "file_search"}]}, "tools.0.vector_store_ids", "missing"),
        ({"tools": [{**TOOL, "vector_store_ids": []}]}, "tools.0.vector_store_ids", "1"),
        ({"tools": [{**TOOL, "vector_store_ids": [f"vs_{n}" for n in range(9)]}]}, "tools.0.vector_store_ids", "8"),
        ({"tools": [{**TOOL, "max_num_results": 51}]}, "tools.0.max_num_results", "50"),
        ({"tools": [{**TOOL, "filters": {"type": "like"}}]}, "tools.0.filters.type", "eq"),
        ({"tools": [{**TOOL, "ranking_options": {"ranker": "best"}}]}, "tools.0.ranking_options.ranker", "auto"),
        (
            {"tools": [{**TOOL, "ranking_options": {"score_threshold": 2}}]},
            "tools.0.ranking_options.score_threshold",
            "1",
        ),
        (
            {"tools": [{**TOOL, "ranking_options": {"hybrid_search": {"embedding_weight": 1, "text_weight": 1}}}]},
            "tools.0.ranking_options.hybrid_search",
            "HATRACK_GROUNDING_VECTOR_WEIGHT",
        ),
        ({"tools": [{**TOOL, "colour": 1}]}, "tools.0.colour", "unknown field"),
        ({"tools": [{"type": "web_search"}]}, "tools.0.type", "file_search"),
        ({"tools": [FUNCTION], "tool_choice": {"type": "file_search"}}, "tool_choice", "not in `tools`"),
        ({"tools": [TOOL], "include": ["web_search_call.results"]}, "include.0", "file_search_call.results"),
        ({"tools": [TOOL], "input": [{"role": "system", "content": "x"}]}, "tools.0", "question"),
    ],
)
async def test_what_cannot_be_done_is_refused_by_name(fields: dict[str, Any], param: str, words: str) -> None:
    provider = Told(RETURNS)
    made = world(provider)
    answer = await respond(made, **fields)
    assert (answer.status, answer.error["param"]) == (400, param)
    assert words in answer.error["message"]
    assert provider.asked == made.engine.asked == []


@pytest.mark.parametrize("caller", [key(stores=("public-*",)), key()])
async def test_a_store_that_the_key_may_not_read_is_404_and_named(caller: Caller) -> None:
    tool = TOOL if caller.stores is not None else {**TOOL, "vector_store_ids": ["vs_c"]}
    answer = await respond(world(Told(RETURNS), None, caller), tools=[FUNCTION, tool])
    assert (answer.status, answer.error["code"]) == (404, "vector_store_not_found")
    assert answer.error["param"] == "tools.1.vector_store_ids"


async def test_the_filters_that_a_version_or_a_key_requires_hold() -> None:
    required = GroundingSettings(required_filters=("customer",))
    answer = await respond(world(Told(RETURNS), required), tools=[TOOL])
    assert (answer.status, answer.error["code"]) == (400, "required_filter_missing")
    assert answer.error["param"] == "tools.0.filters"
    mine = key(filters={"customer": "c-1"})
    other = {"type": "eq", "key": "customer", "value": "c-2"}
    answer = await respond(world(Told(RETURNS), None, mine), tools=[{**TOOL, "filters": other}])
    assert (answer.status, answer.error["code"]) == (403, "filter_not_allowed")
    provider = Told(RETURNS)
    answer = await respond(world(provider, None, mine), tools=[TOOL])
    assert dict(queries(provider)[0].required) == {"customer": "c-1"}


async def test_an_earlier_call_in_the_input_is_taken_and_says_nothing_to_the_model() -> None:
    made = world(Told(RETURNS))
    first = (await respond(made, tools=[TOOL], include=["file_search_call.results"])).json()
    turns = [{"role": "user", "content": "How long?"}, *first["output"], {"role": "user", "content": "And boots?"}]
    answer = await respond(made, tools=[TOOL], input=turns)
    assert answer.status == 200, answer.body
    assert {item.get("type", "message") for item in made.engine.last.body["input"]} == {"message"}
    answer = await respond(world(Told()), input=first["output"][:1])
    assert (answer.status, answer.error["param"]) == (400, "input")


async def test_only_responses_has_the_tool() -> None:
    answer = await world(Told(RETURNS)).chat(tools=[TOOL])
    assert (answer.status, answer.error["param"]) == (400, "tools.0.type")
