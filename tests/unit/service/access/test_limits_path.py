"""Limits on the data path: what a client sees of them, and that a place is given back however a request ends."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import orjson
import pytest

from service.access.authentication import Authenticator, KeyEntry
from service.access.keys import make_key
from service.access.limits import KeyLimiter
from service.errors import BadGateway, EngineUnavailable
from service.inference.dispatch import Dispatch
from service.inference.pipeline import Pipeline
from service.inference.routes import InferenceApp
from tests.unit.service.access.clock import Clock, caller
from tests.unit.service.inference.fakes import (
    BASE,
    DONE,
    KEY,
    Answer,
    World,
    catalog,
    chat_body,
    completion,
    event,
    token,
    until,
    usage_event,
)


class Limited:
    """An app whose second key has limits."""

    def __init__(self, **limits: int) -> None:
        self.world = World()
        self.clock = Clock()
        self.limiter = KeyLimiter(clock=self.clock.monotonic, wall=self.clock.wall)
        self.key = make_key()
        authenticator = Authenticator(KEY)
        authenticator.put(authenticator.hmac(self.key), KeyEntry(caller(**limits)))
        pipeline = Pipeline(
            self.world.settings,
            authenticator,
            catalog(),
            Dispatch(self.world.settings, self.world.engine, BASE),
            account=self.world.records.append,
            limiter=self.limiter,
        )
        self.world.app = InferenceApp(self.world.settings, pipeline)

    async def ask(self, path: str = "/v1/chat/completions", **fields: Any) -> Answer:
        headers = {"authorization": f"Bearer {self.key}"}
        return await self.world.ask(path, chat_body(**fields), headers=headers)


async def test_an_answer_tells_what_is_left_and_a_refusal_when_to_come_back() -> None:
    limited = Limited(requests_per_minute=1, tokens_per_minute=1000)
    limited.world.engine.chunks = [completion("Ahoy")]
    answer = await limited.ask(max_tokens=100)
    assert answer.status == 200
    assert (answer.headers["x-ratelimit-limit-requests"], answer.headers["x-ratelimit-remaining-requests"]) == (
        "1",
        "0",
    )
    assert answer.headers["x-ratelimit-reset-requests"] == "1m0s"
    estimate = limited.world.records[0].estimate
    assert answer.headers["x-ratelimit-remaining-tokens"] == str(1000 - estimate)
    refused = await limited.ask()
    assert (refused.status, refused.error["code"], refused.error["type"]) == (429, "rate_limit_exceeded", "requests")
    assert (refused.headers["retry-after"], refused.headers["x-ratelimit-remaining-requests"]) == ("60", "0")
    assert "x-ratelimit-limit-requests" not in (await limited.world.chat()).headers, "the admin's key has no limits"
    record = limited.world.records[1]
    assert (record.status, record.outcome, record.code) == (429, "refused", "rate_limit_exceeded")
    limited.clock.pass_s(60)
    settled = await limited.ask(max_tokens=100)
    assert settled.headers["x-ratelimit-remaining-tokens"] == str(1000 - estimate), "the first took 16 in truth"


async def test_the_engines_count_settles_the_day() -> None:
    limited = Limited(tokens_per_day=300)
    limited.world.engine.chunks = [token("a"), token("b"), usage_event(), DONE]
    for number in range(1, 19):  # 16 tokens each
        answer = await limited.ask(stream=True, max_tokens=5)
        assert (answer.status, number) == (200, number)
    refused = await limited.ask(stream=True, max_tokens=50)
    assert (refused.status, refused.error["code"], refused.error["type"]) == (429, *["insufficient_quota"] * 2)
    assert "used 288, requested" in refused.error["message"]
    assert refused.headers["x-should-retry"] == "false"
    assert limited.world.records[-1].tokens is None


async def test_a_refused_request_reads_no_body_and_a_place_is_held_while_in_work() -> None:
    limited = Limited(concurrent=1)
    gate = asyncio.Event()
    limited.world.engine.chunks = [gate, completion("Ahoy")]
    first = asyncio.create_task(limited.ask())
    await until(lambda: limited.world.engine.in_flight)
    refused = await limited.world.ask("/v1/chat/completions", b"{", headers={"authorization": f"Bearer {limited.key}"})
    assert (refused.status, refused.error["code"]) == (429, "rate_limit_exceeded")
    gate.set()
    assert (await first).status == 200


async def _leaves(limited: Limited) -> None:
    """Asks for a stream, reads one event and is gone."""
    limited.world.engine.chunks = [token("a"), asyncio.Event()]
    parts, gone = [orjson.dumps(chat_body(stream=True))], asyncio.Event()

    async def receive() -> dict[str, Any]:
        if parts:
            return {"type": "http.request", "body": parts.pop(), "more_body": False}
        await gone.wait()
        return {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        if message.get("body"):
            gone.set()

    headers = {"authorization": f"Bearer {limited.key}", "content-type": "application/json"}
    scope = {
        "type": "http",
        "method": "POST",
        "path": "/v1/chat/completions",
        "headers": [(name.encode(), value.encode()) for name, value in headers.items()],
    }
    await limited.world.app(scope, receive, send)
    assert limited.world.records[-1].outcome == "left"


async def _is_cancelled(limited: Limited) -> None:
    limited.world.engine.chunks = [asyncio.Event()]
    request = asyncio.create_task(limited.ask())
    await until(lambda: limited.world.engine.in_flight)
    request.cancel()
    with pytest.raises(asyncio.CancelledError):
        await request


async def _engine_is_down(limited: Limited) -> None:
    limited.world.engine.down = EngineUnavailable("it starts")
    assert (await limited.ask()).status == 503
    limited.world.engine.down = None


async def _engine_refuses(limited: Limited) -> None:
    limited.world.engine.status, limited.world.engine.chunks = 400, [b'{"error": {"message": "no", "code": 400}}']
    assert (await limited.ask()).status == 400
    limited.world.engine.status = 200


async def _engine_breaks(limited: Limited) -> None:
    limited.world.engine.chunks = [token("a"), BadGateway("gone")]
    assert b"gone" in (await limited.ask(stream=True)).body


async def _error_event(limited: Limited) -> None:
    limited.world.engine.chunks = [token("a"), event(error={"message": "no", "code": 500})]
    assert b"error" in (await limited.ask(stream=True)).body


async def _bad_field(limited: Limited) -> None:
    assert (await limited.ask(max_tokens=-1)).status == 400


async def _unknown_model(limited: Limited) -> None:
    assert (await limited.ask(model="nobody")).status == 404


async def _too_many_tokens(limited: Limited) -> None:
    limited.world.engine.chunks = [completion("Ahoy")]
    assert (await limited.ask(max_tokens=1500)).status == 200
    assert (await limited.ask(max_tokens=1500)).status == 200
    assert (await limited.ask(max_tokens=2000)).status == 429


ENDS = (
    _leaves,
    _is_cancelled,
    _engine_is_down,
    _engine_refuses,
    _engine_breaks,
    _error_event,
    _bad_field,
    _unknown_model,
    _too_many_tokens,
)


@pytest.mark.parametrize("ends", ENDS)
async def test_a_place_is_given_back_however_a_request_ends(ends: Callable[[Limited], Any]) -> None:
    limited = Limited(concurrent=1, tokens_per_minute=2000)
    for _ in range(2):
        await ends(limited)
        limited.clock.pass_s(600)
    limited.world.engine.chunks = [completion("Ahoy")]
    assert (await limited.ask()).status == 200
    assert (await limited.ask()).status == 200
