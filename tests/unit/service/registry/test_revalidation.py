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
from tests.unit.service.registry.conftest import ADMIN, Bench

Files = Callable[..., AdapterFiles]
DAY_S = 86_400


def changed(base: BaseDescription, **parts: str) -> BaseDescription:
    """The base with other parts of its fingerprint."""
    return replace(base, fingerprint=base.fingerprint.model_copy(update=parts))


async def revalidation(bench: Bench, version: str) -> tuple[str, list[str]]:
    found = (await bench.version(version))["revalidation"]
    return found["state"], found["reasons"]


async def age(bench: Bench, days: float) -> None:
    """All verdicts were written that long before."""
    older = verdicts.update().values(created_at=verdicts.c.created_at - int(days * DAY_S))
    await bench.database.run(lambda db: db.execute(older))


async def counts(bench: Bench) -> dict[str, int]:
    return {state.value: count for state, count in (await bench.registry.verdicts.standing()).states.items()}


async def live_failed(bench: Bench) -> int:
    return (await bench.registry.verdicts.standing()).live_failed


@pytest.mark.parametrize("part", ["tokenizer", "template", "dtype", "quantization", "engine_version"])
async def test_other_surroundings_of_the_same_weights_make_due_and_serve_on(
    tmp_path: Path, base: BaseDescription, files: Files, part: str
) -> None:
    async with Bench(tmp_path / "home", base).run() as before:
        await before.push("voice", files(seed=1))
        await before.push("unjudged", files(seed=2))
        await before.verdict("voice@1")
    async with Bench(tmp_path / "home", changed(base, **{part: "another"})).run() as after:
        assert await revalidation(after, "voice@1") == ("due", [part])
        assert (await after.version("voice@1"))["servable"] == "ok"
        assert after.catalog.resolve(ADMIN, "voice").version == 1
        assert await counts(after) == {"fresh": 0, "due": 1, "failed": 0}
        assert (await after.version("unjudged@1"))["revalidation"] is None
        again = (await after.verdict("voice@1", kind="revalidation")).json()
        assert again["base"][part] == "another"
        assert await revalidation(after, "voice@1") == ("fresh", [])
    async with Bench(tmp_path / "home", base).run() as back:
        assert await revalidation(back, "voice@1") == ("due", [part])


@pytest.mark.parametrize("part", ["weights", "config"])
async def test_another_base_makes_unservable_until_it_is_put_back(
    tmp_path: Path, base: BaseDescription, files: Files, part: str
) -> None:
    async with Bench(tmp_path / "home", base).run() as before:
        await before.push("voice", files(seed=1))
        await before.verdict("voice@1")
        assert await counts(before) == {"fresh": 1, "due": 0, "failed": 0}
    async with Bench(tmp_path / "home", changed(base, **{part: "another"})).run() as other:
        assert (await other.version("voice@1"))["servable"] == "other_base"
        assert await counts(other) == {"fresh": 0, "due": 0, "failed": 0}
        with pytest.raises(Conflict, match="other_base"):
            other.catalog.resolve(ADMIN, "voice")
    async with Bench(tmp_path / "home", base).run() as back:
        assert (await back.version("voice@1"))["servable"] == "ok"
        assert back.catalog.resolve(ADMIN, "voice").version == 1
        assert await revalidation(back, "voice@1") == ("fresh", [])


async def test_a_verdict_ages(
    tmp_path: Path, base: BaseDescription, files: Files, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(verdicts_module, "RECOUNT_S", 0)
    async with Bench(tmp_path / "home", base, revalidate_days=10).run() as bench:
        await bench.push("voice", files(seed=1))
        await bench.verdict("voice@1")
        await age(bench, 9.9)
        assert await revalidation(bench, "voice@1") == ("fresh", [])
        await age(bench, 0.2)
        assert await revalidation(bench, "voice@1") == ("due", ["age"])
        assert await counts(bench) == {"fresh": 0, "due": 1, "failed": 0}
        await bench.verdict("voice@1", kind="revalidation")
        assert await revalidation(bench, "voice@1") == ("fresh", [])


async def test_only_a_revalidation_fails_a_version_and_only_another_clears_it(bench: Bench, files: Files) -> None:
    await bench.push("voice", files(seed=1))
    await bench.verdict("voice@1", "fail", kind="training")
    assert await revalidation(bench, "voice@1") == ("fresh", [])
    await bench.verdict("voice@1", "fail", kind="revalidation")
    assert await revalidation(bench, "voice@1") == ("failed", [])
    await bench.verdict("voice@1", "pass", kind="evaluation")
    assert await revalidation(bench, "voice@1") == ("failed", [])
    assert (await bench.version("voice@1"))["verdict"]["verdict"] == "pass"
    assert await counts(bench) == {"fresh": 0, "due": 0, "failed": 1}
    await age(bench, 91)
    assert await revalidation(bench, "voice@1") == ("failed", ["age"])
    await bench.verdict("voice@1", "pass", kind="revalidation")
    assert await revalidation(bench, "voice@1") == ("fresh", [])


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
    bench: Bench, files: Files, told: list[tuple[str, str]], states: str
) -> None:
    """``+`` is fresh, ``-`` is failed, after each verdict."""
    await bench.push("other", files(seed=2))
    await bench.verdict("other@1")
    await bench.push("voice", files(seed=1), alias="live")
    for (verdict, kind), wanted in zip(told, states, strict=True):
        assert (await bench.verdict("voice@1", verdict, kind=kind)).status_code == 201
        failed = wanted == "-"
        assert await revalidation(bench, "voice@1") == ("failed" if failed else "fresh", [])
        assert await counts(bench) == {"fresh": 2 - failed, "due": 0, "failed": int(failed)}
        assert await live_failed(bench) == int(failed)
    assert await revalidation(bench, "other@1") == ("fresh", [])


async def test_with_the_setting_live_leaves_a_version_that_lost_its_pass(
    tmp_path: Path, base: BaseDescription, files: Files
) -> None:
    async with Bench(tmp_path / "home", base, revalidate_rollback=True).run() as bench:
        await three_versions(bench, files)
        await bench.verdict("voice@3")
        await bench.verdict("voice@3", N, kind=AGAIN)
        await until_live(bench, 2)


@pytest.mark.parametrize("rollback", [False, True])
async def test_a_pass_of_an_older_rule_that_the_new_one_does_not_show_is_due_and_stays_live(
    tmp_path: Path, base: BaseDescription, files: Files, rollback: bool
) -> None:
    async with Bench(tmp_path / "home", base, revalidate_rollback=rollback).run() as bench:
        await three_versions(bench, files)
        assert (await bench.verdict("voice@3")).json()["rule"] == 1
        assert (await bench.verdict("voice@3", N, kind=AGAIN, rule=2)).json()["rule"] == 2
        assert await revalidation(bench, "voice@3") == ("due", ["rule"])
        assert await counts(bench) == {"fresh": 0, "due": 1, "failed": 0}
        assert await live_failed(bench) == 0
        await bench.verdict("voice@3", N, kind=AGAIN, rule=2)
        assert await revalidation(bench, "voice@3") == ("due", ["rule"])
        assert await bench.registry.verdicts.revalidation_candidates("default") == [], (
            "the same questions give the same verdict"
        )
        await asyncio.sleep(0.1)
        assert (await live(bench))["version"] == 3
        await bench.verdict("voice@3", P, kind="evaluation", rule=2)
        assert await revalidation(bench, "voice@3") == ("fresh", [])
        await bench.verdict("voice@3", N, kind=AGAIN, rule=2)
        assert await revalidation(bench, "voice@3") == ("failed", [])


async def test_a_failure_counts_by_whatever_rule(bench: Bench, files: Files) -> None:
    await bench.push("voice", files(seed=1), alias="live")
    await bench.verdict("voice@1")
    await bench.verdict("voice@1", F, kind=AGAIN, rule=2)
    assert await revalidation(bench, "voice@1") == ("failed", [])
    assert await live_failed(bench) == 1


async def test_versions_are_counted_again_only_after_a_change(bench: Bench, files: Files) -> None:
    await bench.push("voice", files(seed=1))
    await bench.verdict("voice@1")
    first = await bench.registry.verdicts.standing()
    assert await bench.registry.verdicts.standing() is first
    await bench.verdict("voice@1", "fail", kind="revalidation")
    failed = await bench.registry.verdicts.standing()
    assert (failed.states[RevalidationState.FAILED], failed.live_failed) == (1, 1)
    await bench.http.delete("/v1/adapters/voice?force=true")
    gone = await bench.registry.verdicts.standing()
    assert (gone.states[RevalidationState.FAILED], gone.live_failed) == (0, 0)


async def test_adapters_and_versions_are_listed_by_state(bench: Bench, files: Files) -> None:
    for seed, name in enumerate(["ant", "bee", "cat", "dog"]):
        await bench.push(name, files(seed=seed))
    await bench.push("bee", files(seed=9))
    for version in ("ant@1", "bee@1", "cat@1"):
        await bench.verdict(version)
    await age(bench, 91)
    await bench.verdict("bee@2")
    await bench.verdict("ant@1")

    async def listed(query: str, headers: dict[str, str] | None = None) -> list[tuple[str, list[int]]]:
        page = (await bench.http.get(f"/v1/adapters?{query}", headers=headers)).json()
        return [(item["name"], [shown["version"] for shown in item["versions"]]) for item in page["data"]]

    assert await listed("revalidation=due") == [("bee", [1]), ("cat", [1])]
    assert await listed("revalidation=fresh") == [("ant", [1]), ("bee", [2])]
    assert await listed("revalidation=failed") == []
    assert await listed("revalidation=due&limit=1") == [("bee", [1])]
    assert await listed("revalidation=due&limit=1&after=bee") == [("cat", [1])]
    assert await listed("revalidation=due&after=ant") == [("bee", [1]), ("cat", [1])], "it was due a page ago"
    assert await listed("revalidation=due", await bench.key(adapters=("c*",))) == [("cat", [1])]
    assert len(await listed("")) == 4
    one = (await bench.http.get("/v1/adapters/bee?revalidation=due")).json()
    assert [version["version"] for version in one["versions"]] == [1]
    assert (await bench.http.get("/v1/adapters?revalidation=stale")).status_code == 400


async def test_a_failed_version_that_is_live_is_counted(bench: Bench, files: Files) -> None:
    for seed in (1, 2):
        await bench.push("voice", files(seed=seed))
    await bench.verdict("voice@2", "fail", kind="revalidation")
    assert await live_failed(bench) == 0
    await bench.http.put("/v1/adapters/voice/aliases/live", json={"split": {"1": 90, "2": 10}})
    assert await live_failed(bench) == 1
    await bench.http.put("/v1/adapters/voice/aliases/live", json={"version": 2})
    assert await live_failed(bench) == 1
    await bench.http.put("/v1/adapters/voice/aliases/live", json={"version": 1})
    assert await live_failed(bench) == 0
    assert await bench.database.run(verdict_records.live_failures) == []


async def live(bench: Bench) -> Any:
    return (await bench.http.get("/v1/adapters/voice/aliases/live")).json()


async def until_live(bench: Bench, number: int) -> None:
    """Return when requests get that version, which is after the alias has moved."""
    async with asyncio.timeout(60):
        while bench.catalog.resolve(ADMIN, "voice").version != number:  # noqa: ASYNC110 (the alias tells nobody)
            await asyncio.sleep(0.01)


async def three_versions(bench: Bench, files: Files) -> None:
    """voice@1, @2 and @3, which were live in that order."""
    for seed in (1, 2, 3):
        await bench.push("voice", files(seed=seed), alias="live")


async def test_what_serves_is_judged_again_first_and_then_the_oldest_verdict(bench: Bench, files: Files) -> None:
    async def order() -> list[int]:
        return [one.number for one in await bench.registry.verdicts.revalidation_candidates("default", every=True)]

    await three_versions(bench, files)
    for number in (2, 1, 3):
        await bench.verdict(f"voice@{number}")
    assert await order() == [3, 2, 1]
    split = await bench.http.put("/v1/adapters/voice/aliases/live", json={"split": {"1": 50, "3": 50}})
    assert split.status_code == 200
    assert await order() == [1, 3, 2]


async def test_without_the_setting_a_failed_version_stays_live(bench: Bench, files: Files) -> None:
    await three_versions(bench, files)
    await bench.verdict("voice@3", "fail", kind="revalidation")
    await asyncio.sleep(0.1)
    assert (await live(bench))["version"] == 3


async def test_with_the_setting_live_goes_back_to_what_has_not_failed(
    tmp_path: Path, base: BaseDescription, files: Files
) -> None:
    async with Bench(tmp_path / "home", base, revalidate_rollback=True).run() as bench:
        await three_versions(bench, files)
        await bench.verdict("voice@2", "fail", kind="revalidation")
        await bench.verdict("voice@3", "fail", kind="evaluation")
        assert (await live(bench))["version"] == 3
        await bench.verdict("voice@3", "fail", kind="revalidation")
        await until_live(bench, 1)
        assert (await live(bench))["version"] == 1
        assert (await live(bench))["history"][0]["action"] == "rollback"
        noted = [row for row in await bench.audit() if row.action == "alias.rollback"]
        assert [(row.key_id, row.target, row.detail) for row in noted] == [
            ("system", "voice:live", {"version": 1, "because": "revalidation"})
        ]

        await bench.verdict("voice@1", "fail", kind="revalidation")
        await asyncio.sleep(0.1)
        assert (await live(bench))["version"] == 1, "never to nothing"
        assert await live_failed(bench) == 1


async def test_a_rollback_that_the_engine_could_not_follow_is_tried_again(
    tmp_path: Path, base: BaseDescription, files: Files, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rollback, "LOOK_S", 0.05)
    async with Bench(tmp_path / "home", base, revalidate_rollback=True).run() as bench:
        await three_versions(bench, files)
        bench.engine.down = True
        await bench.verdict("voice@3", "fail", kind="revalidation")
        await asyncio.sleep(0.2)
        assert (await live(bench))["version"] == 3
        bench.engine.down = False
        await until_live(bench, 2)


async def test_a_rollback_that_a_crash_cut_is_made_at_the_next_start_but_not_against_a_later_promotion(
    tmp_path: Path, base: BaseDescription, files: Files
) -> None:
    async with Bench(tmp_path / "home", base).run() as bench:
        await three_versions(bench, files)
        await bench.verdict("voice@3", "fail", kind="revalidation")
        later = aliases.update().values(updated_at=aliases.c.updated_at + 60)
        await bench.database.run(lambda db: db.execute(later))
    async with Bench(tmp_path / "home", base, revalidate_rollback=True).run() as bench:
        await asyncio.sleep(0.1)
        assert (await live(bench))["version"] == 3, "somebody pointed it there after the failure"
        earlier = aliases.update().values(updated_at=aliases.c.updated_at - 120)
        await bench.database.run(lambda db: db.execute(earlier))
    async with Bench(tmp_path / "home", base, revalidate_rollback=True).run() as bench:
        await until_live(bench, 2)


def test_every_state_has_a_word_that_the_api_shows() -> None:
    assert [state.value for state in RevalidationState] == ["fresh", "due", "failed"]
