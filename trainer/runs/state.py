"""The statuses of a run, and the rows of the tables as dataclasses."""

from __future__ import annotations

from dataclasses import dataclass, fields
from enum import StrEnum
from typing import Any, Final

import sqlalchemy as sa

from adapters.authorization import Ownership, StoreNames
from trainer.runs.protocol import Control


class Status(StrEnum):
    """OpenAI's job statuses: validating_files → queued → running → succeeded | failed | cancelled; paused in between.

    A kind without a validation stage starts with queued. A run that waits for its child runs is ``waiting``, and one
    that asks a teacher ``labelling``: no API object shows these two (`Run.shown_status`)."""

    VALIDATING = "validating_files"
    QUEUED = "queued"
    RUNNING = "running"
    WAITING = "waiting"
    LABELLING = "labelling"
    PAUSED = "paused"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"


OVER: Final = frozenset({Status.SUCCEEDED, Status.FAILED, Status.CANCELLED})
UNDER_WAY: Final = frozenset({Status.VALIDATING, Status.QUEUED, Status.RUNNING, Status.WAITING, Status.LABELLING})


@dataclass(frozen=True, slots=True)
class Run:
    """A row of `runs`; see `tables` for what the columns mean. ``details`` and ``result`` are in the kind's schema."""

    number: int
    id: str
    kind: str
    project: str
    key_id: str
    run_key_id: str
    created_at: int
    body: dict[str, Any]
    adapters: tuple[str, ...]
    details: dict[str, Any]
    status: Status
    wanted: Control
    queued_at: float
    looked_at: float
    served_at: float
    interrupted: bool
    not_before: float
    kills: int
    progress: str
    events_offset: int
    next_event: int
    estimated_finish: int | None
    pauses: int
    paused_s: float
    device_s: float
    finished_at: int | None
    result: dict[str, Any] | None
    cleared: bool
    parent: str | None
    stores: tuple[StoreNames, ...] | None = None

    @classmethod
    def of(cls, row: sa.Row[Any]) -> Run:
        """From a complete row."""
        values = {field.name: getattr(row, field.name) for field in fields(cls)}
        values["status"] = Status(row.status)
        values["wanted"] = Control(row.wanted)
        values["adapters"] = tuple(row.adapters)
        values["stores"] = None if row.stores is None else tuple(tuple(names) for names in row.stores)
        return cls(**values)

    @property
    def ownership(self) -> Ownership:
        """What decides who may see it."""
        return Ownership(self.project, self.adapters, self.stores, self.key_id)

    @property
    def over(self) -> bool:
        """Whether the run has ended for good."""
        return self.status in OVER

    @property
    def shown_status(self) -> Status:
        """The status for clients: a run that waits for its child runs is running, or paused as they are; so is one that
        asks a teacher."""
        if self.status is Status.LABELLING:
            return Status.RUNNING
        if self.status is not Status.WAITING:
            return self.status
        return Status.PAUSED if self.wanted is Control.PAUSE else Status.RUNNING


@dataclass(frozen=True, slots=True)
class Event:
    """A row of `events`."""

    run: str
    number: int
    at: float
    level: str
    type: str
    message: str
    data: dict[str, Any]


@dataclass(frozen=True, slots=True)
class CheckpointRow:
    """A row of `checkpoints`."""

    run: str
    step: int
    at: float
    metrics: dict[str, Any]
