"""Revalidations that were compared with an earlier verdict: what they make of a version, and with which they are."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from adapters.base import BaseDescription
from service.registry import verdict_records
from service.registry.tables import verdicts
from tests.support.adapters import AdapterFiles
from tests.unit.service.registry.conftest import RegistryApp
from tests.unit.service.registry.test_revalidation import age, live_failed, revalidation

Files = Callable[..., AdapterFiles]
P, F, N = "pass", "fail", "not_enough_evidence"
HELD = "file-held"


async def judge(registry_app: RegistryApp, verdict: str = P, *, kind: str = "training", **more: Any) -> str:
    """A verdict on `voice@1` with its scores stored, unless ``files`` says otherwise; returns its id."""
    files = {"held_out": HELD, "scores": "file-scores"}
    answer = await registry_app.verdict("voice@1", verdict, kind=kind, **{"files": files} | more)
    assert answer.status_code == 201, answer.text
    return str(answer.json()["id"])


async def compare(registry_app: RegistryApp, earlier: str, holds: bool | None, word: str) -> str:
    return await judge(registry_app, word, kind="revalidation", compared_with=earlier, holds=holds)


@pytest.fixture
async def voice(registry_app: RegistryApp, files: Files) -> RegistryApp:
    for file_id in (HELD, "file-scores", "file-other"):
        await registry_app.file(file_id)
    await registry_app.push("voice", files(seed=1), alias="live")
    return registry_app


@pytest.mark.parametrize(
    ("first", "looks", "states"),
    [
        (P, [(None, N), (None, N), (True, P), (None, N)], "++++"),
        (P, [(False, F), (None, N), (True, P)], "--+"),
        (N, [(True, N), (None, N), (False, F), (True, N)], "++-+"),
    ],
)
async def test_only_a_comparison_that_shows_a_loss_fails_a_version(
    voice: RegistryApp, first: str, looks: list[tuple[bool | None, str]], states: str
) -> None:
    """``+`` is fresh, ``-`` is failed, after each revalidation of a version whose first verdict is ``first``."""
    earlier = await judge(voice, first)
    for (holds, word), state in zip(looks, states, strict=True):
        await compare(voice, earlier, holds, word)
        assert await revalidation(voice, "voice@1") == ("failed" if state == "-" else "fresh", [])
        assert await live_failed(voice) == int(state == "-")


async def test_what_shows_nothing_does_not_undo_a_promotion_of_a_failed_version(voice: RegistryApp) -> None:
    """Rollbacks leave promotions alone that are later than the failure; a later look that shows nothing is none."""
    earlier = await judge(voice)
    await compare(voice, earlier, False, F)
    await age(voice, 1)
    (before,) = await voice.database.run(verdict_records.live_failures)
    await compare(voice, earlier, None, N)
    (after,) = await voice.database.run(verdict_records.live_failures)
    assert after.failed_at == before.failed_at < after.moved_at


async def test_what_was_judged_anew_loses_its_pass_as_ever_and_looks_past_what_showed_nothing(
    voice: RegistryApp,
) -> None:
    await compare(voice, await judge(voice), None, N)
    await judge(voice, N, kind="revalidation")
    assert await revalidation(voice, "voice@1") == ("failed", [])


async def test_what_shows_nothing_leaves_a_version_due_on_a_new_engine_and_is_not_repeated_at_once(
    tmp_path: Path, base: BaseDescription, files: Files
) -> None:
    async with RegistryApp(tmp_path / "home", base).run() as before:
        for file_id in (HELD, "file-scores"):
            await before.file(file_id)
        await before.push("voice", files(seed=1))
        earlier = await judge(before)
    fingerprint = base.fingerprint.model_copy(update={"engine_version": "another"})
    async with RegistryApp(tmp_path / "home", replace(base, fingerprint=fingerprint)).run() as after:
        candidates = after.registry.verdicts.revalidation_candidates
        assert [(one.reasons, one.only_aged) for one in await candidates(None)] == [(("engine_version",), False)]
        await compare(after, earlier, None, N)
        assert await revalidation(after, "voice@1") == ("due", ["engine_version"])
        standing = await after.registry.verdicts.standing()
        assert {state.value: count for state, count in standing.states.items()} == {"fresh": 0, "due": 1, "failed": 0}
        assert await candidates(None) == [], "the same questions would show nothing again"
        await age(after, 91)
        assert [one.only_aged for one in await candidates(None)] == [True]
        await compare(after, earlier, True, P)
        assert await revalidation(after, "voice@1") == ("fresh", [])


async def compared_with(registry_app: RegistryApp, held_out: str = HELD, metric: str = "exact_match") -> str | None:
    """The verdict that a revalidation of `voice@1` is compared with."""
    _, row = await registry_app.registry.verdicts._state.version("default", "voice", 1)
    chosen = await registry_app.database.run(lambda db: verdict_records.comparable(db, row.id, held_out, metric))
    return None if chosen is None else chosen.id


async def test_a_small_loss_each_time_does_not_add_up_unseen(voice: RegistryApp) -> None:
    """Were each revalidation compared with the one before, a version could lose any amount in small steps."""
    first = await judge(voice)
    await compare(voice, first, True, P)
    await compare(voice, first, None, N)
    assert await compared_with(voice) == first
    second = await judge(voice, kind="evaluation")
    assert await compared_with(voice) == second, "a person measured it anew"
    assert await compared_with(voice, held_out="file-other") is None
    assert await compared_with(voice, metric="contains") is None


async def test_a_version_without_scores_is_compared_with_its_first_revalidation(voice: RegistryApp) -> None:
    await judge(voice, files={"held_out": HELD})
    assert await compared_with(voice) is None
    anew = await judge(voice, kind="revalidation")
    await judge(voice, kind="revalidation")
    assert await compared_with(voice) == anew


@pytest.mark.parametrize("word", [N, F])
async def test_a_version_is_not_cleared_by_staying_as_it_was_when_it_failed(voice: RegistryApp, word: str) -> None:
    await judge(voice, files={"held_out": HELD})
    await judge(voice, word, kind="revalidation")
    assert (await revalidation(voice, "voice@1"))[0] == "failed"
    assert await compared_with(voice) is None, "it is judged anew, and may pass"


async def test_what_is_said_of_a_comparison_has_to_fit(voice: RegistryApp) -> None:
    earlier = await judge(voice)
    for given, why in (
        ({"kind": "evaluation", "compared_with": earlier}, "got the kind `evaluation`"),
        ({"kind": "revalidation", "holds": True}, "`holds` needs `compared_with`"),
        ({"kind": "revalidation", "compared_with": earlier, "holds": False}, "got `pass`"),
        ({"kind": "revalidation", "compared_with": "verdict-none", "holds": True}, "got 'verdict-none'"),
    ):
        refused = await voice.verdict("voice@1", **given)
        assert (refused.status_code, why in refused.json()["error"]["message"]) == (400, True), refused.text
    stored = await voice.database.run(lambda db: len(db.execute(verdicts.select()).all()))
    assert stored == 1


async def test_versions_that_were_promoted_long_ago_are_spread_over_the_age_limit(
    tmp_path: Path, base: BaseDescription, files: Files
) -> None:
    day = 86_400.0
    async with RegistryApp(tmp_path / "home", base, revalidate_days=4).run() as registry_app:
        for seed in range(6):
            await registry_app.push(f"voice-{seed}", files(seed=seed))
            await registry_app.verdict(f"voice-{seed}@1")
        per_round = registry_app.registry.verdicts.aged_per_round
        assert await registry_app.registry.verdicts.revalidation_candidates(None) == [], "they are young"
        await age(registry_app, 100)
        assert await per_round(day) == 2, "six versions in four days"
        assert await per_round(day / 24) == 1
        assert await per_round(4 * day) == await per_round(40 * day) == 6
        await registry_app.verdict("voice-0@1", kind="revalidation")
        assert await per_round(day) == 1, "a restart brings no extra round"
        await registry_app.verdict("voice-1@1", kind="revalidation")
        await registry_app.verdict("voice-2@1", kind="revalidation")
        assert await per_round(day) == 0
