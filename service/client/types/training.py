"""Fine-tuning jobs, and the teachers that label data for them."""

from typing import Any, Literal, NotRequired, TypedDict

from service.client.types.adapters import VerdictWord


class JobError(TypedDict):
    """Why a job or an evaluation failed, and what to do about it."""

    code: str
    message: str
    param: str | None
    """The field of the creating request that is at fault."""


class Hyperparameters(TypedDict):
    """The requested hyperparameters, until a plan resolves every `auto`."""

    n_epochs: int | str
    batch_size: int | str
    learning_rate_multiplier: float | str
    learning_rate: NotRequired[float | str | None]
    lora_rank: NotRequired[int | str | None]
    lora_alpha: NotRequired[float | str | None]
    lora_dropout: NotRequired[float | str | None]
    target_modules: NotRequired[str | list[str] | None]
    rslora: NotRequired[bool | str | int | None]
    quantization: NotRequired[str | None]
    max_length: NotRequired[int | str | None]
    packing: NotRequired[bool | str | int | None]
    warmup_ratio: NotRequired[float | str | None]
    adapter: NotRequired[str | None]
    system_prompt: NotRequired[str | None]
    strict: NotRequired[bool | str | int | None]
    drop_long: NotRequired[bool | str | int | None]
    overflow: NotRequired[str | None]
    validation_share: NotRequired[float | str | None]
    early_stopping_patience: NotRequired[int | str | None]
    beta: NotRequired[float | str | None]
    """Of DPO."""
    held_out_share: NotRequired[float | str | None]
    grounding: NotRequired[dict[str, Any] | None]
    sampling: NotRequired[dict[str, Any] | None]
    promote: NotRequired[str | None]
    metric: NotRequired[str | dict[str, Any] | None]
    suites: NotRequired[list[str] | str | None]
    judge: NotRequired[str | None]


class MethodOptions(TypedDict):
    """OpenAI's `method.supervised` and `method.dpo`."""

    hyperparameters: Hyperparameters


class JobMethod(TypedDict):
    """OpenAI's `method`."""

    type: Literal["supervised", "dpo"]
    supervised: NotRequired[MethodOptions | None]
    dpo: NotRequired[MethodOptions | None]


class Recipe(TypedDict):
    """Everything that decides how an adapter is trained."""

    rank: int
    alpha: float
    rslora: bool
    dropout: float
    target_modules: str | list[str]
    learning_rate: float
    scheduler: Literal["linear", "cosine", "constant"]
    warmup_ratio: float
    """Share of all steps over which the learning rate rises from zero."""
    weight_decay: float
    max_grad_norm: float
    quantization: Literal["none", "nf4"]
    """Of the frozen base model; `nf4`: QLoRA."""
    packing: bool
    gradient_checkpointing: bool
    epochs: int
    batch_size: int
    """Examples of one optimizer step."""
    micro_batch_tokens: int
    """Maximum number of tokens per forward and backward pass, or one example."""
    group_by_length: bool
    """Whether a step's examples have similar lengths; only in jobs of earlier releases."""
    max_length: int
    """In tokens."""
    seed: int
    objective: Literal["supervised", "dpo"]
    beta: float
    """Of DPO: how strongly the model is held to what it was before the training."""
    patience: int
    """Measurements without a better validation loss after which the training stops; 0: never."""


class PrimaryMetric(TypedDict):
    """The metric that decides, fixed before training starts."""

    name: str
    pattern: str | None
    json_schema: dict[str, Any] | None
    why: str
    max_tokens: int
    """Longest answer."""


class JobPlan(TypedDict):
    """What is trained, and why each `auto` was resolved as it was."""

    recipe: Recipe
    chosen: dict[str, str]
    """Reasons by hyperparameter."""
    system_prompt: str | None
    grounding: dict[str, Any] | None
    sampling: dict[str, Any] | None
    """The job's own, or that of the version to continue from."""
    trained_with_passages: bool
    """Whether the training prompts have the passages that it retrieves."""
    tokens_an_epoch: int
    seconds_expected: float | None
    primary: PrimaryMetric | None


class JobVerdict(TypedDict):
    """The verdict on a job's version."""

    verdict: VerdictWord
    sentence: str
    metric: str
    examples: int
    live: bool
    """Whether the version went live."""
    rule: int
    """Version of the decision rule; later ones are stricter."""


class ReportedFinding(TypedDict):
    """A problem in the data."""

    code: str
    severity: Literal["refused", "warning", "note"]
    count: int
    """Number of lines affected; 0 if it is about the whole file."""


class HeldOutSummary(TypedDict):
    """Examples that are never trained on."""

    examples: int
    source: Literal["given", "split", "none"]


class JobReport(TypedDict):
    """Summary of the quality report on the data."""

    format: str
    examples: int
    trained_on: int
    dropped: int
    shortened: NotRequired[int | None]
    """Examples that were truncated."""
    validation: NotRequired[int | None]
    """Examples whose loss chooses the best epoch."""
    held_out: HeldOutSummary
    findings: list[ReportedFinding]
    size: str
    """What this many examples can teach, as a sentence."""


class JobPauses(TypedDict):
    """How often and for how many seconds a job was paused for live traffic."""

    count: int
    seconds: float


class RunAhead(TypedDict):
    """The run that has the worker which another run waits for; nothing that the key may not see is named."""

    id: str | None
    adapters: list[str]
    stage: str | None
    """What it does now."""
    done: int | None
    """How many of `total` training steps, or items of the stage, are done."""
    total: int | None
    seconds_left: float | None
    """Until its stage ends, at the measured pace; None if there is no measurement."""


class Waiting(TypedDict):
    """What an unfinished job or evaluation waits for."""

    reason: Literal["turn", "restart", "live_traffic", "gateway"]
    position: int | None
    """Of `turn`: the place in the line, counting the run that is under way: 2 starts next."""
    behind: RunAhead | None
    """Of `turn`: the run that goes first."""
    message: str
    """The same as a sentence."""


class JobDetails(TypedDict):
    """What OpenAI's job has no field for. Durations are in seconds."""

    adapter: str
    device: str
    wanted: Literal["pause", "cancel"] | None
    """A requested change that has not happened yet."""
    waiting: Waiting | None
    """None if it waits for nothing."""
    requested: dict[str, Any]
    """The hyperparameters and options as they were requested there; `hyperparameters` has the resolved ones."""
    plan: JobPlan | None
    metric: str | None
    verdict: JobVerdict | None
    report: JobReport | None
    pauses: JobPauses
    digest: str | None
    """Digest of the new version."""
    seconds: float | None
    """How long the job's workers had the device."""
    training_seconds: float | None
    """Of `seconds`, until the version was registered."""
    judging_seconds: float | None
    """Of `seconds`, the rest."""
    cost: float | None
    """`seconds` at the price of the device; None if no price is set."""
    currency: str | None
    final_loss: float | None
    """In nats per trained token."""


class WandbOptions(TypedDict):
    """Where a job's run appears in Weights & Biases."""

    project: str
    name: NotRequired[str | None]
    entity: NotRequired[str | None]
    tags: NotRequired[list[str] | None]


class MlflowOptions(TypedDict):
    """Where a job's run appears in MLflow."""

    experiment: str
    name: NotRequired[str | None]
    tags: NotRequired[dict[str, str] | None]


class Integration(TypedDict):
    """An experiment tracker that is sent a job's parameters, metrics and verdict. It has the field of its type."""

    type: Literal["wandb", "mlflow"]
    wandb: NotRequired[WandbOptions | None]
    mlflow: NotRequired[MlflowOptions | None]


class FineTuningJob(TypedDict):
    """A fine-tuning job: OpenAI's object, with Hatrack's own fields under `hatrack`."""

    object: Literal["fine_tuning.job"]
    id: str
    created_at: int
    finished_at: int | None
    estimated_finish: int | None
    status: Literal["validating_files", "queued", "running", "paused", "succeeded", "failed", "cancelled"]
    error: JobError | None
    model: str
    fine_tuned_model: str | None
    """`name@version`."""
    organization_id: str
    """The project."""
    training_file: str
    validation_file: str | None
    result_files: list[str]
    trained_tokens: int | None
    seed: int
    hyperparameters: Hyperparameters
    method: JobMethod
    integrations: list[Integration]
    metadata: dict[str, str] | None
    """The client's metadata, and `hatrack_verdict` once there is a verdict."""
    hatrack: JobDetails


class FineTuningJobEvent(TypedDict):
    """An event of a job."""

    object: Literal["fine_tuning.job.event"]
    id: str
    created_at: int
    level: Literal["info", "warn", "error"]
    type: Literal["message", "metrics"]
    message: str
    data: dict[str, Any]
    """Of `metrics`: `step`, `total_steps`, `epoch`, `train_loss`, `train_mean_token_accuracy`, `learning_rate`,
    `tokens_per_s`, `seconds_left`, `memory_bytes`, `ends_epoch`, and at measured steps `valid_loss`, `full_valid_loss`
    and their `_mean_token_accuracy`; with DPO, `reward_accuracy` stands for `mean_token_accuracy`. While the version is
    judged: `stage`, `done`, `total`."""


class CheckpointMetrics(TypedDict):
    """Losses in nats per trained token; fields that were not measured are missing."""

    step: int
    train_loss: NotRequired[float | None]
    train_mean_token_accuracy: NotRequired[float | None]
    valid_loss: NotRequired[float | None]
    valid_mean_token_accuracy: NotRequired[float | None]
    full_valid_loss: NotRequired[float | None]
    full_valid_mean_token_accuracy: NotRequired[float | None]
    train_reward_accuracy: NotRequired[float | None]
    """Of DPO."""
    valid_reward_accuracy: NotRequired[float | None]
    full_valid_reward_accuracy: NotRequired[float | None]


class CheckpointDetails(TypedDict):
    """Hatrack's own fields of a checkpoint."""

    version: str | None
    """The version (`name@version`) that the checkpoint became; None if its name does not answer."""


class FineTuningJobCheckpoint(TypedDict):
    """A checkpoint of a job: what the model was after an epoch."""

    object: Literal["fine_tuning.job.checkpoint"]
    id: str
    created_at: int
    fine_tuned_model_checkpoint: str
    fine_tuning_job_id: str
    step_number: int
    metrics: CheckpointMetrics
    hatrack: CheckpointDetails


class Teacher(TypedDict):
    """An outside endpoint that answers prompts to train on."""

    object: Literal["teacher"]
    id: str
    """Its name in the operator's settings."""
    model: str
    price_input: float | None
    """Of a million prompt tokens, in the operator's currency."""
    price_output: float | None
