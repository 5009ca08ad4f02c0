"""An engine that answers 200 with what is not JSON of the API that was asked: no caller gets it, each gets an error."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import orjson
import pytest

from service.errors import HatrackError, InvalidAnswer
from service.http.stream import TokenUsage
from service.inference import anthropic, responses
from service.inference.anthropic import MessagesRelay
from service.inference.completions import ChatRelay
from service.inference.dialect import OPENAI, Dialect
from service.inference.relay import MAX_PARSED_BYTES, EventRelay, Renamer, check_answer, engine_error
from service.inference.responses import ResponsesRelay
from service.registry.catalog import Target
from tests.unit.service.inference import test_anthropic, test_responses
from tests.unit.service.inference.fakes import DIGESTS, DONE, completion, event, event_error, token, usage_event
from tests.unit.service.inference.test_hostile_engine import STREAM_HEAD, head, hostile, says, then_nothing

VOICE = Target("voice", DIGESTS[3], adapter="voice", version=3, digest=DIGESTS[3])


class Door(NamedTuple):
    """A route, a request to it, and what an engine that is well says there."""

    path: str
    request: dict[str, Any]
    opening: list[bytes]
    """Up to the first event with content, inclusive."""
    rest: list[bytes]
    answer: dict[str, Any]


MESSAGES = [{"role": "user", "content": "Hello"}]
TEXT = event(id="c1", model=DIGESTS[3], choices=[{"index": 0, "text": "A"}])
RESPONSE = test_responses.response(usage=test_responses.COUNTS)
CHAT = Door(
    "/v1/chat/completions", {"messages": MESSAGES}, [token("A")], [usage_event(), DONE], orjson.loads(completion("A"))
)
COMPLETIONS = Door("/v1/completions", {"prompt": "Hello"}, [TEXT], [usage_event(), DONE], CHAT.answer)
RESPONSES = Door(
    "/v1/responses", {"input": "Hello"}, test_responses.stream()[:3], test_responses.stream()[3:], RESPONSE
)
ANTHROPIC = Door(
    "/v1/messages",
    {"messages": MESSAGES, "max_tokens": 9},
    test_anthropic.stream()[:3],
    test_anthropic.stream()[3:],
    test_anthropic.message(),
)
DOORS = [CHAT, COMPLETIONS, RESPONSES, ANTHROPIC]
on_each_door = pytest.mark.parametrize("door", DOORS, ids=[door.path for door in DOORS])

GARBAGE = {
    "text": b"data: Segmentation fault",
    "HTML": b"<html><body>Bad gateway</body></html>",
    "half an object": b'data: {"id":"c1","choices":[{"index":0,"del',
    "a list": b'data: [{"choices":[{}],"type":"x"}]',
    "null": b"data: null",
    "a number": b"data: 5",
    "an object of another kind": b'data: {"id":"c1"}',
    "a member of another kind": b'data: {"choices":5,"type":5}',
    "bytes": b"data: \xff\xfe\x00",
    "data after text": b'Traceback\ndata: {"choices":[],"type":"x"}',
}
on_all_garbage = pytest.mark.parametrize("garbage", GARBAGE.values(), ids=GARBAGE)


@on_each_door
@on_all_garbage
@pytest.mark.parametrize("at_once", [True, False])
async def test_garbage_in_a_stream_ends_it_in_a_named_error(
    tmp_path: Path, door: Door, garbage: bytes, at_once: bool
) -> None:
    parts = [*door.opening, garbage + b"\n\n", *door.rest]
    # the connection stays open: it is the gateway that ends it
    act = then_nothing(STREAM_HEAD, *([b"".join(parts)] if at_once else parts))
    async with hostile(tmp_path, act) as engine:
        answer = await engine.world.ask(door.path, {"model": "voice", "stream": True, **door.request})
        (record,) = engine.world.records
        assert engine.world.suspects == [], "an adapter has no part in it"
    shown = EventRelay.feed(relay_of(door), b"".join(door.opening))
    assert answer.body.startswith(shown), "what came before is delivered"
    assert answer.body.count(b"\n\n") == shown.count(b"\n\n") + 1, "one event more, the error"
    assert event_error(answer.body)["code"] == "engine_error"
    assert garbage not in answer.body
    assert (record.outcome, record.code) == ("cut", "engine_error")
    assert record.usage is not None
    assert record.usage.completion_tokens == 1, "what came before is counted"


@on_each_door
@on_all_garbage
async def test_garbage_before_the_first_token_is_a_status(tmp_path: Path, door: Door, garbage: bytes) -> None:
    act = then_nothing(STREAM_HEAD, *door.opening[:-1], garbage + b"\n\n", *door.rest)
    async with hostile(tmp_path, act) as engine:
        answer = await engine.world.ask(door.path, {"model": "voice", "stream": True, **door.request})
        (record,) = engine.world.records
    has_begun = door is ANTHROPIC  # its block's start has been passed on
    assert (event_error(answer.body) if has_begun else answer.error)["code"] == "engine_error"
    assert (answer.status, record.outcome) == ((200, "cut") if has_begun else (502, "failed"))


@on_each_door
@pytest.mark.parametrize(
    "body",
    [b"", b"Segmentation fault", b"<html></html>", b"null", b"[1]", b"{}", b'{"id":"c1"}', b'"choices"', b"\xff{}"],
)
async def test_an_answer_that_is_not_of_the_api_is_an_error(tmp_path: Path, door: Door, body: bytes) -> None:
    await is_an_engine_error(tmp_path, door, body)


@on_each_door
async def test_a_whole_answer_with_garbage_in_it_is_an_error(tmp_path: Path, door: Door) -> None:
    whole = orjson.dumps(door.answer)
    await is_an_engine_error(tmp_path, door, whole[:-1])
    await is_an_engine_error(tmp_path, door, whole[:40] + b"\xff" + whole[41:])
    await is_an_engine_error(tmp_path, door, whole + b"\nTraceback")
    await is_an_engine_error(tmp_path, door, b"x" * 100_000)
    await is_an_engine_error(tmp_path, door, whole + b" " * 100_000 + b"x")


@pytest.mark.parametrize(
    ("path", "request_body"),
    [("/v1/embeddings", {"input": "Hello"}), ("/tokenize", {"prompt": "Hello"}), ("/detokenize", {"tokens": [1]})],
)
async def test_so_it_is_on_the_routes_that_write_nothing(
    tmp_path: Path, path: str, request_body: dict[str, Any]
) -> None:
    await is_an_engine_error(tmp_path, CHAT._replace(path=path, request=request_body), b"Segmentation fault")


async def is_an_engine_error(folder: Path, door: Door, body: bytes) -> None:
    sent = head("application/json", f"content-length: {len(body)}") + body
    async with hostile(folder, says(sent)) as engine:
        answer = await engine.world.ask(door.path, {"model": "voice", **door.request})
        (record,) = engine.world.records
    assert (answer.status, answer.error["code"]) == (502, "engine_error")
    assert "voice" in answer.error["message"]
    assert answer.headers.get("x-should-retry") != "false", "the next answer may be well"
    assert (record.outcome, record.code) == ("failed", "engine_error")


@on_each_door
@pytest.mark.parametrize("size", [1, 100_000])
async def test_a_sound_answer_passes_whatever_its_size(tmp_path: Path, door: Door, size: int) -> None:
    body = orjson.dumps({**door.answer, "more": "x" * size})
    async with hostile(tmp_path, says(head("application/json", f"content-length: {len(body)}") + body)) as engine:
        answer = await engine.world.ask(door.path, {"model": "voice", **door.request})
    assert (answer.status, answer.json()["more"]) == (200, "x" * size)


def test_what_only_pythons_json_reads_passes_and_a_member_is_a_list() -> None:
    """vLLM writes a tool call's arguments into an answer of Messages as the numbers that the model gave."""
    check_answer(b'{"content": [{"input": {"n": ' + b"9" * 400 + b"}}]}", "content", VOICE)
    for member in (b"null", b'"text"', b"{}"):
        with pytest.raises(InvalidAnswer, match="a list `choices`"):
            check_answer(b'{"choices": ' + member + b"}", "choices", VOICE)


def dialect_of(door: Door) -> Dialect:
    return anthropic.MESSAGES if door is ANTHROPIC else responses.RESPONSES if door is RESPONSES else OPENAI


@on_each_door
def test_an_answer_that_was_parsed_counts_as_its_bytes_do(door: Door) -> None:
    for counts in ({}, None, {"prompt_tokens": 3, "input_tokens": 4}, {**door.answer["usage"]}):
        for details in ({}, {"cached_tokens": 2}, None):
            usage = counts and {"prompt_tokens_details": details, "input_tokens_details": details, **counts}
            # a search takes a tool's member of that name for the usage where there is none
            body = orjson.dumps({**door.answer, "usage": usage, "tools": []})
            parsed = check_answer(body, None, VOICE)
            assert parsed is not None
            assert dialect_of(door).usage(body, parsed) == dialect_of(door).usage(body, None)


@on_each_door
@pytest.mark.parametrize("count", [None, "7", 7.0, True, -7, [7], {"tokens": 7}])
def test_what_is_no_count_counts_nothing(door: Door, count: object) -> None:
    names = (*door.answer["usage"], "cached_tokens", "prompt_tokens", "input_tokens", "completion_tokens")
    usage = {**dict.fromkeys(names, count), "prompt_tokens_details": {"cached_tokens": count}}
    assert dialect_of(door).usage(b"", {**door.answer, "usage": usage}) == TokenUsage()
    assert dialect_of(door).usage(b"", {**door.answer, "usage": count}) in (None, TokenUsage())


@on_each_door
async def test_an_invalid_answer_is_charged_by_what_it_counts(tmp_path: Path, door: Door) -> None:
    body = orjson.dumps(door.answer)[:-1]
    sent = head("application/json", f"content-length: {len(body)}") + body
    async with hostile(tmp_path, says(sent)) as engine:
        answer = await engine.world.ask(door.path, {"model": "voice", **door.request})
        (record,) = engine.world.records
    assert answer.status == 502
    assert record.usage == dialect_of(door).usage(body, None) != TokenUsage()


@on_each_door
def test_a_small_answer_is_counted_without_searching_its_bytes(door: Door) -> None:
    assert dialect_of(door).usage(b"not searched", door.answer) is not None
    assert (
        dialect_of(door).usage(b"", {**door.answer, "tools": [{"usage": {"input_tokens": 7}}], "usage": None}) is None
    )
    large = orjson.dumps({**door.answer, "more": "x" * MAX_PARSED_BYTES})
    assert check_answer(large, None, VOICE) is None


def relay_of(door: Door) -> EventRelay:
    if door is RESPONSES:
        return ResponsesRelay(Renamer(VOICE))
    return MessagesRelay(Renamer(VOICE)) if door is ANTHROPIC else ChatRelay(Renamer(VOICE), show_usage=False)


@on_each_door
def test_what_is_valid_but_unlike_vllm_passes(door: Door) -> None:
    relay = relay_of(door)
    before = relay.feed(b"".join(door.opening))
    first = orjson.loads(door.opening[-1].partition(b"data: ")[2])
    spaced = (
        b"event: message\ndata:" + orjson.dumps(first, option=orjson.OPT_INDENT_2).replace(b"\n", b"\ndata:") + b"\n\n"
    )
    unlike = [b": still there\n\n", b"id: 7\nretry: 1000\n\n", spaced]
    passed = [relay.feed(piece) for piece in unlike]
    assert passed == unlike
    assert relay.error is None
    rest = relay.feed(b"".join(door.rest))
    assert relay.done
    assert before
    assert rest


def test_an_error_object_is_the_engines_wherever_it_stands() -> None:
    relay = ChatRelay(Renamer(VOICE), show_usage=False)
    error = b'{"object":"error", "error":{"message":"no","type":"adapter_not_finite","code":500}}'
    assert relay.feed(token("A") + b"data: " + error + b"\n\n") == token("A", "voice")
    found: HatrackError = engine_error(200, relay.error or b"", VOICE, CHAT.path)
    assert found.code == "adapter_not_finite"


@on_each_door
def test_usual_events_are_not_parsed(door: Door, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("service.inference.relay.orjson.loads", None)
    relay = relay_of(door)
    for piece in [*door.opening, *door.rest]:
        relay.feed(piece)
    assert (relay.done, relay.error) == (True, None)
    assert isinstance(relay.counted(), TokenUsage)
