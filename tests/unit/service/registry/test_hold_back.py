"""What a plain text says of an adapter: held back from `live`, or refused."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from adapters.base import BaseDescription
from service.errors import NoLiveVersion
from service.registry import records
from service.registry.tables import versions
from tests.support.adapters import AdapterFiles
from tests.unit.service.registry.conftest import ADMIN, RegistryApp

Files = Callable[..., AdapterFiles]
VOICE = "/v1/adapters/voice"
LIVE = VOICE + "/aliases/live"
HELD, REFUSED = 35.0, 40_000.0


async def push(registry_app: RegistryApp, adapter: AdapterFiles, ratio: float = 1.5, **more: Any) -> dict[str, Any]:
    registry_app.engine.perplexity = ratio
    answer = await registry_app.push("voice", adapter, **more)
    assert answer.status_code in (200, 201), answer.text
    registry_app.engine.perplexities[answer.json()["digest"]] = ratio
    found: dict[str, Any] = answer.json()
    return found


async def live(registry_app: RegistryApp) -> Any:
    found = (await registry_app.http.get(VOICE)).json()
    return found["splits"].get("live") or found["aliases"].get("live")


async def put(registry_app: RegistryApp, **body: Any) -> httpx.Response:
    return await registry_app.http.put(LIVE, json=body)


async def forget_perplexity(registry_app: RegistryApp, number: int) -> None:
    """Leave a version as it was proven before plain text was asked."""
    _, row = await registry_app.registry._state.version("default", "voice", number)
    proof = {key: value for key, value in (row.proof or {}).items() if key not in ("perplexity", "mixed_batch")}
    await registry_app.database.run(
        lambda db: db.execute(versions.update().where(versions.c.id == row.id).values(proof=proof))
    )


async def test_a_sound_one_says_what_it_does_to_plain_text(registry_app: RegistryApp, files: Files) -> None:
    shown = await push(registry_app, files(seed=1))
    assert shown["held_back"] is None
    perplexity = shown["proof"]["perplexity"]
    assert perplexity["ratio"] == pytest.approx(1.5)
    assert perplexity["tokens"] == registry_app.engine.plain_tokens
    assert shown["proof"]["mixed_batch"] == {"base": 0.0, "adapter": 0.0, "neighbour": None}
    assert shown["warnings"] == []


@pytest.mark.parametrize("wait", ["true", "false"])
async def test_a_first_version_that_is_held_back_answers_by_its_number_alone(
    registry_app: RegistryApp, files: Files, wait: str
) -> None:
    registry_app.engine.perplexity = HELD
    pushed = await registry_app.push("voice", files(seed=1), query=f"?wait={wait}")
    assert pushed.status_code in (201, 202)
    await registry_app.registry.wait_idle()
    shown = await registry_app.version("voice@1")
    assert (shown["state"], shown["servable"], shown["aliases"]) == ("ready", "ok", [])
    assert shown["held_back"] == {
        "code": "perplexity_too_high",
        "message": "with it, the perplexity of plain text is 35 times the base's",
        "ratio": pytest.approx(HELD),
        "limit": 10.0,
    }
    with pytest.raises(NoLiveVersion):
        registry_app.catalog.resolve(ADMIN, "voice")
    assert registry_app.catalog.resolve(ADMIN, "voice@1").digest == shown["digest"]
    assert [row.action for row in await registry_app.audit()].count("version.hold_back") == 1


async def test_another_alias_may_name_it(registry_app: RegistryApp, files: Files) -> None:
    shown = await push(registry_app, files(seed=1), HELD, alias="canary")
    assert shown["aliases"] == ["canary"]


async def test_a_push_that_asks_for_live_does_not_get_it(registry_app: RegistryApp, files: Files) -> None:
    await push(registry_app, files(seed=1))
    held = files(seed=2)
    for _ in range(2):  # the second one is known already
        assert (await push(registry_app, held, HELD, alias="live"))["aliases"] == []
    assert await live(registry_app) == 1


async def test_the_next_sound_version_is_the_first_that_goes_live(registry_app: RegistryApp, files: Files) -> None:
    await push(registry_app, files(seed=1), HELD)
    assert (await push(registry_app, files(seed=2)))["aliases"] == ["live"]
    assert (await push(registry_app, files(seed=3)))["aliases"] == []


async def test_what_somebody_forced_is_not_replaced_by_the_next_push(registry_app: RegistryApp, files: Files) -> None:
    await push(registry_app, files(seed=1), HELD)
    assert (await put(registry_app, version=1, force=True)).status_code == 200
    assert (await push(registry_app, files(seed=2)))["aliases"] == []
    assert await live(registry_app) == 1


async def test_promoting_it_takes_force_and_is_in_the_audit(registry_app: RegistryApp, files: Files) -> None:
    await push(registry_app, files(seed=1))
    await push(registry_app, files(seed=2), HELD)
    for body in (
        {"version": 2},
        {"version": 2, "expected": 1},
        {"split": {"1": 90, "2": 10}},
        {"version": 2, "force": False},
    ):
        refused = await put(registry_app, **body)
        assert (refused.status_code, refused.json()["error"]["code"]) == (409, "version_held_back")
        assert "voice@2" in refused.json()["error"]["message"]
        assert "35 times" in refused.json()["error"]["message"]
    assert await live(registry_app) == 1
    assert (await put(registry_app, split={"1": 90, "2": 10}, force=True)).status_code == 200
    assert (await put(registry_app, version=2)).status_code == 200, "it is one of those that live answers with already"
    assert (await put(registry_app, version=1)).status_code == 200
    assert (await put(registry_app, version=2, force=True)).status_code == 200
    moves = [
        row.detail for row in await registry_app.audit() if row.target == "voice:live" and row.action == "alias.promote"
    ]
    assert [bool((detail or {}).get("forced")) for detail in moves[-3:]] == [False, False, True]
    assert [row.detail for row in await registry_app.audit() if row.action == "alias.split"] == [
        {"split": {"1": 90, "2": 10}, "because": "split", "forced": True}
    ]


async def test_force_is_a_boolean(registry_app: RegistryApp, files: Files) -> None:
    await push(registry_app, files(seed=1))
    refused = await put(registry_app, version=1, force="yes")
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "force")


async def test_a_rollback_passes_over_it(registry_app: RegistryApp, files: Files) -> None:
    await push(registry_app, files(seed=1))
    await push(registry_app, files(seed=2), HELD)
    await push(registry_app, files(seed=3))
    await put(registry_app, version=2, force=True)
    await put(registry_app, version=3)
    assert (await registry_app.http.post(LIVE + "/rollback")).json()["version"] == 1
    # and another alias goes back to it: only `live` is kept from it
    canary = VOICE + "/aliases/canary"
    for number in (2, 3):
        await registry_app.http.put(canary, json={"version": number})
    assert (await registry_app.http.post(canary + "/rollback")).json()["version"] == 2


async def test_what_failed_its_revalidation_is_not_left_for_it(
    tmp_path: Path, base: BaseDescription, files: Files
) -> None:
    async with RegistryApp(tmp_path / "home", base).run() as registry_app:
        await push(registry_app, files(seed=1))
        await push(registry_app, files(seed=2), HELD)
        await push(registry_app, files(seed=3))
        await put(registry_app, version=2, force=True)
        await put(registry_app, version=3)
        await registry_app.verdict("voice@3", "fail", kind="revalidation")
        await registry_app.registry._live_rollback.step()
        assert await live(registry_app) == 1


@pytest.mark.parametrize("wait", ["true", "false"])
async def test_a_ruined_one_is_refused(registry_app: RegistryApp, files: Files, wait: str) -> None:
    registry_app.engine.perplexity = REFUSED
    answer = await registry_app.push("voice", files(seed=1), query=f"?wait={wait}")
    if wait == "true":
        assert (answer.status_code, answer.json()["error"]["code"]) == (422, "perplexity_too_high")
        assert "40,000 times" in answer.json()["error"]["message"]
        assert (await registry_app.http.get(VOICE)).status_code == 404
    else:
        await registry_app.registry.wait_idle()
        shown = await registry_app.version("voice@1")
        assert (shown["state"], shown["reason"]["code"]) == ("rejected", "perplexity_too_high")
        assert (await registry_app.http.post(VOICE + "/versions/1/prove")).status_code == 422


async def test_a_version_from_before_is_asked_when_it_is_promoted(registry_app: RegistryApp, files: Files) -> None:
    await push(registry_app, files(seed=1))
    await push(registry_app, files(seed=2))
    held = await push(registry_app, files(seed=3))
    for number in (1, 2, 3):
        await forget_perplexity(registry_app, number)
    registry_app.engine.perplexities[held["digest"]] = HELD
    assert (await registry_app.version("voice@3"))["held_back"] is None, "it was never asked"
    assert await live(registry_app) == 1, "what is live stays live"

    registry_app.engine.plain_asked.clear()
    assert (await put(registry_app, version=2)).status_code == 200
    assert (await registry_app.version("voice@2"))["proof"]["perplexity"]["ratio"] == pytest.approx(1.5)
    assert (await put(registry_app, version=3)).json()["error"]["code"] == "version_held_back"
    assert (await put(registry_app, version=3)).json()["error"]["code"] == "version_held_back"
    assert registry_app.engine.plain_asked.count(held["digest"]) == 1, "what is known is not asked again"
    assert await live(registry_app) == 2
    assert (await registry_app.version("voice@3"))["proof"]["distance"] == pytest.approx(0.5)
    assert (await registry_app.http.post(LIVE + "/rollback")).json()["version"] == 1
    assert registry_app.engine.plain_asked[-1] == (await registry_app.version("voice@1"))["digest"], (
        "a rollback measures as well"
    )


async def test_a_rollback_passes_over_a_version_from_before_that_turns_out_to_be_held_back(
    registry_app: RegistryApp, files: Files
) -> None:
    for seed in (1, 2, 3, 4):
        digest = (await push(registry_app, files(seed=seed)))["digest"]
        await put(registry_app, version=seed)
        if seed < 4:
            await forget_perplexity(registry_app, seed)
        if seed == 3:
            registry_app.engine.perplexities[digest] = HELD
        if seed == 2:
            registry_app.engine.long_not_finite.add(digest)
    canary = VOICE + "/aliases/canary"
    for number in (3, 4):
        await registry_app.http.put(canary, json={"version": number})
    registry_app.engine.plain_asked.clear()
    assert (await registry_app.http.post(canary + "/rollback")).json()["version"] == 3, "only `live` is kept from it"
    assert registry_app.engine.plain_asked == []
    assert (await registry_app.http.post(LIVE + "/rollback")).json()["version"] == 1
    assert (await registry_app.version("voice@3"))["held_back"]["ratio"] == pytest.approx(HELD)


async def test_a_fallback_passes_over_a_version_from_before_that_turns_out_to_be_held_back(
    tmp_path: Path, base: BaseDescription, files: Files
) -> None:
    async with RegistryApp(tmp_path / "home", base).run() as registry_app:
        for seed in (1, 2, 3):
            digest = (await push(registry_app, files(seed=seed)))["digest"]
            await put(registry_app, version=seed)
            if seed == 2:
                await forget_perplexity(registry_app, seed)
                registry_app.engine.perplexities[digest] = HELD
        await registry_app.verdict("voice@3", "fail", kind="revalidation")
        await registry_app.registry._live_rollback.step()
        assert await live(registry_app) == 1


async def test_nothing_of_the_adapter_waits_while_a_version_from_before_waits_for_proofs(
    registry_app: RegistryApp, files: Files
) -> None:
    for seed in (1, 2):
        await push(registry_app, files(seed=seed))
    await forget_perplexity(registry_app, 2)
    prober = registry_app.registry.aliases._probers.of_agent(registry_app.agent)
    async with prober._turn:
        promoting = asyncio.create_task(put(registry_app, version=2))
        pushing = asyncio.create_task(registry_app.push("voice", files(seed=2), alias="live"))
        await asyncio.sleep(0.1)
        async with asyncio.timeout(240):
            assert (await registry_app.http.put(VOICE + "/aliases/canary", json={"version": 1})).status_code == 200
        assert not promoting.done()
        assert not pushing.done()
    assert (await promoting).status_code == 200
    assert (await pushing).status_code == 200
    assert await live(registry_app) == 2


async def test_a_version_from_before_that_is_not_measured_in_time_is_503(
    registry_app: RegistryApp, files: Files, monkeypatch: pytest.MonkeyPatch
) -> None:
    for seed in (1, 2):
        await push(registry_app, files(seed=seed))
    await put(registry_app, version=2)
    for number in (1, 2):
        await forget_perplexity(registry_app, number)
    prober = registry_app.registry.aliases._probers.of_agent(registry_app.agent)
    monkeypatch.setattr(prober, "_timeout_s", 0.05)
    async with prober._turn:
        for answer in (await put(registry_app, version=1), await registry_app.http.post(LIVE + "/rollback")):
            assert (answer.status_code, answer.json()["error"]["code"]) == (503, "unavailable")
            assert int(answer.headers["retry-after"]) > 0
    assert await live(registry_app) == 2


async def test_a_version_from_before_stays_where_the_engine_cannot_be_asked(
    registry_app: RegistryApp, files: Files
) -> None:
    for seed in (1, 2):
        await push(registry_app, files(seed=seed))
        await forget_perplexity(registry_app, seed)
    digest = (await registry_app.version("voice@2"))["digest"]
    registry_app.engine.long_not_finite.add(digest)
    assert (await put(registry_app, version=2)).json()["error"]["code"] == "logprobs_not_finite"
    registry_app.engine.down = True
    assert (await put(registry_app, version=2)).status_code == 503
    assert await live(registry_app) == 1


async def test_proving_a_version_from_before_adds_the_measure_and_it_serves_on(
    registry_app: RegistryApp, files: Files
) -> None:
    shown = await push(registry_app, files(seed=1))
    await forget_perplexity(registry_app, 1)
    registry_app.engine.perplexities[shown["digest"]] = REFUSED
    proven = await registry_app.http.post(VOICE + "/versions/1/prove")
    assert proven.status_code == 200, proven.text
    assert (proven.json()["servable"], proven.json()["aliases"]) == ("ok", ["live"])
    assert proven.json()["held_back"]["ratio"] == pytest.approx(REFUSED)
    assert registry_app.catalog.resolve(ADMIN, "voice").version == 1


async def test_numbers_that_are_none_in_a_long_prompt_refuse(registry_app: RegistryApp, files: Files) -> None:
    adapter = files(seed=1)
    digest = (await registry_app.push("other", adapter)).json()["digest"]
    registry_app.engine.long_not_finite.add(digest)
    answer = await registry_app.push("voice", adapter)
    assert (answer.status_code, answer.json()["error"]["code"]) == (422, "logprobs_not_finite")


def test_a_proof_of_another_time_holds_nothing_back() -> None:
    assert not records.is_held_back(None)
    assert not records.is_held_back({"distance": 0.5})
