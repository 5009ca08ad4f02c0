"""AdamW whose moments lie in paged memory (QLoRA, Dettmers et al. 2023, section 3): where a GPU's own is full they move
to the host's instead of ending the training. bitsandbytes' with 32 bits, whose mathematics are those of torch's AdamW.

Nobody has run it on a GPU yet. On a CPU bitsandbytes pages nothing and computes the same; that is what tests look at.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib import import_module
from typing import Any

import torch
from torch import Tensor

from trainer.tune.recipe import Recipe


def wanted(device: torch.device, recipe: Recipe) -> bool:
    """Whether a training is one that QLoRA pages: a four-bit base on a GPU."""
    return device.type == "cuda" and recipe.quantization == "nf4"


def make(originals: Sequence[Tensor], recipe: Recipe) -> Any:
    """The optimizer of these float32 tensors."""
    optim: Any = import_module("bitsandbytes.optim")  # takes a second, and only a GPU's training needs it
    return optim.PagedAdamW32bit(list(originals), lr=recipe.learning_rate, weight_decay=recipe.weight_decay)


def state_of(adamw: Any, originals: Sequence[Tensor]) -> dict[str, Any]:
    """Its state under the names of torch's AdamW, so that one may go on from the other's checkpoint."""
    found = {}
    for number, original in enumerate(originals):
        kept = adamw.state.get(original)
        if kept:
            moments = {"exp_avg": kept["state1"].clone(), "exp_avg_sq": kept["state2"].clone()}
            found[number] = {"step": torch.tensor(float(kept["step"])), **moments}
    return {"state": found}


def restore(adamw: Any, originals: Sequence[Tensor], state: Mapping[str, Any]) -> None:
    """Go on from such a state, in paged memory again: what bitsandbytes itself loads is paged no more."""
    for number, original in enumerate(originals):
        kept = state["state"].get(number)
        if kept is None:
            continue
        adamw.init_state(adamw.param_groups[0], original, 0, number)
        if original.device.type == "cuda":
            torch.cuda.synchronize(original.device)  # new pages are filled with zeros behind our back
        own = adamw.state[original]
        own["step"] = int(kept["step"])
        own["state1"].copy_(kept["exp_avg"])
        own["state2"].copy_(kept["exp_avg_sq"])
