"""What the trainer and a job's worker say to each other, in files of the job's folder.

    JOBS/ID/spec.json       JobSpec: what is to be done; written once, by the trainer
    JOBS/ID/key             the key that the job shows the gateway (mode 0600)
    JOBS/ID/control         one word, by the trainer: run, pause or cancel; the worker looks before every step
    JOBS/ID/worker.lock     held (flock) by the worker as long as it lives, its process id inside
    JOBS/ID/events.jsonl    WorkerEvent lines, appended by the worker, read by the trainer
    JOBS/ID/training.jsonl, held_out.jsonl   the data, fetched from the gateway
    JOBS/ID/report.json     the quality report
    JOBS/ID/plan.json       Plan: the recipe with nothing left open, and what was chosen why
    JOBS/ID/checkpoints/    see trainer.tune.checkpoint
    JOBS/ID/output/         the exported adapter
    JOBS/ID/result.json     Result: written once, at the end

A worker that finds a step's file there does not do that step again: that is how a job goes on after a crash.
"""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Any, ClassVar, Final, Literal

from pydantic import BaseModel, ConfigDict

from trainer.tune.recipe import Recipe
from trainer.tune.wish import Wish

SPEC: Final = "spec.json"
KEY: Final = "key"
CONTROL: Final = "control"
LOCK: Final = "worker.lock"
EVENTS: Final = "events.jsonl"
TRAINING: Final = "training.jsonl"
HELD_OUT: Final = "held_out.jsonl"
REPORT: Final = "report.json"
PLAN: Final = "plan.json"
CHECKPOINTS: Final = "checkpoints"
OUTPUT: Final = "output"
RESULT: Final = "result.json"

# A worker's exit codes; `worker` says what each means.
DONE: Final = 0
FAILED: Final = 1
PAUSED: Final = 4
STOPPED: Final = 5
BUSY: Final = 6


class Control(StrEnum):
    """What the trainer wants of the worker."""

    RUN = "run"
    PAUSE = "pause"
    CANCEL = "cancel"


class Stage(StrEnum):
    """How a worker is started: to look at the data alone, or to do the job."""

    VALIDATE = "validate"
    TRAIN = "train"


class _Frozen(BaseModel):
    model_config: ClassVar[ConfigDict] = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class FileRef(_Frozen):
    """A file of the gateway's `/v1/files`."""

    id: str
    filename: str
    bytes: int
    sha256: str


class JobSpec(_Frozen):
    """One job. Everything that its creator was allowed to name has been checked by the gateway."""

    id: str
    project: str
    created_at: int
    gateway: str
    """The gateway's URL."""
    adapter: str
    """The name that the result is pushed under."""
    base_dir: Path
    base_name: str
    max_rank: int
    """What the engine was started with: a higher rank could not be served."""
    context: int | None
    """The engine's context in tokens."""
    parent: str | None = None
    """`name@version` to train on from; its files are fetched over HTTP."""
    training_file: FileRef
    validation_file: FileRef | None = None
    wish: Wish
    seed: int
    system_prompt: str | None = None
    strict: bool = False
    drop_long: bool = False
    metadata: dict[str, str] = {}
    device: str = "auto"
    checkpoint_s: float = 60.0
    price_per_hour: float = 0.0
    """Of the device, in the operator's currency."""
    yield_above: int = 0
    """The worker pauses between steps while more callers' requests than this are waiting or in flight …"""
    yield_most_s: float = 30.0
    """… for at most this long at a time."""


class Plan(_Frozen):
    """What is trained: the whole recipe, and in words what was chosen and why."""

    recipe: Recipe
    chosen: dict[str, str]
    system_prompt: str | None
    tokens_an_epoch: int
    seconds_expected: float | None = None


class WorkerEvent(_Frozen):
    """One event of a job.

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


class Failure(_Frozen):
    """OpenAI's `error` of a job: what happened, and what to do about it."""

    code: str
    message: str
    param: str | None = None


class Result(_Frozen):
    """How a job ended. Losses in nats per trained token, `cost` in the currency of the price."""

    status: Literal["succeeded", "failed", "cancelled"]
    error: Failure | None = None
    fine_tuned_model: str | None = None
    """`name@version`."""
    digest: str | None = None
    trained_tokens: int = 0
    seconds: float = 0.0
    device: str = ""
    cost: float = 0.0
    final_loss: float | None = None
