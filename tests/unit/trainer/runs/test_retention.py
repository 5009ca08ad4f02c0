"""Old events and evaluations go, as the settings say; those that somebody still needs stay."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from trainer.config import Settings
from trainer.database import Database
from trainer.reviews.tables import queues
from trainer.runs import retention
from trainer.runs.device_time import device_time
from trainer.runs.directories import RunDirectories
from trainer.runs.protocol import RunResult
from trainer.runs.retention import DAY_S, Retention
from trainer.runs.tables import checkpoints, events, idempotency, runs
from trainer.tracking.records import tracked

NOW = 20_000.0 * DAY_S
OLD, NEW = NOW - 40 * DAY_S, NOW - 20 * DAY_S


class Home:
    """A trainer's database and the evaluations' directories."""

    def __init__(self, path: Path) -> None:
        self.database = Database(path / "jobs.db")
        self.evaluations = RunDirectories(path / "evaluations", path / "spent", ())

    async def add(self, run_id: str, finished_at: float | None, kind: str = "evaluate", **more: Any) -> None:
        row = {
            "id": run_id, "kind": kind, "project": "default", "key_id": "admin", "run_key_id": f"key-{run_id}",
            "created_at": 1, "body": {}, "adapters": [], "details": {}, "wanted": "run", "queued_at": 1.0,
            "status": "running" if finished_at is None else "succeeded", "finished_at": finished_at,
        }  # fmt: skip
        event = {"run": run_id, "at": 1.0, "level": "info", "type": "message", "message": "x", "data": {}}

        def work(db: sa.Connection) -> None:
            db.execute(runs.insert().values(row | more))
            db.execute(events.insert(), [{**event, "number": number} for number in range(1, 4)])
            db.execute(checkpoints.insert().values(run=run_id, step=1, at=1.0, metrics={}))
            db.execute(idempotency.insert().values(
                project="default", kind=kind, key=run_id, body_sha256="0", run=run_id, at=1.0))  # fmt: skip
            db.execute(device_time.insert().values(run=run_id, hour=0, training_s=1.0, judging_s=1.0))
            db.execute(tracked.insert().values(run=run_id, tracker="mlflow"))

        await self.database.run(work)
        self.evaluations.create(run_id, RunResult(status="succeeded"), "hk_run")

    async def retain(self, **days: float) -> tuple[int, int]:
        settings = Settings(**days)
        return await Retention(settings, self.database, self.evaluations, "evaluate", lambda: NOW).delete_old()

    async def left(self) -> dict[str, int]:
        """The number of events of each run."""

        def work(db: sa.Connection) -> dict[str, int]:
            counts = sa.select(sa.func.count()).where(events.c.run == runs.c.id).scalar_subquery()
            return {row[0]: row[1] for row in db.execute(sa.select(runs.c.id, counts))}

        return await self.database.run(work)


@pytest.fixture
async def home(tmp_path: Path) -> AsyncIterator[Home]:
    home = Home(tmp_path)
    home.evaluations.open()
    await home.database.open()
    yield home
    await home.database.close()


async def test_an_old_evaluation_goes_with_all_that_hangs_on_it(home: Home) -> None:
    await home.add("old", OLD)
    await home.add("new", NEW)
    await home.add("running", None)
    await home.add("job", OLD, kind="finetune")
    assert await home.retain(evaluations_days=32) == (0, 1)
    assert set(await home.left()) == {"new", "running", "job"}
    assert home.evaluations.ids() == ["job", "new", "running"]


async def test_what_people_reviewed_and_what_belongs_to_a_ladder_stays(home: Home) -> None:
    await home.add("reviewed", OLD)
    await home.add("ladder", None, kind="ladder")
    await home.add("child", OLD, parent="ladder")
    row = {"evaluation": "reviewed", "project": "default", "judge": "", "digest": "", "candidate": "a", "base": "b"}
    await home.database.run(lambda db: db.execute(queues.insert().values(**row, created_at=1)))
    assert await home.retain(evaluations_days=32) == (0, 0)
    assert set(await home.left()) == {"reviewed", "ladder", "child"}


async def test_old_events_go_in_batches_and_their_runs_stay(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retention, "BATCH", 2)
    await home.add("old", OLD)
    await home.add("job", OLD, kind="finetune")
    await home.add("new", NEW)
    await home.add("running", None)
    assert await home.retain(events_days=30) == (6, 0)
    assert await home.left() == {"old": 0, "job": 0, "new": 3, "running": 3}


async def test_without_settings_everything_is_kept(home: Home) -> None:
    await home.add("old", 1.0)
    assert await home.retain() == (0, 0)
    assert await home.left() == {"old": 3}
