"""Response schemas of fine-tuning jobs, for the OpenAPI document; `trainer.finetune.objects` builds the objects."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from adapters.protocol.reports import HeldOutSummary, QualityReport, ReportedFinding, Waiting
from adapters.protocol.requests import Integration, VerdictWord
from service.http.schema import ApiModel


class Load(ApiModel):
    """Requests from callers (jobs excluded) that are queued for the engine or in it."""

    object: Literal["load"]
    waiting: int
    in_flight: int


class JobError(ApiModel):
    """Why a job or an evaluation failed, and what to do about it."""

    code: str
    message: str
    param: str | None = Field(description="The request's field at fault.")


class Hyperparameters(ApiModel):
    """As requested until the plan is made; then the resolved values, with no `auto` left."""

    n_epochs: int | str
    batch_size: int | str
    learning_rate_multiplier: float | str
    learning_rate: float | str | None = None
    lora_rank: int | str | None = None
    lora_alpha: float | str | None = None
    lora_dropout: float | str | None = None
    target_modules: str | list[str] | None = None
    rslora: bool | str | int | None = None
    quantization: str | None = None
    max_length: int | str | None = None
    packing: bool | str | int | None = None
    warmup_ratio: float | str | None = None
    adapter: str | None = None
    system_prompt: str | None = None
    grounding: dict[str, Any] | None = None
    sampling: dict[str, Any] | None = None
    strict: bool | str | int | None = None
    drop_long: bool | str | int | None = None
    overflow: str | None = None
    validation_share: float | str | None = None
    early_stopping_patience: int | str | None = None
    beta: float | str | None = Field(None, description="Of DPO.")
    held_out_share: float | str | None = None
    promote: str | None = None
    metric: str | dict[str, Any] | None = None
    suites: list[str] | str | None = None
    judge: str | None = None


class MethodOptions(ApiModel):
    """OpenAI's `method.supervised` and `method.dpo`."""

    hyperparameters: Hyperparameters


class JobMethod(ApiModel):
    """OpenAI's `method`."""

    type: Literal["supervised", "dpo"]
    supervised: MethodOptions | None = None
    dpo: MethodOptions | None = None


class Recipe(ApiModel):
    """All parameters of a training run."""

    rank: int
    alpha: float
    rslora: bool
    dropout: float
    target_modules: str | list[str]
    learning_rate: float
    scheduler: Literal["linear", "cosine", "constant"]
    warmup_ratio: float = Field(description="Fraction of all steps in which the learning rate rises from zero.")
    weight_decay: float
    max_grad_norm: float
    quantization: Literal["none", "nf4"] = Field(description="Quantization of the frozen base; `nf4` means QLoRA.")
    packing: bool
    gradient_checkpointing: bool
    epochs: int
    batch_size: int = Field(description="Examples of one optimizer step.")
    micro_batch_tokens: int = Field(
        description="Maximum number of tokens per forward and backward pass, or one example. A step adds up their "
        "gradients."
    )
    group_by_length: bool = Field(
        description="Whether a step's examples have similar lengths; only in jobs of earlier releases."
    )
    max_length: int = Field(description="In tokens.")
    seed: int
    objective: Literal["supervised", "dpo"]
    beta: float = Field(description="Of DPO: how strongly the model is held to what it was before the training.")
    patience: int = Field(
        description="Measurements without a better validation loss after which the training stops; 0: never."
    )


class PrimaryMetric(ApiModel):
    """The metric that decides the verdict, fixed before training."""

    name: str
    pattern: str | None
    json_schema: dict[str, Any] | None
    why: str
    max_tokens: int = Field(description="Maximum length of an answer.")


class JobPlan(ApiModel):
    """The resolved recipe, with the reasons for the values chosen by `auto`."""

    recipe: Recipe
    chosen: dict[str, str] = Field(description="Reason for each value chosen by `auto`, by hyperparameter.")
    system_prompt: str | None
    grounding: dict[str, Any] | None = Field(description="The job's own, or that of the version to continue from.")
    sampling: dict[str, Any] | None = Field(description="The job's own, or that of the version to continue from.")
    trained_with_passages: bool = Field(description="Whether the training prompts have the passages that it retrieves.")
    tokens_an_epoch: int
    seconds_expected: float | None
    primary: PrimaryMetric | None


class JobVerdict(ApiModel):
    """The verdict on a job's version."""

    verdict: VerdictWord
    sentence: str
    metric: str
    examples: int
    live: bool = Field(description="Whether the version was promoted to live.")
    rule: int = Field(description="Version of the verdict rule; later versions are stricter.")


class JobReport(ApiModel):
    """Summary of the data's quality report."""

    format: str
    examples: int
    trained_on: int
    dropped: int
    shortened: int | None = Field(None, description="Examples that were truncated.")
    validation: int | None = Field(None, description="Examples whose loss chooses the best epoch.")
    held_out: HeldOutSummary
    findings: list[ReportedFinding]
    size: str = Field(description="What can be expected from this number of examples.")


class JobPauses(ApiModel):
    """How often and how long a job was paused for live traffic."""

    count: int
    seconds: float


class JobDetails(ApiModel):
    """Hatrack's own fields of a job."""

    adapter: str
    device: str
    wanted: Literal["pause", "cancel"] | None = Field(description="A requested action that has not taken effect yet.")
    waiting: Waiting | None = Field(description="What an unfinished job waits for; null if it waits for nothing.")
    requested: dict[str, Any] = Field(
        description="Hyperparameters and options as they were requested there; `hyperparameters` has the resolved ones."
    )
    plan: JobPlan | None
    metric: str | None
    verdict: JobVerdict | None
    report: JobReport | None
    pauses: JobPauses
    digest: str | None = Field(description="Digest of the pushed version.")
    seconds: float | None = Field(description="Time for which the job's workers had the device.")
    training_seconds: float | None = Field(description="Of `seconds`, until the version was registered.")
    judging_seconds: float | None = Field(description="Of `seconds`, the rest: the worker asks the engine, and waits.")
    cost: float | None = Field(description="`seconds` at the price of the device; null if no price is set.")
    currency: str | None
    final_loss: float | None = Field(description="In nats per trained token.")


class FineTuningJob(ApiModel):
    """A fine-tuning job: OpenAI's object, with Hatrack's own fields under `hatrack`."""

    object: Literal["fine_tuning.job"]
    id: str
    created_at: int
    finished_at: int | None
    estimated_finish: int | None
    status: Literal["validating_files", "queued", "running", "paused", "succeeded", "failed", "cancelled"]
    error: JobError | None
    model: str
    fine_tuned_model: str | None = Field(description="`name@version`.")
    organization_id: str = Field(description="The project.")
    training_file: str
    validation_file: str | None
    result_files: list[str]
    trained_tokens: int | None
    seed: int
    hyperparameters: Hyperparameters
    method: JobMethod
    integrations: list[Integration]
    metadata: dict[str, str] | None = Field(
        description="The client's metadata, and `hatrack_verdict` once there is a verdict."
    )
    hatrack: JobDetails


class FineTuningJobEvent(ApiModel):
    """An event of a job."""

    object: Literal["fine_tuning.job.event"]
    id: str
    created_at: int
    level: Literal["info", "warn", "error"]
    type: Literal["message", "metrics"]
    message: str
    data: dict[str, Any] = Field(
        description="Of `metrics`: `step`, `total_steps`, `epoch`, `train_loss`, `train_mean_token_accuracy`, "
        "`learning_rate`, `tokens_per_s`, `seconds_left`, `memory_bytes`, `ends_epoch`, and at measured steps "
        "`valid_loss`, `full_valid_loss` and their `_mean_token_accuracy`; with DPO, `reward_accuracy` stands for "
        "`mean_token_accuracy`. While the version is judged: `stage`, `done`, `total`."
    )


class CheckpointMetrics(ApiModel):
    """Losses in nats per trained token; values that were not measured are missing."""

    step: int
    train_loss: float | None = None
    train_mean_token_accuracy: float | None = None
    valid_loss: float | None = None
    valid_mean_token_accuracy: float | None = None
    full_valid_loss: float | None = None
    full_valid_mean_token_accuracy: float | None = None
    train_reward_accuracy: float | None = Field(None, description="Of DPO.")
    valid_reward_accuracy: float | None = None
    full_valid_reward_accuracy: float | None = None


class CheckpointDetails(ApiModel):
    """Hatrack's own fields of a checkpoint."""

    version: str | None = Field(
        description="The version (`name@version`) that the checkpoint became, with which its name answers; null before "
        "the job has registered it, and of epochs before the last ones (`HATRACK_TRAINER_CHECKPOINT_VERSIONS`)."
    )


class FineTuningJobCheckpoint(ApiModel):
    """A checkpoint of a job: what the model was after an epoch."""

    object: Literal["fine_tuning.job.checkpoint"]
    id: str
    created_at: int
    fine_tuned_model_checkpoint: str = Field(
        description="What to ask as `model`, such as `support:ckpt-0f3a9c1b22de-step-60`; the job's result as "
        "`support@3`."
    )
    fine_tuning_job_id: str
    step_number: int
    metrics: CheckpointMetrics
    hatrack: CheckpointDetails


class DataCheck(QualityReport):
    """The quality report of a data file, and whether a job would refuse the file."""

    refused: bool
