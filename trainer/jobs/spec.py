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
    JOBS/ID/pushed.json     Result as it will be, once the version is there and before it is judged
    JOBS/ID/judging.json    what is compared with what, fixed when the judging begins
    JOBS/ID/held_out_questions.jsonl, answers.jsonl, scores.jsonl   the judging, as far as it is
    JOBS/ID/evaluation.json, evaluation.html   the report
    JOBS/ID/kept.json       ids of the report's files at the gateway
    JOBS/ID/judged.json     the verdict, once it stands on the version
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
PUSHED: Final = "pushed.json"
JUDGING: Final = "judging.json"
ANSWERS: Final = "answers.jsonl"
SCORES: Final = "scores.jsonl"
KEPT: Final = "kept.json"
JUDGED: Final = "judged.json"
RESULT: Final = "result.json"

# A worker's exit codes; `worker` says what each means.
DONE: Final = 0
FAILED: Final = 1
PAUSED: Final = 4
STOPPED: Final = 5
BUSY: Final = 6
FULL: Final = 7


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


class JudgingWish(_Frozen):
    """How the adapter is judged once it is there. ``metric`` (and what it needs) is None where the data choose it."""

    promote: Literal["auto", "never"] = "auto"
    metric: str | None = None
    pattern: str | None = None
    json_schema: dict[str, Any] | None = None
    suites: tuple[str, ...] = ("general",)
    judge: str | None = None
    min_examples: int = 30
    smallest_difference: float = 0.02
    forget_accuracy: float = 0.05
    forget_perplexity: float = 1.0
    most_examples: int = 300
    concurrency: int = 8
    repeats: int = 2


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
    dtype: str = "bfloat16"
    """What the engine computes in."""
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
    judging: JudgingWish = JudgingWish()


class Primary(_Frozen):
    """The metric that will decide: fixed by the training examples or by the client, before anything is trained.

    ``answers``: the closed set that the base is told, too, where there is one; ``max_tokens``: longest answer that is
    asked for, twice the longest that was taught.
    """

    name: str
    pattern: str | None = None
    json_schema: dict[str, Any] | None = None
    why: str
    answers: tuple[str, ...] = ()
    max_tokens: int


class Plan(_Frozen):
    """What is trained: the whole recipe, in words what was chosen and why, and by what it will be judged.

    ``grounding``: the parent version's setting, which the new version takes over.
    """

    recipe: Recipe
    chosen: dict[str, str]
    system_prompt: str | None
    grounding: dict[str, Any] | None = None
    tokens_an_epoch: int
    seconds_expected: float | None = None
    primary: Primary | None = None


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
    """… while it is judged: stage, done, total; and of the verdict's event: verdict, metric, examples."""


class Failure(_Frozen):
    """OpenAI's `error` of a job: what happened, and what to do about it."""

    code: str
    message: str
    param: str | None = None


class Judged(_Frozen):
    """The verdict on a job's version. ``live``: whether `live` points to it since."""

    verdict: Literal["pass", "fail", "not_enough_evidence"]
    sentence: str
    metric: str
    examples: int
    live: bool = False


class Result(_Frozen):
    """How a job ended. Losses in nats per trained token, `cost` in the currency of the price.

    A worker says `seconds` and `cost` of the training; on record are those of the device (`trainer.jobs.endings`).
    """

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
    judged: Judged | None = None
    """None where it could not be judged: an event says why."""
    files: tuple[str, ...] = ()
    """Ids of the report's files at the gateway."""
