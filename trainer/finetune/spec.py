"""A fine-tuning job as its worker knows it, and what its run directory holds beside `trainer.runs.protocol`'s files.

JOBS/ID/spec.json       JobSpec
JOBS/ID/training.jsonl, held_out.jsonl   the data, fetched from the gateway
JOBS/ID/report.json     the quality report
JOBS/ID/plan.json       Plan: the recipe with nothing left open, and what was chosen why
JOBS/ID/parent/         the version that is trained on from
JOBS/ID/checkpoints/    see trainer.tune.checkpoint
JOBS/ID/output/         the exported adapter
JOBS/ID/pushed.json     Result as it will be, once the version is there and before it is judged
JOBS/ID/judging.json    what is compared with what, fixed when the judging begins
JOBS/ID/held_out_questions.jsonl, answers.jsonl, scores.jsonl   the judging, as far as it is
JOBS/ID/evaluation.json, evaluation.html   the report
JOBS/ID/kept.json       ids of the report's files at the gateway
JOBS/ID/judged.json     the verdict, once it stands on the version
JOBS/ID/result.json     Result
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final, Literal

from pydantic import Field

from adapters.protocol.runs import FileRef
from trainer.evaluate.evaluations.spec import OperatorRules, VerdictRecord
from trainer.runs.protocol import Frozen, RunResult
from trainer.tune.recipe import Recipe
from trainer.tune.wish import Wish

TRAINING: Final = "training.jsonl"
HELD_OUT: Final = "held_out.jsonl"
REPORT: Final = "report.json"
PLAN: Final = "plan.json"
PARENT: Final = "parent"
CHECKPOINTS: Final = "checkpoints"
OUTPUT: Final = "output"
PUSHED: Final = "pushed.json"
JUDGING: Final = "judging.json"
JUDGED: Final = "judged.json"

WORKER: Final = "trainer.finetune.worker"
"""The module that starts a worker."""
VALIDATE: Final = "validate"
TRAIN: Final = "train"
"""The stages: to look at the data alone, and to do the job."""


class JudgingWish(OperatorRules):
    """How the adapter is judged once it is there. ``metric`` (and what it needs) is None where the data choose it."""

    promote: Literal["auto", "never"] = "auto"
    metric: str | None = None
    pattern: str | None = None
    json_schema: dict[str, Any] | None = None
    suites: tuple[str, ...] = ("general",)
    judge: str | None = None


class JobSpec(Frozen):
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
    metadata: dict[str, str] = Field(default_factory=dict)
    device: str = "auto"
    checkpoint_s: float = 60.0
    price_per_hour: float = 0.0
    """Of the device, in the operator's currency."""
    yield_above: int = 0
    """The worker pauses between steps while more callers' requests than this are waiting or in flight …"""
    yield_most_s: float = 30.0
    """… for at most this long at a time."""
    judging: JudgingWish = JudgingWish()


class Primary(Frozen):
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


class Plan(Frozen):
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


class Result(RunResult):
    """How a job ended. Losses in nats per trained token, `cost` in the currency of the price.

    A worker says `seconds` and `cost` of the training; on record are those of the device (`trainer.finetune.kind`).
    """

    fine_tuned_model: str | None = None
    """`name@version`."""
    digest: str | None = None
    trained_tokens: int = 0
    seconds: float = 0.0
    device: str = ""
    cost: float = 0.0
    final_loss: float | None = None
    judged: VerdictRecord | None = None
    """None where it could not be judged: an event says why."""
    files: tuple[str, ...] = ()
    """Ids of the report's files at the gateway."""


class JobDetails(Frozen):
    """What a fine-tuning job adds to the record of a run. ``report`` is the quality report in short."""

    adapter: str
    seed: int
    device: str
    plan: Plan | None = None
    """Once the data were looked at."""
    report: dict[str, Any] | None = None
    result_files: tuple[str, ...] = ()
