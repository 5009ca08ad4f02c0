"""Resolves `auto`: chooses hyperparameters from the data and the base, each with its reason as text.

Imports no torch.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Final, Literal

from pydantic import ValidationError

from adapters.protocol.runs import ParentShape
from adapters.validation import faults, message, shown
from adapters.wording import counted
from trainer.errors import InvalidHyperparameter
from trainer.tune.hyperparameters import HyperparameterRequest
from trainer.tune.recipe import CPU_MICRO_BATCH_TOKENS, GPU_MICRO_BATCH_TOKENS, Recipe

LORA_RATE: Final = 2e-4
RATE_WIDTH: Final = 4096
RATE_EXPONENT: Final = 0.954
"""A LoRA's learning rate falls with the model's width: 2e-4 · (4096 / hidden size)^0.954. 2e-4 is the rate of QLoRA
(Dettmers et al. 2023; its `finetune_guanaco` scripts) for LLaMA 7B, and Unsloth's and TRL's for a LoRA; the exponent
gives the 1.3e-3 with which our figures for a base of width 576 were measured. TRAINING.md compares it with others."""
DPO_RATE: Final = 5e-6
"""The rate of DPO at width 4096: that of Zephyr's QLoRA recipe for Mistral 7B (alignment-handbook,
`recipes/zephyr-7b-beta/dpo/config_qlora.yaml`). Its fall with the width is assumed to be a LoRA's."""
BETA: Final = 0.1
"""Rafailov et al. 2023, section 6 and appendix B."""
PATIENCE: Final = 2
"""Of `auto`: one worse measurement may be noise. A choice."""
DEFAULT_RANK: Final = 16
MAX_AUTO_LENGTH: Final = 4096
API_NAMES: Final = {"rank": "lora_rank", "alpha": "lora_alpha", "dropout": "lora_dropout", "epochs": "n_epochs"}
"""The API's names of recipe fields, where they differ."""


@dataclass(frozen=True, slots=True)
class DatasetStats:
    """Statistics of the training examples: their number, all their tokens, and the tokens of the longest."""

    examples: int
    tokens: int
    longest: int
    validation: int = 0
    """Examples of the validation part, which the others do not count."""


def max_length(wish: HyperparameterRequest, *, context: int | None, positions: int) -> int:
    """The maximum length of an example in tokens: as requested, else what the engine takes in one request.

    Raises:
        InvalidHyperparameter: The request exceeds what the base or the engine supports.
    """
    bound = min(positions, context or positions)
    if wish.max_length == "auto":
        return min(bound, MAX_AUTO_LENGTH)
    if wish.max_length > bound:
        raise InvalidHyperparameter(
            "max_length", f"got {wish.max_length} tokens; engine and base support {bound} at most"
        )
    return wish.max_length


def choose(
    wish: HyperparameterRequest,
    stats: DatasetStats,
    *,
    objective: Literal["supervised", "dpo"] = "supervised",
    hidden_size: int,
    max_rank: int,
    length: int,
    seed: int,
    on_gpu: bool,
    parent: ParentShape | None,
) -> tuple[Recipe, dict[str, str]]:
    """The complete recipe, and for each automatic value the reason for its choice.

    Args:
        objective: What the training minimises.
        hidden_size: The base's hidden size.
        max_rank: The engine's `--max-lora-rank`.
        length: From `max_length`.

    Raises:
        InvalidHyperparameter: The engine could not serve it, it conflicts with the parent, or the recipe is invalid.
    """
    chosen: dict[str, str] = {}
    shape = _lora_shape(wish, chosen, max_rank, parent)
    batch = _batch(wish, chosen, stats)
    epochs = _epochs(wish, chosen, stats)
    rate = _rate(wish, chosen, hidden_size, objective)
    quantization = wish.quantization
    if quantization == "auto":
        quantization = "nf4" if on_gpu else "none"
        chosen["quantization"] = (
            "nf4: QLoRA, the base model in four bits"
            if on_gpu
            else "none: four bits are slower on a CPU, and memory is not scarce"
        )
    if wish.max_length == "auto":
        chosen["max_length"] = f"{length}: the longest request that engine and base support, at most {MAX_AUTO_LENGTH}"
    values = {
        "dropout": wish.lora_dropout,
        "learning_rate": rate,
        "warmup_ratio": wish.warmup_ratio,
        "epochs": epochs,
        "batch_size": batch,
        "quantization": quantization,
        "packing": wish.packing,
        "micro_batch_tokens": _micro_batch(chosen, on_gpu),
        "max_length": length,
        "seed": seed,
        "objective": objective,
        "patience": _patience(wish, chosen, stats),
    }
    if objective == "dpo":
        values["beta"] = _beta(wish, chosen)
    return _recipe(shape | values), chosen


def _micro_batch(chosen: dict[str, str], on_gpu: bool) -> int:
    tokens = GPU_MICRO_BATCH_TOKENS if on_gpu else CPU_MICRO_BATCH_TOKENS
    device = "GPU" if on_gpu else "CPU"
    chosen["micro_batch_tokens"] = f"{tokens}: a {device} is busy with these; a step adds up the gradients of several"
    return tokens


def _recipe(values: dict[str, Any]) -> Recipe:
    try:
        return Recipe(**values)
    except ValidationError as error:
        fault = faults(error)[0]
        name = str(fault["loc"][0]) if fault["loc"] else "hyperparameters"
        raise InvalidHyperparameter(API_NAMES.get(name, name), f"{shown(fault['input'])}: {message(fault)}") from error


def _lora_shape(
    wish: HyperparameterRequest, chosen: dict[str, str], max_rank: int, parent: ParentShape | None
) -> dict[str, Any]:
    """The recipe's rank, alpha, rslora and target_modules."""
    if parent is not None:
        fixed = {"lora_rank": parent.rank, "lora_alpha": parent.alpha}
        for name, value in fixed.items():
            requested = getattr(wish, name)
            if requested not in ("auto", value):
                raise InvalidHyperparameter(
                    name, f"got {requested}, but the parent has {value}; training a version further keeps its value"
                )
        if wish.target_modules != "all-linear" and set(wish.target_modules) != set(parent.target_modules):
            requested, has = (", ".join(sorted(modules)) for modules in (wish.target_modules, parent.target_modules))
            raise InvalidHyperparameter(
                "target_modules",
                f"got {requested}, but the parent has {has}; training a version further keeps its modules",
            )
        if wish.rslora and not parent.rslora:
            raise InvalidHyperparameter(
                "rslora", "got true, but the parent has false; training a version further keeps its value"
            )
        chosen |= {name: f"{value:g}: the parent's" for name, value in fixed.items()}
        chosen["target_modules"] = f"{', '.join(parent.target_modules)}: the parent's"
        return {
            "rank": parent.rank,
            "alpha": parent.alpha,
            "rslora": parent.rslora,
            "target_modules": tuple(dict.fromkeys(parent.target_modules)),
        }
    rank: int
    if wish.lora_rank != "auto":
        rank = wish.lora_rank
    else:
        rank = min(DEFAULT_RANK, max_rank)
        chosen["lora_rank"] = f"{rank}: enough to learn a format or style; a larger one makes serving slower"
    if rank > max_rank:
        raise InvalidHyperparameter("lora_rank", f"got {rank}; the engine serves {max_rank} at most")
    alpha = wish.lora_alpha
    if alpha == "auto":
        alpha = 2.0 * rank
        chosen["lora_alpha"] = f"{alpha:g}: twice the rank"
    return {"rank": rank, "alpha": alpha, "rslora": wish.rslora, "target_modules": wish.target_modules}


def _batch(wish: HyperparameterRequest, chosen: dict[str, str], stats: DatasetStats) -> int:
    if wish.batch_size != "auto":
        return wish.batch_size
    batch = 4 if stats.examples < 500 else 8 if stats.examples < 2000 else 16
    steps = counted(math.ceil(stats.examples / batch), "step")
    chosen["batch_size"] = f"{batch}: {counted(stats.examples, 'example makes', 'examples make')} {steps} an epoch"
    return batch


def _epochs(wish: HyperparameterRequest, chosen: dict[str, str], stats: DatasetStats) -> int:
    if wish.n_epochs != "auto":
        return wish.n_epochs
    epochs = 4 if stats.examples < 50 else 3 if stats.examples < 1000 else 2 if stats.examples < 6000 else 1
    chosen["n_epochs"] = f"{epochs}: small data sets are repeated more often"
    return epochs


def _patience(wish: HyperparameterRequest, chosen: dict[str, str], stats: DatasetStats) -> int:
    if wish.early_stopping_patience != "auto":
        return wish.early_stopping_patience
    if stats.validation == 0:
        chosen["early_stopping_patience"] = (
            f"0: {counted(stats.examples, 'example has', 'examples have')} no validation part to stop by"
        )
        return 0
    chosen["early_stopping_patience"] = (
        f"{PATIENCE}: the training stops after as many measurements of the {stats.validation} validation examples "
        "without a better loss"
    )
    return PATIENCE


def _beta(wish: HyperparameterRequest, chosen: dict[str, str]) -> float:
    if wish.beta != "auto":
        return wish.beta
    chosen["beta"] = f"{BETA:g}: the DPO paper's"
    return BETA


def _rate(wish: HyperparameterRequest, chosen: dict[str, str], hidden_size: int, objective: str) -> float:
    rate = (DPO_RATE if objective == "dpo" else LORA_RATE) * (RATE_WIDTH / hidden_size) ** RATE_EXPONENT
    times = 1.0 if wish.learning_rate_multiplier == "auto" else wish.learning_rate_multiplier
    rate = min(1.0, float(f"{rate * times:.2g}"))
    if wish.learning_rate != "auto":
        # a job object shows both, and a client may send them back
        if wish.learning_rate_multiplier != "auto" and wish.learning_rate != rate:
            raise InvalidHyperparameter(
                "learning_rate_multiplier",
                f"conflicts with `learning_rate`: it gives {rate:g} here; send only one of the two",
            )
        return wish.learning_rate
    if rate <= 0:
        raise InvalidHyperparameter("learning_rate_multiplier", f"{times:g} is too small: the learning rate would be 0")
    what = "DPO of a LoRA" if objective == "dpo" else "a LoRA"
    asked = "" if wish.learning_rate_multiplier == "auto" else f", times {times:g} as requested"
    chosen["learning_rate"] = f"{rate:g}: for {what} on a model with hidden size {hidden_size}{asked}"
    return rate
