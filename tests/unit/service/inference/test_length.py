"""Nothing that cannot fit into the context reaches the engine's tokenizer, and what only tokenizes is paid for."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import orjson
import pytest

from service.access.authentication import Authenticator, KeyEntry
from service.access.keys import make_key
from service.access.limits import KeyLimiter
from service.admission.policy import COUNTING_WIDTH, Policy
from service.admission.queue import AdmissionQueue
from service.errors import BadRequest, EngineUnavailable
from service.inference.length import MAX_TOKENIZED_CHARS, TOKEN_CHARS, PromptLimit
from tests.unit.service.access.clock import Clock, caller
from tests.unit.service.inference.fakes import KEY, World, completion, until

CONTEXT, LONGEST = 100, 10
LIMIT = PromptLimit(CONTEXT, LONGEST)
FITS, LONG = "x" * 1000, "x" * 1001
PICTURE = {"type": "image_url", "image_url": {"url": "data:image/png;base64," + LONG}}
SOUND = {"type": "base64", "media_type": "image/png", "data": LONG}


def check(body: dict[str, Any]) -> None:
    size = len(orjson.dumps(body))
    LIMIT.check_ids(body, size)
    LIMIT.check_text(body, size)


def talk(content: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": content}]}


@pytest.mark.parametrize(
    "body",
    [
        {"prompt": FITS},
        {"prompt": [FITS, FITS, FITS]},
        {"prompt": [1] * 100},
        {"prompt": [[1] * 100] * 30},
        {"tokens": [1] * 100},
        {"input": [FITS] * 5},
        talk("x" * 990),
        talk([PICTURE, {"type": "text", "text": "what is it?"}]),
        talk([{"type": "image", "source": SOUND}]),
        talk([{"type": "tool_result", "tool_use_id": "t", "content": [{"type": "image", "source": SOUND}]}]),
        {"input": [{"role": "user", "content": [{"type": "input_image", "image_url": "data:" + LONG}]}]},
    ],
    ids=range(11),
)
def test_what_may_fit_passes(body: dict[str, Any]) -> None:
    check(body)


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"prompt": LONG}, "prompt"),
        ({"prompt": ["short", LONG]}, "prompt.1"),
        ({"prompt": [1] * 101}, "prompt"),
        ({"prompt": [[1], [1] * 101]}, "prompt.1"),
        ({"tokens": [1] * 101}, "tokens"),
        ({"input": ["short", LONG]}, "input.1"),
        (talk(LONG), "messages"),
        (talk([{"type": "text", "text": LONG}]), "messages"),
        (talk([{"type": "tool_result", "tool_use_id": "t", "content": [{"type": "text", "text": LONG}]}]), "messages"),
        ({"messages": [{"role": "user", "content": "x" * 300}] * 4}, "messages"),
        ({**talk("x" * 500), "system": "y" * 600}, "messages"),
        ({**talk("x"), "tools": [{"function": {"description": LONG}}]}, "messages"),
        ({"input": [{"role": "user", "content": LONG}]}, "input"),
        ({"input": "x" * 600, "instructions": "y" * 1001}, "input"),
        (talk("data:" + LONG), "messages"),
        ({"messages": [{"role": "assistant", "tool_calls": [{"function": {"arguments": LONG}}]}]}, "messages"),
        ({"messages": [{"role": "assistant", "tool_calls": [PICTURE]}]}, "messages"),
        ({"input": [{"type": "function_call_output", "output": LONG}]}, "input"),
    ],
    ids=range(18),
)
def test_what_cannot_fit_names_the_field(body: dict[str, Any], field: str) -> None:
    with pytest.raises(BadRequest) as refused:
        check(body)
    assert (refused.value.param, refused.value.code) == (field, "context_length_exceeded")


def test_without_a_context_there_is_no_limit() -> None:
    PromptLimit(None).check_ids({"tokens": [1] * 1_000_000}, 2_000_012)
    PromptLimit(None).check_text({"prompt": "x" * 10_000_000}, 10_000_020)


LONG_CONTEXT = PromptLimit(262_144, 100)


@pytest.mark.parametrize(
    "body",
    [{"prompt": "x" * (MAX_TOKENIZED_CHARS + 1)}, talk("x" * 600_000) | {"system": "y" * 600_000}],
    ids=range(2),
)
def test_what_only_tokenizes_is_bounded_whatever_the_context(body: dict[str, Any]) -> None:
    size = len(orjson.dumps(body))
    for limit in (LONG_CONTEXT, PromptLimit(None)):
        with pytest.raises(BadRequest, match="is 1048576"):
            limit.check_text(body, size, only_tokenizes=True)
        limit.check_text(body, size)
    LONG_CONTEXT.check_text({"prompt": "x" * MAX_TOKENIZED_CHARS}, MAX_TOKENIZED_CHARS + 20, only_tokenizes=True)


@pytest.mark.parametrize("cut", [{"truncate_prompt_tokens": -1}, {"truncate_prompt_tokens": 7}, {"truncation": "auto"}])
def test_a_prompt_that_the_engine_cuts_may_be_longer_than_the_context(cut: dict[str, Any]) -> None:
    for body in ({"prompt": LONG}, {"prompt": [1] * 101}, talk(LONG)):
        check({**body, **cut})
    with pytest.raises(BadRequest, match="is 1048576"):
        check({"prompt": ["x" * 600_000] * 2, **cut})
    for uncut in ({"truncate_prompt_tokens": None}, {"truncation": "disabled"}):
        with pytest.raises(BadRequest):
            check({"prompt": LONG, **uncut})


@pytest.mark.parametrize("path", ["/tokenize", "/v1/tokenize", "/v1/messages/count_tokens"])
async def test_a_long_context_lets_no_long_text_to_the_tokenizer(path: str) -> None:
    world = World(engine_context=262_144)
    answer = await world.ask(path, {"model": "voice", **talk("word " * 1_500_000)})
    assert (answer.status, answer.error["param"], world.engine.asked) == (400, "messages", [])


def test_the_limit_is_read_from_the_checkpoint(base_dir: Path, tmp_path: Path) -> None:
    own = PromptLimit.of_checkpoint(base_dir, None)
    config = orjson.loads((base_dir / "config.json").read_bytes())
    assert own == PromptLimit(config["max_position_embeddings"], 81)
    assert PromptLimit.of_checkpoint(base_dir, 512) == PromptLimit(512, 81)
    assert PromptLimit.of_checkpoint(tmp_path, None) == PromptLimit(None, TOKEN_CHARS)
    scaled = {"text_config": {"max_position_embeddings": 100, "rope_parameters": {"factor": 4.0}}}
    (tmp_path / "config.json").write_bytes(orjson.dumps(scaled))
    unigram = {"model": {"vocab": [["a", 0.0], ["abc", -1.5]]}, "added_tokens": [{"content": "<|end|>"}]}
    (tmp_path / "tokenizer.json").write_bytes(orjson.dumps(unigram))
    assert PromptLimit.of_checkpoint(tmp_path, None) == PromptLimit(400, 7)


ROUTES: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": talk("word " * 1_600_000),
    "/v1/completions": {"prompt": "word " * 1_600_000},
    "/v1/responses": {"input": "word " * 1_600_000},
    "/v1/messages": {**talk("word " * 1_600_000), "max_tokens": 1},
    "/v1/messages/count_tokens": talk("word " * 1_600_000),
    "/v1/embeddings": {"input": "word " * 1_600_000},
    "/tokenize": {"prompt": "word " * 1_600_000},
    "/v1/tokenize": talk("word " * 1_600_000),
    "/detokenize": {"tokens": [1] * 290_000},
}


@pytest.mark.parametrize("path", ROUTES)
async def test_eight_megabytes_reach_no_engine_by_any_route(path: str) -> None:
    world = World()
    answer = await world.ask(path, {"model": "voice", **ROUTES[path]})
    assert (answer.status, world.engine.asked) == (400, [])
    assert answer.error["code"] == "context_length_exceeded"


# what only tokenizes

COUNTING: dict[str, tuple[dict[str, Any], bytes, int]] = {
    "/tokenize": ({"prompt": "word " * 100}, b'{"count":101,"max_model_len":2048,"tokens":[1]}', 101),
    "/detokenize": ({"tokens": [7] * 90}, b'{"prompt":"\\"count\\":3"}', 90),
    "/v1/messages/count_tokens": (talk("word " * 100), b'{"input_tokens":120,"context_management":null}', 120),
}


@pytest.mark.parametrize("path", COUNTING)
async def test_tokens_that_are_counted_are_charged_to_the_key_and_used_by_nobody(path: str) -> None:
    body, engine_answer, count = COUNTING[path]
    world, clock, key = World(), Clock(), make_key()
    limiter = KeyLimiter(clock=clock.monotonic, wall=clock.wall)
    authenticator = Authenticator(KEY)
    authenticator.put(authenticator.hmac(key), KeyEntry(caller(requests_per_minute=10, tokens_per_minute=200)))
    limited = World(authenticator, limiter=limiter)
    limited.engine.chunks = [engine_answer]
    headers = {"authorization": f"Bearer {key}"}
    answer = await limited.ask(path, {"model": "voice", **body}, headers=headers)
    assert answer.status == 200, answer.body
    [record] = limited.records
    assert record.usage is not None
    assert (record.tokens, record.usage.prompt_tokens, record.usage.completion_tokens) == (count, 0, 0)
    state = [(await limited.ask(path, {"model": "voice", **body}, headers=headers)).status for _ in range(3)]
    assert state[-1] == 429, "a key of 200 tokens a minute counts no more of them"
    assert len(limited.engine.asked) < 4
    assert world.records == []


@pytest.mark.parametrize("path", COUNTING)
async def test_few_requests_tokenize_at_once_and_a_crowd_of_one_key_waits_behind_itself(path: str) -> None:
    body, engine_answer, _ = COUNTING[path]
    counting = AdmissionQueue(Policy.for_counting(World().settings))
    world = World(counting=counting)
    held = asyncio.Event()
    world.engine.chunks = [held, engine_answer]
    asking = [asyncio.create_task(world.ask(path, {"model": "voice", **body})) for _ in range(COUNTING_WIDTH + 3)]
    await until(lambda: counting.scheduler.queued == 3)
    assert len(world.engine.asked) == COUNTING_WIDTH
    held.set()
    assert {answer.status for answer in await asyncio.gather(*asking)} == {200}


async def test_a_generation_does_not_wait_for_those_who_only_tokenize() -> None:
    counting = AdmissionQueue(Policy.for_counting(World().settings))
    world = World(counting=counting)
    held = asyncio.Event()
    world.engine.chunks = [held, COUNTING["/tokenize"][1]]
    body = {"model": "voice", "prompt": "a"}
    asking = [asyncio.create_task(world.ask("/tokenize", body)) for _ in range(COUNTING_WIDTH + 1)]
    await until(lambda: counting.scheduler.queued == 1)
    world.engine.chunks = [completion("Ahoy")]
    assert (await world.chat()).status == 200
    held.set()
    await asyncio.gather(*asking)


@pytest.mark.parametrize("path", COUNTING)
async def test_a_client_that_leaves_keeps_its_place_until_the_tokenizer_has_answered(path: str) -> None:
    body, engine_answer, _ = COUNTING[path]
    counting = AdmissionQueue(Policy.for_counting(World().settings))
    world = World(counting=counting)
    world.engine.opens, left = asyncio.Event(), asyncio.Event()
    world.engine.chunks = [engine_answer]
    raw = orjson.dumps({"model": "voice", **body})
    leaving = [asyncio.create_task(world.ask_in_parts(path, [raw], leaves=left)) for _ in range(COUNTING_WIDTH)]
    await until(lambda: world.engine.in_flight == COUNTING_WIDTH)
    left.set()
    await asyncio.gather(*leaving)
    assert {record.outcome for record in world.records} == {"left"}
    assert {record.tokens for record in world.records} == {world.records[0].estimate}, "what is tokenized is charged"
    assert (world.engine.in_flight, world.engine.aborted.is_set()) == (COUNTING_WIDTH, False)
    behind = asyncio.create_task(world.ask(path, {"model": "voice", **body}))
    await until(lambda: counting.scheduler.queued == 1)
    assert len(world.engine.asked) == COUNTING_WIDTH, "the engine still tokenizes for those who left"
    world.engine.opens.set()
    assert (await behind).status == 200
    await until(lambda: world.engine.in_flight == 0)
    assert counting.scheduler.in_flight == 0


async def test_a_tokenizer_that_hangs_gives_its_place_back() -> None:
    counting = AdmissionQueue(Policy.for_counting(World().settings))
    world = World(counting=counting, request_timeout_s=0.05)
    world.engine.opens = asyncio.Event()
    answer = await world.ask("/tokenize", {"model": "voice", "prompt": "a"})
    assert (answer.status, answer.error["code"]) == (504, "timeout")
    await until(lambda: counting.scheduler.in_flight == 0)


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/tokenize"])
async def test_a_prompt_that_the_engine_refuses_was_tokenized_and_is_charged(path: str) -> None:
    world = World()
    world.engine.status = 400
    world.engine.chunks = [b'{"error": {"message": "too long", "param": "input_tokens", "code": 400}}']
    answer = await world.ask(path, {"model": "voice", **talk("word " * 1000)})
    assert (answer.status, answer.error["code"]) == (400, "context_length_exceeded")
    [record] = world.records
    assert record.tokens == (record.prompt if path != "/tokenize" else record.estimate)
    assert record.prompt >= 1250


@pytest.mark.parametrize("stream", [False, True])
async def test_a_client_that_leaves_before_the_answer_pays_for_its_prompt(stream: bool) -> None:
    world, left = World(), asyncio.Event()
    world.engine.opens = asyncio.Event()
    raw = orjson.dumps({"model": "voice", "stream": stream, **talk("word " * 1000)})
    leaving = asyncio.create_task(world.ask_in_parts("/v1/chat/completions", [raw], leaves=left))
    await until(lambda: world.engine.in_flight)
    left.set()
    await leaving
    [record] = world.records
    assert record.outcome == "left"
    assert record.tokens == (record.prompt if stream else record.estimate)
    assert record.prompt >= 1250


async def test_who_leaves_a_stream_before_its_first_token_pays_for_the_prompt() -> None:
    world, left = World(), asyncio.Event()
    world.engine.chunks = [asyncio.Event()]
    raw = orjson.dumps({"model": "voice", "stream": True, "max_tokens": 2000, **talk("word " * 1000)})
    leaving = asyncio.create_task(world.ask_in_parts("/v1/chat/completions", [raw], leaves=left))
    await until(lambda: world.engine.in_flight)
    left.set()
    await leaving
    [record] = world.records
    assert (record.outcome, record.tokens) == ("left", record.prompt)
    assert record.estimate > record.prompt


async def test_what_no_engine_was_there_to_take_is_not_charged() -> None:
    world = World()
    for path in ("/v1/chat/completions", "/tokenize"):
        world.engine.down = EngineUnavailable("it starts")
        assert (await world.ask(path, {"model": "voice", **talk("word " * 100)})).status == 503
    assert [record.tokens for record in world.records] == [None, None]
