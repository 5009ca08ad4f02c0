"""How long a job has had the device, and what that costs: one definition, whatever its end was."""

from __future__ import annotations

import os
import time
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from tests.unit.trainer.finetune.conftest import FakeGateway
from tests.unit.trainer.finetune.trainers import installation
from tests.unit.trainer.runs.test_database import new_run
from trainer.app import Trainer
from trainer.config import Settings
from trainer.finetune import capacity, spec
from trainer.finetune.spec import JobResult
from trainer.runs import outside, protocol, records
from trainer.runs.kind import RunOutcome
from trainer.runs.protocol import OutsideCharge
from trainer.runs.state import Run, Status
from trainer.runs.transitions import Transitions

JOB = "ftjob-1"


class Stopped:
    """The transitions of a trainer that runs no worker, and one job that ran when the machine went off."""

    def __init__(self, trainer: Trainer) -> None:
        self.transitions: Transitions = trainer.supervisor._transitions
        self.kind, self.database, self.costs = trainer.jobs.kind, trainer.database, trainer.costs
        self.folder = trainer.jobs.directories.path_of(JOB)

    async def change(self, **values: Any) -> Run:
        found: Run = await self.database.run(lambda db: records.change(db, JOB, **values))
        return found

    async def job(self) -> Run:
        found: Run = await self.database.run(lambda db: records.get(db, JOB))
        return found

    def sign(self, name: str, at: float) -> None:
        path = self.folder / name
        path.touch()
        os.utime(path, (at, at))


@pytest.fixture
async def stopped(tmp_path: Path, base_dir: Path, gateway: FakeGateway) -> AsyncIterator[Stopped]:
    settings = Settings(device="cpu", price_device_hour=36.0)
    place = installation(tmp_path, base_dir, gateway)
    base = capacity.BaseModelInfo.read(base_dir)
    trainer = Trainer.build(settings, place, base)
    trainer.jobs.directories.open()
    await trainer.database.open()
    await trainer.database.run(lambda db: records.add(db, new_run(1), None))
    trainer.jobs.directories.path_of(JOB).mkdir()
    yield Stopped(trainer)
    await trainer.housekeeper.stop()
    await trainer.database.close()


async def test_a_night_without_power_is_no_time_at_the_device(stopped: Stopped) -> None:
    began = time.time() - 8 * 3600
    await stopped.change(status=Status.RUNNING, served_at=began, device_s=5.0)
    stopped.sign(protocol.EVENTS, began + 90)
    stopped.sign(spec.CHECKPOINTS, began + 100)
    for _ in range(2):  # a second look at the same end adds nothing
        await stopped.transitions.count_device_time(stopped.kind, JOB)
        assert (await stopped.job()).device_s == pytest.approx(105, abs=0.01)


async def test_a_worker_that_gave_no_sign_since_its_start_has_taken_no_time(stopped: Stopped) -> None:
    now = time.time()
    await stopped.change(status=Status.RUNNING, served_at=now, device_s=5.0)
    stopped.sign(protocol.EVENTS, now - 100)
    await stopped.transitions.count_device_time(stopped.kind, JOB)
    assert (await stopped.job()).device_s == 5.0


@pytest.mark.parametrize("status", ["succeeded", "failed", "cancelled"])
async def test_seconds_and_cost_are_those_of_the_device_at_every_end(stopped: Stopped, status: Any) -> None:
    job = await stopped.change(status=Status.RUNNING, device_s=100.0)
    await stopped.transitions.finish(stopped.kind, job, RunOutcome(JobResult(status=status, seconds=7.0, cost=0.5)))
    result = JobResult.model_validate((await stopped.job()).result)
    assert (result.status, result.seconds, result.cost) == (status, 100.0, 1.0)


async def test_the_time_after_the_version_was_registered_is_judging(stopped: Stopped) -> None:
    began = time.time() - 100
    await stopped.change(status=Status.RUNNING, served_at=began)
    stopped.sign(spec.PUSHED, began + 60)
    stopped.sign(protocol.EVENTS, began + 90)
    await stopped.transitions.count_device_time(stopped.kind, JOB)
    await stopped.transitions.finish(stopped.kind, await stopped.job(), RunOutcome(JobResult(status="succeeded")))
    result = JobResult.model_validate((await stopped.job()).result)
    assert (result.training_seconds, result.judging_seconds) == (pytest.approx(60, abs=0.1), pytest.approx(30, abs=0.1))
    times = (await stopped.costs.device_times(0, 2**40)).data
    assert sum(spent.training_s for spent in times) == pytest.approx(60, abs=0.1)
    assert sum(spent.judging_s for spent in times) == pytest.approx(30, abs=0.1)


async def test_a_worker_that_runs_counts_up_to_now_and_only_once(stopped: Stopped) -> None:
    began = time.time() - 50
    await stopped.change(status=Status.RUNNING, served_at=began)
    running = await stopped.costs.device_times(0, 2**40)
    assert sum(spent.training_s for spent in running.data) == pytest.approx(50, abs=5)
    stopped.sign(protocol.EVENTS, began + 50)
    await stopped.transitions.count_device_time(stopped.kind, JOB)
    await stopped.transitions.finish(stopped.kind, await stopped.job(), RunOutcome(JobResult(status="cancelled")))
    ended = await stopped.costs.device_times(0, 2**40)
    assert sum(spent.training_s for spent in ended.data) == pytest.approx(50, abs=0.1)
    (only,) = {(spent.run, spent.adapter, spent.version) for spent in ended.data}
    assert only == (JOB, "voice", None)


async def test_without_a_price_a_job_has_seconds_and_no_cost(stopped: Stopped) -> None:
    stopped.kind._settings = Settings(device="cpu")
    job = await stopped.change(status=Status.RUNNING, device_s=100.0)
    await stopped.transitions.finish(stopped.kind, job, RunOutcome(JobResult(status="failed")))
    result = JobResult.model_validate((await stopped.job()).result)
    assert (result.seconds, result.known_cost) == (100.0, None)


def test_an_earlier_releases_nothing_is_no_cost() -> None:
    assert JobResult(status="succeeded", cost=0.0).known_cost is None
    assert JobResult(status="succeeded", cost=0.5).known_cost == 0.5


async def test_charges_from_outside_name_what_their_run_is_about(stopped: Stopped) -> None:
    arms = [{"label": "b", "model": "smol", "role": "base"}, {"label": "c", "model": "support@3", "role": "candidate"}]
    others = {
        "evaluation": {"id": "eval-1", "adapters": ("billing", "support"), "details": {"arms": arms}},
        "ladder": {"id": "ladder-1", "adapters": ("advised",), "details": {"adapter": "advised"}},
    }
    result = JobResult(status="succeeded", fine_tuned_model="voice@7").model_dump(mode="json")

    def record(db: sa.Connection) -> None:
        for number, (name, changes) in enumerate(others.items(), start=2):
            records.add(db, replace(new_run(number), kind=name, **changes), None)
        records.change(db, JOB, result=result)
        for run in (JOB, "eval-1", "ladder-1", outside.NO_RUN):
            payer = outside.Payer("default", "k", run)
            outside.add(db, payer, OutsideCharge(endpoint="big", prompt_tokens=3, completion_tokens=2, money=0.5), 10.0)

    await stopped.database.run(record)
    charges = (await stopped.costs.device_times(0, 3600)).charges
    assert {(charge.run, charge.adapter, charge.version) for charge in charges} == {
        (JOB, "voice", 7),
        ("eval-1", "support", 3),
        ("ladder-1", "advised", None),
        (None, "", None),
    }
    assert {(charge.project, charge.key_id, charge.requests, charge.money) for charge in charges} == {
        ("default", "k", 1, 0.5)
    }
    assert (await stopped.costs.device_times(3600, 7200)).charges == ()


@pytest.mark.parametrize(
    "arm",
    [
        {"model": "claude-sonnet@default", "endpoint": "big"},
        {"model": "other@3", "endpoint": "big"},
        {"model": "No name@x"},
    ],
)
async def test_a_candidate_that_is_no_version_of_ours_leaves_the_list_whole(
    stopped: Stopped, arm: dict[str, str]
) -> None:
    arms = [{"label": "b", "model": "support@2", "role": "base"}, {"label": "c", "role": "candidate", **arm}]
    evaluation: dict[str, Any] = {
        "id": "eval-1",
        "kind": "evaluation",
        "adapters": ("support",),
        "details": {"arms": arms},
    }

    def record(db: sa.Connection) -> None:
        records.add(db, replace(new_run(2), **evaluation), None)
        for run in (JOB, "eval-1"):
            payer = outside.Payer("default", "k", run)
            outside.add(db, payer, OutsideCharge(endpoint="big", prompt_tokens=3, completion_tokens=2, money=0.5), 10.0)

    await stopped.database.run(record)
    charges = (await stopped.costs.device_times(0, 3600)).charges
    assert {charge.run: (charge.adapter, charge.version) for charge in charges} == {
        JOB: ("voice", None),
        "eval-1": ("support", None),
    }
