"""The interface of a kind of run: its name, stages, result, and what happens when its workers exit."""

from __future__ import annotations

import secrets
import time
from abc import ABC, abstractmethod
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any, ClassVar, Final, Generic, Literal, TypeVar

from pydantic import BaseModel

from adapters.authorization import StoreNames
from trainer.errors import TooManyRequests
from trainer.installation import BaseGone
from trainer.runs.activity import Activity
from trainer.runs.directories import RunDirectories
from trainer.runs.failures import DISK_FULL
from trainer.runs.process import Command, WorkerExit
from trainer.runs.protocol import Failure, RunResult
from trainer.runs.records import NewRun, TurnColumn
from trainer.runs.state import Run, Status

R = TypeVar("R", bound=RunResult)
UNKNOWN_EXIT: Final = WorkerExit(None)
Level = Literal["info", "warn", "error"]


@dataclass(frozen=True, slots=True)
class Stage:
    """One part of a run, done by its own worker process. One worker per stage of a kind runs at a time.

    Attributes:
        name: The value of `--stage` on the worker's command line.
        waits_as: The status of a run that waits for this stage.
        turn: The column with the time at which a run last started this stage.
        on_device: Whether the worker uses the training device: its time is counted, and the memory that it holds
            will be free for the next worker.
    """

    name: str
    waits_as: Status
    turn: TurnColumn = "served_at"
    on_device: bool = False


class AbortCause(StrEnum):
    """Why a run ends without a result from its worker."""

    CANCELLED = "cancelled"
    DISK_FULL = "disk full"
    BASE_GONE = "base gone"
    """The base that it trains is not served any more."""
    GIVEN_UP = "given up"
    """Its workers died several times in a row without progress."""


@dataclass(frozen=True, slots=True)
class Abort:
    """The end of a run whose worker left no result.

    Attributes:
        cause: Why it ends.
        end: How the last worker exited.
        times: How often in a row a worker died without progress.
        out_of_memory: Whether the kernel killed a process for lack of memory while the last worker ran.
        message: Says more, where the base is gone.
    """

    cause: AbortCause
    end: WorkerExit = UNKNOWN_EXIT
    times: int = 0
    out_of_memory: bool = False
    message: str = ""

    @property
    def failure(self) -> Failure | None:
        """The error of a run that ends for a reason that has nothing to do with its kind; None: the kind knows more."""
        if self.cause is AbortCause.DISK_FULL:
            return DISK_FULL
        return Failure(code=BaseGone.code, message=self.message) if self.cause is AbortCause.BASE_GONE else None


@dataclass(frozen=True, slots=True)
class RunOutcome(Generic[R]):
    """The result of a run that ends, and its last event if its worker has not written it."""

    result: R
    message: str | None = None
    level: Level = "info"


def abort_without_output(result: type[R], abort: Abort, *, cancelled: str, given_up: str) -> RunOutcome[R]:
    """The outcome of an aborted run that leaves nothing of use behind.

    Args:
        result: The kind's schema.
        cancelled, given_up: The messages of its last event, by the cause.
    """
    if abort.cause is AbortCause.CANCELLED:
        return RunOutcome(result(status="cancelled"), cancelled)
    failure = abort.failure or Failure(code="worker_killed", message=given_up)
    return RunOutcome(result(status="failed", error=failure), failure.message)


@dataclass(frozen=True, slots=True)
class Advance:
    """A stage other than the last has succeeded, and the run joins the queue of the next one.

    Attributes:
        notes: Messages of the events to record, in order.
        details: Updates to the run's details.
    """

    notes: tuple[str, ...] = ()
    details: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class RunDraft:
    """A run that is to be created, for a caller or as a child run of another one.

    Attributes:
        kind: The name of its kind.
        id: New, from its kind's `new_id`.
        spec: What its worker is to do, in the kind's schema.
        body: The request, as it is recorded.
        adapters: The names of the adapters that it is about.
        stores: The vector stores whose passages it may show; None: not known.
        details: In the kind's schema.
        trackers: The operator's experiment trackers that follow it.
    """

    kind: str
    id: str
    spec: BaseModel
    body: dict[str, Any]
    adapters: tuple[str, ...]
    details: dict[str, Any]
    trackers: tuple[str, ...] = ()
    stores: tuple[StoreNames, ...] | None = ()

    def new_run(
        self, status: Status, *, project: str, key_id: str, run_key_id: str, parent: str | None = None
    ) -> NewRun:
        """What is recorded of the run when it is created now. ``status``: its first."""
        return NewRun(
            id=self.id,
            kind=self.kind,
            project=project,
            key_id=key_id,
            run_key_id=run_key_id,
            created_at=int(time.time()),
            body=self.body,
            adapters=self.adapters,
            stores=self.stores,
            details=self.details,
            status=status,
            parent=parent,
            trackers=self.trackers,
        )


@dataclass(frozen=True, slots=True)
class Wait:
    """A run starts child runs and waits for them, without a worker.

    Attributes:
        children: At least one. Each gets its parent's project, creator and key.
        notes: Messages of the events to record, in order.
        details: Updates to the run's details.
    """

    children: tuple[RunDraft, ...]
    notes: tuple[str, ...] = ()
    details: dict[str, Any] = field(default_factory=dict)


class Kind(ABC, Generic[R]):
    """One kind of run. Its coroutines access run directories on another thread only.

    Args:
        directories: The directories of its runs.
        command: Gives the command line of its workers.
    """

    name: ClassVar[str]
    """The value of the `kind` column; never change a released one."""
    id_prefix: ClassVar[str]
    """What its runs' ids begin with."""
    noun: ClassVar[str]
    """How messages name a run: "the job `ftjob-1`"."""
    display_name: ClassVar[str]
    """The full name, for messages without context: "no fine-tuning job"."""
    param: ClassVar[str]
    """The `param` of an error about a run's id."""
    too_many: ClassVar[type[TooManyRequests]]
    """The error raised if a project has too many unfinished runs."""
    stages: ClassVar[tuple[Stage, ...]]
    """In order; the worker of the last stage writes the result."""
    cancel_patience_s: ClassVar[float]
    """How long a cancelled worker may take to exit before it is killed, in seconds."""
    heartbeat_files: ClassVar[tuple[str, ...]] = ()
    """Files that a worker writes to regularly: the newest modification is its last sign of life on the device."""
    result: type[R]

    def __init__(self, directories: RunDirectories, command: Command) -> None:
        self.directories = directories
        self.command = command

    def new_id(self) -> str:
        """A new random id of a run."""
        return f"{self.id_prefix}-{secrets.token_hex(12)}"

    def next_stage(self, run: Run) -> Stage:
        """The stage at which a paused run resumes, and one whose child runs have ended goes on.

        It follows from what is recorded: an output in the directory says only that a worker has left it there, not that
        `stage_ended` has been called.
        """
        return self.stages[0]

    def created(self, run_id: str) -> str | None:
        """The message of the event that is recorded when a run is created for a caller; None for no event."""
        return None

    async def prepare(self, run: Run, stage: Stage) -> None:
        """Write what the worker needs into the run's directory. Raises OSError."""
        return

    def started(self, run: Run, stage: Stage) -> str | None:
        """The message of the event that is recorded when a worker starts; None for no event."""
        return None

    def judging_since(self, run_id: str) -> float | None:
        """Unix time since which a run's worker on the device has only judged; None: it has not, or its kind never does.
        May block."""
        return None

    @abstractmethod
    def progress(self, run_id: str) -> str:
        """Progress token: changes after each durable step. Reads the directory."""

    def restart_point(self, progress: str) -> str:
        """Where a run with this progress token resumes, as a phrase for messages."""
        return "the beginning"

    async def stage_ended(
        self, run: Run, stage: Stage, working: Collection[int]
    ) -> Advance | Wait | RunOutcome[R] | None:
        """What follows after a stage other than the last; None if its worker left no output. After a crash it may be
        called again.

        Args:
            working: Process ids of the workers that use the device.
        """
        raise AssertionError(f"kind {self.name} has one stage only")

    async def children_ended(self, run: Run, children: Sequence[Run]) -> Advance | Wait | RunOutcome[R]:
        """What follows when all child runs of a waiting run have ended. An `Advance` leads to `next_stage`. After a
        crash it may be called again.

        Args:
            children: All that the run ever started, oldest first.
        """
        raise AssertionError(f"kind {self.name} starts no child runs")

    @abstractmethod
    def abort_run(self, run: Run, abort: Abort) -> RunOutcome[R]:
        """The outcome of a run whose worker left no result. Reads the directory."""

    async def conclude(self, run: Run, result: R) -> tuple[R, dict[str, Any]]:
        """Process what a run has left in its directory before its end is recorded. Must be idempotent.

        Returns:
            The result to record, and updates to the run's details.
        """
        return result, {}

    def activity(self, run: Run, told: Activity) -> Activity:
        """What the run's worker does now; ``told`` is what its events say. Reads the directory."""
        return told

    def ending(self, run: Run, result: R) -> tuple[str, dict[str, Any]]:
        """What the operator's webhook tells of a run that has ended: what it was, as the beginning of the event's
        type, and names and outcomes. Nothing of its data."""
        return self.noun, {}

    def directory(self, run: Run) -> Path:
        """The run's directory."""
        return self.directories.path_of(run.id)


AnyKind = Kind[Any]
