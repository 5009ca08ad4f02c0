"""Bodies of fine-tuning jobs, evaluations and reviews, as far as gateway and trainer read them in the same way.

The gateway looks at a body first, strictly, and no further than it needs to authorise it; the trainer looks at the
rest. Both, and the gateway's OpenAPI document, subclass what is here. A field of type ``Any`` is one that each of them
reads in its own way, and declares again; it stands here for its place, because the first field at fault is reported.
"""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Final, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, field_validator, model_validator

from adapters.dataset.held_out import MAX_SHARE, MIN_SHARE, SHARE

MAX_ARMS: Final = 9
"""Four less than a comparison takes: the base at its best, and what serves now, may be put beside them."""
MAX_SUITES: Final = 8
MAX_INSTRUCTIONS: Final = 4
MAX_ANSWERS: Final = 1_000
MAX_EXAMPLES: Final = 32
MAX_METADATA: Final = 16
MAX_INTEGRATIONS: Final = 5
MAX_TRACKER_TAGS: Final = 20
OTHERS_TAGS: Final = ("mlflow.", "hatrack.")
MAX_REVIEW_PAIRS: Final = 1_000
MAX_REVIEWERS: Final = 5
MAX_PROMPT_CHARS: Final = 32_768
"""What a version's settings may hold (the gateway's `VersionSettings`): a longer one could not be registered."""

Auto = Literal["auto"]
Overflow = Literal["refuse", "truncate", "drop"]
"""What becomes of examples longer than `max_length`."""
VerdictWord = Literal["pass", "fail", "not_enough_evidence"]
DataFile = Annotated[str, StringConstraints(min_length=1, max_length=80)]
"""The id of a file, or a dataset: `support@3`, or `support` for its newest version. Only the gateway knows datasets."""
Suffix = Annotated[str, StringConstraints(min_length=1, max_length=64)]
ModelName = Annotated[str, StringConstraints(min_length=1, max_length=200)]
Label = Annotated[str, StringConstraints(min_length=1, max_length=100)]
OptionName = Annotated[str, StringConstraints(min_length=1, max_length=40)]
OperatorsName = Annotated[str, StringConstraints(min_length=1, max_length=64)]
"""Of a judge, or of an outside endpoint, in the operator's settings."""
MetadataKey = Annotated[str, StringConstraints(min_length=1, max_length=64)]
MetadataValue = Annotated[str, StringConstraints(max_length=512)]
TrackerName = Annotated[str, StringConstraints(min_length=1, max_length=128)]
TrackerTag = Annotated[str, StringConstraints(min_length=1, max_length=64)]
TrackedIn = Annotated[str, StringConstraints(min_length=1, max_length=63, pattern=r"^[^/\\#?%:\x00-\x1f\x7f]+$")]
"""Experiment, or project of Weights & Biases, without the caller's project before it: both have room in the latter's
128 characters, and none that it refuses."""
Metadata = Annotated[dict[MetadataKey, MetadataValue], Field(max_length=MAX_METADATA)]


class RequestBody(BaseModel):
    """A JSON object that a client sends. Unknown fields are refused."""

    model_config: ClassVar[ConfigDict] = ConfigDict(frozen=True, extra="forbid")


class HyperparameterFields(RequestBody):
    """Hyperparameters; `auto` ones are chosen from the data."""

    n_epochs: Annotated[int, Field(ge=1, le=100)] | Auto = "auto"
    batch_size: Annotated[int, Field(ge=1, le=1024)] | Auto = "auto"
    learning_rate_multiplier: Annotated[float, Field(gt=0, le=1000)] | Auto = "auto"
    learning_rate: Annotated[float, Field(gt=0, le=1)] | Auto = "auto"
    lora_rank: Annotated[int, Field(ge=1, le=512)] | Auto = "auto"
    lora_alpha: Annotated[float, Field(gt=0, le=4096)] | Auto = "auto"
    validation_share: Annotated[float, Field(ge=0, le=MAX_SHARE)] | Auto = "auto"
    early_stopping_patience: Annotated[int, Field(ge=0, le=100)] | Auto = "auto"
    beta: Annotated[float, Field(gt=0, le=100)] | Auto = "auto"


class JobOptionFields(RequestBody):
    """A job's options besides its hyperparameters."""

    adapter: str | None = Field(None, description="Name of the adapter that gets the new version.")
    system_prompt: Annotated[str, StringConstraints(min_length=1, max_length=MAX_PROMPT_CHARS)] | None = Field(
        None, description="The version's system prompt. Default: the one that every example has."
    )
    grounding: dict[str, Any] | None = Field(
        None,
        description="The version's `settings.grounding`: what it is served with. The training prompts get the passages "
        "that it retrieves. Default: the grounding of the version to continue from. In `metadata`, as JSON.",
    )
    sampling: dict[str, Any] | None = Field(
        None,
        description="The version's `settings.sampling`: defaults for requests that set none. Default: that of the "
        "version to continue from. In `metadata`, as JSON.",
    )
    strict: bool = Field(False, description="Treat warnings of the data check as errors.")
    drop_long: bool = Field(False, description="The same as `overflow: drop`.")
    overflow: Overflow | None = Field(
        None,
        description="What becomes of examples longer than `max_length`. `refuse` (the default): the file is refused; "
        "`drop`: they are left out; `truncate`: their oldest turns are left out, and if that is not enough, the end of "
        "their answer.",
    )
    held_out_share: Annotated[float, Field(ge=MIN_SHARE, le=MAX_SHARE)] = Field(
        SHARE, description="Share of the training file that is held out if there is no `validation_file`."
    )
    promote: Literal["auto", "never"] = Field(
        "auto", description="Whether a version that passes goes live automatically."
    )


class WandbOptions(RequestBody):
    """OpenAI's `integrations[].wandb`: where the job's run appears in Weights & Biases."""

    project: TrackedIn = Field(description="Shown there as `PROJECT~NAME`, with the caller's project before it.")
    name: TrackerName | None = Field(None, description="Of the run. Default: the job's id.")
    entity: TrackerName | None = Field(
        None, description="User or team, one that the operator allows. Default: that of the operator's key."
    )
    tags: Annotated[list[TrackerTag], Field(max_length=MAX_TRACKER_TAGS)] | None = None


class MlflowOptions(RequestBody):
    """Where the job's run appears in MLflow."""

    experiment: TrackedIn = Field(
        description="Shown there as `PROJECT~NAME`, with the caller's project before it; created if there is none."
    )
    name: TrackerName | None = Field(None, description="Of the run. Default: the job's id.")
    tags: Annotated[dict[TrackerTag, MetadataValue], Field(max_length=MAX_TRACKER_TAGS)] | None = None

    @field_validator("tags")
    @classmethod
    def _tags_are_the_callers(cls, tags: dict[str, str] | None) -> dict[str, str] | None:
        # `mlflow.parentRunId` would hang the run under another project's, `mlflow.user` name somebody else
        for name in tags or ():
            if name.startswith(OTHERS_TAGS):
                raise ValueError(f"no tag begins with `mlflow.` or `hatrack.`, which the servers set; found {name!r}")
        return tags


class Integration(RequestBody):
    """An experiment tracker of the operator's that is sent the job's parameters, metrics and verdict."""

    type: Literal["wandb", "mlflow"]
    wandb: WandbOptions | None = None
    mlflow: MlflowOptions | None = None

    @model_validator(mode="after")
    def _has_its_options(self) -> Self:
        other = "mlflow" if self.type == "wandb" else "wandb"
        if getattr(self, self.type) is None or getattr(self, other) is not None:
            raise ValueError(f"an integration of the type `{self.type}` has the field `{self.type}`, and no `{other}`")
        return self


class JobFields(RequestBody):
    """Body of ``POST /v1/fine_tuning/jobs``."""

    model: ModelName = Field(description="The base, or a version to continue from, such as `brand-voice@3`.")
    training_file: DataFile = Field(
        description="The id of a file, or a dataset: `support@3`, or `support` for its newest version."
    )
    validation_file: DataFile | None = Field(
        None, description="Held-out examples, a file or a dataset. Default: a part of the training file."
    )
    suffix: Suffix | None = Field(None, description="The adapter's name if `adapter` is not given.")
    seed: Annotated[int, Field(strict=True, ge=0, lt=2**32)] | None = None
    metadata: Metadata | None = None
    hyperparameters: Any = None
    method: Any = None
    integrations: Annotated[list[Integration], Field(max_length=MAX_INTEGRATIONS)] | None = Field(
        None, description="Experiment trackers that the operator has set up, each at most once."
    )


class ArmPrompt(RequestBody):
    """How a question becomes an arm's messages."""

    system: Annotated[str, StringConstraints(min_length=1, max_length=100_000)] | None = None
    answers: tuple[Annotated[str, StringConstraints(min_length=1, max_length=1_000)], ...] = Field(
        (), max_length=MAX_ANSWERS, description="All possible answers; the arm is told them."
    )
    instructions: Annotated[str, StringConstraints(min_length=1, max_length=MAX_PROMPT_CHARS)] | None = Field(
        None, description="Added to the system message."
    )
    examples: Annotated[int, Field(strict=True, ge=0, le=MAX_EXAMPLES)] = Field(
        0,
        description="How many of the candidate's training examples are shown as earlier turns before each question: "
        "those most similar to it. Fewer if more do not fit into the context.",
    )


class ArmFields(RequestBody):
    """One side of a comparison."""

    label: Label
    model: ModelName
    endpoint: OperatorsName | None = Field(
        None, description="Name of an outside endpoint in the operator's settings. Default: this gateway."
    )
    prompt: Any = None
    grounding: dict[str, Any] | bool | None = Field(None, description="As the field `grounding` of a chat completion.")


class EvaluationFields(RequestBody):
    """Body of ``POST /v1/evaluations``."""

    model: ModelName | None = Field(None, description="The version to judge against the base at its best.")
    arms: Any = None
    candidate: Label | None = Field(None, description="With `arms`: the arm to judge.")
    bases: Any = None
    held_out: DataFile = Field(
        description="The id of a file with the purpose `evals` or `fine-tune`, or a dataset: `support-heldout@2`."
    )
    metric: Any = None
    suites: Any = None
    promote: Literal["auto", "never"] = Field(
        "never", description="Whether a version that passes goes live automatically; needs the scope `adapters`."
    )
    judge: OperatorsName | None = Field(None, description="Name of a judge in the operator's settings.")
    max_tokens: Annotated[int, Field(strict=True, ge=1, le=8_192)] | None = Field(
        None, description="Maximum length of an answer."
    )
    repeats: Annotated[int, Field(strict=True, ge=1, le=5)] | None = Field(
        None, description="How many times each question is asked."
    )
    metadata: Metadata | None = None


class LadderFields(RequestBody):
    """Body of ``POST /v1/ladders``."""

    training_file: DataFile = Field(
        description="The id of a file, or a dataset: `support@3`, or `support` for its newest version."
    )
    adapter: str = Field(description="Name of the adapter that the rungs become versions of.")
    vector_store_ids: Annotated[list[str], Field(max_length=8)] | None = Field(
        None, description="Stores with documents that answers may depend on: adds the rungs with passages."
    )
    instructions: tuple[Annotated[str, StringConstraints(min_length=1, max_length=MAX_PROMPT_CHARS)], ...] = Field(
        (), max_length=MAX_INSTRUCTIONS, description="System prompts to try beside those that are made from the data."
    )
    target: Annotated[float, Field(ge=0, le=1)] | None = Field(
        None, description="The score that is good enough; the first rung that reaches it ends the ladder."
    )
    quick: Annotated[bool, Field(strict=True)] = Field(
        False, description="Fewer questions and at most 600 training examples: half an hour or less."
    )
    lora: Annotated[bool, Field(strict=True)] = Field(
        True, description="Whether to train a LoRA. Without it the ladder ends with the prompts."
    )
    teacher: ModelName | None = Field(
        None,
        description="Who answers the prompts of `unlabelled_file` for the rung `distilled`, whose LoRA learns from the "
        "answers: the base or a version here, such as `support@2`, or an outside endpoint of `GET /v1/teachers`.",
    )
    unlabelled_file: DataFile | None = Field(
        None,
        description="The id of a file, or a dataset, with prompts for `teacher`: lines with `messages` or `prompt`, or "
        "a `.txt` file with a prompt on each line. Answers in it are ignored.",
    )
    requests_per_month: Annotated[int, Field(strict=True, ge=0, le=10**12)] | None = Field(
        None, description="Expected traffic, for the cost of a year. Default: the operator's setting."
    )
    metadata: Metadata | None = None


class ReviewQueueBody(RequestBody):
    """Body of ``POST /v1/reviews``: which run's answers people compare."""

    evaluation: Annotated[str, StringConstraints(min_length=1, max_length=64)] = Field(
        description="Id of an evaluation or a job that has ended with a verdict."
    )
    pairs: Annotated[int, Field(strict=True, ge=1, le=MAX_REVIEW_PAIRS)] = Field(
        50, description="How many pairs to draw; all of them if there are fewer."
    )
    reviewers: Annotated[int, Field(strict=True, ge=1, le=MAX_REVIEWERS)] = Field(
        1, description="How many people, each with a key of their own, choose on every pair."
    )


class ChoiceBody(RequestBody):
    """Which answer of a pair is better."""

    choice: Literal["first", "second", "tie"]


class TeacherMessage(RequestBody):
    """A message of a prompt for a teacher."""

    role: Literal["system", "user", "assistant"]
    content: Annotated[str, StringConstraints(min_length=1, max_length=1_000_000)]


class TeacherBody(RequestBody):
    """A prompt for a teacher."""

    messages: tuple[TeacherMessage, ...] = Field(min_length=1, max_length=1_000)
    max_tokens: int = Field(512, ge=1, le=131_072)
    temperature: float | None = Field(None, ge=0, le=2)
