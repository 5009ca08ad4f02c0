"""The files of trainers before there was one table of runs: taken over once, whole, and nothing that ran is lost."""

from __future__ import annotations

import asyncio
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from tests.support.old_var import unpack, versions
from tests.unit.trainer.finetune.conftest import FakeGateway, gateway
from tests.unit.trainer.finetune.trainers import PATIENCE_S, installation, stand_in
from trainer.app import Trainer
from trainer.config import Settings
from trainer.database import Database
from trainer.errors import IdempotencyKeyReused, SettingsError
from trainer.finetune.capacity import BaseModelInfo
from trainer.runs import journal, records
from trainer.runs.idempotency import Retry, find_previous_run
from trainer.runs.state import Run, Status

pytestmark = pytest.mark.sqlite

__all__ = ["gateway"]
RUNNING_JOB, RUNNING_EVALUATION = "ftjob-abf9febf0e990b8802993217", "eval-18c67001388d4ece2b069cb9"
HOLD = """
import sys, time
from pathlib import Path
from trainer.finetune.spec import JobResult
from trainer.runs.directory import RunDirectory
with RunDirectory(Path(sys.argv[1])) as directory:
    directory.emit_event("an earlier trainer's worker")
    while not directory.path("go").exists():
        time.sleep(0.02)
    directory.write("result.json", JobResult(status="succeeded", fine_tuned_model="voice@9"))
"""


@pytest.fixture
def home(tmp_path: Path, base_dir: Path, gateway: FakeGateway) -> Path:
    """A home as kill -9 left it under the first version: a job and an evaluation were running."""
    return unpack(versions()[0], tmp_path / "var", base_dir=base_dir, gateway=gateway.url)


def change(path: Path, *statements: str) -> None:
    with closing(sqlite3.connect(path)) as db:
        for statement in statements:
            db.execute(statement)
        db.commit()


def all_runs(db: sa.Connection) -> list[Run]:
    return records.with_status(db, [*Status])


async def test_what_an_earlier_trainer_had_is_taken_over_once(home: Path) -> None:
    directory, now = home / "trainer", time.time()
    for name, run in (("jobs", RUNNING_JOB), ("evaluations", RUNNING_EVALUATION)):
        change(directory / f"{name}.db", f"INSERT INTO idempotency VALUES ('default', 'once', '0', '{run}', {now})")  # noqa: S608
    change(
        directory / "reviews.db",
        # of before they said whose answers are compared
        "INSERT INTO queues (evaluation, project, judge, digest, candidate, base, created_at) "
        "VALUES ('eval-1', 'default', 'strict', 'd', 'shop@3', 'base', 7)",
    )
    with closing(sqlite3.connect(directory / "jobs.db")) as db:
        before = db.execute("SELECT id, status, wanted FROM jobs ORDER BY number").fetchall()
        events = db.execute("SELECT job, number, message, data FROM events ORDER BY job, number").fetchall()
    untouched = (directory / "evaluations.db").read_bytes()

    for _ in range(2):
        database = Database(directory / "jobs.db")
        await database.open()
        runs = await database.run(all_runs)
        jobs = [(run.id, run.status, run.wanted) for run in runs if run.kind == "finetune"]
        assert jobs == before
        evaluations = {run.id: run for run in runs if run.kind == "evaluation"}
        assert (len(evaluations), evaluations[RUNNING_EVALUATION].status) == (2, "running")
        assert evaluations[RUNNING_EVALUATION].adapters != ()
        assert all(run.adapters == (run.details["adapter"],) for run in runs if run.kind == "finetune")
        read = "SELECT run, number, message, data FROM events ORDER BY run, number"
        assert await database.run(lambda db: [tuple(row) for row in db.exec_driver_sql(read)]) == events  # noqa: B023
        for kind, run_id in (("finetune", RUNNING_JOB), ("evaluation", RUNNING_EVALUATION)):
            known = await database.run(lambda db: find_previous_run(db, "default", kind, Retry("once", "0"), now))  # noqa: B023
            assert known == run_id
            with pytest.raises(IdempotencyKeyReused):
                await database.run(lambda db: find_previous_run(db, "default", kind, Retry("once", "1"), now))  # noqa: B023
        queue = "SELECT evaluation, adapters FROM queues"
        assert await database.run(lambda db: [tuple(row) for row in db.exec_driver_sql(queue)]) == [  # noqa: B023
            ("eval-1", None)
        ]
        # an earlier trainer, which knows schema 1, refuses the file
        assert await database.run(lambda db: db.exec_driver_sql("PRAGMA user_version").scalar_one()) == 2
        await database.close()
    assert (directory / "evaluations.db").read_bytes()[100:] == untouched[100:]


async def test_a_migration_that_cannot_be_ended_changes_nothing(home: Path) -> None:
    for name in ("reviews.db-wal", "reviews.db-shm"):
        (home / "trainer" / name).unlink()
    (home / "trainer" / "reviews.db").write_text("this is no database, however long one looks at it" * 20)
    database = Database(home / "trainer" / "jobs.db")
    with pytest.raises(SettingsError, match=r"reviews\.db cannot be taken over"):
        await database.open()
    await database.close()
    with closing(sqlite3.connect(home / "trainer" / "jobs.db")) as db:
        assert db.execute("PRAGMA user_version").fetchone() == (1,)
        assert db.execute("SELECT count(*) FROM jobs").fetchone() == (6,)
        assert db.execute("SELECT count(*) FROM sqlite_master WHERE name = 'runs'").fetchone() == (0,)


@pytest.fixture
def worker(home: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Of the job that was running: it has outlived its trainer."""
    directory = home / "trainer" / "jobs" / RUNNING_JOB
    child = subprocess.Popen([sys.executable, "-c", HOLD, str(directory)])
    until(lambda: (directory / "worker.lock").exists() and str(child.pid) in (directory / "worker.lock").read_text())
    yield child
    child.kill()
    child.wait()


async def test_a_worker_that_runs_during_the_upgrade_goes_on(
    home: Path, base_dir: Path, gateway: FakeGateway, worker: subprocess.Popen[bytes]
) -> None:
    place = installation(home, base_dir, gateway)
    trainer = Trainer.build(
        Settings(device="cpu", stop_s=120.0), place, BaseModelInfo.read(base_dir), stand_in, lambda *_: ["sleep", "60"]
    )
    await trainer.start()
    try:
        assert trainer.supervisor.working() == [worker.pid]
        (trainer.jobs.directories.path_of(RUNNING_JOB) / "go").touch()
        job = await ended(trainer)
        assert (job.status, job.result and job.result["fine_tuned_model"]) == ("succeeded", "voice@9")
        newest = await trainer.database.run(lambda db: journal.newest(db, RUNNING_JOB, before=None, limit=1))
        assert newest[0].message == "an earlier trainer's worker"
    finally:
        await trainer.stop()


async def ended(trainer: Trainer) -> Run:
    deadline = time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline:
        job = await trainer.database.run(lambda db: records.get(db, RUNNING_JOB))
        if job.over:
            return job
        await asyncio.sleep(0.05)
    raise AssertionError("the job did not end")


def until(true: Any) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not true():
        assert time.monotonic() < deadline, "it did not come"
        time.sleep(0.02)
