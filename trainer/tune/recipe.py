"""What decides how an adapter is trained: frozen, written into its lineage, and part of the key of every cache."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

ALL_LINEAR: Literal["all-linear"] = "all-linear"
"""Every linear layer but the output layer: PEFT's own word for it."""

PositiveInt = Annotated[int, Field(gt=0)]


class Recipe(BaseModel):
    """Hyperparameters of a LoRA (Hu et al. 2021): W x + (alpha / rank) B A x, and of its training.

    `rank` is bounded by what the engine can be started with (`--max-lora-rank` 512); `max_length` is in tokens and
    `batch_size` in examples; `warmup_ratio` is the part of all steps in which the rate rises from zero to its full
    value.
    """

    model_config: ClassVar[ConfigDict] = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    rank: Annotated[int, Field(ge=1, le=512)] = 16
    alpha: Annotated[float, Field(gt=0, le=4096)] = 32.0
    rslora: bool = False
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    target_modules: Literal["all-linear"] | tuple[str, ...] = ALL_LINEAR

    learning_rate: Annotated[float, Field(gt=0, le=1)] = 5e-4
    scheduler: Literal["linear", "cosine", "constant"] = "cosine"
    warmup_ratio: Annotated[float, Field(ge=0, lt=1)] = 0.1
    weight_decay: Annotated[float, Field(ge=0, le=1)] = 0.0
    max_grad_norm: Annotated[float, Field(gt=0)] = 1.0

    quantization: Literal["none", "nf4"] = "none"
    """nf4: the frozen base in four bits with double quantization (QLoRA, Dettmers et al. 2023)."""
    packing: bool = False
    """The examples of a batch behind each other in one row, without padding, none of which sees another. Where they
    begin alike, computing the common beginning once saves more: so it is off unless asked for."""
    gradient_checkpointing: bool = False
    """Activations are computed again in the backward pass: about a third slower, far less memory."""

    epochs: PositiveInt = 3
    batch_size: PositiveInt = 8
    max_length: Annotated[int, Field(ge=8)] = 1024
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0

    @field_validator("target_modules")
    @classmethod
    def _some_module(cls, value: str | tuple[str, ...]) -> str | tuple[str, ...]:
        if not value or (isinstance(value, tuple) and (len(set(value)) != len(value) or "" in value)):
            raise ValueError("names at least one module, each once")
        return value
