"""Pins: written down at once, bounded by the engine's slots, and kept warm whatever else comes and goes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import httpx
import pytest

from adapters.base import BaseDescription
from service.agents import ServedBase
from service.errors import AdapterNotFinite, EngineUnavailable, HatrackError, Timeout
from service.registry.pins import PinLoader
from service.registry.proof import Prober
from tests.support.adapters import AdapterFiles
from tests.unit.service.registry.conftest import RegistryApp

Files = Callable[..., AdapterFiles]
SLOTS = 4


@pytest.fixture
async def small(tmp_path: Path, base: BaseDescription, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[RegistryApp]:
    """Four slots: three pins. Its loader works when it is woken and not by the clock: a slow test would meet it."""
    monkeypatch.setattr("service.registry.service.PinLoader", partial(PinLoader, check_s=3600.0))
    async with RegistryApp(tmp_path / "home", base, engine_slots=SLOTS).run() as ready:
        yield ready


def code(response: httpx.Response) -> tuple[int, str]:
    return response.status_code, response.json()["error"]["code"]


async def pin(registry_app: RegistryApp, name: str, headers: dict[str, str] | None = None) -> httpx.Response:
    return await registry_app.http.put(f"/v1/adapters/{name}/pin", headers=headers)


def loader(registry_app: RegistryApp, slots: int = SLOTS) -> PinLoader:
    """One that loads only when it is told to."""
    prober = Prober(registry_app.engine, "tiny", registry_app.engine.restart, timeout_s=240)
    settings = registry_app.settings.model_copy(update={"engine_slots": slots})
    agent = replace(registry_app.agent, settings=settings)
    return PinLoader(registry_app.catalog, ServedBase(registry_app.base, 1, [agent]), agent, prober)


async def test_a_pin_is_shown_and_taken_away(small: RegistryApp, files: Files) -> None:
    await small.push("voice", files(seed=1))
    assert (await small.http.get("/v1/adapters/voice")).json()["pinned"] is False
    pinned = await pin(small, "voice")
    assert pinned.json() == {"object": "adapter.pin", "adapter": "voice", "pinned": True, "versions": [1]}
    assert (await pin(small, "voice")).status_code == 200
    assert (await small.http.get("/v1/adapters/voice")).json()["pinned"] is True
    assert (await small.http.get("/v1/adapters")).json()["data"][0]["pinned"] is True
    assert small.registry.counts.pins == 1
    for _ in range(2):
        gone = await small.http.delete("/v1/adapters/voice/pin")
        assert gone.json() == {"object": "adapter.pin", "adapter": "voice", "pinned": False, "versions": []}
    assert (await small.http.get("/v1/adapters/voice")).json()["pinned"] is False
    assert small.registry.counts.pins == 0
    assert code(await pin(small, "absent")) == (404, "adapter_not_found")
    assert code(await small.http.delete("/v1/adapters/absent/pin")) == (404, "adapter_not_found")


async def test_without_a_live_version_there_is_nothing_to_pin(small: RegistryApp, files: Files) -> None:
    await small.push("voice", files(seed=1), alias="beta")
    assert code(await pin(small, "voice")) == (409, "no_live_version")


async def test_one_slot_stays_free_over_all_projects(small: RegistryApp, files: Files) -> None:
    acme = await small.key("acme")
    await small.push("a", files(seed=0), headers=acme)
    for seed, name in enumerate("bcd", start=1):
        await small.push(name, files(seed=seed))
    assert (await pin(small, "a", acme)).status_code == 200
    for name in "bc":
        assert (await pin(small, name)).status_code == 200
    refused = await pin(small, "d")
    assert code(refused) == (409, "too_many_pins")
    assert "4 versions" in refused.json()["error"]["message"]
    assert "4 slots" in refused.json()["error"]["message"]
    assert "3 can be pinned" in refused.json()["error"]["message"]
    assert (await small.http.get("/v1/adapters/d")).json()["pinned"] is False
    await small.http.delete("/v1/adapters/b/pin")
    assert (await pin(small, "d")).status_code == 200


async def test_pins_at_once_do_not_slip_past_the_bound(small: RegistryApp, files: Files) -> None:
    for seed in range(6):
        await small.push(f"v{seed}", files(seed=seed))
    answers = await asyncio.gather(*(pin(small, f"v{seed}") for seed in range(6)))
    assert sorted(answer.status_code for answer in answers) == [200, 200, 200, 409, 409, 409]
    assert small.registry.counts.pins == 3


async def test_a_split_counts_with_all_its_versions(small: RegistryApp, files: Files) -> None:
    for seed in range(4):
        await small.push("voice", files(seed=seed))
    await small.push("other", files(seed=9))
    live = "/v1/adapters/voice/aliases/live"
    await pin(small, "other")
    await pin(small, "voice")
    assert code(await small.http.put(live, json={"split": {"1": 1, "2": 1, "3": 1}})) == (409, "too_many_pins")
    assert (await small.http.get(live)).json()["version"] == 1
    assert (await small.http.put(live, json={"split": {"1": 1, "2": 1}})).status_code == 200
    assert (await pin(small, "voice")).json()["versions"] == [1, 2]
    await small.push("third", files(seed=8))
    assert code(await pin(small, "third")) == (409, "too_many_pins")
    assert (await small.http.put(live, json={"version": 2})).status_code == 200
    assert (await pin(small, "third")).status_code == 200
    assert code(await small.http.post(f"{live}/rollback")) == (409, "too_many_pins")
    canary = await small.http.put("/v1/adapters/voice/aliases/canary", json={"split": {"1": 1, "2": 1, "3": 1}})
    assert canary.status_code == 200, "only live is pinned"


async def test_a_pin_goes_with_its_adapter_and_stays_without_an_alias(small: RegistryApp, files: Files) -> None:
    await small.push("voice", files(seed=1))
    await pin(small, "voice")
    await small.http.delete("/v1/adapters/voice/aliases/live")
    assert (await small.http.get("/v1/adapters/voice")).json()["pinned"] is True
    await small.http.put("/v1/adapters/voice/aliases/live", json={"version": 1})
    await small.http.delete("/v1/adapters/voice?force=true")
    again = await small.push("voice", files(seed=1))
    assert again.status_code == 201
    assert (await small.http.get("/v1/adapters/voice")).json()["pinned"] is False


async def test_what_is_pinned_is_loaded_at_once_and_again_after_it_fell_out(small: RegistryApp, files: Files) -> None:
    digest = (await small.push("voice", files(seed=1))).json()["digest"]
    small.engine.loaded = []
    await pin(small, "voice")
    await small.engine.until_loaded(digest)

    loads = loader(small)
    small.engine.asked.clear()
    await loads.load_missing()
    assert small.engine.asked == [], "what is loaded is left alone"
    small.engine.capacity = 1
    for seed in (2, 3):
        await small.push(f"crowd-{seed}", files(seed=seed))
    assert digest not in small.engine.loaded
    await loads.load_missing()
    assert digest in small.engine.loaded


async def test_a_pin_follows_live_and_a_restart_of_the_engine_or_of_the_gateway(
    small: RegistryApp, files: Files
) -> None:
    digests = [(await small.push("voice", files(seed=seed))).json()["digest"] for seed in (1, 2, 3)]
    await pin(small, "voice")
    loads = loader(small)
    await small.http.put("/v1/adapters/voice/aliases/live", json={"version": 2})
    assert loads.digests_to_keep == [digests[1]]
    await small.engine.restart("it died")
    await loads.load_missing()
    assert small.engine.loaded == [digests[1]]
    await small.http.put("/v1/adapters/voice/aliases/live", json={"split": {"1": 1, "3": 9}})
    await small.engine.restart("it died")
    await loads.load_missing()
    assert set(small.engine.loaded) == {digests[0], digests[2]}
    again = RegistryApp(small.settings.home, small.base, engine_slots=SLOTS)
    async with again.run():
        await again.engine.until_loaded(digests[0], digests[2])
    assert len(again.engine.loaded) == 2


async def test_fewer_slots_than_there_were_keep_the_oldest_pins(small: RegistryApp, files: Files) -> None:
    digests = {}
    for seed, name in enumerate("abc"):
        digests[name] = (await small.push(name, files(seed=seed))).json()["digest"]
        await pin(small, name)
    assert loader(small, slots=3).digests_to_keep == [digests["a"], digests["b"]]
    assert loader(small, slots=1).digests_to_keep == []


@pytest.mark.parametrize("why", [AdapterNotFinite, Timeout])
async def test_an_adapter_that_does_not_load_does_not_keep_the_others_cold(
    small: RegistryApp, files: Files, why: type[HatrackError]
) -> None:
    bad, good = [(await small.push(name, files(seed=seed))).json()["digest"] for seed, name in enumerate("ab")]
    loads = loader(small)
    await pin(small, "a")
    await pin(small, "b")
    ask = small.engine.logprobs

    async def refuse(model: str, texts: Sequence[str]) -> list[list[float]]:
        answer = await ask(model, texts)
        if model == bad:
            small.engine.loaded.remove(bad)
            raise why("it does not load")
        return answer

    small.engine.logprobs = refuse  # type: ignore[method-assign]
    small.engine.loaded = []
    await loads.load_missing()
    assert good in small.engine.loaded
    small.engine.asked.clear()
    await loads.load_missing()
    assert small.engine.asked == [], "it rests before it is tried again"


async def test_an_engine_that_is_away_is_looked_at_again(small: RegistryApp, files: Files) -> None:
    digest = (await small.push("voice", files(seed=1))).json()["digest"]
    prober = Prober(small.engine, "tiny", small.engine.restart, timeout_s=240)
    loads = PinLoader(small.catalog, small.bases.default, small.agent, prober, check_s=0.01)
    await pin(small, "voice")
    small.engine.down, small.engine.loaded = True, []
    with pytest.raises(EngineUnavailable):
        await loads.load_missing()
    work = asyncio.create_task(loads.work())
    await asyncio.sleep(0.05)
    small.engine.down = False
    await small.engine.until_loaded(digest)
    work.cancel()
    with pytest.raises(asyncio.CancelledError):
        await work


async def test_the_engine_is_not_asked_while_nothing_is_pinned(small: RegistryApp, files: Files) -> None:
    await small.push("voice", files(seed=1))
    small.engine.down = True
    await loader(small).load_missing()
