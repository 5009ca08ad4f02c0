"""What `auto` stands for: hyperparameters chosen from the data and the base, each with its reason in words.

Imports no torch.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Final

from pydantic import ValidationError

from adapters.protocol.runs import ParentShape
from adapters.validation import faults, message, shown
from trainer.errors import WishRefused
from trainer.tune.recipe import Recipe
from trainer.tune.wish import Wish

LORA_RATE: Final = 5e-4
RATE_WIDTH: Final = 2000
RATE_EXPONENT: Final = 0.781
"""A LoRA's learning rate falls with the model's width: 5e-4 · (2000 / hidden size)^0.781, fitted by the Thinking
Machines cookbook over Llama models (its `hyperparam_utils`, and "LoRA Without Regret", 2025)."""
DEFAULT_RANK: Final = 16
LONGEST_AUTO: Final = 4096
ASKED_AS: Final = {"rank": "lora_rank", "alpha": "lora_alpha", "dropout": "lora_dropout", "epochs": "n_epochs"}
"""Fields of a recipe that are asked for by another name."""


@dataclass(frozen=True, slots=True)
class Seen:
    """What the choice is made from: examples trained on, tokens of them all, the longest one's tokens."""

    examples: int
    tokens: int
    longest: int


def max_length(wish: Wish, *, context: int | None, positions: int) -> int:
    """Longest example in tokens: what was asked for, else what the engine could take in one request.

    Raises:
        WishRefused: More than the base or the engine can take.
    """
    bound = min(positions, context or positions)
    if wish.max_length == "auto":
        return min(bound, LONGEST_AUTO)
    if wish.max_length > bound:
        raise WishRefused(
            "max_length", f"{wish.max_length} tokens were asked for; engine and base take {bound} at most"
        )
    return wish.max_length


def choose(
    wish: Wish,
    seen: Seen,
    *,
    hidden_size: int,
    max_rank: int,
    length: int,
    seed: int,
    on_gpu: bool,
    parent: ParentShape | None,
) -> tuple[Recipe, dict[str, str]]:
    """The whole recipe, and for each value that was left open the reason for the one chosen.

    Args:
        hidden_size: The base's width.
        max_rank: The largest rank that the engine serves.
        length: From `max_length`.

    Raises:
        WishRefused: The engine could not serve it, it does not go with the parent, or it makes no recipe.
    """
    chosen: dict[str, str] = {}
    shape = _shape(wish, chosen, max_rank, parent)
    batch = _batch(wish, chosen, seen)
    epochs = _epochs(wish, chosen, seen)
    rate = _rate(wish, chosen, hidden_size)
    quantization = wish.quantization
    if quantization == "auto":
        quantization = "nf4" if on_gpu else "none"
        chosen["quantization"] = (
            "nf4: QLoRA, the base in four bits"
            if on_gpu
            else "none: on a CPU four bits are slower, and memory is there"
        )
    if wish.max_length == "auto":
        chosen["max_length"] = f"{length}: what engine and base take in one request, {LONGEST_AUTO} at most"
    values = {
        "dropout": wish.lora_dropout,
        "learning_rate": rate,
        "warmup_ratio": wish.warmup_ratio,
        "epochs": epochs,
        "batch_size": batch,
        "quantization": quantization,
        "packing": wish.packing,
        "max_length": length,
        "seed": seed,
    }
    return _recipe(shape | values), chosen


def _recipe(values: dict[str, Any]) -> Recipe:
    try:
        return Recipe(**values)
    except ValidationError as error:
        fault = faults(error)[0]
        name = str(fault["loc"][0]) if fault["loc"] else "hyperparameters"
        raise WishRefused(ASKED_AS.get(name, name), f"{shown(fault['input'])}: {message(fault)}") from error


def _shape(wish: Wish, chosen: dict[str, str], max_rank: int, parent: ParentShape | None) -> dict[str, Any]:
    """Rank, alpha, rsLoRA and modules."""
    if parent is not None:
        fixed = {"lora_rank": parent.rank, "lora_alpha": parent.alpha}
        for name, value in fixed.items():
            asked = getattr(wish, name)
            if asked not in ("auto", value):
                raise WishRefused(name, f"{asked} was asked for, and the parent has {value}: it is trained on as it is")
        if wish.target_modules != "all-linear" and set(wish.target_modules) != set(parent.target_modules):
            asked, has = (", ".join(sorted(modules)) for modules in (wish.target_modules, parent.target_modules))
            raise WishRefused(
                "target_modules", f"{asked} were asked for, and the parent has {has}: it is trained on as it is"
            )
        if wish.rslora and not parent.rslora:
            raise WishRefused("rslora", "it was asked for, and the parent is without: it is trained on as it is")
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
        chosen["lora_rank"] = f"{rank}: enough for form; a larger one costs speed at serving"
    if rank > max_rank:
        raise WishRefused("lora_rank", f"{rank} was asked for; the engine serves {max_rank} at most")
    alpha = wish.lora_alpha
    if alpha == "auto":
        alpha = 2.0 * rank
        chosen["lora_alpha"] = f"{alpha:g}: twice the rank"
    return {"rank": rank, "alpha": alpha, "rslora": wish.rslora, "target_modules": wish.target_modules}


def _batch(wish: Wish, chosen: dict[str, str], seen: Seen) -> int:
    if wish.batch_size != "auto":
        return wish.batch_size
    batch = 4 if seen.examples < 500 else 8 if seen.examples < 2000 else 16
    chosen["batch_size"] = f"{batch}: {seen.examples} examples give {math.ceil(seen.examples / batch)} steps an epoch"
    return batch


def _epochs(wish: Wish, chosen: dict[str, str], seen: Seen) -> int:
    if wish.n_epochs != "auto":
        return wish.n_epochs
    epochs = 4 if seen.examples < 50 else 3 if seen.examples < 1000 else 2 if seen.examples < 3000 else 1
    chosen["n_epochs"] = f"{epochs}: few examples are seen several times, many once"
    return epochs


def _rate(wish: Wish, chosen: dict[str, str], hidden_size: int) -> float:
    rate = LORA_RATE * (RATE_WIDTH / hidden_size) ** RATE_EXPONENT
    times = 1.0 if wish.learning_rate_multiplier == "auto" else wish.learning_rate_multiplier
    rate = min(1.0, float(f"{rate * times:.2g}"))
    if wish.learning_rate != "auto":
        # a job is shown with both, and what is shown may be sent again
        if wish.learning_rate_multiplier != "auto" and wish.learning_rate != rate:
            raise WishRefused(
                "learning_rate_multiplier",
                f"it stands beside `learning_rate` and comes to {rate:g} here; only one of the two can decide",
            )
        return wish.learning_rate
    if rate <= 0:
        raise WishRefused("learning_rate_multiplier", f"{times:g} is so small that the learning rate becomes 0")
    chosen["learning_rate"] = f"{rate:g}: for a LoRA on a model of width {hidden_size}"
    return rate
