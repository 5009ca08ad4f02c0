"""AdamW on float32 originals of the adapter's parameters, and the schedule of its learning rate."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from trainer.errors import LossNotFinite
from trainer.tune import paged
from trainer.tune.recipe import Recipe


class Optimizer:
    """AdamW (Loshchilov & Hutter 2019) on float32 originals of the trainable parameters, with clipping and a schedule.

    The parameters themselves may be bfloat16, whose eight bits would swallow a small update; the originals collect it.
    """

    def __init__(self, model: Any, recipe: Recipe, *, steps: int) -> None:
        self._recipe = recipe
        self._steps = steps
        self._step = 0
        self._parameters: list[Tensor] = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self._originals = [parameter.detach().float().clone() for parameter in self._parameters]
        self._paged = paged.wanted(next(model.parameters()).device, recipe)
        self._adamw: Any = paged.make(self._originals, recipe) if self._paged else self._usual()

    def _usual(self) -> torch.optim.AdamW:
        rate, decay = self._recipe.learning_rate, self._recipe.weight_decay
        return torch.optim.AdamW(self._originals, lr=rate, weight_decay=decay, foreach=True)

    def state(self) -> dict[str, Any]:
        """All that decides the next steps: the originals, AdamW's moments and the step."""
        adamw = paged.state_of(self._adamw, self._originals) if self._paged else self._adamw.state_dict()
        return {"step": self._step, "originals": self._originals, "adamw": adamw}

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from what `state` gave, and set the parameters to it."""
        self._step = int(state["step"])
        if self._paged:
            paged.restore(self._adamw, self._originals, state["adamw"])
        else:
            self._adamw.load_state_dict(self._adamw.state_dict() | {"state": state["adamw"]["state"]})
        with torch.no_grad():
            for original, parameter, kept in zip(self._originals, self._parameters, state["originals"], strict=True):
                original.copy_(kept)
                parameter.copy_(original)

    def step(self) -> float:
        """Apply the gradients and clear them; returns the learning rate used. Raises LossNotFinite."""
        self._step += 1
        rate = self._recipe.learning_rate * schedule(self._step, self._steps, self._recipe)
        for original, parameter in zip(self._originals, self._parameters, strict=True):
            original.grad = None if parameter.grad is None else parameter.grad.float()
            parameter.grad = None
        norm = torch.nn.utils.clip_grad_norm_(self._originals, self._recipe.max_grad_norm)
        finite(norm.item(), self._step, "gradient")
        for group in self._adamw.param_groups:
            group["lr"] = rate
        self._adamw.step()
        with torch.no_grad():
            for original, parameter in zip(self._originals, self._parameters, strict=True):
                parameter.copy_(original)
        return rate


def schedule(step: int, steps: int, recipe: Recipe) -> float:
    """The learning rate's factor at `step` (from 1): a linear rise, then constant, or linear or cosine towards zero."""
    warmup = math.ceil(recipe.warmup_ratio * steps)
    if step <= warmup:
        return step / warmup
    if recipe.scheduler == "constant":
        return 1.0
    done = (step - warmup) / (steps - warmup + 1)
    return 1.0 - done if recipe.scheduler == "linear" else 0.5 * (1.0 + math.cos(math.pi * done))


def finite(value: float, step: int, what: str) -> float:
    """`value`, which must be a number. Raises LossNotFinite."""
    if not math.isfinite(value):
        raise LossNotFinite(
            f"The {what} is {value} at step {step}. A lower learning rate usually helps; so does a look at the data."
        )
    return value
