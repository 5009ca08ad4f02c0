"""The timer that has versions judged again: one after another, old ones a few a day."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from service.access.audit import page
from service.config import Settings
from service.errors import TrainerUnavailable
from service.registry.tables import verdicts
from service.training.revalidation import RevalidationTimer
from service.training.sidecar import assemble
from tests.unit.service.registry.engine import BASE
from tests.unit.service.training.revalidation_app import DAY_S, EVALUATION, RevalidationApp, judge

REVALIDATE = "/v1/adapters/voice/versions/1/revalidate"


def timer(revalidation_app: RevalidationApp, **more: float) -> RevalidationTimer:
    return RevalidationTimer(
        revalidation_app.revalidations, **({"every_s": 90 * DAY_S, "first_s": 0, "poll_s": 0.01} | more)
    )


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(60):
        while not condition():  # noqa: ASYNC110 (any condition, not one event)
            await asyncio.sleep(0.01)


async def test_the_timer_judges_what_is_due_one_after_another_as_the_system(
    revalidation_app: RevalidationApp, files: Callable[..., Any]
) -> None:
    await revalidation_app.push("cat", files(seed=7))
    await judge(revalidation_app, "cat@1", days=92)
    made = revalidation_app.evaluations.made
    async with revalidation_app.here():
        round_ = asyncio.create_task(timer(revalidation_app).round())
        await until(lambda: len(made) == 1)
        await asyncio.sleep(0.1)
        assert [one["metadata"]["revalidates"] for one in made] == ["voice@1"], "never more than one at a time"
        await judge(revalidation_app, "voice@1", kind="revalidation")
        made[0]["status"] = "succeeded"
        await until(lambda: len(made) == 2)
        made[1]["status"] = "failed"
        await asyncio.wait_for(round_, 60)
    assert [one["metadata"]["revalidates"] for one in made] == ["voice@1", "cat@1"]
    headers = revalidation_app.evaluations.headers[0]
    assert headers["x-hatrack-key-id"] == "system"
    minted = await revalidation_app.keys.show(headers["x-hatrack-job-key-id"])
    assert (minted["background"], minted["parent_key_id"], minted["adapters"]) == (True, None, ("voice",))
    assert sorted(minted["scopes"]) == ["adapters", "infer", "train"]
    noted = await revalidation_app.database.run(lambda db: page(db, after=None, limit=100, action="evaluation.create"))
    assert [(row.key_id, row.target) for row in noted] == [("system", "eval-2"), ("system", "eval-1")]


async def test_the_timer_takes_up_what_an_earlier_life_began(revalidation_app: RevalidationApp) -> None:
    async with revalidation_app.here():
        await revalidation_app.http.post(REVALIDATE)
        before = len(revalidation_app.trainer.asked)
        round_ = asyncio.create_task(timer(revalidation_app).round())
        await until(lambda: any(asked.method == "GET" for asked in revalidation_app.trainer.asked[before:]))
        assert not round_.done()
        revalidation_app.evaluation("voice@1")["status"] = "succeeded"
        await asyncio.wait_for(round_, 60)
    assert len(revalidation_app.evaluations.made) == 1


async def test_a_version_that_cannot_be_judged_does_not_keep_the_timer_from_the_next(
    revalidation_app: RevalidationApp, files: Callable[..., Any]
) -> None:
    for seed, name in ((7, "cat"), (8, "dog")):
        await revalidation_app.push(name, files(seed=seed))
        await judge(revalidation_app, f"{name}@1", days=92)
    await revalidation_app.verdict("voice@1", evaluation=EVALUATION | {"held_out": "file-gone"})
    await revalidation_app.database.run(lambda db: db.execute(verdicts.update().values(created_at=1)))
    revalidation_app.evaluations.refused = {"cat@1"}
    async with revalidation_app.here():
        round_ = asyncio.create_task(timer(revalidation_app).round())
        await until(lambda: len(revalidation_app.evaluations.made) == 1)
        revalidation_app.evaluation("ant@1")["status"] = "succeeded"
        await until(lambda: len(revalidation_app.evaluations.made) == 2)
        assert revalidation_app.evaluation("dog@1")["status"] == "queued"
        revalidation_app.evaluations.made.clear()  # the trainer knows it no longer
        await asyncio.wait_for(round_, 60)


async def test_the_timer_outlives_a_trainer_that_is_away(revalidation_app: RevalidationApp) -> None:
    with pytest.raises(TrainerUnavailable):
        await timer(revalidation_app).round()
    running = timer(revalidation_app, again_s=0.02)
    await running.start()
    try:
        await asyncio.sleep(0.1)
        async with revalidation_app.here():
            await until(lambda: len(revalidation_app.evaluations.made) == 1)
        await asyncio.sleep(0.1)  # away again, while the evaluation is under way
        revalidation_app.evaluations.made[0]["status"] = "succeeded"
        await judge(revalidation_app, "voice@1", kind="revalidation")
        await judge(revalidation_app, "ant@1", days=91)
        async with revalidation_app.here():
            await until(lambda: len(revalidation_app.evaluations.made) == 2)
    finally:
        await running.stop()
    assert revalidation_app.evaluations.made[1]["metadata"]["revalidates"] == "ant@1"


async def test_a_round_takes_its_share_of_what_is_old_and_all_of_what_another_engine_judged(
    revalidation_app: RevalidationApp, files: Callable[..., Any]
) -> None:
    for seed, name in ((7, "cat"), (8, "dog")):
        await revalidation_app.push(name, files(seed=seed))
        await judge(revalidation_app, f"{name}@1", days=95)
    base = revalidation_app.base.fingerprint.model_copy(update={"engine_version": "another"}).model_dump()
    await revalidation_app.database.run(
        lambda db: db.execute(
            verdicts.update().where(verdicts.c.created_at < time.time() - 94 * DAY_S).values(base=base)
        )
    )
    await judge(revalidation_app, "ant@1", days=99)
    revalidation_app.evaluations.refused = {"dog@1"}
    made = revalidation_app.evaluations.made
    async with revalidation_app.here():
        round_ = asyncio.create_task(timer(revalidation_app, every_s=DAY_S).round())
        for number in range(2):
            await until(lambda number=number: len(made) == number + 1)
            version = made[-1]["metadata"]["revalidates"]
            await judge(revalidation_app, version, kind="revalidation")
            made[-1]["status"] = "succeeded"
        await asyncio.wait_for(round_, 60)
    # four versions in ninety days: one old version a day, the live and oldest first; and what can be of the others
    assert {one["metadata"]["revalidates"] for one in made} == {"cat@1", "voice@1"}


@pytest.mark.parametrize(("settings", "starts"), [({}, True), ({"trainer": "off"}, False), ({"hours": 0}, False)])
def test_the_timer_is_on_by_default_where_there_is_a_trainer(
    tmp_path: Path, settings: dict[str, Any], starts: bool
) -> None:
    hours = {"revalidate_every_hours": settings["hours"]} if "hours" in settings else {}
    given = Settings(home=tmp_path, base_model=BASE, trainer=settings.get("trainer", "on"), **hours)
    nothing: Any = None
    sidecar = assemble(given, nothing, nothing, nothing, nothing, nothing, nothing)
    assert (sidecar.timer is not None) == starts
    assert given.revalidate_rollback is False
