"""AdamW with its moments in paged memory (QLoRA, Dettmers et al. 2023, section 3): if GPU memory is full, they move to
the host instead of ending the training. Uses bitsandbytes' 32-bit AdamW, which computes the same as torch's.

Not run on a GPU yet. On a CPU bitsandbytes pages nothing and computes the same, which is what the tests check.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib import import_module
from typing import Any

import torch
from torch import Tensor

from trainer.tune.recipe import Recipe


def is_paged(device: torch.device, recipe: Recipe) -> bool:
    """Whether a training uses paged moments: a four-bit base on a GPU."""
    return device.type == "cuda" and recipe.quantization == "nf4"


def make_optimizer(originals: Sequence[Tensor], recipe: Recipe) -> Any:
    """The optimizer for these float32 tensors."""
    optim: Any = import_module("bitsandbytes.optim")  # takes a second, and only a training on a GPU needs it
    return optim.PagedAdamW32bit(list(originals), lr=recipe.learning_rate, weight_decay=recipe.weight_decay)


def state_of(adamw: Any, originals: Sequence[Tensor]) -> dict[str, Any]:
    """The optimizer's state under the names of torch's AdamW, so that either can resume from the other's checkpoint."""
    state = {}
    for number, original in enumerate(originals):
        saved = adamw.state.get(original)
        if saved:
            moments = {"exp_avg": saved["state1"].clone(), "exp_avg_sq": saved["state2"].clone()}
            state[number] = {"step": torch.tensor(float(saved["step"])), **moments}
    return {"state": state}


def restore(adamw: Any, originals: Sequence[Tensor], state: Mapping[str, Any]) -> None:
    """Restore a result of `state_of` into paged memory; bitsandbytes' own loading would not page it."""
    for number, original in enumerate(originals):
        saved = state["state"].get(number)
        if saved is None:
            continue
        adamw.init_state(adamw.param_groups[0], original, 0, number)
        if original.device.type == "cuda":
            torch.cuda.synchronize(original.device)  # new pages are zeroed asynchronously
        own = adamw.state[original]
        own["step"] = int(saved["step"])
        own["state1"].copy_(saved["exp_avg"])
        own["state2"].copy_(saved["exp_avg_sq"])
