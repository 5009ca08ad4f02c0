"""The trainer's records: their schema's steps, and transactions that are whole."""

from __future__ import annotations

import asyncio
import sqlite3
import threading
import time
from pathlib import Path

import pytest
import sqlalchemy as sa

import trainer.evaluate.evaluations.look_store
import trainer.reviews.tables
import trainer.runs.device_time
import trainer.runs.outside
import trainer.tracking.records
import trainer.webhook.outbox  # noqa: F401 (the same)
from trainer.database import Database, metadata
from trainer.errors import SettingsError
from trainer.runs import journal, records
from trainer.runs.idempotency import Retry, find_previous_run
from trainer.runs.protocol import WorkerEvent
from trainer.runs.records import NewRun
from trainer.runs.state import Status


def new_run(number: int, project: str = "default", created_at: int = 0) -> NewRun:
    return NewRun(
        id=f"ftjob-{number}", kind="finetune", project=project, key_id="k", run_key_id="j",
        created_at=created_at or int(time.time()), body={"model": "m", "training_file": "f"}, adapters=("voice",),
        details={"adapter": "voice", "seed": 0, "device": "cpu"}, status=Status.VALIDATING,
    )  # fmt: skip


async def opened(path: Path) -> Database:
    database = Database(path)
    await database.open()
    return database


async def test_the_newest_schema_is_that_of_the_tables(tmp_path: Path) -> None:
    for _ in range(2):
        database = await opened(tmp_path / "new" / "jobs.db")
        await database.run(lambda db: _same(sa.inspect(db)))
        await database.close()


def _same(found: sa.Inspector) -> None:
    assert sorted(found.get_table_names()) == sorted((*metadata.tables, "alembic_version"))
    for name, table in metadata.tables.items():
        assert [column["name"] for column in found.get_columns(name)] == table.columns.keys()
        assert {index["name"] for index in found.get_indexes(name)} >= {index.name for index in table.indexes}


@pytest.mark.sqlite
async def test_another_kind_of_file_and_a_newer_schema_are_refused(tmp_path: Path) -> None:
    (tmp_path / "text.db").write_text("this is no database, however long one looks at it" * 20)
    with pytest.raises(SettingsError, match="cannot be opened"):
        await Database(tmp_path / "text.db").open()
    with sqlite3.connect(tmp_path / "newer.db") as raw:
        raw.execute("CREATE TABLE alembic_version (version_num VARCHAR(32) NOT NULL)")
        raw.execute("INSERT INTO alembic_version VALUES ('9999')")
    raw.close()
    before = (tmp_path / "newer.db").read_bytes()
    with pytest.raises(SettingsError, match="was written by a newer release: its schema is 9999") as refused:
        await Database(tmp_path / "newer.db").open()
    assert "Nothing was changed" in str(refused.value)
    assert (tmp_path / "newer.db").read_bytes() == before
    assert not (tmp_path / "newer.db-wal").exists()


async def test_a_change_that_fails_changes_nothing_and_one_whose_caller_leaves_is_whole(tmp_path: Path) -> None:
    database = await opened(tmp_path / "jobs.db")

    def fail(db: sa.Connection) -> None:
        records.add(db, new_run(1), None)
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await database.run(fail)

    halfway, go_on = threading.Event(), threading.Event()

    def slow(db: sa.Connection) -> None:
        records.add(db, new_run(2), None)
        halfway.set()
        assert go_on.wait(240)
        records.add(db, new_run(3), None)

    task = asyncio.create_task(database.run(slow))
    assert await asyncio.to_thread(halfway.wait, 240)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    go_on.set()
    assert await database.run(lambda db: [job.id for job in records.with_status(db, [*Status])]) == [
        "ftjob-2",
        "ftjob-3",
    ]
    await database.close()


async def test_idempotency_keys_are_forgotten_after_a_day_and_bounded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("trainer.runs.idempotency.MAX_KEYS", 3)
    database = await opened(tmp_path / "jobs.db")
    now = int(time.time())

    def fill(db: sa.Connection) -> list[bool]:
        records.add(db, new_run(100, created_at=now - 25 * 3600), Retry("old", "0"))
        records.add(db, new_run(101, "other", created_at=now - 60), Retry("theirs", "0"))
        for number in range(5):
            records.add(db, new_run(number, created_at=now - 50 + number), Retry(f"key{number}", "0"))
        keys = [("default", "old"), ("other", "theirs"), *(("default", f"key{n}") for n in range(5))]
        return [find_previous_run(db, project, "finetune", Retry(key, "0"), now) is not None for project, key in keys]

    assert await database.run(fill) == [False, True, False, False, True, True, True]
    await database.close()


async def test_a_step_that_is_done_again_is_one_checkpoint_and_one_line(tmp_path: Path) -> None:
    database = await opened(tmp_path / "jobs.db")

    def metrics(step: int, loss: float) -> WorkerEvent:
        data = {"step": step, "train_loss": loss, "ends_epoch": step == 2}
        return WorkerEvent(at=step, type="metrics", message="s", data=data)

    def say(db: sa.Connection) -> None:
        job = records.add(db, new_run(1), None)
        job = journal.append(db, job, [metrics(1, 3.0), metrics(2, 2.0)], 10)
        journal.append(db, job, [metrics(2, 2.5), metrics(3, 1.0)], 20)
        assert [row["train_loss"] for row in journal.metrics(db, "ftjob-1")] == [3.0, 2.5, 1.0]
        (row,) = journal.newest_checkpoints(db, "ftjob-1", before=None, limit=5)
        assert (row.step, row.metrics["train_loss"]) == (2, 2.5)
        assert [event.number for event in journal.following(db, "ftjob-1", after=0, limit=9)] == [1, 2, 3, 4]
        assert records.get(db, "ftjob-1").events_offset == 20

    await database.run(say)
    await database.close()
