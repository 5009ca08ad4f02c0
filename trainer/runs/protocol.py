"""What the trainer and a run's worker say to each other, in files of the run's directory.

    RUNS/ID/spec.json       what is to be done, in the kind's own schema; written once, by the trainer
    RUNS/ID/key             the key that the worker shows the gateway (mode 0600)
    RUNS/ID/control         one word, by the trainer: run, pause or cancel; the worker looks before every step
    RUNS/ID/worker.lock     held (flock) by the worker as long as it lives, its process id inside
    RUNS/ID/worker.log      what the worker's process writes to its standard streams
    RUNS/ID/events.jsonl    WorkerEvent lines, appended by the worker, read by the trainer
    RUNS/ID/result.json     how it ended, in the kind's own schema; written once, at the end

What else is in it is the kind's. A worker that finds a step's file there does not do that step again: that is how a
run goes on after a crash. An older trainer's worker may be at a run, and an older trainer's directories are adopted:
none of these names may change.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Any, ClassVar, Final, Literal

from pydantic import BaseModel, ConfigDict

SPEC: Final = "spec.json"
KEY: Final = "key"
CONTROL: Final = "control"
LOCK: Final = "worker.lock"
LOG: Final = "worker.log"
OLD_LOG: Final = "worker.log.1"
EVENTS: Final = "events.jsonl"
RESULT: Final = "result.json"

# A worker's exit codes.
DONE: Final = 0
"""See result.json; after a stage that is not the last, what that stage leaves."""
FAILED: Final = 1
"""It could not even write its result."""
PAUSED: Final = 4
STOPPED: Final = 5
"""Told to stop (SIGTERM), to be started again."""
BUSY: Final = 6
"""Another worker has the run."""
FULL: Final = 7
"""The disk is so full that it could not write its result."""


class Frozen(BaseModel):
    """A record that never changes and has no field that is not its own."""

    model_config: ClassVar[ConfigDict] = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Control(StrEnum):
    """What the trainer wants of the worker."""

    RUN = "run"
    PAUSE = "pause"
    CANCEL = "cancel"


class WorkerEvent(Frozen):
    """One event of a run.

    ``data`` of a `metrics` event: step, total_steps, epoch, train_loss, train_mean_token_accuracy, learning_rate,
    tokens_per_s, seconds_left, memory_bytes, ends_epoch (then a checkpoint was written), and where something is held
    out, at an epoch's end, full_valid_loss and full_valid_mean_token_accuracy.
    """

    at: float
    """Unix seconds."""
    level: Literal["info", "warn", "error"] = "info"
    type: Literal["message", "metrics"] = "message"
    message: str
    data: dict[str, Any] = {}
    """… while it is judged: stage, done, total; and of the verdict's event: verdict, metric, examples."""


class Failure(Frozen):
    """OpenAI's `error` of a run: what happened, and what to do about it."""

    code: str
    message: str
    param: str | None = None


class RunResult(Frozen):
    """How a run ended: what the results of all kinds have."""

    status: Literal["succeeded", "failed", "cancelled"]
    error: Failure | None = None
