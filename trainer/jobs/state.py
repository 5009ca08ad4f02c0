"""A job's states, and a job as it stands in the records."""

from __future__ import annotations

from dataclasses import dataclass, fields
from enum import StrEnum
from typing import Any, Final

import sqlalchemy as sa

from trainer.jobs.spec import Control, Plan, Result


class Status(StrEnum):
    """OpenAI's words: validating_files → queued → running → succeeded | failed | cancelled, and paused on the way."""

    VALIDATING = "validating_files"
    QUEUED = "queued"
    RUNNING = "running"
    PAUSED = "paused"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"


OVER: Final = frozenset({Status.SUCCEEDED, Status.FAILED, Status.CANCELLED})
UNDER_WAY: Final = frozenset({Status.VALIDATING, Status.QUEUED, Status.RUNNING})


@dataclass(frozen=True, slots=True)
class Job:
    """A row of `jobs`; see `tables` for what the columns mean."""

    number: int
    id: str
    project: str
    key_id: str
    job_key_id: str
    created_at: int
    body: dict[str, Any]
    seed: int
    adapter: str
    status: Status
    wanted: Control
    device: str
    queued_at: float
    looked_at: float
    served_at: float
    interrupted: bool
    not_before: float
    kills: int
    progress: str
    events_offset: int
    next_event: int
    plan: Plan | None
    report: dict[str, Any] | None
    estimated_finish: int | None
    pauses: int
    paused_s: float
    device_s: float
    finished_at: int | None
    result: Result | None
    result_files: tuple[str, ...]
    cleared: bool

    @classmethod
    def of(cls, row: sa.Row[Any]) -> Job:
        """From a whole row."""
        values = {field.name: getattr(row, field.name) for field in fields(cls)}
        values["status"] = Status(row.status)
        values["wanted"] = Control(row.wanted)
        values["result"] = None if row.result is None else Result.model_validate(row.result)
        values["plan"] = None if row.plan is None else Plan.model_validate(row.plan)
        values["result_files"] = tuple(row.result_files)
        return cls(**values)

    @property
    def over(self) -> bool:
        """Whether it has ended for good."""
        return self.status in OVER


@dataclass(frozen=True, slots=True)
class Event:
    """A row of `events`."""

    job: str
    number: int
    at: float
    level: str
    type: str
    message: str
    data: dict[str, Any]

    @property
    def id(self) -> str:
        """Of this event alone, over all jobs."""
        return f"ftevent-{self.job.removeprefix('ftjob-')}-{self.number}"


@dataclass(frozen=True, slots=True)
class CheckpointRow:
    """A row of `checkpoints`."""

    job: str
    step: int
    at: float
    metrics: dict[str, Any]

    @property
    def id(self) -> str:
        """Of this checkpoint alone, over all jobs."""
        return f"ftckpt-{self.job.removeprefix('ftjob-')}-{self.step}"
