"""The spec, plan and result of a fine-tuning job, and the files of its directory beside `trainer.runs.protocol`'s.

JOBS/ID/spec.json       JobSpec
JOBS/ID/training.jsonl, held_out.jsonl   the data from the gateway
JOBS/ID/report.json     the quality report
JOBS/ID/plan.json       TrainingPlan: the complete recipe, and the reasons for automatic choices
JOBS/ID/parent/         the version that the training starts from
JOBS/ID/checkpoints/    see trainer.tune.checkpoint
JOBS/ID/output/         the exported adapter
JOBS/ID/pushed.json     JobResult without the verdict, once the version is registered, and again with each checkpoint
JOBS/ID/judging.json    the comparison, fixed when the judging starts
JOBS/ID/held_out_questions.jsonl, answers.jsonl, scores.jsonl   the judging so far
JOBS/ID/evaluation.json, evaluation.html   the report
JOBS/ID/kept.json       ids of the report's files at the gateway
JOBS/ID/judged.json     the verdict, once it is recorded on the version
JOBS/ID/result.json     JobResult
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final, Literal

from pydantic import Field

from adapters.dataset.held_out import SHARE
from adapters.protocol.requests import Overflow
from adapters.protocol.runs import FileRef
from trainer.evaluate.evaluations.spec import OperatorRules, VerdictRecord
from trainer.runs.protocol import Frozen, RunResult
from trainer.tune.hyperparameters import HyperparameterRequest
from trainer.tune.recipe import RecordedRecipe

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
"""The stages: check the data and plan; train, push and judge."""


class EvaluationOptions(OperatorRules):
    """How the finished adapter is judged. ``metric`` is None if it is chosen from the data."""

    promote: Literal["auto", "never"] = "auto"
    metric: str | None = None
    pattern: str | None = None
    json_schema: dict[str, Any] | None = None
    suites: tuple[str, ...] = ("general",)
    judge: str | None = None


class JobSpec(Frozen):
    """One job. The gateway has authorised every object that it names."""

    id: str
    project: str
    created_at: int
    gateway: str
    """The gateway's URL."""
    adapter: str
    """The name of the adapter that the result becomes a version of."""
    base_dir: Path
    base_name: str
    max_rank: int
    """The engine's `--max-lora-rank`."""
    context: int | None
    """The engine's context in tokens; None for the base's own."""
    dtype: str = "bfloat16"
    """The engine's dtype."""
    parent: str | None = None
    """`name@version` to train further; its files are fetched over HTTP."""
    training_file: FileRef
    validation_file: FileRef | None = None
    datasets: dict[str, str] = Field(default_factory=dict)
    """The datasets that the files are versions of, as `name@version`, by the request's field."""
    wish: HyperparameterRequest
    """The requested hyperparameters (the name is persisted in spec.json)."""
    seed: int
    system_prompt: str | None = None
    strict: bool = False
    drop_long: bool = False
    """Of jobs of earlier releases."""
    overflow: Overflow | None = None
    """What becomes of examples longer than `max_length`; None if the request does not say."""
    method: Literal["supervised", "dpo"] = "supervised"
    held_out_share: float = SHARE
    """The share of the training file that is held out if there is no validation file."""
    metadata: dict[str, str] = Field(default_factory=dict)
    device: str = "auto"
    checkpoint_s: float = 60.0
    checkpoint_versions: int = 0
    """Of how many of the last epochs the adapter is registered as a version; the result's own is one of them …"""
    keep_checkpoints_s: float = 0.0
    """… and after how many seconds the gateway deletes the others."""
    price_per_hour: float = 0.0
    """Price of the device in the operator's currency."""
    yield_above: int = 0
    """The worker pauses between steps while more callers' requests than this wait or are in flight, …"""
    yield_most_s: float = 30.0
    """… for at most this long at a time."""
    judging: EvaluationOptions = EvaluationOptions()

    @property
    def overflow_policy(self) -> Overflow:
        """`overflow`, or what its absence means."""
        return self.overflow or ("drop" if self.drop_long else "refuse")


class PrimaryMetric(Frozen):
    """The metric that decides the verdict, fixed before the training from the examples or by the client.

    ``answers``: the closed set of answers, if there is one; the base model's prompt lists it. ``max_tokens``: limit for
    an answer in the evaluation (`arms.max_answer_tokens`).
    """

    name: str
    pattern: str | None = None
    json_schema: dict[str, Any] | None = None
    why: str
    answers: tuple[str, ...] = ()
    max_tokens: int


class TrainingPlan(Frozen):
    """The complete recipe, the reasons for automatic choices by hyperparameter, and the metric that will judge.

    ``grounding``: the parent version's setting, which the new version inherits.
    """

    recipe: RecordedRecipe
    chosen: dict[str, str]
    system_prompt: str | None
    grounding: dict[str, Any] | None = None
    tokens_an_epoch: int
    seconds_expected: float | None = None
    primary: PrimaryMetric | None = None


class JobResult(RunResult):
    """The result of a job. Losses are in nats per trained token, `cost` in the currency of the price.

    The worker writes `seconds` and `cost` of the training alone; the trainer records those of the device time instead
    (`trainer.finetune.kind`).
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
    """None if it could not be judged; an event has the reason."""
    files: tuple[str, ...] = ()
    """Ids of the report's files at the gateway."""
    checkpoints: dict[int, str] = Field(default_factory=dict)
    """The registered checkpoints by step, as `name@version`: earlier epochs', and the result itself."""


class JobDetails(Frozen):
    """A fine-tuning job's part of the run's record. ``report`` is a summary of the quality report."""

    adapter: str
    seed: int
    device: str
    plan: TrainingPlan | None = None
    """Set once the data are checked."""
    report: dict[str, Any] | None = None
    result_files: tuple[str, ...] = ()
