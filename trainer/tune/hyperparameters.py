"""The hyperparameters of a request, `auto` included; `trainer.tune.auto` turns them into a Recipe."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import ConfigDict, Field, ValidationInfo, field_validator

from adapters.protocol.requests import Auto, HyperparameterFields


class HyperparameterRequest(HyperparameterFields):
    """Requested hyperparameters; ``auto`` values are chosen from the data."""

    model_config: ClassVar[ConfigDict] = ConfigDict(allow_inf_nan=False)

    lora_dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    target_modules: Literal["all-linear"] | tuple[str, ...] = "all-linear"
    rslora: bool = False
    quantization: Literal["none", "nf4"] | Auto = "auto"
    max_length: Annotated[int, Field(ge=8)] | Auto = "auto"
    packing: bool = False
    warmup_ratio: Annotated[float, Field(ge=0, lt=1)] = 0.1

    @field_validator("lora_dropout", "target_modules", "rslora", "packing", "warmup_ratio", mode="before")
    @classmethod
    def _resolve_auto(cls, value: Any, info: ValidationInfo) -> Any:
        """`auto` means the default for hyperparameters that do not depend on the data."""
        return cls.model_fields[str(info.field_name)].default if value == "auto" else value

    @field_validator("target_modules")
    @classmethod
    def _remove_duplicates(cls, value: str | tuple[str, ...]) -> str | tuple[str, ...]:
        return tuple(dict.fromkeys(value)) if isinstance(value, tuple) else value
