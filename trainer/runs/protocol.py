"""How the trainer and a run's worker communicate: through files in the run's directory.

    RUNS/ID/spec.json       what to do, in the kind's own schema; written once, by the trainer
    RUNS/ID/key             the API key that the worker uses at the gateway (mode 0600)
    RUNS/ID/key.shared      exists if the key is that of the run's parent, which must outlive this run
    RUNS/ID/control         run, pause or cancel, written by the trainer; the worker reads it before every step
    RUNS/ID/worker.lock     held (flock) by the worker while it runs; contains its process id
    RUNS/ID/worker.log      stdout and stderr of the worker's process
    RUNS/ID/events.jsonl    WorkerEvent lines, appended by the worker, read by the trainer
    RUNS/ID/result.json     the result, in the kind's own schema; written once, at the end

All other files belong to the kind. A worker skips a step whose output file exists: that is how a run resumes after a
crash. Workers and directories of older trainers are adopted, so none of these names may change.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Any, ClassVar, Final, Literal

from pydantic import BaseModel, ConfigDict

SPEC: Final = "spec.json"
KEY: Final = "key"
SHARED_KEY: Final = "key.shared"
CONTROL: Final = "control"
LOCK: Final = "worker.lock"
LOG: Final = "worker.log"
OLD_LOG: Final = "worker.log.1"
EVENTS: Final = "events.jsonl"
RESULT: Final = "result.json"

# A worker's exit codes
DONE: Final = 0
"""The result is in result.json; after a stage other than the last, the output is in that stage's files."""
FAILED: Final = 1
"""The worker could not write its result."""
PAUSED: Final = 4
STOPPED: Final = 5
"""Stopped by SIGTERM; to be started again."""
BUSY: Final = 6
"""Another worker holds the run's lock."""
FULL: Final = 7
"""The disk is full, and the result could not be written."""


class Frozen(BaseModel):
    """An immutable model that rejects unknown fields."""

    model_config: ClassVar[ConfigDict] = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Control(StrEnum):
    """What the trainer asks of the worker."""

    RUN = "run"
    PAUSE = "pause"
    CANCEL = "cancel"


class WorkerEvent(Frozen):
    """One event of a run.

    ``data`` of a `metrics` event: step, total_steps, epoch, train_loss, train_mean_token_accuracy, learning_rate,
    tokens_per_s, seconds_left, memory_bytes, ends_epoch (true if a checkpoint was written), and where the validation
    part is measured (without one: at the end of an epoch, on the held-out examples) valid_loss, full_valid_loss,
    valid_mean_token_accuracy and full_valid_mean_token_accuracy; of DPO, `reward_accuracy` stands for
    `mean_token_accuracy` in all of these names. ``data`` during the judging:
    stage, done, total. ``data`` of the verdict's event: verdict, metric, examples. ``data`` of the event of a worker
    that stands still: waits_for (`live_traffic` or `gateway`); it goes on when another event follows. ``data`` of a
    `charge`: an `OutsideCharge`; it is added to the costs and is no event of the run.
    """

    at: float
    """Unix seconds."""
    level: Literal["info", "warn", "error"] = "info"
    type: Literal["message", "metrics", "charge"] = "message"
    message: str
    data: dict[str, Any] = {}


class OutsideCharge(Frozen):
    """What one answered request to an endpoint outside cost.

    Attributes:
        endpoint: Its name in the operator's settings.
        money: At the settings' prices; None if they are not set, or if the endpoint did not tell its usage.
    """

    endpoint: str
    prompt_tokens: int
    completion_tokens: int
    money: float | None


class Failure(Frozen):
    """OpenAI's `error` of a job: what happened, and what to do about it."""

    code: str
    message: str
    param: str | None = None


class RunResult(Frozen):
    """The fields that the results of all kinds of run share."""

    status: Literal["succeeded", "failed", "cancelled"]
    error: Failure | None = None
