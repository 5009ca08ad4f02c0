"""All hyperparameters of a training: frozen, recorded in the lineage, and part of every cache key."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Final, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, field_validator

from trainer.tune.batches import padded

ALL_LINEAR: Literal["all-linear"] = "all-linear"
"""PEFT's name for every linear layer except the output layer."""

PositiveInt = Annotated[int, Field(gt=0)]

CPU_MICRO_BATCH_TOKENS: Final = 512
GPU_MICRO_BATCH_TOKENS: Final = 4096
"""Tokens at which a device is nearly busy: more at a time take more memory and save little time (TRAINING.md). A GPU
reads every weight once per micro-batch; an H100 multiplies for about 300 tokens in that time."""


class Recipe(BaseModel):
    """Hyperparameters of a LoRA (Hu et al. 2021): W x + (alpha / rank) B A x, and of its training.

    `rank` is limited by the engine's largest `--max-lora-rank`, 512; `max_length` is in tokens, and `batch_size` is the
    examples of one optimizer step, however many micro-batches compute it; `warmup_ratio` is the share of all steps in
    which the rate rises from zero to its full value.
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
    """Concatenates examples without computing a shared prefix once. Off by default: models with full attention in every
    layer are packed anyway, behind the prefix. For others it replaces padding."""
    gradient_checkpointing: bool = False
    """Recomputes activations in the backward pass: about a third slower, much less memory."""

    objective: Literal["supervised", "dpo"] = "supervised"
    """dpo: direct preference optimisation (Rafailov et al. 2023) of pairs of answers."""
    beta: Annotated[float, Field(gt=0, le=100)] = 0.1
    """Of DPO alone: how strongly the model is held to what it was before the training."""
    patience: Annotated[int, Field(ge=0)] = 0
    """Measured points without a better validation loss after which the training stops; 0: it never does."""

    epochs: PositiveInt = 3
    batch_size: PositiveInt = 8
    micro_batch_tokens: PositiveInt = CPU_MICRO_BATCH_TOKENS
    """Tokens of one forward and backward pass; a longer example has a pass of its own. A step adds up the gradients of
    its micro-batches. Decides memory and speed, and changes the result only by rounding."""
    group_by_length: bool = False
    """Whether the examples of a step have similar lengths. Then a step's mean is over short answers or over long ones,
    and a token of a short answer weighs more. Only recipes of releases that always did so have it."""
    max_length: Annotated[int, Field(ge=8)] = 1024
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0

    @field_validator("target_modules")
    @classmethod
    def _check_modules(cls, value: str | tuple[str, ...]) -> str | tuple[str, ...]:
        if not value or (isinstance(value, tuple) and (len(set(value)) != len(value) or "" in value)):
            raise ValueError("must name at least one module, each once")
        return value


def _complete(value: Any) -> Any:
    if not isinstance(value, dict) or "group_by_length" in value:
        return value
    rows, longest = value.get("batch_size"), value.get("max_length")
    whole_step = {}
    if isinstance(rows, int) and isinstance(longest, int):
        whole_step = {"micro_batch_tokens": rows * padded(longest)}
    return value | whole_step | {"group_by_length": True}


RecordedRecipe = Annotated[Recipe, BeforeValidator(_complete)]
"""A stored recipe. One without `group_by_length` is of a release that grouped by length and did a step in one pass."""
