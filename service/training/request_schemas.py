"""The bodies of fine-tuning jobs, evaluations and reviews. The trainer checks them; here they are described alone."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

from service.files.schemas import FileContent
from service.training.jobs import MAX_METADATA, MetadataKey, MetadataValue

Auto = Literal["auto"]
VerdictWord = Literal["pass", "fail", "not_enough_evidence"]
FileId = Annotated[str, StringConstraints(min_length=1, max_length=64)]
ModelName = Annotated[str, StringConstraints(min_length=1, max_length=200)]
Label = Annotated[str, StringConstraints(min_length=1, max_length=100)]
OptionName = Annotated[str, StringConstraints(min_length=1, max_length=40)]
SystemPrompt = Annotated[str, StringConstraints(min_length=1, max_length=32_768)]
Metadata = Annotated[dict[MetadataKey, MetadataValue], Field(max_length=MAX_METADATA)]


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid")


class MetricBody(_Body):
    """A metric that needs more than its name."""

    name: OptionName
    pattern: str | None = Field(None, max_length=1_000, description="A regular expression.")
    json_schema: dict[str, Any] | None = Field(None, alias="schema", description="A JSON Schema.")


class HyperparametersBody(_Body):
    """Hyperparameters, and what else a job may be told: what is left out, or `auto`, is chosen from the data. Each may
    stand in `metadata` too, as text, but for OpenAI's three (`n_epochs`, `batch_size`, `learning_rate_multiplier`)."""

    n_epochs: Annotated[int, Field(ge=1, le=100)] | Auto = "auto"
    batch_size: Annotated[int, Field(ge=1, le=1024)] | Auto = "auto"
    learning_rate_multiplier: Annotated[float, Field(gt=0, le=1000)] | Auto = "auto"
    learning_rate: Annotated[float, Field(gt=0, le=1)] | Auto = "auto"
    lora_rank: Annotated[int, Field(ge=1, le=512)] | Auto = "auto"
    lora_alpha: Annotated[float, Field(gt=0, le=4096)] | Auto = "auto"
    lora_dropout: Annotated[float, Field(ge=0, lt=1)] | Auto = 0.0
    target_modules: str | list[str] = Field(
        "all-linear", description="`all-linear`, or modules' names: a list, or one text with commas."
    )
    rslora: bool | Auto = False
    quantization: Literal["none", "nf4"] | Auto = "auto"
    max_length: Annotated[int, Field(ge=8)] | Auto = Field("auto", description="Tokens of an example.")
    packing: bool | Auto = False
    warmup_ratio: Annotated[float, Field(ge=0, lt=1)] | Auto = 0.1
    adapter: str | None = Field(None, description="Name of the adapter that gets the new version.")
    system_prompt: SystemPrompt | None = Field(
        None, description="The version's; left out: the one that every example has."
    )
    strict: bool = Field(False, description="Refuse data that would be warned of.")
    drop_long: bool = Field(False, description="Leave examples over `max_length` out; else they are refused.")
    promote: Literal["auto", "never"] = Field("auto", description="Whether a version that passes goes live by itself.")
    metric: OptionName | MetricBody = "auto"
    suites: list[OptionName] | str | None = Field(None, description="Left out: the general one; `[]`: none.")
    judge: str | None = Field(None, max_length=64, description="Name of a judge of the operator's settings.")


class SupervisedBody(_Body):
    """OpenAI's `method.supervised`."""

    hyperparameters: HyperparametersBody | None = None


class MethodBody(_Body):
    """OpenAI's `method`: supervised is the one that there is."""

    type: Literal["supervised"]
    supervised: SupervisedBody | None = None


class JobBody(_Body):
    """What is to be trained on what."""

    model: ModelName = Field(description="The base, or a version to train on from: `brand-voice@3`.")
    training_file: FileId
    validation_file: FileId | None = Field(None, description="Held out; left out: a part of the training file is.")
    suffix: FileId | None = Field(None, description="Becomes the adapter's name where `adapter` is not given.")
    seed: int | None = Field(None, ge=0, lt=2**32)
    metadata: Metadata | None = None
    hyperparameters: HyperparametersBody | None = Field(None, description="As `method.supervised.hyperparameters`.")
    method: MethodBody | None = None
    integrations: list[Any] | None = Field(None, max_length=0)


class DataCheckForm(_Body):
    """A data file. In place of the form, its bytes alone may be sent."""

    file: FileContent


class ArmPrompt(_Body):
    """How an arm's questions become messages."""

    system: Annotated[str, StringConstraints(min_length=1, max_length=100_000)] | None = None
    answers: list[Annotated[str, StringConstraints(min_length=1, max_length=1_000)]] = Field(
        [], max_length=1_000, description="Told to the arm as all that there are."
    )


class ArmBody(_Body):
    """One side of a comparison."""

    label: Label
    model: ModelName
    endpoint: Annotated[str, StringConstraints(min_length=1, max_length=64)] | None = Field(
        None, description="Name of an outside endpoint of the operator's settings; left out: this gateway."
    )
    prompt: ArmPrompt | None = None
    grounding: dict[str, Any] | bool | None = Field(None, description="As `grounding` of a chat completion.")


class EvaluationBody(_Body):
    """What is compared: `model`, the candidate, or `arms`."""

    model: ModelName | None = Field(None, description="The version that is judged, against the base at its best.")
    arms: list[ArmBody] | None = Field(None, min_length=1, max_length=9)
    candidate: Label | None = Field(None, description="With `arms`: the one that is judged.")
    bases: list[Label] | None = Field(None, max_length=9, description="With `candidate`: what it is judged against.")
    held_out: FileId = Field(description="A file with the purpose `evals` or `fine-tune`.")
    metric: OptionName | MetricBody | None = Field(None, description="Left out, or `auto`: chosen from the data.")
    suites: list[OptionName] | None = Field(None, max_length=8, description="Left out: the general one.")
    promote: Literal["auto", "never"] = Field(
        "never", description="Whether a version that passes goes live by itself; needs the scope `adapters`."
    )
    judge: Annotated[str, StringConstraints(min_length=1, max_length=64)] | None = Field(
        None, description="Name of a judge of the operator's settings."
    )
    max_tokens: int | None = Field(None, ge=1, le=8_192, description="Longest answer.")
    repeats: int | None = Field(None, ge=1, le=5, description="How often each question is asked.")
    metadata: Metadata | None = None


class ChoiceBody(_Body):
    """Which answer of a pair is better."""

    choice: Literal["first", "second", "tie"]
