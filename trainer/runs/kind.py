"""What a kind of run adds to the runner: its name, its stages, its result, and what its runs leave behind."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any, ClassVar, Final, Generic, Literal, TypeVar

from trainer.errors import TooMany
from trainer.runs.directories import RunDirectories
from trainer.runs.process import Command, End
from trainer.runs.protocol import RunResult
from trainer.runs.records import Turn
from trainer.runs.state import Run, Status

R = TypeVar("R", bound=RunResult)
UNSEEN: Final = End(None)
Level = Literal["info", "warn", "error"]


@dataclass(frozen=True, slots=True)
class Stage:
    """One part of a run, done by a worker of its own. At each stage of a kind one worker runs at a time.

    Attributes:
        name: As the worker's command line has it.
        waits_as: The state of a run that waits for its turn at this stage.
        turn: The column that says when a run last had its turn.
        on_device: Whether the worker has the training device: its time is counted, and its memory will be free for
            the next one.
    """

    name: str
    waits_as: Status
    turn: Turn = "served_at"
    on_device: bool = False


class Cause(StrEnum):
    """Why a run is ended though its worker left no result."""

    CANCELLED = "cancelled"
    DISK_FULL = "disk full"
    GIVEN_UP = "given up"
    """Its workers died several times in a row without progress."""


@dataclass(frozen=True, slots=True)
class Cut:
    """A run that is ended though its worker left no result.

    Attributes:
        cause: Why.
        end: How the last worker ended.
        times: How often in a row a worker died without progress.
        for_memory: The kernel has killed some process for want of memory while the last one ran.
    """

    cause: Cause
    end: End = UNSEEN
    times: int = 0
    for_memory: bool = False


@dataclass(frozen=True, slots=True)
class Ending(Generic[R]):
    """How a run ends, and the last event, where its worker has written none."""

    result: R
    message: str | None = None
    level: Level = "info"


@dataclass(frozen=True, slots=True)
class Advance:
    """A stage that is not the last has ended well: the run waits for its turn at the next one.

    Attributes:
        notes: Events, in their order.
        details: What changes of the run's details.
    """

    notes: tuple[str, ...] = ()
    details: dict[str, Any] = field(default_factory=dict)


class Kind(ABC, Generic[R]):
    """One kind of run. Whatever it reads or writes in a directory of a run it does on another thread.

    Args:
        directories: Where its runs are.
        command: The command line of its workers.
    """

    name: ClassVar[str]
    """As the table of runs has it; a released one never changes."""
    noun: ClassVar[str]
    """What messages call a run."""
    described: ClassVar[str]
    """The same where it stands alone."""
    param: ClassVar[str]
    """The name of a run's id in an error's `param`."""
    too_many: ClassVar[type[TooMany]]
    """The error where a project has too many runs that are not over."""
    stages: ClassVar[tuple[Stage, ...]]
    """In their order; the last one's worker leaves the result."""
    cancel_patience_s: ClassVar[float]
    """A worker that has not ended so long after it was told to is killed: nobody wants what it does."""
    signs: ClassVar[tuple[str, ...]] = ()
    """Files that a worker on the device writes to again and again: the last of them says when it had the device."""
    result: type[R]

    def __init__(self, directories: RunDirectories, command: Command) -> None:
        self.directories = directories
        self.command = command

    def next_stage(self, run_id: str) -> Stage:
        """The stage that a paused run goes on with."""
        return self.stages[0]

    async def prepare(self, run: Run, stage: Stage) -> None:
        """Leave in a run's directory what its worker must know. Raises OSError."""
        return

    def started(self, run: Run, stage: Stage) -> str | None:
        """The event of a worker's start."""
        return None

    @abstractmethod
    def progress(self, run_id: str) -> str:
        """Progress token: changes after each durable step. Reads the directory."""

    def restart_point(self, progress: str) -> str:
        """Where a run goes on from, in words, by its progress token."""
        return "the beginning"

    async def stage_ended(self, run: Run, stage: Stage, working: Collection[int]) -> Advance | Ending[R] | None:
        """What follows from the end of a stage before the last; None where its worker left nothing.

        Args:
            working: Process ids of the workers that have the device.
        """
        raise AssertionError(f"a run of the kind {self.name} has no stage before its last")

    @abstractmethod
    def cut_short(self, run: Run, cut: Cut) -> Ending[R]:
        """How a run ends whose worker left no result. Reads the directory."""

    async def conclude(self, run: Run, result: R) -> tuple[R, dict[str, Any]]:
        """Take in what an ended run has left, before it is on record as over. Doing it again is no harm.

        Returns:
            The result as it will be on record, and what changes of the run's details.
        """
        return result, {}

    def directory(self, run: Run) -> Path:
        """The run's directory."""
        return self.directories.of(run.id)
