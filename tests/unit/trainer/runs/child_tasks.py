"""A kind of run for the tests of child runs, and its worker: a task starts tasks of the same kind, in rounds, and waits
for each round.

    python child_tasks.py DIRECTORY --stage split | between | finish
"""

from __future__ import annotations

import sys
import time
from collections.abc import Collection, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from trainer.errors import TooManyRequests
from trainer.runs import protocol
from trainer.runs.directory import RunDirectory
from trainer.runs.kind import Abort, AbortCause, Advance, Kind, RunDraft, RunOutcome, Stage, Wait
from trainer.runs.protocol import DONE, PAUSED, Control, Failure, Frozen, RunResult
from trainer.runs.state import Run, Status

SPLIT, FINISH = Stage("split", Status.VALIDATING), Stage("finish", Status.QUEUED)
BETWEEN = Stage("between", Status.LABELLING)
PARTS = "parts.json"
POLL_S = 0.02


class Task(Frozen):
    """The task.

    Attributes:
        number: Which one it is.
        parts: Its child tasks, in rounds: each round starts when the one before has ended.
        hold: The worker of its last stage waits until this file exists.
        deaf: It does not look at what is asked of it meanwhile, as in a long step of a training.
        between: So does the one between two rounds, of a kind that has it.
    """

    number: int = 0
    parts: tuple[tuple[Task, ...], ...] = ()
    hold: Path | None = None
    deaf: bool = False
    between: Path | None = None


class TaskKind(Kind[RunResult]):
    name, id_prefix, noun, display_name, param = "task", "task", "task", "task", "task_id"
    too_many = TooManyRequests
    stages = (SPLIT, FINISH)
    cancel_patience_s = 120.0
    result = RunResult

    def task(self, run_id: str) -> Task:
        found = self.directories.read(run_id, protocol.SPEC, Task)
        assert found is not None
        return found

    def next_stage(self, run: Run) -> Stage:
        return FINISH if "rounds" in run.details else SPLIT

    def progress(self, run_id: str) -> str:
        return str(self.directories.read_bytes(run_id, PARTS) is not None)

    async def stage_ended(
        self, run: Run, stage: Stage, working: Collection[int]
    ) -> Advance | Wait | RunOutcome[RunResult] | None:
        if self.directories.read_bytes(run.id, PARTS) is None:
            return None
        return self._round(run.id, 0)

    async def children_ended(self, run: Run, children: Sequence[Run]) -> Advance | Wait | RunOutcome[RunResult]:
        if any(child.status is not Status.SUCCEEDED for child in children):
            failure = Failure(code="child_failed", message="a part did not succeed")
            return RunOutcome(RunResult(status="failed", error=failure), failure.message)
        return self._round(run.id, run.details["rounds"])

    def _round(self, run_id: str, number: int) -> Advance | Wait:
        rounds = self.task(run_id).parts
        details = {"rounds": number + 1}
        if number >= len(rounds):
            return Advance(("all parts are there",), details)
        return Wait(tuple(self.draft(part) for part in rounds[number]), ("split",), details)

    def draft(self, part: Task) -> RunDraft:
        return RunDraft(self.name, self.new_id(), part, part.model_dump(mode="json"), (), {})

    def abort_run(self, run: Run, abort: Abort) -> RunOutcome[RunResult]:
        status: Any = "cancelled" if abort.cause is AbortCause.CANCELLED else "failed"
        return RunOutcome(RunResult(status=status), status)


class BetweenKind(TaskKind):
    """Tasks that have a worker again between two rounds, as a ladder has to ask a teacher."""

    stages = (SPLIT, BETWEEN, FINISH)

    def next_stage(self, run: Run) -> Stage:
        return BETWEEN if run.details.get("between") else super().next_stage(run)

    async def stage_ended(
        self, run: Run, stage: Stage, working: Collection[int]
    ) -> Advance | Wait | RunOutcome[RunResult] | None:
        if stage is not BETWEEN:
            return await super().stage_ended(run, stage, working)
        following = self._round(run.id, run.details.get("rounds", 0))
        return replace(following, details=following.details | {"between": False})

    async def children_ended(self, run: Run, children: Sequence[Run]) -> Advance | Wait | RunOutcome[RunResult]:
        return Advance(("between two rounds",), {"between": True})


def work(directory: RunDirectory, stage: str) -> int:
    task = directory.read(protocol.SPEC, Task)
    assert task is not None
    if stage == SPLIT.name:
        directory.write(PARTS, task)
        return DONE
    if stage == BETWEEN.name:
        while task.between is not None and not task.between.exists():
            time.sleep(POLL_S)
        return DONE
    while task.hold is not None and not task.hold.exists():
        if task.deaf:
            time.sleep(POLL_S)
            continue
        if directory.control() is Control.PAUSE:
            return PAUSED
        if directory.control() is Control.CANCEL:
            directory.write(protocol.RESULT, RunResult(status="cancelled"))
            return DONE
        time.sleep(POLL_S)
    directory.write(protocol.RESULT, RunResult(status="succeeded"))
    return DONE


if __name__ == "__main__":
    with RunDirectory(Path(sys.argv[1])) as opened:
        code = work(opened, sys.argv[3])
    sys.exit(code)
