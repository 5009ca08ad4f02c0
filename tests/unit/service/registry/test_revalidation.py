"""What verdicts are worth on the engine that runs now, and what happens to `live` when a revalidation fails."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from adapters.base import BaseDescription
from service.errors import Conflict
from service.registry import rollback, verdict_records
from service.registry import verdicts as verdicts_module
from service.registry.revalidation import RevalidationState
from service.registry.tables import aliases, verdicts
from tests.support.adapters import AdapterFiles
from tests.unit.service.registry.conftest import ADMIN, RegistryApp

Files = Callable[..., AdapterFiles]
DAY_S = 86_400


def changed(base: BaseDescription, **parts: str) -> BaseDescription:
    """The base with other parts of its fingerprint."""
    return replace(base, fingerprint=base.fingerprint.model_copy(update=parts))


async def revalidation(registry_app: RegistryApp, version: str) -> tuple[str, list[str]]:
    found = (await registry_app.version(version))["revalidation"]
    return found["state"], found["reasons"]


async def age(registry_app: RegistryApp, days: float) -> None:
    """All verdicts were written that long before."""
    older = verdicts.update().values(created_at=verdicts.c.created_at - int(days * DAY_S))
    await registry_app.database.run(lambda db: db.execute(older))


async def counts(registry_app: RegistryApp) -> dict[str, int]:
    return {state.value: count for state, count in (await registry_app.registry.verdicts.standing()).states.items()}


async def live_failed(registry_app: RegistryApp) -> int:
    return (await registry_app.registry.verdicts.standing()).live_failed


@pytest.mark.parametrize("part", ["tokenizer", "template", "dtype", "quantization", "engine_version"])
async def test_other_surroundings_of_the_same_weights_make_due_and_serve_on(
    tmp_path: Path, base: BaseDescription, files: Files, part: str
) -> None:
    async with RegistryApp(tmp_path / "home", base).run() as before:
        await before.push("voice", files(seed=1))
        await before.push("unjudged", files(seed=2))
        await before.verdict("voice@1")
    async with RegistryApp(tmp_path / "home", changed(base, **{part: "another"})).run() as after:
        assert await revalidation(after, "voice@1") == ("due", [part])
        assert (await after.version("voice@1"))["servable"] == "ok"
        assert after.catalog.resolve(ADMIN, "voice").version == 1
        assert await counts(after) == {"fresh": 0, "due": 1, "failed": 0}
        assert (await after.version("unjudged@1"))["revalidation"] is None
        again = (await after.verdict("voice@1", kind="revalidation")).json()
        assert again["base"][part] == "another"
        assert await revalidation(after, "voice@1") == ("fresh", [])
    async with RegistryApp(tmp_path / "home", base).run() as back:
        assert await revalidation(back, "voice@1") == ("due", [part])


@pytest.mark.parametrize("part", ["weights", "config"])
async def test_another_base_makes_unservable_until_it_is_put_back(
    tmp_path: Path, base: BaseDescription, files: Files, part: str
) -> None:
    async with RegistryApp(tmp_path / "home", base).run() as before:
        await before.push("voice", files(seed=1))
        await before.verdict("voice@1")
        assert await counts(before) == {"fresh": 1, "due": 0, "failed": 0}
    async with RegistryApp(tmp_path / "home", changed(base, **{part: "another"})).run() as other:
        assert (await other.version("voice@1"))["servable"] == "other_base"
        assert await counts(other) == {"fresh": 0, "due": 0, "failed": 0}
        with pytest.raises(Conflict, match="other_base"):
            other.catalog.resolve(ADMIN, "voice")
    async with RegistryApp(tmp_path / "home", base).run() as back:
        assert (await back.version("voice@1"))["servable"] == "ok"
        assert back.catalog.resolve(ADMIN, "voice").version == 1
        assert await revalidation(back, "voice@1") == ("fresh", [])


async def test_a_verdict_ages(
    tmp_path: Path, base: BaseDescription, files: Files, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(verdicts_module, "RECOUNT_S", 0)
    async with RegistryApp(tmp_path / "home", base, revalidate_days=10).run() as registry_app:
        await registry_app.push("voice", files(seed=1))
        await registry_app.verdict("voice@1")
        await age(registry_app, 9.9)
        assert await revalidation(registry_app, "voice@1") == ("fresh", [])
        await age(registry_app, 0.2)
        assert await revalidation(registry_app, "voice@1") == ("due", ["age"])
        assert await counts(registry_app) == {"fresh": 0, "due": 1, "failed": 0}
        await registry_app.verdict("voice@1", kind="revalidation")
        assert await revalidation(registry_app, "voice@1") == ("fresh", [])


async def test_only_a_revalidation_fails_a_version_and_only_another_clears_it(
    registry_app: RegistryApp, files: Files
) -> None:
    await registry_app.push("voice", files(seed=1))
    await registry_app.verdict("voice@1", "fail", kind="training")
    assert await revalidation(registry_app, "voice@1") == ("fresh", [])
    await registry_app.verdict("voice@1", "fail", kind="revalidation")
    assert await revalidation(registry_app, "voice@1") == ("failed", [])
    await registry_app.verdict("voice@1", "pass", kind="evaluation")
    assert await revalidation(registry_app, "voice@1") == ("failed", [])
    assert (await registry_app.version("voice@1"))["verdict"]["verdict"] == "pass"
    assert await counts(registry_app) == {"fresh": 0, "due": 0, "failed": 1}
    await age(registry_app, 91)
    assert await revalidation(registry_app, "voice@1") == ("failed", ["age"])
    await registry_app.verdict("voice@1", "pass", kind="revalidation")
    assert await revalidation(registry_app, "voice@1") == ("fresh", [])


P, F, N = "pass", "fail", "not_enough_evidence"
AGAIN = "revalidation"


@pytest.mark.parametrize(
    ("told", "states"),
    [
        ([(P, "training"), (N, AGAIN), (N, AGAIN), (P, "evaluation"), (N, AGAIN), (P, AGAIN)], "+----+"),
        ([(N, "training"), (N, AGAIN), (F, AGAIN), (N, AGAIN)], "++-+"),
        ([(P, "training"), (P, AGAIN), (N, AGAIN), (N, "evaluation"), (N, AGAIN)], "++---"),
        ([(P, "training"), (F, AGAIN), (N, AGAIN), (P, AGAIN)], "+--+"),
        ([(P, "training"), (N, "evaluation"), (N, AGAIN), (P, "evaluation"), (N, AGAIN)], "++++-"),
        ([(F, "training"), (N, AGAIN), (P, AGAIN), (N, AGAIN)], "+++-"),
    ],
)
async def test_a_pass_that_can_no_longer_be_shown_is_a_failure_until_it_is(
    registry_app: RegistryApp, files: Files, told: list[tuple[str, str]], states: str
) -> None:
    """``+`` is fresh, ``-`` is failed, after each verdict."""
    await registry_app.push("other", files(seed=2))
    await registry_app.verdict("other@1")
    await registry_app.push("voice", files(seed=1), alias="live")
    for (verdict, kind), wanted in zip(told, states, strict=True):
        assert (await registry_app.verdict("voice@1", verdict, kind=kind)).status_code == 201
        failed = wanted == "-"
        assert await revalidation(registry_app, "voice@1") == ("failed" if failed else "fresh", [])
        assert await counts(registry_app) == {"fresh": 2 - failed, "due": 0, "failed": int(failed)}
        assert await live_failed(registry_app) == int(failed)
    assert await revalidation(registry_app, "other@1") == ("fresh", [])


async def test_with_the_setting_live_leaves_a_version_that_lost_its_pass(
    tmp_path: Path, base: BaseDescription, files: Files
) -> None:
    async with RegistryApp(tmp_path / "home", base, revalidate_rollback=True).run() as registry_app:
        await three_versions(registry_app, files)
        await registry_app.verdict("voice@3")
        await registry_app.verdict("voice@3", N, kind=AGAIN)
        await until_live(registry_app, 2)


@pytest.mark.parametrize("rollback", [False, True])
async def test_a_pass_of_an_older_rule_that_the_new_one_does_not_show_is_due_and_stays_live(
    tmp_path: Path, base: BaseDescription, files: Files, rollback: bool
) -> None:
    async with RegistryApp(tmp_path / "home", base, revalidate_rollback=rollback).run() as registry_app:
        await three_versions(registry_app, files)
        assert (await registry_app.verdict("voice@3")).json()["rule"] == 1
        assert (await registry_app.verdict("voice@3", N, kind=AGAIN, rule=2)).json()["rule"] == 2
        assert await revalidation(registry_app, "voice@3") == ("due", ["rule"])
        assert await counts(registry_app) == {"fresh": 0, "due": 1, "failed": 0}
        assert await live_failed(registry_app) == 0
        await registry_app.verdict("voice@3", N, kind=AGAIN, rule=2)
        assert await revalidation(registry_app, "voice@3") == ("due", ["rule"])
        assert await registry_app.registry.verdicts.revalidation_candidates("default") == [], (
            "the same questions give the same verdict"
        )
        await asyncio.sleep(0.1)
        assert (await live(registry_app))["version"] == 3
        await registry_app.verdict("voice@3", P, kind="evaluation", rule=2)
        assert await revalidation(registry_app, "voice@3") == ("fresh", [])
        await registry_app.verdict("voice@3", N, kind=AGAIN, rule=2)
        assert await revalidation(registry_app, "voice@3") == ("failed", [])


async def test_a_failure_counts_by_whatever_rule(registry_app: RegistryApp, files: Files) -> None:
    await registry_app.push("voice", files(seed=1), alias="live")
    await registry_app.verdict("voice@1")
    await registry_app.verdict("voice@1", F, kind=AGAIN, rule=2)
    assert await revalidation(registry_app, "voice@1") == ("failed", [])
    assert await live_failed(registry_app) == 1


async def test_versions_are_counted_again_only_after_a_change(registry_app: RegistryApp, files: Files) -> None:
    await registry_app.push("voice", files(seed=1))
    await registry_app.verdict("voice@1")
    first = await registry_app.registry.verdicts.standing()
    assert await registry_app.registry.verdicts.standing() is first
    await registry_app.verdict("voice@1", "fail", kind="revalidation")
    failed = await registry_app.registry.verdicts.standing()
    assert (failed.states[RevalidationState.FAILED], failed.live_failed) == (1, 1)
    await registry_app.http.delete("/v1/adapters/voice?force=true")
    gone = await registry_app.registry.verdicts.standing()
    assert (gone.states[RevalidationState.FAILED], gone.live_failed) == (0, 0)


async def test_adapters_and_versions_are_listed_by_state(registry_app: RegistryApp, files: Files) -> None:
    for seed, name in enumerate(["ant", "bee", "cat", "dog"]):
        await registry_app.push(name, files(seed=seed))
    await registry_app.push("bee", files(seed=9))
    for version in ("ant@1", "bee@1", "cat@1"):
        await registry_app.verdict(version)
    await age(registry_app, 91)
    await registry_app.verdict("bee@2")
    await registry_app.verdict("ant@1")

    async def listed(query: str, headers: dict[str, str] | None = None) -> list[tuple[str, list[int]]]:
        page = (await registry_app.http.get(f"/v1/adapters?{query}", headers=headers)).json()
        return [(item["name"], [shown["version"] for shown in item["versions"]]) for item in page["data"]]

    assert await listed("revalidation=due") == [("bee", [1]), ("cat", [1])]
    assert await listed("revalidation=fresh") == [("ant", [1]), ("bee", [2])]
    assert await listed("revalidation=failed") == []
    assert await listed("revalidation=due&limit=1") == [("bee", [1])]
    assert await listed("revalidation=due&limit=1&after=bee") == [("cat", [1])]
    assert await listed("revalidation=due&after=ant") == [("bee", [1]), ("cat", [1])], "it was due a page ago"
    assert await listed("revalidation=due", await registry_app.key(adapters=("c*",))) == [("cat", [1])]
    assert len(await listed("")) == 4
    one = (await registry_app.http.get("/v1/adapters/bee?revalidation=due")).json()
    assert [version["version"] for version in one["versions"]] == [1]
    assert (await registry_app.http.get("/v1/adapters?revalidation=stale")).status_code == 400


async def test_a_failed_version_that_is_live_is_counted(registry_app: RegistryApp, files: Files) -> None:
    for seed in (1, 2):
        await registry_app.push("voice", files(seed=seed))
    await registry_app.verdict("voice@2", "fail", kind="revalidation")
    assert await live_failed(registry_app) == 0
    await registry_app.http.put("/v1/adapters/voice/aliases/live", json={"split": {"1": 90, "2": 10}})
    assert await live_failed(registry_app) == 1
    await registry_app.http.put("/v1/adapters/voice/aliases/live", json={"version": 2})
    assert await live_failed(registry_app) == 1
    await registry_app.http.put("/v1/adapters/voice/aliases/live", json={"version": 1})
    assert await live_failed(registry_app) == 0
    assert await registry_app.database.run(verdict_records.live_failures) == []


async def live(registry_app: RegistryApp) -> Any:
    return (await registry_app.http.get("/v1/adapters/voice/aliases/live")).json()


async def until_live(registry_app: RegistryApp, number: int) -> None:
    """Return when requests get that version, which is after the alias has moved."""
    async with asyncio.timeout(60):
        while registry_app.catalog.resolve(ADMIN, "voice").version != number:  # noqa: ASYNC110 (the alias tells nobody)
            await asyncio.sleep(0.01)


async def three_versions(registry_app: RegistryApp, files: Files) -> None:
    """voice@1, @2 and @3, which were live in that order."""
    for seed in (1, 2, 3):
        await registry_app.push("voice", files(seed=seed), alias="live")


async def test_what_serves_is_judged_again_first_and_then_the_oldest_verdict(
    registry_app: RegistryApp, files: Files
) -> None:
    async def order() -> list[int]:
        return [
            one.number for one in await registry_app.registry.verdicts.revalidation_candidates("default", every=True)
        ]

    await three_versions(registry_app, files)
    for number in (2, 1, 3):
        await registry_app.verdict(f"voice@{number}")
    assert await order() == [3, 2, 1]
    split = await registry_app.http.put("/v1/adapters/voice/aliases/live", json={"split": {"1": 50, "3": 50}})
    assert split.status_code == 200
    assert await order() == [1, 3, 2]


async def test_without_the_setting_a_failed_version_stays_live(registry_app: RegistryApp, files: Files) -> None:
    await three_versions(registry_app, files)
    await registry_app.verdict("voice@3", "fail", kind="revalidation")
    await asyncio.sleep(0.1)
    assert (await live(registry_app))["version"] == 3


async def test_with_the_setting_live_goes_back_to_what_has_not_failed(
    tmp_path: Path, base: BaseDescription, files: Files
) -> None:
    async with RegistryApp(tmp_path / "home", base, revalidate_rollback=True).run() as registry_app:
        await three_versions(registry_app, files)
        await registry_app.verdict("voice@2", "fail", kind="revalidation")
        await registry_app.verdict("voice@3", "fail", kind="evaluation")
        assert (await live(registry_app))["version"] == 3
        await registry_app.verdict("voice@3", "fail", kind="revalidation")
        await until_live(registry_app, 1)
        assert (await live(registry_app))["version"] == 1
        assert (await live(registry_app))["history"][0]["action"] == "rollback"
        noted = [row for row in await registry_app.audit() if row.action == "alias.rollback"]
        assert [(row.key_id, row.target, row.detail) for row in noted] == [
            ("system", "voice:live", {"version": 1, "because": "revalidation"})
        ]

        await registry_app.verdict("voice@1", "fail", kind="revalidation")
        await asyncio.sleep(0.1)
        assert (await live(registry_app))["version"] == 1, "never to nothing"
        assert await live_failed(registry_app) == 1


async def test_a_rollback_that_the_engine_could_not_follow_is_tried_again(
    tmp_path: Path, base: BaseDescription, files: Files, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rollback, "LOOK_S", 0.05)
    async with RegistryApp(tmp_path / "home", base, revalidate_rollback=True).run() as registry_app:
        await three_versions(registry_app, files)
        registry_app.engine.down = True
        await registry_app.verdict("voice@3", "fail", kind="revalidation")
        await asyncio.sleep(0.2)
        assert (await live(registry_app))["version"] == 3
        registry_app.engine.down = False
        await until_live(registry_app, 2)


async def test_a_rollback_that_a_crash_cut_is_made_at_the_next_start_but_not_against_a_later_promotion(
    tmp_path: Path, base: BaseDescription, files: Files
) -> None:
    async with RegistryApp(tmp_path / "home", base).run() as registry_app:
        await three_versions(registry_app, files)
        await registry_app.verdict("voice@3", "fail", kind="revalidation")
        later = aliases.update().values(updated_at=aliases.c.updated_at + 60)
        await registry_app.database.run(lambda db: db.execute(later))
    async with RegistryApp(tmp_path / "home", base, revalidate_rollback=True).run() as registry_app:
        await asyncio.sleep(0.1)
        assert (await live(registry_app))["version"] == 3, "somebody pointed it there after the failure"
        earlier = aliases.update().values(updated_at=aliases.c.updated_at - 120)
        await registry_app.database.run(lambda db: db.execute(earlier))
    async with RegistryApp(tmp_path / "home", base, revalidate_rollback=True).run() as registry_app:
        await until_live(registry_app, 2)


def test_every_state_has_a_word_that_the_api_shows() -> None:
    assert [state.value for state in RevalidationState] == ["fresh", "due", "failed"]
