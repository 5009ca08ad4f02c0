"""Old events and evaluations go, as the settings say; those that somebody still needs stay."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from trainer.config import Settings
from trainer.database import Database
from trainer.reviews.tables import choices, pairs, queues
from trainer.runs import journal, retention
from trainer.runs.device_time import device_time
from trainer.runs.directories import RunDirectories
from trainer.runs.protocol import RunResult
from trainer.runs.retention import DAY_S, Retention
from trainer.runs.tables import checkpoints, events, idempotency, runs
from trainer.tracking.records import TrackingState, tracked

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
            db.execute(tracked.insert().values(run=run_id, tracker="mlflow", state=TrackingState.DONE))

        await self.database.run(work)
        self.evaluations.create(run_id, RunResult(status="succeeded"), "hk_run")

    def queue(self, run_id: str, created_at: int = 1) -> sa.Insert:
        return queues.insert().values(
            evaluation=run_id, project="default", judge="", digest="", candidate="a", base="b", created_at=created_at
        )

    async def ask(self, run_id: str, created_at: int = 1) -> None:
        """Store a pair of answers of an evaluation, for people to choose between."""
        pair = {
            "id": f"rev-{run_id}", "example": "1", "turns": [], "reference": "", "first": "a", "second": "b",
            "first_is": "base", "vote": "",
        }  # fmt: skip

        def work(db: sa.Connection) -> None:
            number = db.scalar(self.queue(run_id, created_at).returning(queues.c.number))
            db.execute(pairs.insert().values(**pair, queue=number))

        await self.database.run(work)

    def choice(self, db: sa.Connection, run_id: str) -> sa.Insert:
        pair = db.scalar(sa.select(pairs.c.number).where(pairs.c.id == f"rev-{run_id}"))
        return choices.insert().values(pair=pair, key_id="a person", choice="first", first_is="base", chosen_at=1)

    async def choose(self, run_id: str) -> None:
        """A person chooses."""
        await self.database.run(lambda db: db.execute(self.choice(db, run_id)))

    async def pairs(self) -> int:
        """The number of pairs in queues."""
        return await self.database.run(
            lambda db: db.scalar(sa.select(sa.func.count()).select_from(pairs.join(queues))) or 0
        )

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
    await home.ask("reviewed")
    await home.choose("reviewed")
    await home.add("ladder", None, kind="ladder")
    await home.add("child", OLD, parent="ladder")
    assert await home.retain(evaluations_days=32) == (0, 0)
    assert set(await home.left()) == {"reviewed", "ladder", "child"}
    assert await home.pairs() == 1


async def test_pairs_that_nobody_chose_between_go_with_their_evaluation(home: Home) -> None:
    """Every evaluation with a judge has pairs: they alone are no review."""
    await home.add("judged", OLD)
    await home.ask("judged")
    await home.add("asked", OLD)
    await home.ask("asked", created_at=int(NEW))
    assert await home.retain(evaluations_days=32) == (0, 1)
    assert set(await home.left()) == {"asked"}, "people were asked only now"
    assert await home.pairs() == 1


async def test_a_choice_that_comes_meanwhile_keeps_the_evaluation(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    await home.add("judged", OLD)
    await home.ask("judged")
    chosen = retention.old_evaluation

    def then_choose(db: sa.Connection, kind: str, before: float) -> str | None:
        run_id = chosen(db, kind, before)
        if run_id is not None:
            db.execute(home.choice(db, run_id))
        return run_id

    monkeypatch.setattr(retention, "old_evaluation", then_choose)
    assert await home.retain(evaluations_days=32) == (0, 0)
    assert await home.left() == {"judged": 3}
    assert (await home.pairs(), home.evaluations.ids()) == (1, ["judged"])


async def test_pairs_that_are_drawn_meanwhile_keep_the_evaluation(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    """While its events were deleted somebody has asked people for a review of its answers."""
    await home.add("drawn", OLD)
    events_of = retention.events_of

    def then_draw(db: sa.Connection, run_id: str) -> sa.Select[tuple[str, int]]:
        if not db.scalar(sa.select(sa.func.count()).select_from(queues)):
            db.execute(home.queue(run_id, created_at=int(NOW)))
        return events_of(db, run_id)

    monkeypatch.setattr(retention, "events_of", then_draw)
    assert await home.retain(evaluations_days=32) == (0, 0)
    assert set(await home.left()) == {"drawn"}
    assert home.evaluations.ids() == ["drawn"]


async def test_old_events_go_in_batches_and_their_runs_stay(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retention, "BATCH", 2)
    await home.add("old", OLD)
    await home.add("job", OLD, kind="finetune")
    await home.add("new", NEW)
    await home.add("running", None)
    assert await home.retain(events_days=30) == (6, 0)
    assert await home.left() == {"old": 0, "job": 0, "new": 3, "running": 3}


async def test_events_stay_that_a_tracker_has_not_had_and_the_last_metrics(home: Home) -> None:
    """Estimates of later jobs read the speed from the last metrics; a tracker that was down is told later."""
    await home.add("followed", OLD, kind="finetune")
    await home.add("job", OLD, kind="finetune")
    number = {"number": 2, "type": "metrics", "data": {"step": 1, "tokens_per_s": 9.0}}

    def work(db: sa.Connection) -> None:
        db.execute(tracked.update().where(tracked.c.run == "followed").values(state=TrackingState.OPEN))
        db.execute(events.update().where(events.c.run == "job", events.c.number < 3).values(type="metrics"))
        db.execute(events.update().where(events.c.run == "job", events.c.number == 2).values(number))

    await home.database.run(work)
    assert await home.retain(events_days=30) == (2, 0)
    assert await home.left() == {"followed": 3, "job": 1}
    assert await home.database.run(lambda db: journal.metrics(db, "job")) == [{"step": 1, "tokens_per_s": 9.0}]
    await home.database.run(lambda db: db.execute(tracked.update().values(state=TrackingState.GIVEN_UP)))
    assert await home.retain(events_days=30) == (3, 0)
    assert await home.left() == {"followed": 0, "job": 1}


async def test_without_settings_everything_is_kept(home: Home) -> None:
    await home.add("old", 1.0)
    assert await home.retain() == (0, 0)
    assert await home.left() == {"old": 3}
