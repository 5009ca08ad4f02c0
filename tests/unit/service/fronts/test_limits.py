"""A key's limits over all fronts together, and a share of them while the gateway is away."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from dataclasses import replace
from typing import Any

import pytest

from service.access.authentication import Authenticator, KeyEntry
from service.access.caller import Caller, Limits, Scope
from service.access.limits import KeyLimiter
from service.errors import BadRequest
from service.fronts import sessions as sessions_module
from service.fronts.sessions import FrontSessions
from tests.unit.service.agent.support import until
from tests.unit.service.fronts.support import Cluster, FrontApp, caller_at, eventually

FRONT = "f" * 32
LIMIT = 6


async def key_known_to(made: Cluster, fronts: list[FrontApp], **limits: int) -> str:
    key = await made.gateway.key("infer", limits=limits)
    digest = made.gateway._inference.pipeline.authenticator.hmac(key)

    def is_known() -> bool:
        views = [front.front.follower._view for front in fronts]
        return all(view is not None and digest in view.authenticator.entries for view in views)

    await until(is_known)
    return key


def state(made: Cluster) -> Any:
    """The only limited key's state at the gateway."""
    [found] = made.gateway._inference.pipeline._limiter._states.values()  # type: ignore[union-attr]
    return found


async def test_requests_a_minute_hold_over_all_fronts(made: Cluster) -> None:
    fronts = [await made.front() for _ in range(2)]
    key = await key_known_to(made, fronts, requests_per_minute=LIMIT * 10)
    answers = await asyncio.gather(*(fronts[number % 2].chat(key=key) for number in range(LIMIT * 10 + 20)))
    passed = [answer for answer in answers if answer.status_code == 200]
    refused = [answer for answer in answers if answer.status_code == 429]
    assert len(passed) + len(refused) == len(answers)
    # the bucket fills by one a second meanwhile
    assert LIMIT * 10 <= len(passed) < LIMIT * 10 + 20
    assert refused[0].json()["error"]["type"] == "requests"
    assert {"retry-after", "x-ratelimit-limit-requests"} <= refused[0].headers.keys()
    assert passed[0].headers["x-ratelimit-limit-requests"] == str(LIMIT * 10)


async def test_requests_at_once_hold_over_all_fronts_and_the_gateway(made: Cluster) -> None:
    fronts = [await made.front() for _ in range(2)]
    key = await key_known_to(made, fronts, concurrent=1)
    for asked in (fronts[0], fronts[1], fronts[0]):
        assert (await asked.chat(key=key)).status_code == 200
        await until(lambda: state(made).in_flight == 0)
    link = fronts[0].front.limiter
    caller = fronts[0].front.follower._view.authenticator.authenticate({"x-api-key": key})  # type: ignore[union-attr]
    open_one = link.enter(caller)
    charged = open_one.charge(5)
    assert charged is not None
    await charged
    refused = await fronts[1].chat(key=key)
    assert (refused.status_code, refused.json()["error"]["type"]) == (429, "requests")
    own = await made.gateway.http.post(
        "/v1/chat/completions",
        json={"model": "tiny", "messages": [{"role": "user", "content": "Hello"}]},
        headers={"authorization": f"Bearer {key}"},
    )
    assert own.status_code == 429, "the gateway counts them, too"
    open_one.close(None)
    await until(lambda: state(made).in_flight == 0)
    assert (await fronts[1].chat(key=key)).status_code == 200


async def test_tokens_are_charged_by_estimate_and_settled_by_use(made: Cluster) -> None:
    front = await made.front()
    key = await key_known_to(made, [front], tokens_per_day=1000)
    assert (await front.chat(key=key, max_tokens=50)).status_code == 200
    await until(lambda: state(made).in_flight == 0)
    assert (state(made).settled, state(made).held) == (4, 0), "3 tokens of the prompt and 1 of the answer"
    over = await front.chat(key=key, max_tokens=999)
    assert (over.status_code, over.json()["error"]["code"]) == (429, "request_over_quota")
    await until(lambda: state(made).in_flight == 0)


async def test_what_a_front_has_not_told_it_tells_when_it_is_stopped(made: Cluster) -> None:
    async with AsyncExitStack() as stack:
        front = await replace(made, stack=stack).front()
        key = await key_known_to(made, [front], tokens_per_day=1000)
        caller = caller_at(front, key)
        front.front.limiter._untold.append(["spent", caller.key_id, caller.project, 7])  # and nothing wakes it
    assert state(made).settled == 7


async def test_a_request_that_is_refused_for_its_fields_counts_as_one(made: Cluster) -> None:
    front = await made.front()
    key = await key_known_to(made, [front], requests_per_minute=3)
    assert (await front.chat(key=key, no_such_field=1)).status_code == 400
    await until(lambda: bool(made.gateway._inference.pipeline._limiter._states))  # type: ignore[union-attr]
    assert state(made).requests.level < 2.5
    passed = [(await front.chat(key=key)).status_code for _ in range(3)]
    assert passed == [200, 200, 429]


async def test_what_is_passed_on_is_limited_once(made: Cluster) -> None:
    front = await made.front()
    key = await key_known_to(made, [front], requests_per_minute=2)
    schema = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "object"}}}
    statuses = [(await front.chat(key=key, response_format=schema)).status_code for _ in range(3)]
    assert statuses == [200, 200, 429]


async def test_while_the_gateway_is_away_each_front_has_a_share(made: Cluster) -> None:
    fronts = [await made.front() for _ in range(2)]
    await until(lambda: all(front.front.follower.fronts == 2 for front in fronts))
    key = await key_known_to(made, fronts, requests_per_minute=LIMIT)
    await made.vanish()
    for front in fronts:
        statuses = [(await front.chat(key=key)).status_code for _ in range(LIMIT)]
        assert statuses[: LIMIT // 2] == [200] * (LIMIT // 2)
        assert statuses[-1] == 429
    await made.listen()

    async def is_told() -> bool:
        states = made.gateway._inference.pipeline._limiter._states  # type: ignore[union-attr]
        return bool(states) and state(made).requests.level < LIMIT / 2

    await eventually(is_told)


async def test_what_a_front_that_died_had_taken_comes_back(made: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sessions_module, "GRACE_S", 0.2)
    front = await made.front()
    key = await key_known_to(made, [front], concurrent=1)
    caller = front.front.follower._view.authenticator.authenticate({"x-api-key": key})  # type: ignore[union-attr]
    charged = front.front.limiter.enter(caller).charge(7)
    assert charged is not None
    await charged
    assert state(made).in_flight == 1
    for task in asyncio.all_tasks():
        if task.get_name() in ("front-feed", "front-limits", "front-report"):
            task.cancel()
    await until(lambda: state(made).in_flight == 0)


# what a gateway does of what it is asked


def fronts_of(limits: Limits) -> tuple[FrontSessions, KeyLimiter]:
    authenticator, limiter = Authenticator("the-admin-key-of-these-tests"), KeyLimiter(clock=lambda: 0.0)
    caller = Caller("key_a", "default", frozenset({Scope.INFER}), limits=limits)
    authenticator.put(b"h" * 32, KeyEntry(caller))
    return FrontSessions(authenticator, limiter), limiter


async def test_an_operation_that_comes_again_is_done_once() -> None:
    sessions, limiter = fronts_of(Limits(requests_per_minute=5, tokens_per_minute=100))
    session = sessions.session(FRONT, "front")
    take = ["take", 1, "key_a", "default", 10]
    for _ in range(3):
        [answer] = sessions.operate(session, [take])
        assert answer is not None
        assert dict(answer["headers"])["x-ratelimit-remaining-requests"] == "4"
    sessions.operate(session, [["more", 1, 30], ["more", 1, 30]])
    [state] = limiter._states.values()
    assert (state.held, state.in_flight) == (30, 1)
    assert sessions.operate(session, [["settle", 1, 20], ["settle", 1, 20], ["settle", 9, 5]]) == [None] * 3
    assert (state.held, state.in_flight) == (0, 0)
    assert state.tokens is not None
    assert state.tokens.level == 80


async def test_each_operation_has_an_answer_of_its_own() -> None:
    sessions, _ = fronts_of(Limits(requests_per_minute=1))
    session = sessions.session(FRONT, "front")
    first, second, revoked = sessions.operate(
        session, [["take", 1, "key_a", "default", 1], ["take", 2, "key_a", "default", 1], ["take", 3, "gone", "x", 1]]
    )
    assert first is not None
    assert "headers" in first
    assert second is not None
    assert (second["error"]["kind"], second["error"]["code"]) == ("RequestsLimited", "rate_limit_exceeded")
    assert revoked is not None
    assert revoked["error"]["kind"] == "Unauthenticated"


@pytest.mark.parametrize("operation", [[], ["take"], ["take", 1, "key_a", "default", "x"], ["steal", 1], 7])
async def test_what_is_no_operation_is_refused(operation: Any) -> None:
    sessions, _ = fronts_of(Limits(requests_per_minute=1))
    with pytest.raises(BadRequest, match="malformed operation"):
        sessions.operate(sessions.session(FRONT, "front"), [operation])


async def test_a_key_may_come_into_debt_by_what_was_admitted_without_asking() -> None:
    sessions, limiter = fronts_of(Limits(requests_per_minute=1, tokens_per_day=100))
    session = sessions.session(FRONT, "front")
    sessions.operate(session, [["spent", "key_a", "default", 60]] * 2)
    [state] = limiter._states.values()
    assert state.requests is not None
    assert (state.requests.level, state.settled, state.in_flight) == (-1, 120, 0)
