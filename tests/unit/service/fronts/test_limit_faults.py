"""Limits while answers are lost, a front or its gateway stands still, or the gateway is started anew."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from service.access.caller import Limits
from service.errors import RequestOverQuota, TokensLimited
from service.fronts import sessions as sessions_module
from service.fronts.link import GatewayAway
from service.fronts.wire import LIMITS_PATH
from tests.unit.service.agent.support import until
from tests.unit.service.fronts.support import Cluster, caller_at
from tests.unit.service.fronts.test_limits import FRONT, fronts_of, key_known_to, state


async def test_what_a_front_spent_alone_is_counted_once_though_answers_are_lost(
    made: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The gateway stands still for a while: it reads later what came meanwhile, and nobody hears its answers."""
    front = await made.front()
    key = await key_known_to(made, [front], tokens_per_day=1000)
    limiter, post, lost = front.front.limiter, front.front.link.post, 4

    async def lossy(path: str, body: Any, *, timeout_s: float) -> Any:
        nonlocal lost
        answer = await post(path, body, timeout_s=timeout_s)
        if path == LIMITS_PATH and lost:
            lost -= 1
            raise GatewayAway("its answer is lost")
        return answer

    monkeypatch.setattr(front.front.link, "post", lossy)
    assert (await front.chat(key=key)).status_code == 200
    await until(lambda: not lost and not limiter._untold and limiter._unanswered is None)
    await until(lambda: state(made).in_flight == 0)
    assert (state(made).settled, state(made).held) == (4, 0)


async def test_a_request_above_a_fronts_share_may_be_sent_again_and_one_above_the_quota_may_not(made: Cluster) -> None:
    front = await made.front()
    key = await key_known_to(made, [front], tokens_per_day=10_000)
    limiter, caller = front.front.limiter, caller_at(front, key)
    limiter._fronts = lambda: 2
    with pytest.raises(TokensLimited, match="share") as refused:
        limiter.admit_alone(caller, 6_000)
    assert "retry-after" in refused.value.headers
    assert refused.value.retry is not False
    with pytest.raises(RequestOverQuota):
        limiter.admit_alone(caller, 12_000)
    limiter.admit_alone(caller, 5_000).close(10)


async def test_a_batch_that_was_done_is_not_done_again_also_not_in_another_session() -> None:
    sessions, limiter = fronts_of(Limits(tokens_per_day=100))
    spent = {"number": 1, "operations": [["spent", "key_a", "default", 60]]}
    first = sessions.session(FRONT, "front")
    assert sessions.operate_once(first, spent) == [None]
    assert sessions.operate_once(first, spent | {"number": 2}) == [None]
    sessions._leave(first, asyncio.get_running_loop().time())
    again = sessions.session(FRONT, "front")
    assert again is not first
    assert sessions.operate_once(again, spent | {"number": 2}) == [None]
    [limited] = limiter._states.values()
    assert limited.settled == 120


async def test_a_gateway_that_is_started_anew_is_told_what_goes_on_at_its_fronts(made: Cluster) -> None:
    front = await made.front()
    key = await key_known_to(made, [front], concurrent=1, tokens_per_day=1000)
    reservation = front.front.limiter.enter(caller_at(front, key))
    charged = reservation.charge(50)
    assert charged is not None
    await charged
    sessions = made.gateway.app._peers[0].sessions  # type: ignore[attr-defined]
    for forgotten in (sessions._sessions, sessions._done, limiter_of(made)._states):
        forgotten.clear()
    await until(lambda: bool(limiter_of(made)._states) and (state(made).in_flight, state(made).held) == (1, 50))
    assert (await front.chat(key=key)).status_code == 429, "its one place is taken"
    reservation.close(20)
    await until(lambda: state(made).in_flight == 0)
    assert (state(made).settled, state(made).held) == (20, 0)
    assert (await front.chat(key=key)).status_code == 200


def limiter_of(made: Cluster) -> Any:
    return made.gateway._inference.pipeline._limiter


async def test_what_ended_while_the_gateway_was_started_anew_counts(made: Cluster) -> None:
    front = await made.front()
    key = await key_known_to(made, [front], tokens_per_day=1000)
    reservation = front.front.limiter.enter(caller_at(front, key))
    charged = reservation.charge(50)
    assert charged is not None
    await charged
    await made.vanish()
    sessions = made.gateway.app._peers[0].sessions  # type: ignore[attr-defined]
    for forgotten in (sessions._sessions, sessions._done, limiter_of(made)._states):
        forgotten.clear()
    reservation.close(20)
    await made.listen()
    await until(lambda: bool(limiter_of(made)._states) and state(made).settled == 20)
    assert (state(made).in_flight, state(made).held) == (0, 0)


async def test_what_was_settled_by_its_estimate_is_not_held_again() -> None:
    """The front was cut off, and its gateway is the same."""
    sessions, limiter = fronts_of(Limits(tokens_per_day=100, tokens_per_minute=1000))
    hold = {"number": 1, "operations": [["hold", 7, "key_a", "default", 30]]}
    first = sessions.session(FRONT, "front")
    sessions.operate_once(first, hold)
    [limited] = limiter._states.values()
    assert (limited.in_flight, limited.held) == (1, 30)
    assert limited.tokens is not None
    assert limited.tokens.level == 970
    sessions._leave(first, asyncio.get_running_loop().time())
    assert (limited.in_flight, limited.held, limited.settled) == (0, 0, 30)
    again = sessions.session(FRONT, "front")
    assert again.token != first.token
    sessions.operate_once(again, hold | {"number": 2})
    assert (limited.in_flight, limited.held, limited.settled) == (0, 0, 30)


async def test_who_waits_no_longer_for_a_limit_has_taken_nothing(
    made: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    front = await made.front()
    key = await key_known_to(made, [front], concurrent=1)
    limiter, post, goes_on = front.front.limiter, front.front.link.post, asyncio.Event()
    is_sent = asyncio.Event()

    async def slow(path: str, body: Any, *, timeout_s: float) -> Any:
        if path == LIMITS_PATH:
            is_sent.set()
            await goes_on.wait()
        return await post(path, body, timeout_s=timeout_s)

    monkeypatch.setattr(front.front.link, "post", slow)
    limiter.tell(["settle", 0, None])
    await is_sent.wait()
    reservation = limiter.enter(caller_at(front, key))

    async def charge() -> None:
        charged = reservation.charge(5)
        assert charged is not None
        await charged

    asking = asyncio.ensure_future(charge())
    await until(lambda: bool(limiter._asked))
    asking.cancel()
    await asyncio.gather(asking, return_exceptions=True)
    reservation.close(None)
    goes_on.set()
    await until(lambda: not limiter._untold and not limiter._asked and limiter._unanswered is None)
    assert (await front.chat(key=key)).status_code == 200, "its one place is free"


async def test_what_a_frozen_front_had_taken_comes_back(made: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its connections stay open, and its feed can be written to for hours."""
    monkeypatch.setattr(sessions_module, "GRACE_S", 3.0)
    front = await made.front()
    key = await key_known_to(made, [front], concurrent=1)
    charged = front.front.limiter.enter(caller_at(front, key)).charge(7)
    assert charged is not None
    await charged
    assert state(made).in_flight == 1
    for task in asyncio.all_tasks():
        if task.get_name() in ("front-limits", "front-report"):
            task.cancel()
    await until(lambda: state(made).in_flight == 0)


async def test_a_front_without_requests_lets_its_gateway_know_that_it_is_there(made: Cluster) -> None:
    front = await made.front()
    sessions = made.gateway.app._peers[0].sessions  # type: ignore[attr-defined]
    [session] = sessions.connected
    words = set()

    def is_heard() -> bool:
        words.add(session.leaving.when())
        return len(words) >= 4

    await until(is_heard)
    assert (front.front.follower.trouble, sessions.connected) == (None, [session])


async def test_a_gateway_that_stood_still_itself_does_not_take_its_fronts_for_gone() -> None:
    sessions, _ = fronts_of(Limits(concurrent=1))
    session = sessions.session(FRONT, "front")
    sessions.operate(session, [["take", 1, "key_a", "default", 1]])
    now = asyncio.get_running_loop().time()
    sessions._leave(session, now - sessions_module.LATE_S - 1)
    assert (session.is_gone, len(session.reservations)) == (False, 1)
    sessions._leave(session, now)
    assert session.is_gone
