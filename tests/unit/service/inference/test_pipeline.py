"""From the request to the answer, over ASGI, with an engine made of bytes."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from typing import Any

import orjson
import pytest

from service.access.authentication import Authenticator
from service.access.caller import Caller, Scope
from service.errors import BadGateway, EngineUnavailable, TooLarge
from service.http.disconnect import DISCONNECT, Disconnect
from service.http.stream import TokenUsage
from service.inference.exchange import Exchange
from service.telemetry.logs import extra_fields
from service.telemetry.record import LogAccount, Record
from tests.unit.service.inference.fakes import (
    DIGESTS,
    DONE,
    KEY,
    World,
    chat_body,
    completion,
    last_error,
    token,
    until,
    usage_event,
)

NOT_FINITE = b'data: {"error": {"message": "nan", "type": "adapter_not_finite", "param": null, "code": 500}}\n\n'


async def test_an_answer_names_the_label_and_is_accounted_for() -> None:
    world = World()
    world.engine.chunks = [completion("Ahoy")]
    answer = await world.chat()
    assert answer.status == 200
    assert answer.json()["model"] == "voice"
    assert answer.json()["choices"][0]["message"]["content"] == "Ahoy"
    assert answer.headers["x-hatrack-adapter"] == "voice@3"
    assert answer.headers["x-hatrack-digest"] == DIGESTS[3]
    [record] = world.records
    assert (record.status, record.outcome, record.usage) == (200, "ok", TokenUsage(11, 5))
    assert record.caller is not None
    assert record.target is not None
    assert 0 < record.total_s < 60
    assert world.signs == 1
    assert world.app.pipeline.in_flight == 0


@pytest.mark.parametrize(
    ("body", "engine_model"),
    [
        ({"model": "voice@1"}, DIGESTS[1]),
        ({"model": "voice:canary"}, DIGESTS[1]),
        ({"model": "smol", "adapter": "voice"}, DIGESTS[3]),
        ({"model": "smol"}, "smol"),
    ],
)
async def test_addressing(body: dict[str, Any], engine_model: str) -> None:
    world = World()
    world.engine.chunks = [completion("x", engine_model)]
    answer = await world.chat(**body)
    assert world.engine.last.body["model"] == engine_model
    assert "adapter" not in world.engine.last.body
    assert answer.json()["model"] == body.get("adapter", body["model"])
    assert ("x-hatrack-digest" in answer.headers) == (engine_model != "smol")


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        ({"model": "nobody"}, 404, "model_not_found"),
        ({"model": "secret"}, 404, "model_not_found"),
        ({"model": "voice@9"}, 404, "model_not_found"),
        ({"model": DIGESTS[3]}, 404, "model_not_found"),
        ({"model": "../voice"}, 404, "model_not_found"),
        ({"model": "unborn"}, 404, "no_live_version"),
        ({"model": "voice@2"}, 409, "version_other_base"),
        ({"model": "voice", "adapter": "voice"}, 400, "invalid_value"),
        ({"model": "smol", "adapter": 3}, 400, "invalid_value"),
        ({"model": None}, 400, "missing_required_parameter"),
    ],
)
async def test_what_cannot_be_resolved(body: dict[str, Any], status: int, code: str) -> None:
    world = World()
    answer = await world.chat(**body)
    assert (answer.status, answer.error["code"]) == (status, code)
    assert world.engine.asked == []
    assert world.records[0].outcome == "refused"


async def test_settings_of_the_version_fill_what_the_request_leaves_open() -> None:
    world = World()
    world.engine.chunks = [completion("x")]
    await world.chat(temperature=None)
    sent = world.engine.last.body
    assert sent["messages"][0] == {"role": "system", "content": "You are a pirate."}
    assert (sent["temperature"], sent["max_tokens"]) == (0.25, 7)
    own = {"role": "developer", "content": "Be brief."}
    await world.chat(messages=[{"role": "user", "content": "x"}, own], temperature=1, max_completion_tokens=9)
    sent = world.engine.last.body
    assert [message["role"] for message in sent["messages"]] == ["user", "developer"]
    assert (sent["temperature"], sent["max_completion_tokens"]) == (1, 9)
    assert "max_tokens" not in sent


async def test_a_text_completion_gets_the_sampling_defaults_and_no_system_prompt() -> None:
    world = World()
    world.engine.chunks = [completion("x")]
    await world.ask("/v1/completions", {"model": "voice", "prompt": "Once"})
    assert world.engine.last.body["temperature"] == 0.25
    assert "messages" not in world.engine.last.body
    await world.ask("/tokenize", {"model": "voice", "messages": [{"role": "user", "content": "x"}]})
    assert world.engine.last.body.keys() == {"model", "messages"}
    assert len(world.engine.last.body["messages"]) == 2


async def test_the_engine_gets_a_salt_and_a_request_id_of_our_own() -> None:
    world = World()
    world.engine.chunks = [completion("x")]
    for _ in range(2):
        answer = await world.ask("/v1/chat/completions", chat_body(), headers={"x-request-id": "mine"})
        assert answer.headers["x-request-id"] == "mine"
    first, second = world.engine.asked
    assert first.body["cache_salt"] == second.body["cache_salt"]
    assert len(first.body["cache_salt"]) == 32
    assert first.headers["x-request-id"] != second.headers["x-request-id"]
    assert "mine" not in first.headers.values()


@pytest.mark.parametrize("given", ["a b", "x" * 65, "", "a\r\nb", "é"])
async def test_a_strange_request_id_is_replaced(given: str) -> None:
    answer = await World().ask("/v1/chat/completions", b"{}", headers={"x-request-id": given})
    assert len(answer.headers["x-request-id"]) == 32


@pytest.mark.parametrize(
    ("raw", "headers", "status", "code"),
    [
        (b"{", {}, 400, "invalid_json"),
        (b"[]", {}, 400, "invalid_json"),
        (b"", {}, 400, "invalid_json"),
        (b'{"model":"voice","temperature":NaN}', {}, 400, "invalid_json"),
        (b'{"model":"voice","temperature":Infinity}', {}, 400, "invalid_json"),
        (b'{"model":"\xff"}', {}, 400, "invalid_json"),
        (b'{"model":"\\ud800"}', {}, 400, "invalid_json"),
        (b'{"a":' + b"[" * 70 + b"]" * 70 + b"}", {}, 400, "invalid_json"),
        (b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}", {}, 400, "invalid_json"),
        (b"{}", {"content-type": "text/plain"}, 415, "unsupported_media_type"),
        (b"{}", {"content-encoding": "gzip"}, 415, "unsupported_media_type"),
        (b"{}", {"authorization": "Bearer wrong"}, 401, "invalid_api_key"),
        (b"{}", {"authorization": ""}, 401, "invalid_api_key"),
    ],
)
async def test_bodies_that_are_refused(raw: bytes, headers: dict[str, str], status: int, code: str) -> None:
    world = World()
    answer = await world.ask("/v1/chat/completions", raw, headers=headers)
    assert (answer.status, answer.error["code"]) == (status, code)
    assert answer.headers["x-request-id"]
    assert world.engine.asked == []


class TrainerOnly(Authenticator):
    """Knows one key, which may train and nothing else."""

    def authenticate(self, headers: Mapping[str, str]) -> Caller:
        super().authenticate(headers)
        return Caller("k1", "default", frozenset({Scope.TRAIN}))


async def test_a_key_without_the_scope_is_told_nothing_of_models() -> None:
    world = World(TrainerOnly(KEY))
    for model in ("voice", "nobody"):
        answer = await world.chat(model=model)
        assert (answer.status, answer.error["code"]) == (403, "insufficient_scope")
    assert world.engine.asked == []


async def test_a_request_leaves_no_task_behind() -> None:
    world = World()
    world.engine.chunks = [completion("x")]
    before = asyncio.all_tasks()
    await world.chat()
    await asyncio.sleep(0)
    assert asyncio.all_tasks() <= before, "one of a former test may have ended meanwhile"


async def test_of_a_repeated_key_the_last_counts_for_us_and_for_the_engine() -> None:
    world = World()
    world.engine.chunks = [completion("x", "smol")]
    raw = b'{"model":"voice","model":"smol","messages":[{"role":"user","content":"x"}]}'
    assert (await world.ask("/v1/chat/completions", raw)).status == 200
    assert world.engine.last.body["model"] == "smol"


async def test_bytes_are_counted_whatever_the_headers_say() -> None:
    world = World(max_body_mib=0.001)
    small, large = b" " * 500, b" " * 700
    for parts, headers in (([small, large], {"content-length": "10"}), ([b"{}"], {"content-length": "99999999"})):
        answer = await world.ask_in_parts("/v1/chat/completions", parts, headers=headers)
        assert (answer.status, answer.error["code"]) == (413, "request_too_large")


async def test_a_body_that_has_arrived_is_held_to_the_bound_too() -> None:
    disconnect = Disconnect(lambda: None)
    scope = {"path": "/", "headers": [(b"content-type", b"application/json")], "state": {DISCONNECT: disconnect}}
    exchange = Exchange(scope, lambda: pytest.fail("it waits"), lambda _: pytest.fail("it answers"))
    disconnect.take_body = lambda: b"12345"
    assert await exchange.read_json_body(5) == b"12345"
    with pytest.raises(TooLarge, match="more than 4 bytes"):
        await exchange.read_json_body(4)


async def test_a_stream_flows_as_it_comes_and_hides_the_usage() -> None:
    world = World()
    gate = asyncio.Event()
    world.engine.chunks = [token("A"), gate, token("B"), usage_event(), DONE]
    running = asyncio.create_task(world.chat(stream=True))
    await until(lambda: world.signs)
    assert world.engine.in_flight == 1
    gate.set()
    answer = await running
    assert answer.headers["content-type"].startswith("text/event-stream")
    assert answer.parts == [token("A", "voice"), token("B", "voice"), DONE]
    assert world.records[0].usage == TokenUsage(11, 5, 4)
    assert world.records[0].stream
    assert world.engine.last.body["stream_options"]["include_usage"] is True
    assert not world.engine.aborted.is_set()


async def test_the_usage_is_shown_to_who_asks_for_it() -> None:
    world = World()
    world.engine.chunks = [token("A"), usage_event(), DONE]
    answer = await world.chat(stream=True, stream_options={"include_usage": True, "include_obfuscation": False})
    assert answer.parts == [token("A", "voice"), usage_event("voice"), DONE]
    assert world.engine.last.body["stream_options"] == {"include_usage": True, "continuous_usage_stats": False}


@pytest.mark.parametrize(
    ("tail", "code"),
    [
        ([], "engine_cut"),
        ([token("half")[:30]], "engine_cut"),
        ([BadGateway("cut", code="engine_cut")], "engine_cut"),
        ([EngineUnavailable("gone")], "engine_unavailable"),
        ([NOT_FINITE, DONE], "adapter_not_finite"),
        ([b'data: {"error": {"message": "x", "type": "InternalServerError", "code": 500}}\n\n', DONE], "engine_error"),
    ],
)
async def test_a_stream_that_breaks_ends_in_an_error_event_and_never_in_done(tail: list[Any], code: str) -> None:
    world = World()
    world.engine.chunks = [token("A"), *tail]
    answer = await world.chat(stream=True)
    assert answer.status == 200
    assert answer.body.startswith(token("A", "voice"))
    assert b"[DONE]" not in answer.body
    assert last_error(answer.body)["code"] == code
    assert (world.records[0].outcome, world.records[0].code) == ("cut", code)
    assert world.records[0].prompt > 0
    assert world.records[0].usage == TokenUsage(world.records[0].prompt, completion_tokens=1, exact=False)
    assert world.suspects == ([DIGESTS[3]] if code == "adapter_not_finite" else [])


@pytest.mark.parametrize("stream", [True, False])
async def test_an_adapter_whose_numbers_are_not_finite_is_an_error_and_a_suspect(stream: bool) -> None:
    world = World()
    world.engine.status = 200 if stream else 500
    world.engine.chunks = [NOT_FINITE, DONE] if stream else [NOT_FINITE[6:]]
    answer = await world.chat(stream=stream)
    assert (answer.status, answer.error["code"]) == (500, "adapter_not_finite")
    assert answer.headers["x-should-retry"] == "false"
    assert world.suspects == [DIGESTS[3]]
    assert world.records[0].outcome == "failed"


async def test_a_failure_of_the_base_suspects_nobody() -> None:
    world = World()
    world.engine.status, world.engine.chunks = 500, [b"oops"]
    assert (await world.chat(model="smol")).status == 502
    assert world.suspects == []


@pytest.mark.parametrize(
    "broken", [BadGateway("the connection broke"), EngineUnavailable("gone")], ids=["broken", "gone"]
)
async def test_an_engine_that_dies_makes_no_adapter_a_suspect(broken: Any) -> None:
    world = World()
    world.engine.chunks = [broken]
    assert (await world.chat()).status == broken.status
    assert world.suspects == []


async def test_an_engine_that_says_it_is_at_fault_itself_makes_no_adapter_a_suspect() -> None:
    world = World()
    world.engine.status = 500
    world.engine.chunks = [b'{"error": {"message": "nan", "type": "engine_not_finite", "code": 500}}']
    answer = await world.chat()
    assert (answer.status, answer.error["code"], world.suspects) == (502, "engine_not_finite", [])


async def test_without_an_engine_the_answer_is_503_at_once() -> None:
    world = World()
    world.engine.down = EngineUnavailable("the engine is starting", retry_after=7)
    answer = await world.chat()
    assert (answer.status, answer.headers["retry-after"]) == (503, "7")
    assert world.suspects == []


async def test_more_requests_than_allowed_are_turned_away() -> None:
    world = World(max_in_flight=1)
    gate = asyncio.Event()
    world.engine.chunks = [gate, completion("x")]
    first = asyncio.create_task(world.chat())
    await until(lambda: world.engine.in_flight)
    answer = await world.chat()
    assert (answer.status, answer.error["code"], answer.headers["retry-after"]) == (503, "overloaded", "1")
    gate.set()
    assert (await first).status == 200
    assert (await world.chat()).status == 200


@pytest.mark.parametrize("stream", [True, False])
async def test_a_request_that_takes_too_long_is_ended_in_the_engine(stream: bool) -> None:
    # on a busy machine the time may be over before the engine was asked, or before the first token was sent
    for seconds in (0.05, 1.0, 20.0):
        world = World(request_timeout_s=seconds)
        world.engine.chunks = [token("A"), asyncio.Event()] if stream else [asyncio.Event()]
        answer = await world.chat(stream=stream)
        if answer.status == 200 or (world.engine.asked and not stream):
            break
    assert world.engine.aborted.is_set()
    error = last_error(answer.body) if stream else answer.error
    assert error["code"] == "timeout"
    assert answer.status == (200 if stream else 504)


async def test_a_fault_of_our_own_is_an_error_in_the_same_shape(caplog: pytest.LogCaptureFixture) -> None:
    world = World()
    world.engine.chunks = [None]  # type: ignore[list-item]
    answer = await world.chat()
    assert (answer.status, answer.error["code"]) == (500, "internal_error")
    assert KEY not in caplog.text
    assert "a request failed unexpectedly" in caplog.text


def test_the_log_line_has_the_facts_and_no_text(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="hatrack.inference"):
        LogAccount()(Record("r1", "/v1/completions", status=200, usage=TokenUsage(3, 4, exact=True)))
    [line] = caplog.records
    fields = extra_fields(line)
    assert fields["request_id"] == "r1"
    assert fields["completion_tokens"] == 4


@pytest.mark.parametrize(
    ("status", "body", "code", "suspected"),
    [
        (500, {"message": "/srv/x.py: RecursionError", "type": "InternalServerError", "code": 500}, "engine_error", 0),
        (501, {"message": "NotImplementedError", "type": "NotImplementedError", "code": 501}, "engine_error", 0),
        (500, {"message": "x", "type": "adapter_unloadable", "code": 500}, "adapter_unloadable", 1),
        (404, {"message": f"The model `{DIGESTS[3]}` does not exist.", "code": 404}, "adapter_unloadable", 1),
    ],
)
async def test_only_evidence_against_its_weights_makes_an_adapter_a_suspect(
    status: int, body: dict[str, Any], code: str, suspected: int
) -> None:
    world = World()
    world.engine.status, world.engine.chunks = status, [orjson.dumps({"error": body})]
    answer = await world.chat()
    assert (answer.status, answer.error["code"], len(world.suspects)) == (502, code, suspected)
    assert body["message"].encode() not in answer.body


async def test_the_engines_own_words_for_code_reach_no_caller() -> None:
    """What pydantic says of a request that the engine cannot read: its text names classes, paths and URLs."""
    world = World()
    text = (
        "1 validation error:\n  {'type': 'literal_error', 'loc': 'body.messages.0', 'url': 'https://errors.pydantic'}"
    )
    error = {"message": text, "type": "Bad Request", "param": "body.messages.0", "code": 400}
    world.engine.status, world.engine.chunks = 400, [orjson.dumps({"error": error})]
    answer = await world.chat()
    assert (answer.status, answer.error["param"]) == (400, "messages.0")
    assert "pydantic" not in answer.body.decode()
    assert "validation error" not in answer.body.decode()
