"""How long a job has had the device, and what that costs: one definition, whatever its end was."""

from __future__ import annotations

import os
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from tests.unit.trainer.jobs.conftest import FakeGateway
from tests.unit.trainer.jobs.test_database import draft
from tests.unit.trainer.jobs.trainers import installation
from trainer.config import Settings
from trainer.jobs import fit, records, spec
from trainer.jobs.endings import Endings
from trainer.jobs.spec import Result
from trainer.jobs.state import Job, Status

JOB = "ftjob-1"


class Desk:
    """The endings of a trainer that runs no worker, and one job that ran when the machine went off."""

    def __init__(self, endings: Endings, database: Any, folder: Path) -> None:
        self.endings, self.database, self.folder = endings, database, folder

    async def change(self, **values: Any) -> Job:
        found: Job = await self.database.run(lambda db: records.change(db, JOB, **values))
        return found

    async def job(self) -> Job:
        found: Job = await self.database.run(lambda db: records.get(db, JOB))
        return found

    def sign(self, name: str, at: float) -> None:
        path = self.folder / name
        path.touch()
        os.utime(path, (at, at))


@pytest.fixture
async def desk(tmp_path: Path, base_dir: Path, gateway: FakeGateway) -> AsyncIterator[Desk]:
    from trainer.app import Trainer

    settings = Settings(device="cpu", price_per_hour=36.0)
    place = installation(tmp_path, base_dir, gateway)
    base = fit.Base.read(base_dir)
    trainer = Trainer.build(settings, place, base)
    trainer.place.open()
    await trainer.database.open()
    endings = trainer.supervisor._endings
    await trainer.database.run(lambda db: records.add(db, draft(1), None))
    trainer.place.of(JOB).mkdir()
    yield Desk(endings, trainer.database, trainer.place.of(JOB))
    await trainer.gateway.stop()
    await trainer.database.close()


async def test_a_night_without_power_is_no_time_at_the_device(desk: Desk) -> None:
    began = time.time() - 8 * 3600
    await desk.change(status=Status.RUNNING, served_at=began, device_s=5.0)
    desk.sign(spec.EVENTS, began + 90)
    desk.sign(spec.CHECKPOINTS, began + 100)
    for _ in range(2):  # a second look at the same end adds nothing
        await desk.endings.note_device_time(JOB)
        assert (await desk.job()).device_s == pytest.approx(105, abs=0.01)


async def test_a_worker_that_gave_no_sign_since_its_start_has_taken_no_time(desk: Desk) -> None:
    now = time.time()
    await desk.change(status=Status.RUNNING, served_at=now, device_s=5.0)
    desk.sign(spec.EVENTS, now - 100)
    await desk.endings.note_device_time(JOB)
    assert (await desk.job()).device_s == 5.0


@pytest.mark.parametrize("status", ["succeeded", "failed", "cancelled"])
async def test_seconds_and_cost_are_those_of_the_device_at_every_end(desk: Desk, status: Any) -> None:
    job = await desk.change(status=Status.RUNNING, device_s=100.0)
    await desk.endings.finish(job, Result(status=status, seconds=7.0, cost=0.5))
    result = (await desk.job()).result
    assert result is not None
    assert (result.status, result.seconds, result.cost) == (status, 100.0, 1.0)
