"""One table of runs, whatever their kind; reviews beside them.

Trainers before this one kept jobs.db (with a schema number in ``PRAGMA user_version``), evaluations.db and reviews.db.
What stands in them is taken over in the same transaction: a run that was running goes on under the new trainer. The
file keeps its name and gets a higher schema number, so that an older trainer refuses it and never runs a job twice; the
other two files are left as they are.
"""

from __future__ import annotations

import json
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from alembic import op

from adapters.database.types import BigInt
from trainer.errors import SettingsError

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

OLD_TABLES = ("jobs", "events", "checkpoints", "idempotency")
OLD_INDEXES = (
    "ix_jobs_project_number",
    "ix_jobs_status",
    "ix_jobs_project_looked",
    "ix_jobs_project_served",
    "ix_idempotency_at",
)
ASIDE = "old_"
NEWER_THAN_ANY_OLD_TRAINER = 2
SHARED = (
    "id", "project", "key_id", "created_at", "status", "wanted", "queued_at", "looked_at", "served_at", "interrupted",
    "not_before", "kills", "progress", "events_offset", "next_event", "estimated_finish", "pauses", "paused_s",
    "device_s", "finished_at", "cleared",
)  # fmt: skip
"""Columns that are taken over under their own names, as far as a table has them."""

Row = dict[str, Any]


def upgrade() -> None:
    db = op.get_bind()
    directory = Path(op.get_context().config.attributes["directory"])  # type: ignore[union-attr]
    is_file = db.dialect.name == "sqlite"  # on a server there is nothing to take over: those trainers had none
    adopted = is_file and "jobs" in sa.inspect(db).get_table_names()
    if adopted:
        _set_aside(db)
    _create_runs(op)
    _create_what_belongs_to_runs(op)
    _create_reviews(op)
    if adopted:
        _take_over_jobs(db)
        _drop_aside(db)
    if not is_file:
        return
    _take_over_evaluations(db, directory / "evaluations.db")
    _take_over_reviews(db, directory / "reviews.db")
    db.exec_driver_sql(f"PRAGMA user_version = {NEWER_THAN_ANY_OLD_TRAINER}")


def _create_runs(op: Any) -> None:
    op.create_table(
        "runs",
        sa.Column("number", BigInt, primary_key=True, autoincrement=True),
        sa.Column("id", sa.Text, nullable=False, unique=True),
        sa.Column("kind", sa.Text, nullable=False),
        sa.Column("project", sa.Text, nullable=False),
        sa.Column("key_id", sa.Text, nullable=False),
        sa.Column("run_key_id", sa.Text, nullable=False),
        sa.Column("created_at", BigInt, nullable=False),
        sa.Column("body", sa.JSON, nullable=False),
        sa.Column("adapters", sa.JSON, nullable=False),
        sa.Column("details", sa.JSON, nullable=False),
        sa.Column("status", sa.Text, nullable=False),
        sa.Column("wanted", sa.Text, nullable=False),
        sa.Column("queued_at", sa.Float, nullable=False),
        sa.Column("looked_at", sa.Float, nullable=False, server_default="0"),
        sa.Column("served_at", sa.Float, nullable=False, server_default="0"),
        sa.Column("interrupted", sa.Boolean, nullable=False, server_default=sa.false()),
        sa.Column("not_before", sa.Float, nullable=False, server_default="0"),
        sa.Column("kills", BigInt, nullable=False, server_default="0"),
        sa.Column("progress", sa.Text, nullable=False, server_default=""),
        sa.Column("events_offset", BigInt, nullable=False, server_default="0"),
        sa.Column("next_event", BigInt, nullable=False, server_default="1"),
        sa.Column("estimated_finish", BigInt),
        sa.Column("pauses", BigInt, nullable=False, server_default="0"),
        sa.Column("paused_s", sa.Float, nullable=False, server_default="0"),
        sa.Column("device_s", sa.Float, nullable=False, server_default="0"),
        sa.Column("finished_at", BigInt),
        sa.Column("result", sa.JSON(none_as_null=True)),
        sa.Column("cleared", sa.Boolean, nullable=False, server_default=sa.false()),
        sqlite_autoincrement=True,
    )
    op.create_index("ix_runs_kind_project_number", "runs", ["kind", "project", "number"])
    op.create_index("ix_runs_status", "runs", ["status"])
    op.create_index("ix_runs_kind_project_looked", "runs", ["kind", "project", "looked_at"])
    op.create_index("ix_runs_kind_project_served", "runs", ["kind", "project", "served_at"])


def _create_what_belongs_to_runs(op: Any) -> None:
    op.create_table(
        "events",
        sa.Column("run", sa.Text, sa.ForeignKey("runs.id"), primary_key=True),
        sa.Column("number", BigInt, primary_key=True, autoincrement=False),
        sa.Column("at", sa.Float, nullable=False),
        sa.Column("level", sa.Text, nullable=False),
        sa.Column("type", sa.Text, nullable=False),
        sa.Column("message", sa.Text, nullable=False),
        sa.Column("data", sa.JSON, nullable=False),
        sqlite_with_rowid=False,
    )
    op.create_table(
        "checkpoints",
        sa.Column("run", sa.Text, sa.ForeignKey("runs.id"), primary_key=True),
        sa.Column("step", BigInt, primary_key=True, autoincrement=False),
        sa.Column("at", sa.Float, nullable=False),
        sa.Column("metrics", sa.JSON, nullable=False),
        sqlite_with_rowid=False,
    )
    op.create_table(
        "idempotency",
        sa.Column("project", sa.Text, primary_key=True),
        sa.Column("kind", sa.Text, primary_key=True),
        sa.Column("key", sa.Text, primary_key=True),
        sa.Column("body_sha256", sa.Text, nullable=False),
        sa.Column("run", sa.Text, sa.ForeignKey("runs.id"), nullable=False),
        sa.Column("at", sa.Float, nullable=False),
        sqlite_with_rowid=False,
    )
    op.create_index("ix_idempotency_at", "idempotency", ["at"])


def _create_reviews(op: Any) -> None:
    op.create_table(
        "queues",
        sa.Column("number", BigInt, primary_key=True, autoincrement=True),
        sa.Column("evaluation", sa.Text, nullable=False, unique=True),
        sa.Column("project", sa.Text, nullable=False),
        sa.Column("judge", sa.Text, nullable=False),
        sa.Column("digest", sa.Text, nullable=False),
        sa.Column("candidate", sa.Text, nullable=False),
        sa.Column("base", sa.Text, nullable=False),
        sa.Column("created_at", BigInt, nullable=False),
        sa.Column("adapters", sa.JSON(none_as_null=True)),
        sqlite_autoincrement=True,
    )
    op.create_index("ix_queues_project_digest", "queues", ["project", "digest"])
    op.create_table(
        "pairs",
        sa.Column("number", BigInt, primary_key=True, autoincrement=True),
        sa.Column("id", sa.Text, nullable=False, unique=True),
        sa.Column("queue", BigInt, sa.ForeignKey("queues.number"), nullable=False),
        sa.Column("example", sa.Text, nullable=False),
        sa.Column("turns", sa.JSON, nullable=False),
        sa.Column("reference", sa.Text, nullable=False),
        sa.Column("first", sa.Text, nullable=False),
        sa.Column("second", sa.Text, nullable=False),
        sa.Column("first_is", sa.Text, nullable=False),
        sa.Column("vote", sa.Text, nullable=False),
        sa.Column("choice", sa.Text),
        sa.Column("key_id", sa.Text),
        sa.Column("chosen_at", BigInt),
        sa.UniqueConstraint("queue", "example"),
        sqlite_autoincrement=True,
    )


# jobs.db itself


def _set_aside(db: sa.Connection) -> None:
    for index in OLD_INDEXES:  # their names are taken, whatever their tables are called
        db.exec_driver_sql(f"DROP INDEX IF EXISTS {index}")
    for table in OLD_TABLES:
        db.exec_driver_sql(f"ALTER TABLE {table} RENAME TO {ASIDE}{table}")


def _drop_aside(db: sa.Connection) -> None:
    for table in reversed(OLD_TABLES):  # what refers to jobs goes before them
        db.exec_driver_sql(f"DROP TABLE {ASIDE}{table}")


def _take_over_jobs(db: sa.Connection) -> None:
    found = db.exec_driver_sql(f"SELECT * FROM {ASIDE}jobs ORDER BY number")  # noqa: S608 (no input)
    _insert(db, "runs", (_of_a_job(dict(row)) for row in found.mappings()))
    for table, columns in (("events", "number, at, level, type, message, data"), ("checkpoints", "step, at, metrics")):
        _copy(db, table, f"run, {columns}", f"job, {columns}")
    names = "key, body_sha256, at"
    _copy(db, "idempotency", f"kind, run, project, {names}", f"'finetune', job, project, {names}")


def _copy(db: sa.Connection, table: str, columns: str, old_columns: str) -> None:
    statement = f"INSERT INTO {table} ({columns}) SELECT {old_columns} FROM {ASIDE}{table}"  # noqa: S608 (no input)
    db.exec_driver_sql(statement)


def _of_a_job(job: Row) -> Row:
    details = {
        "adapter": job["adapter"],
        "seed": job["seed"],
        "device": job["device"],
        "plan": _read(job["plan"]),
        "report": _read(job["report"]),
        "result_files": _read(job["result_files"]),
    }
    return _of_a_run(job, "finetune", [job["adapter"]], details)


def _of_a_run(row: Row, kind: str, adapters: list[str], details: Row) -> Row:
    return {name: row[name] for name in SHARED if name in row} | {
        "kind": kind,
        "run_key_id": row["job_key_id"],
        "body": row["body"],
        "result": row["result"],
        "adapters": json.dumps(adapters),
        "details": json.dumps(details),
    }


# the files beside it


def _take_over_evaluations(db: sa.Connection, path: Path) -> None:
    rows = _rows(path, "evaluations", "number")
    _insert(db, "runs", (_of_an_evaluation(row) for row in rows))
    if rows:
        keys = _rows(path, "idempotency", "at")
        columns = ("project", "key", "body_sha256", "at")
        taken = ({name: row[name] for name in columns} | {"kind": "evaluation", "run": row["job"]} for row in keys)
        _insert(db, "idempotency", taken)


def _of_an_evaluation(row: Row) -> Row:
    arms = _read(row["arms"])
    models = [str(arm["model"]) for arm in arms if arm.get("endpoint") is None]
    adapters = sorted({model.partition("@")[0] for model in models if "@" in model})
    return _of_a_run(row, "evaluation", adapters, {"arms": arms})


def _take_over_reviews(db: sa.Connection, path: Path) -> None:
    for table in ("queues", "pairs"):
        _insert(db, table, _rows(path, table, "number"))


def _rows(path: Path, table: str, order: str) -> list[Row]:
    """All rows of a table, or none where there is no such file or table: an old trainer may never have come so far."""
    if not path.exists():
        return []
    with closing(sqlite3.connect(path)) as old:
        old.row_factory = sqlite3.Row
        try:
            known = old.execute("SELECT 1 FROM sqlite_master WHERE type = 'table' AND name = ?", [table]).fetchone()
            if known is None:
                return []
            return [dict(row) for row in old.execute(f"SELECT * FROM {table} ORDER BY {order}")]  # noqa: S608
        except sqlite3.DatabaseError as error:
            raise SettingsError(f"{path} cannot be taken over into jobs.db: {error}") from error


def _insert(db: sa.Connection, table: str, rows: Any) -> None:
    """Rows whose JSON is text already, as SQLite keeps it."""
    for row in rows:
        names, marks = ", ".join(row), ", ".join("?" for _ in row)
        db.exec_driver_sql(f"INSERT INTO {table} ({names}) VALUES ({marks})", tuple(row.values()))  # noqa: S608


def _read(text: str | None) -> Any:
    return None if text is None else json.loads(text)
