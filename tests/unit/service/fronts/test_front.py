"""Fronts of a real gateway: what they answer, what they pass on, whom they let in, and what of it counts."""

from __future__ import annotations

import asyncio
import re
import time
from contextlib import AsyncExitStack
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest

from service import front as front_module
from service.access.caller import Caller
from service.access.keys import make_key
from service.config import Settings
from service.errors import QuotaSpent, SettingsError
from service.front import create_front
from service.fronts import sessions as sessions_module
from service.fronts.follower import Follower
from service.fronts.wire import FEED_PATH, LIMITS_PATH, REPORT_PATH
from service.http.peer_errors import dump_error
from tests.unit.service.agent.support import until
from tests.unit.service.fronts.support import FRONT_KEY, Cluster, FrontApp, cluster, eventually, new_key
from tests.unit.service.gateway_app import AGENT_KEY, BASE

SCHEMA = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "object"}}}


# what it answers


async def test_it_answers_by_itself_and_reports_what_was_used(made: Cluster) -> None:
    front = await made.front()
    await made.vanish()
    answer = await front.chat()
    assert answer.status_code == 200, answer.text
    assert answer.json()["choices"][0]["message"]["content"] == "ahoy"
    assert (await front.http.get("/v1/models")).json()["data"][0]["id"] == BASE
    await made.listen()

    async def is_reported() -> bool:
        return await made.usage() == {"requests": 1, "errors": 0, "prompt_tokens": 3}

    await eventually(is_reported)


async def test_a_push_a_promotion_and_a_deletion_are_seen(made: Cluster) -> None:
    fronts = [await made.front() for _ in range(2)]
    await made.push("voice", seed=1)
    await made.push("voice", seed=2)

    async def served(name: str | None) -> bool:
        answers = [await front.chat("voice") for front in fronts]
        return all(answer.headers.get("x-hatrack-adapter") == name for answer in answers)

    await eventually(lambda: served("voice@1"))
    promoted = await fronts[0].http.put("/v1/adapters/voice/aliases/live", json={"version": 2})
    assert promoted.status_code == 200, promoted.text
    await eventually(lambda: served("voice@2"))
    split = await fronts[0].http.put("/v1/adapters/voice/aliases/both", json={"split": {"1": 1, "2": 1}})
    assert split.status_code == 200, split.text

    async def is_split() -> bool:
        names = {(await fronts[1].chat("voice:both", user=str(n))).headers.get("x-hatrack-adapter") for n in range(20)}
        return names == {"voice@1", "voice@2"}

    await eventually(is_split)
    assert (await made.gateway.http.delete("/v1/adapters/voice", params={"force": "true"})).status_code == 204
    await eventually(lambda: served(None))


async def test_everything_else_is_the_gateways(made: Cluster) -> None:
    front = await made.front()
    for path in ("/v1/adapters", "/v1/keys?limit=2", "/v1/usage", "/openapi.json", "/nowhere", "/v1/adapters/none"):
        own, passed = await made.gateway.http.get(path), await front.http.get(path)
        assert (passed.status_code, passed.content) == (own.status_code, own.content), path
    created = await front.http.post("/v1/keys", json={"name": "by-the-front", "scopes": ["infer"]})
    assert created.status_code == 201, created.text
    file = await front.http.post("/v1/files", data={"purpose": "evals"}, files={"file": ("a.jsonl", b'{"a": 1}\n' * 9)})
    assert file.status_code == 200, file.text
    content = await front.http.get(f"/v1/files/{file.json()['id']}/content")
    assert content.content == b'{"a": 1}\n' * 9


async def test_what_only_the_gateway_can_answer_is_passed_on_and_counted_once(made: Cluster) -> None:
    front = await made.front()
    structured = await front.chat(response_format=SCHEMA)
    assert structured.status_code == 200, structured.text
    embedder = made.gateway.settings.embedder_served_name
    embedded = await front.http.post("/v1/embeddings", json={"model": embedder, "input": "Hello"})
    assert embedded.status_code == 200, embedded.text
    grounded = await front.chat(grounding={"vector_store_ids": ["vs_none"]})
    direct = await made.gateway.http.post(
        "/v1/chat/completions",
        json={
            "model": BASE,
            "messages": [{"role": "user", "content": "Hello"}],
            "grounding": {"vector_store_ids": ["vs_none"]},
        },
    )
    assert (grounded.status_code, grounded.json()) == (direct.status_code, direct.json())
    await front.front.reporter.report()
    assert (await made.usage())["requests"] == 4
    metrics = (await front.http.get("/metrics")).text
    assert "hatrack_requests_total{" not in metrics, "the gateway has counted them"


async def test_without_an_agent_the_gateway_answers_for_all(tmp_path: Path, base_dir: Path) -> None:
    async with cluster(tmp_path / "home", base_dir, through_agent=False) as made:
        front = await made.front()
        assert (await front.chat()).status_code == 200
        shown = (await front.http.get("/readyz")).json()
        assert (await front.http.get("/health")).status_code == 200
        assert shown["engine"]["reason"] == "the gateway answers for all"
        assert (await made.usage())["requests"] == 1


async def test_a_front_that_will_stop_answers_and_is_not_ready(tmp_path: Path, base_dir: Path) -> None:
    async with cluster(tmp_path / "home", base_dir, through_agent=False) as made:
        front = await made.front()
        front.stopping.began = True
        shown = await front.http.get("/readyz")
        assert (shown.status_code, shown.json()["status"], shown.json()["engine"]["state"]) == (
            503,
            "stopping",
            "ready",
        )
        assert (await front.chat()).status_code == 200


# whom it lets in


async def outcomes(made: Cluster, front: FrontApp, model: str, key: str) -> list[tuple[int, Any]]:
    """Status and error, at the gateway and at a front."""
    body = {"model": model, "messages": [{"role": "user", "content": "Hello"}]}
    answers = [
        await http.post("/v1/chat/completions", json=body, headers={"authorization": f"Bearer {key}"})
        for http in (made.gateway.http, front.http)
    ]
    return [(answer.status_code, answer.json().get("error")) for answer in answers]


async def test_access_is_the_same_as_at_the_gateway(made: Cluster) -> None:
    front = await made.front()
    await made.push("voice", seed=1)
    ours = await made.gateway.key("infer")
    globbed = await made.gateway.key("infer", adapters=["other-*"])
    trains = await made.gateway.key("train")
    theirs = await made.gateway.key("infer", project="acme")
    expired = await made.gateway.key("infer", expires_at=int(time.time()) + 2)
    unknown = make_key()
    await until(lambda: len(entries(front)) == len(entries_of_gateway(made)))
    expected = {
        (ours, "voice"): 200,
        (ours, "voice@1"): 200,
        (ours, "voice@7"): 404,
        (ours, "nothing"): 404,
        (globbed, "voice"): 404,
        (globbed, BASE): 200,
        (trains, "voice"): 403,
        (theirs, "voice"): 404,
        (theirs, BASE): 200,
        (unknown, "voice"): 401,
        ("", "voice"): 401,
    }
    for (key, model), status in expected.items():
        at_gateway, at_front = await outcomes(made, front, model, key)
        assert (at_front, at_front[0]) == (at_gateway, status), (key, model)
    assert (await outcomes(made, front, "voice", theirs))[1][1]["message"] == (
        await outcomes(made, front, "nobody", theirs)
    )[1][1]["message"].replace("nobody", "voice")

    async def has_expired() -> bool:
        return all(status == 401 for status, _ in await outcomes(made, front, "voice", expired))

    await eventually(has_expired)


def entries(front: FrontApp) -> Any:
    view = front.front.follower._view
    return {} if view is None else view.authenticator.entries


def entries_of_gateway(made: Cluster) -> Any:
    return made.gateway._inference.pipeline.authenticator.entries


async def test_a_revoked_key_is_refused_by_all_fronts(made: Cluster) -> None:
    fronts = [await made.front() for _ in range(2)]
    key, key_id = await new_key(made)

    async def all_answer(status: int) -> bool:
        return all([(await front.chat(key=key)).status_code == status for front in fronts])

    await eventually(lambda: all_answer(200))
    assert (await made.gateway.http.delete(f"/v1/keys/{key_id}")).is_success
    await eventually(lambda: all_answer(401))


async def test_the_admin_key_is_told_when_it_changes(tmp_path: Path, base_dir: Path) -> None:
    async with cluster(tmp_path / "home", base_dir) as made:
        front = await made.front()
        made.gateway._inference.pipeline.authenticator.set_admin_key("another-admin-key-0123456789")

        async def is_told() -> bool:
            return (await front.chat(key="another-admin-key-0123456789")).status_code == 200

        await eventually(is_told)
        assert (await front.chat()).status_code == 401


async def test_refusals_at_a_front_are_in_the_audit(made: Cluster) -> None:
    front = await made.front()
    assert (await front.chat(key="nobody")).status_code == 401
    await front.front.reporter.report()
    refusals = made.gateway._inference._refusals
    assert refusals is not None
    await refusals.flush()  # type: ignore[attr-defined]
    audit = (await made.gateway.http.get("/v1/audit")).json()["data"]
    assert [entry["target"] for entry in audit if entry["action"] == "access.refused"] == ["invalid_api_key"]


async def test_nobody_is_a_front_without_the_secret(made: Cluster) -> None:
    front = await made.front(wait=False, front_key="another-secret-of-16-chars")
    await until(lambda: "signature is wrong" in (front.front.follower.trouble or ""))
    refused = await front.chat()
    assert refused.status_code == 200, "as long as it knows nothing, the gateway answers"
    for method, path in (("GET", FEED_PATH), ("POST", LIMITS_PATH), ("POST", REPORT_PATH), ("GET", "/fronts/v1/x")):
        transport = httpx.AsyncHTTPTransport(uds=str(made.socket))
        async with httpx.AsyncClient(transport=transport, base_url="http://gateway") as http:
            answer = await http.request(method, path, json={})
            assert (answer.status_code, answer.json()["error"]["code"]) == (401, "invalid_api_key"), path


async def test_a_gateway_that_may_have_no_fronts_has_no_such_routes(tmp_path: Path, base_dir: Path) -> None:
    from tests.unit.service.gateway_app import running

    async with running(tmp_path / "home", base_dir) as gateway:
        assert (await gateway.http.get(FEED_PATH)).status_code == 404
        assert "fronts" not in (await gateway.http.get("/readyz")).json()
        assert "hatrack_fronts" not in (await gateway.http.get("/metrics")).text


# what counts


async def test_usage_is_counted_once_whatever_becomes_of_the_answer(made: Cluster) -> None:
    front = await made.front()
    reporter = front.front.reporter
    await front.chat()
    reporter._batch = batch = reporter._next()
    assert batch is not None
    await front.front.link.post(REPORT_PATH, batch, timeout_s=60)  # applied, and its answer is lost
    await made.vanish()
    await front.chat()
    assert not await reporter.report()
    await made.listen()
    await eventually(reporter.report)
    await eventually(reporter.report)
    assert reporter.pending_rows == 0
    assert (await made.usage())["requests"] == 2


async def test_the_gateway_shows_its_fronts(made: Cluster) -> None:
    front = await made.front()
    assert "\nhatrack_fronts_connected 1.0\n" in (await made.gateway.http.get("/metrics")).text
    shown = (await made.gateway.http.get("/readyz")).json()["fronts"]
    assert [each["name"].rpartition(":")[2] for each in shown] == [str(front.front._settings.port)]


async def test_the_gateway_tells_a_front_that_was_stopped_from_one_that_is_lost(
    made: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def shows(connected: int, stopped: int) -> bool:
        lines = (await made.gateway.http.get("/metrics")).text.splitlines()
        return {f"hatrack_fronts_connected {connected}.0", f"hatrack_fronts_stopped {stopped}.0"} <= set(lines)

    await made.front()
    async with AsyncExitStack() as stack:
        await replace(made, stack=stack).front()
        await eventually(lambda: shows(connected=2, stopped=0))
    await eventually(lambda: shows(connected=1, stopped=1))
    async with AsyncExitStack() as stack:
        await replace(made, stack=stack).front()
        await eventually(lambda: shows(connected=2, stopped=0))  # it has taken the other one's place
        monkeypatch.setattr(front_module, "LEAVE_PATH", FEED_PATH)  # where it cannot say so
    monkeypatch.undo()
    await eventually(lambda: shows(connected=1, stopped=0))
    async with AsyncExitStack() as stack:
        await replace(made, stack=stack).front()
    await eventually(lambda: shows(connected=1, stopped=1))
    monkeypatch.setattr(sessions_module, "STOPPED_S", -1.0)  # it was long ago
    await eventually(lambda: shows(connected=1, stopped=0))


async def test_a_spent_budget_is_spent_at_all_fronts(tmp_path: Path, base_dir: Path) -> None:
    async with cluster(tmp_path / "home", base_dir, price_device_hour=3600.0) as made:
        front = await made.front()
        assert (await made.gateway.http.put("/v1/budgets/default", json={"monthly": 1e-7})).status_code == 200
        assert (await front.chat()).status_code == 200

        async def is_spent() -> bool:
            answer = await front.chat()
            return answer.status_code == 429 and answer.json()["error"]["code"] == "insufficient_quota"

        await eventually(is_spent)
        own = await made.gateway.http.post(
            "/v1/chat/completions", json={"model": BASE, "messages": [{"role": "user", "content": "Hello"}]}
        )
        assert own.status_code == 429


async def test_each_refusal_for_a_spent_budget_is_an_error_of_its_own() -> None:
    follower = Follower(SimpleNamespace(address="unix:g"), 60, *[None] * 3)  # type: ignore[arg-type]
    follower.require_fresh = lambda: None  # type: ignore[method-assign]
    follower._spent = {"default": dump_error(QuotaSpent("spent", headers={"retry-after": "100"}))}
    follower._spent_at = time.monotonic() - 40
    errors = []
    for _ in range(2):
        with pytest.raises(QuotaSpent) as refused:
            follower.check(Caller("key_a", "default", frozenset()))
        errors.append(refused.value)
    assert errors[0] is not errors[1], "one that is raised again keeps all frames through which it was raised"
    assert 58 <= int(errors[1].headers["retry-after"]) <= 60


async def test_it_watches_its_own_event_loop(made: Cluster) -> None:
    front = await made.front()

    async def measured() -> bool:
        text = (await front.http.get("/metrics")).text
        found = re.search(r"^hatrack_event_loop_lag_seconds_count (\d+)", text, re.MULTILINE)
        return found is not None and int(found[1]) > 0

    await eventually(measured)


async def test_its_metrics_are_its_own(made: Cluster) -> None:
    front = await made.front()
    await front.chat()
    text = (await front.http.get("/metrics")).text
    assert "hatrack_requests_total{" in text
    assert 'hatrack_engine_state{engine="engine",state="ready"} 1.0' in text


async def test_an_adapter_that_fails_at_a_front_is_looked_at(made: Cluster) -> None:
    front = await made.front()
    await made.push("voice", seed=1)

    async def is_known() -> bool:
        return (await front.chat("voice")).status_code == 200

    await eventually(is_known)
    suspected: list[tuple[str, str]] = []
    made_reports = made.gateway.app._peers[0]._reports  # type: ignore[attr-defined]
    made_reports._suspect = lambda digest, base: suspected.append((digest, base))
    error = {"message": "x", "type": "adapter_not_finite", "code": 500, "param": None}
    made.gateway.engine.failure = (500, {"error": error})
    failed = await front.chat("voice")
    assert failed.json()["error"]["code"] == "adapter_not_finite"
    await until(lambda: bool(suspected))
    assert suspected[0][1] == BASE


# settings


@pytest.mark.parametrize("missing", ["front_gateway", "front_key", "agent_key"])
def test_a_front_says_what_it_lacks(missing: str) -> None:
    given: dict[str, Any] = {"front_gateway": "http://h:1", "front_key": FRONT_KEY, "agent_key": AGENT_KEY}
    with pytest.raises(SettingsError, match=f"HATRACK_{missing.upper()} must be set"):
        create_front(Settings(**{**given, missing: "" if missing == "front_gateway" else None}))


async def test_it_ends_while_its_gateway_is_away(made: Cluster) -> None:
    front = await made.front()
    await made.vanish()
    async with asyncio.timeout(60):
        await front.front.reporter.close()
