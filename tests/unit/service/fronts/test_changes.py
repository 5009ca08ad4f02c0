"""Fronts whose gateway is away, comes back with other settings, or stops."""

from __future__ import annotations

import asyncio
import math

import pytest

from service import front as front_module
from service.access.keys import make_key
from service.fronts import follower as follower_module
from service.fronts.wire import VERSION_HEADER
from tests.unit.service.agent.support import until
from tests.unit.service.fronts.support import Cluster, eventually, new_key
from tests.unit.service.gateway_app import BASE


async def test_it_goes_on_for_a_while_without_its_gateway_and_no_longer(made: Cluster) -> None:
    front = await made.front(front_max_age_s=2)
    lasting = await made.front(front_max_age_s=100_000)
    await made.vanish()
    assert (await lasting.chat()).status_code == 200
    passed_on = await lasting.http.get("/v1/adapters")
    assert (passed_on.status_code, passed_on.json()["error"]["code"]) == (503, "gateway_unavailable")

    async def is_stale() -> bool:
        answer = await front.chat()
        return answer.status_code == 503 and answer.json()["error"]["code"] == "gateway_unavailable"

    await eventually(is_stale)
    assert (await front.http.get("/v1/models")).status_code == 503
    assert (await front.http.get("/readyz")).status_code == 503
    assert (await lasting.http.get("/readyz")).json()["gateway"]["state"] == "away"
    anthropic = await front.http.post(
        "/v1/messages", json={"model": BASE, "max_tokens": 3, "messages": [{"role": "user", "content": "Hello"}]}
    )
    assert anthropic.json()["type"] == "error", "in the dialect of its route"
    await made.listen()

    async def answers() -> bool:
        return (await front.chat()).status_code == 200

    await eventually(answers)


async def test_a_gateway_that_comes_back_with_other_settings_is_followed(made: Cluster) -> None:
    front = await made.front()
    former = front.front._path
    assert former is not None
    assert former.fleet is not None
    await made.vanish()
    feed = made.gateway.app._peers[0].feed  # type: ignore[attr-defined]
    feed._topology = feed._topology.model_copy(update={"policy": {**feed._topology.policy, "max_n": 1}})
    before = await front.chat(n=2)
    assert before.status_code == 200, before.text
    await made.listen()

    async def is_followed() -> bool:
        answer = await front.chat(n=2)
        return answer.status_code == 400 and answer.json()["error"]["param"] == "n"

    await eventually(is_followed)
    assert (await front.chat(n=1)).status_code == 200
    await until(lambda: former.fleet is not None and former.fleet.state.name == "down")


async def test_keys_and_adapters_change_also_while_a_front_looks_for_other_engines(
    made: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(front_module, "SWITCH_S", 1e6)  # it does not find them within this test
    front, other = await made.front(), make_key()
    key, key_id = await new_key(made)

    async def answers(status: int) -> bool:
        return (await front.chat(key=key)).status_code == status

    await eventually(lambda: answers(200))
    await made.vanish()
    feed = made.gateway.app._peers[0].feed  # type: ignore[attr-defined]
    elsewhere = [each.model_copy(update={"agent": "unix:/nowhere"}) for each in feed._topology.engines]
    feed._topology = feed._topology.model_copy(update={"engines": tuple(elsewhere)})
    await made.listen()
    await until(lambda: front.front.follower.trouble is None)
    assert await answers(200), "by the engines that it has"
    assert (await made.gateway.http.delete(f"/v1/keys/{key_id}")).is_success
    await eventually(lambda: answers(401))
    assert (await front.chat()).status_code == 200
    assert (await front.chat(key=other)).status_code == 401
    await made.push("tidewater")
    await front.front.follower.catch_up(feed.epoch, feed.version)
    assert (await front.chat("tidewater")).status_code == 200
    assert front.front._coming is not None, "it still looks for them"


async def test_of_two_changes_the_later_one_is_followed(made: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    front = await made.front()
    feed = made.gateway.app._peers[0].feed  # type: ignore[attr-defined]
    before = feed._topology
    elsewhere = [each.model_copy(update={"agent": "unix:/nowhere"}) for each in before.engines]
    with monkeypatch.context() as patch:
        patch.setattr(front_module, "SWITCH_S", 1e6)
        await made.vanish()
        feed._topology = before.model_copy(update={"engines": tuple(elsewhere)})
        await made.listen()
        await until(lambda: front.front.follower.trouble is None)
    await made.vanish()
    feed._topology = before.model_copy(update={"policy": {**before.policy, "max_n": 1}})
    await made.listen()

    async def is_followed() -> bool:
        return (await front.chat(n=2)).status_code == 400

    await eventually(is_followed)
    assert (await front.chat()).status_code == 200


async def test_a_gateway_that_stops_does_not_wait_for_its_fronts(made: Cluster) -> None:
    front = await made.front()
    assert made.server is not None
    made.server.config.timeout_graceful_shutdown = None
    async with asyncio.timeout(60):
        await made.server.shutdown()
    await until(lambda: front.front.follower.trouble is not None)


async def test_who_writes_through_a_front_meets_it_there(made: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    front = await made.front()
    follower, feed = front.front.follower, made.gateway.app._peers[0].feed  # type: ignore[attr-defined]
    take_over = follower._take_over

    async def take_over_late(known: object) -> None:
        await asyncio.sleep(0.3)
        await take_over(known)  # type: ignore[arg-type]

    monkeypatch.setattr(follower, "_take_over", take_over_late)
    created = await front.http.post("/v1/keys", json={"name": "k", "scopes": ["infer"]})
    assert (created.status_code, VERSION_HEADER in created.headers) == (201, False)
    assert (await front.chat(key=created.json()["key"])).status_code == 200
    revoked = await front.http.delete(f"/v1/keys/{created.json()['id']}")
    assert revoked.is_success, revoked.text
    assert (await front.chat(key=created.json()["key"])).status_code == 401
    await made.push("tidewater")
    await follower.catch_up(feed.epoch, feed.version)
    assert (await front.chat("tidewater")).status_code == 200
    deleted = await front.http.delete("/v1/adapters/tidewater?force=true")
    assert deleted.is_success, deleted.text
    assert (await front.chat("tidewater")).status_code == 404


async def test_an_answer_does_not_wait_for_ever_for_what_it_says(
    made: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(follower_module, "CATCH_UP_S", 0.1)
    front = await made.front()
    made.gateway.app._peers[0].feed.epoch = "another"  # type: ignore[attr-defined]  # which this feed never tells
    created = await front.http.post("/v1/keys", json={"name": "k", "scopes": ["infer"]})
    assert created.status_code == 201


async def test_a_version_that_changes_nothing_is_told_too(made: Cluster) -> None:
    front = await made.front()
    feed = made.gateway.app._peers[0].feed  # type: ignore[attr-defined]
    feed._adapters_changed({("default", "nobody")})
    await until(lambda: front.front.follower.version == feed.version)


async def test_an_answer_does_not_wait_for_a_gateway_that_tells_nothing(
    made: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    front = await made.front()
    follower, feed = front.front.follower, made.gateway.app._peers[0].feed  # type: ignore[attr-defined]
    monkeypatch.setattr(follower_module, "CATCH_UP_S", 1e6)
    former = feed.epoch
    feed.epoch = "another"
    feed._adapters_changed(None)
    await until(lambda: follower._epoch == "another")
    await follower.catch_up(former, feed.version + 1)
    follower.trouble, follower._heard_at = "its feed cannot be read", -math.inf
    await follower.catch_up("a third one", 1)
