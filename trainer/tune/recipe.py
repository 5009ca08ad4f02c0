"""All hyperparameters of a training: frozen, recorded in the lineage, and part of every cache key."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

ALL_LINEAR: Literal["all-linear"] = "all-linear"
"""PEFT's name for every linear layer except the output layer."""

PositiveInt = Annotated[int, Field(gt=0)]


class Recipe(BaseModel):
    """Hyperparameters of a LoRA (Hu et al. 2021): W x + (alpha / rank) B A x, and of its training.

    `rank` is limited by the engine's largest `--max-lora-rank`, 512; `max_length` is in tokens and `batch_size` in
    examples; `warmup_ratio` is the share of all steps in which the rate rises from zero to its full value.
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
    """nf4: frozen base in four bits with double quantization (QLoRA, Dettmers et al. 2023)."""
    packing: bool = False
    """Concatenates a batch into one row without padding; examples do not attend to each other. Off by default: if
    examples share a prefix, computing the prefix once saves more."""
    gradient_checkpointing: bool = False
    """Recomputes activations in the backward pass: about a third slower, much less memory."""

    epochs: PositiveInt = 3
    batch_size: PositiveInt = 8
    max_length: Annotated[int, Field(ge=8)] = 1024
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0

    @field_validator("target_modules")
    @classmethod
    def _check_modules(cls, value: str | tuple[str, ...]) -> str | tuple[str, ...]:
        if not value or (isinstance(value, tuple) and (len(set(value)) != len(value) or "" in value)):
            raise ValueError("must name at least one module, each once")
        return value
