"""An evaluation's states, and an evaluation as it stands in the records."""

from __future__ import annotations

from dataclasses import dataclass, fields
from enum import StrEnum
from typing import Any, Final

import sqlalchemy as sa

from trainer.evaluations.spec import EvaluationResult
from trainer.jobs.spec import Control


class Status(StrEnum):
    """queued → running → succeeded | failed | cancelled."""

    QUEUED = "queued"
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"


OVER: Final = frozenset({Status.SUCCEEDED, Status.FAILED, Status.CANCELLED})
UNDER_WAY: Final = frozenset({Status.QUEUED, Status.RUNNING})


@dataclass(frozen=True, slots=True)
class Evaluation:
    """A row of `evaluations`; see `tables` for what the columns mean."""

    number: int
    id: str
    project: str
    key_id: str
    job_key_id: str
    created_at: int
    body: dict[str, Any]
    arms: list[dict[str, Any]]
    status: Status
    wanted: Control
    queued_at: float
    served_at: float
    interrupted: bool
    not_before: float
    kills: int
    progress: str
    finished_at: int | None
    result: EvaluationResult | None
    cleared: bool

    @classmethod
    def of(cls, row: sa.Row[Any]) -> Evaluation:
        """From a whole row."""
        values = {field.name: getattr(row, field.name) for field in fields(cls)}
        values["status"] = Status(row.status)
        values["wanted"] = Control(row.wanted)
        values["result"] = None if row.result is None else EvaluationResult.model_validate(row.result)
        return cls(**values)

    @property
    def over(self) -> bool:
        """Whether it has ended for good."""
        return self.status in OVER
