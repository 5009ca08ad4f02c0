"""The spec, plan and result of a fine-tuning job, and the files of its directory beside `trainer.runs.protocol`'s.

JOBS/ID/spec.json       JobSpec
JOBS/ID/training.jsonl, held_out.jsonl   the data from the gateway
JOBS/ID/report.json     the quality report
JOBS/ID/plan.json       TrainingPlan: the complete recipe, and the reasons for automatic choices
JOBS/ID/passages.jsonl  questions with the passages that were retrieved for them, see trainer.finetune.passages
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

from typing import Any, Final, Literal

from pydantic import Field

from adapters.authorization import StoreNames
from adapters.dataset.held_out import SHARE
from adapters.protocol.requests import Overflow
from adapters.protocol.runs import FileRef, ParentShape
from trainer.evaluate.evaluations.spec import OperatorRules, VerdictRecord
from trainer.runs.protocol import Frozen, RunResult
from trainer.runs.spec import TrainingRunSpec
from trainer.tune.hyperparameters import HyperparameterRequest
from trainer.tune.recipe import RecordedRecipe

TRAINING: Final = "training.jsonl"
HELD_OUT: Final = "held_out.jsonl"
REPORT: Final = "report.json"
PLAN: Final = "plan.json"
PASSAGES: Final = "passages.jsonl"
PARENT: Final = "parent"
CHECKPOINTS: Final = "checkpoints"
OUTPUT: Final = "output"
PUSHED: Final = "pushed.json"
JUDGING: Final = "judging.json"
JUDGED: Final = "judged.json"
ESTIMATE: Final = "estimate.json"
"""Of an estimate's directory: EstimateOrders."""

WORKER: Final = "trainer.finetune.worker"
"""The module that starts a worker."""
VALIDATE: Final = "validate"
TRAIN: Final = "train"
"""The stages: check the data and plan; train, push and judge."""


class EvaluationOptions(OperatorRules):
    """How the finished adapter is judged. ``metric`` is None if it is chosen from the data. ``requested``: false if it
    is not judged, because whoever started the job compares its version themselves."""

    requested: bool = True
    promote: Literal["auto", "never"] = "auto"
    metric: str | None = None
    pattern: str | None = None
    json_schema: dict[str, Any] | None = None
    suites: tuple[str, ...] = ("general",)
    judge: str | None = None


class JobSpec(TrainingRunSpec):
    """One job."""

    adapter: str
    """The name of the adapter that the result becomes a version of."""
    parent: str | None = None
    """`name@version` to train further; its files are fetched over HTTP."""
    training_file: FileRef
    validation_file: FileRef | None = None
    datasets: dict[str, str] = Field(default_factory=dict)
    """The datasets that the files are versions of, as `name@version`, by the request's field."""
    stores: tuple[StoreNames, ...] | None = None
    """The vector stores whose passages its results may show; None: of jobs of earlier releases."""
    wish: HyperparameterRequest
    """The requested hyperparameters (the name is persisted in spec.json)."""
    seed: int
    system_prompt: str | None = None
    grounding: dict[str, Any] | None = None
    """The version's grounding; None for the parent's, if it has one."""
    sampling: dict[str, Any] | None = None
    """The version's sampling defaults; None for the parent's, if it has any."""
    strict: bool = False
    drop_long: bool = False
    """Of jobs of earlier releases."""
    overflow: Overflow | None = None
    """What becomes of examples longer than `max_length`; None if the request does not say."""
    method: Literal["supervised", "dpo"] = "supervised"
    held_out_share: float = SHARE
    """The share of the training file that is held out if there is no validation file."""
    metadata: dict[str, str] = Field(default_factory=dict)
    checkpoint_versions: int = 0
    """Of how many of the last epochs the adapter is registered as a version; the result's own is one of them …"""
    keep_checkpoints_s: float = 0.0
    """… and after how many seconds the gateway deletes the others."""
    keep_version_s: float | None = None
    """After how many seconds the gateway deletes the version itself, which no alias points to; None: never."""
    price_per_hour: float = 0.0
    """Price of the device in the operator's currency."""
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

    ``grounding``, ``sampling``: the new version's: the job's, or the parent version's. ``trained_with_passages``:
    whether the training prompts have the passages that it retrieves; jobs of earlier releases inherited a grounding and
    trained without.
    """

    recipe: RecordedRecipe
    chosen: dict[str, str]
    system_prompt: str | None
    grounding: dict[str, Any] | None = None
    sampling: dict[str, Any] | None = None
    trained_with_passages: bool = False
    tokens_an_epoch: int
    seconds_expected: float | None = None
    primary: PrimaryMetric | None = None
    base_name: str | None = None
    """The base's served name when the plan was made; None in plans of earlier releases."""


class JobResult(RunResult):
    """The result of a job. Losses are in nats per trained token.

    The worker writes `seconds` and `cost` of the training alone; the trainer records those of the device time instead
    (`trainer.finetune.kind`).
    """

    fine_tuned_model: str | None = None
    """`name@version`."""
    digest: str | None = None
    held_back: str | None = None
    """Why the gateway holds the version back from `live`; None: it does not."""
    trained_tokens: int = 0
    seconds: float = 0.0
    device: str = ""
    training_seconds: float | None = None
    """Of `seconds`, until the version was registered; None in results of earlier releases."""
    judging_seconds: float | None = None
    """Of `seconds`, the rest."""
    cost: float | None = None
    """None without a price of the device."""
    currency: str | None = None
    final_loss: float | None = None
    judged: VerdictRecord | None = None
    """None if it could not be judged; an event has the reason."""
    files: tuple[str, ...] = ()
    """Ids of the report's files at the gateway."""
    checkpoints: dict[int, str] = Field(default_factory=dict)
    """The registered checkpoints by step, as `name@version`: earlier epochs', and the result itself."""

    @property
    def known_cost(self) -> float | None:
        """`cost`; None where an earlier release wrote 0 because there was no price."""
        return self.cost if self.cost or self.training_seconds is not None else None


class PastSpeed(Frozen):
    """How fast a past job on this base and device trained, tokens/s, and with what recipe."""

    tokens_per_s: float
    quantization: str


class EstimateOrders(Frozen):
    """What the API knows: past speeds of jobs of the same method, and the shape of the parent's LoRA."""

    record: tuple[PastSpeed, ...] = ()
    parent_shape: ParentShape | None = None


class MeasuredPlan(Frozen):
    """What a job would train, and its measured speed; ``jobs``: past ones that tell it, 0: a short run did."""

    plan: TrainingPlan
    examples: int
    held_out: int
    tokens_per_s: float
    jobs: int
    device: str
    preparing_s: float


class JobDetails(Frozen):
    """A fine-tuning job's part of the run's record.

    Attributes:
        for_curve: It trains on a part of a ladder's examples, for the learning curve: no measure of a retraining.
        report: A summary of the quality report.
    """

    adapter: str
    seed: int
    device: str
    for_curve: bool = False
    plan: TrainingPlan | None = None
    """Set once the data are checked."""
    report: dict[str, Any] | None = None
    result_files: tuple[str, ...] = ()
