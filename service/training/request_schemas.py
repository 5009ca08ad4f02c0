"""The bodies of fine-tuning jobs, evaluations and reviews, as the OpenAPI document shows them. The trainer checks them.

What gateway and trainer read in the same way is declared in `adapters.protocol.requests`.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from adapters.protocol.requests import (
    MAX_ARMS,
    MAX_SUITES,
    ArmFields,
    ArmPrompt,
    Auto,
    EvaluationFields,
    HyperparameterFields,
    JobFields,
    JobOptionFields,
    Label,
    OptionName,
    RequestBody,
)
from service.files.schemas import FileContent


class MetricBody(RequestBody):
    """A metric that needs more than its name."""

    name: OptionName
    pattern: str | None = Field(None, max_length=1_000, description="A regular expression.")
    json_schema: dict[str, Any] | None = Field(None, alias="schema", description="A JSON Schema.")


class HyperparametersBody(HyperparameterFields, JobOptionFields):
    """Hyperparameters, and what else a job may be told: what is left out, or `auto`, is chosen from the data. Each may
    stand in `metadata` too, as text, but for OpenAI's three (`n_epochs`, `batch_size`, `learning_rate_multiplier`)."""

    lora_dropout: Annotated[float, Field(ge=0, lt=1)] | Auto = 0.0
    target_modules: str | list[str] = Field(
        "all-linear", description="`all-linear`, or modules' names: a list, or one text with commas."
    )
    rslora: bool | Auto = False
    quantization: Literal["none", "nf4"] | Auto = "auto"
    max_length: Annotated[int, Field(ge=8)] | Auto = Field("auto", description="Tokens of an example.")
    packing: bool | Auto = False
    warmup_ratio: Annotated[float, Field(ge=0, lt=1)] | Auto = 0.1
    metric: OptionName | MetricBody = "auto"
    suites: list[OptionName] | str | None = Field(None, description="Left out: the general one; `[]`: none.")
    judge: str | None = Field(None, max_length=64, description="Name of a judge of the operator's settings.")


class SupervisedBody(RequestBody):
    """OpenAI's `method.supervised`."""

    hyperparameters: HyperparametersBody | None = None


class MethodBody(RequestBody):
    """OpenAI's `method`: supervised is the one that there is."""

    type: Literal["supervised"]
    supervised: SupervisedBody | None = None


class JobBody(JobFields):
    """What is to be trained on what."""

    hyperparameters: HyperparametersBody | None = Field(None, description="As `method.supervised.hyperparameters`.")
    method: MethodBody | None = None


class DataCheckForm(RequestBody):
    """A data file. In place of the form, its bytes alone may be sent."""

    file: FileContent


class ArmBody(ArmFields):
    """One side of a comparison."""

    prompt: ArmPrompt | None = None


class EvaluationBody(EvaluationFields):
    """What is compared: `model`, the candidate, or `arms`."""

    arms: list[ArmBody] | None = Field(None, min_length=1, max_length=MAX_ARMS)
    bases: list[Label] | None = Field(
        None, max_length=MAX_ARMS, description="With `candidate`: what it is judged against."
    )
    metric: OptionName | MetricBody | None = Field(None, description="Left out, or `auto`: chosen from the data.")
    suites: list[OptionName] | None = Field(None, max_length=MAX_SUITES, description="Left out: the general one.")
