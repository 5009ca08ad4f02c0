"""Fronts whose gateway is away, comes back with other settings, or stops."""

from __future__ import annotations

import asyncio

import pytest

from service import front as front_module
from service.access.keys import make_key
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
    feed = made.gateway.app._peers[0]._feed  # type: ignore[attr-defined]
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


async def test_a_key_is_revoked_also_while_a_front_looks_for_other_engines(
    made: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(front_module, "SWITCH_S", 1e6)  # it does not find them within this test
    front, other = await made.front(), make_key()
    key, key_id = await new_key(made)

    async def answers(status: int) -> bool:
        return (await front.chat(key=key)).status_code == status

    await eventually(lambda: answers(200))
    await made.vanish()
    feed = made.gateway.app._peers[0]._feed  # type: ignore[attr-defined]
    elsewhere = [each.model_copy(update={"agent": "unix:/nowhere"}) for each in feed._topology.engines]
    feed._topology = feed._topology.model_copy(update={"engines": tuple(elsewhere)})
    await made.listen()
    await until(lambda: front.front.follower.trouble is None)
    assert await answers(200), "by the engines that it has"
    assert (await made.gateway.http.delete(f"/v1/keys/{key_id}")).is_success
    await eventually(lambda: answers(401))
    assert (await front.chat()).status_code == 200
    assert (await front.chat(key=other)).status_code == 401


async def test_of_two_changes_the_later_one_is_followed(made: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    front = await made.front()
    feed = made.gateway.app._peers[0]._feed  # type: ignore[attr-defined]
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
