"""AdamW on float32 master weights of the adapter's parameters, and its learning rate schedule."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from trainer.errors import LossNotFinite
from trainer.tune import paged
from trainer.tune.recipe import Recipe


class Optimizer:
    """AdamW (Loshchilov & Hutter 2019) on float32 master weights, with gradient clipping and a schedule.

    The parameters themselves may be bfloat16, whose eight bits of precision would lose small updates; the master
    weights accumulate them.
    """

    def __init__(self, model: Any, recipe: Recipe, *, steps: int) -> None:
        self._recipe = recipe
        self._steps = steps
        self._step = 0
        self._parameters: list[Tensor] = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self._master_weights = [parameter.detach().float().clone() for parameter in self._parameters]
        self._paged = paged.is_paged(next(model.parameters()).device, recipe)
        self._adamw: Any = paged.make_optimizer(self._master_weights, recipe) if self._paged else self._torch_adamw()

    def _torch_adamw(self) -> torch.optim.AdamW:
        rate, decay = self._recipe.learning_rate, self._recipe.weight_decay
        return torch.optim.AdamW(self._master_weights, lr=rate, weight_decay=decay, foreach=True)

    def state(self) -> dict[str, Any]:
        """Everything that determines the next steps: master weights, AdamW's moments and the step."""
        adamw = paged.state_of(self._adamw, self._master_weights) if self._paged else self._adamw.state_dict()
        return {"step": self._step, "originals": self._master_weights, "adamw": adamw}

    def restore(self, state: dict[str, Any]) -> None:
        """Restore a result of `state`, including the model's parameters."""
        self._step = int(state["step"])
        if self._paged:
            paged.restore(self._adamw, self._master_weights, state["adamw"])
        else:
            self._adamw.load_state_dict(self._adamw.state_dict() | {"state": state["adamw"]["state"]})
        with torch.no_grad():
            for original, parameter, saved in zip(
                self._master_weights, self._parameters, state["originals"], strict=True
            ):
                original.copy_(saved)
                parameter.copy_(original)

    def accumulate(self) -> None:
        """Add the parameters' gradients to those of the step, in float32, and clear them."""
        for original, parameter in zip(self._master_weights, self._parameters, strict=True):
            if parameter.grad is None:
                continue
            gradient = parameter.grad.float()
            original.grad = gradient if original.grad is None else original.grad.add_(gradient)
            parameter.grad = None

    def discard(self) -> None:
        """Clear all gradients of the unfinished step."""
        for tensor in (*self._master_weights, *self._parameters):
            tensor.grad = None

    def step(self) -> float:
        """Apply the accumulated gradients and clear them; returns the learning rate. Raises LossNotFinite."""
        self.accumulate()
        self._step += 1
        rate = self._recipe.learning_rate * schedule(self._step, self._steps, self._recipe)
        norm = torch.nn.utils.clip_grad_norm_(self._master_weights, self._recipe.max_grad_norm)
        finite(norm.item(), self._step, "gradient")
        for group in self._adamw.param_groups:
            group["lr"] = rate
        self._adamw.step()
        with torch.no_grad():
            for original, parameter in zip(self._master_weights, self._parameters, strict=True):
                parameter.copy_(original)
        self.discard()
        return rate


def schedule(step: int, steps: int, recipe: Recipe) -> float:
    """The learning rate's factor at `step` (from 1): linear warmup, then constant, linear or cosine."""
    warmup = math.ceil(recipe.warmup_ratio * steps)
    if step <= warmup:
        return step / warmup
    if recipe.scheduler == "constant":
        return 1.0
    done = (step - warmup) / (steps - warmup + 1)
    return 1.0 - done if recipe.scheduler == "linear" else 0.5 * (1.0 + math.cos(math.pi * done))


def finite(value: float, step: int, what: str) -> float:
    """Returns `value` if it is finite. Raises LossNotFinite."""
    if not math.isfinite(value):
        raise LossNotFinite(f"The {what} is {value} at step {step}. Try a lower learning rate, and check the data.")
    return value
