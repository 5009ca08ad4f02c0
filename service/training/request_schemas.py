"""Request schemas of fine-tuning jobs and evaluations, for the OpenAPI document; the trainer validates the bodies.

Fields that gateway and trainer share are declared in `adapters.protocol.requests`.
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
    LadderFields,
    OptionName,
    RequestBody,
)
from service.files.schemas import FileContent


class MetricBody(RequestBody):
    """A metric with parameters."""

    name: OptionName
    pattern: str | None = Field(None, max_length=1_000, description="A regular expression.")
    json_schema: dict[str, Any] | None = Field(None, alias="schema", description="A JSON Schema.")


class HyperparametersBody(HyperparameterFields, JobOptionFields):
    """Hyperparameters and options of a job. Values that are omitted or `auto` are chosen from the data. All except
    `n_epochs`, `batch_size` and `learning_rate_multiplier` may also be sent as strings in `metadata`."""

    lora_dropout: Annotated[float, Field(ge=0, lt=1)] | Auto = 0.0
    target_modules: str | list[str] = Field(
        "all-linear", description="`all-linear`, or module names as a list or comma-separated string."
    )
    rslora: bool | Auto = False
    quantization: Literal["none", "nf4"] | Auto = "auto"
    max_length: Annotated[int, Field(ge=8)] | Auto = Field(
        "auto", description="Maximum length of an example in tokens."
    )
    packing: bool | Auto = False
    warmup_ratio: Annotated[float, Field(ge=0, lt=1)] | Auto = 0.1
    metric: OptionName | MetricBody = "auto"
    suites: list[OptionName] | str | None = Field(None, description="Default: the general suite; `[]` for none.")
    judge: str | None = Field(None, max_length=64, description="Name of a judge in the operator's settings.")


class MethodOptionsBody(RequestBody):
    """OpenAI's `method.supervised` and `method.dpo`."""

    hyperparameters: HyperparametersBody | None = None


class MethodBody(RequestBody):
    """OpenAI's `method`; `reinforcement` is not supported."""

    type: Literal["supervised", "dpo"]
    supervised: MethodOptionsBody | None = None
    dpo: MethodOptionsBody | None = None


class JobBody(JobFields):
    """A new fine-tuning job."""

    hyperparameters: HyperparametersBody | None = Field(None, description="Same as the `hyperparameters` in `method`.")
    method: MethodBody | None = None


class DataCheckForm(RequestBody):
    """A data file. The raw bytes may be sent instead of a form."""

    file: FileContent


class ArmBody(ArmFields):
    """One side of a comparison."""

    prompt: ArmPrompt | None = None


class EvaluationBody(EvaluationFields):
    """A new evaluation: either `model`, the candidate, or `arms`."""

    arms: list[ArmBody] | None = Field(None, min_length=1, max_length=MAX_ARMS)
    bases: list[Label] | None = Field(
        None, max_length=MAX_ARMS, description="With `candidate`: labels of the arms that it is judged against."
    )
    metric: OptionName | MetricBody | None = Field(None, description="Omitted or `auto`: chosen from the data.")
    suites: list[OptionName] | None = Field(None, max_length=MAX_SUITES, description="Default: the general suite.")


class LadderBody(LadderFields):
    """A new ladder."""
