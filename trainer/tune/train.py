"""The training loop: AdamW on a LoRA over batches grouped by length, with progress after every step."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from typing import Any

import psutil
import torch
from torch import Tensor

from trainer.data.render import TokenSequence
from trainer.errors import DataTooSmall, LossNotFinite
from trainer.tune.batches import plan_batches
from trainer.tune.loss import batch_loss, can_share_prefix, collate
from trainer.tune.progress import Progress, Training
from trainer.tune.recipe import Recipe


def train(
    model: Any, sequences: Sequence[TokenSequence], recipe: Recipe, *, on_progress: Callable[[Progress], None]
) -> Training:
    """Train the LoRA on `model` (from attach_lora) in place.

    The same model, sequences, recipe and number of threads give the same losses and weights on a CPU. An exception from
    `on_progress` ends the training and passes through.

    Raises:
        DataTooSmall: There are no sequences.
        LossNotFinite: The loss or its gradient became NaN or infinite.
    """
    if not sequences:
        raise DataTooSmall("There is nothing to train on.")
    plan = plan_batches(
        [len(row.tokens) for row in sequences], batch_size=recipe.batch_size, epochs=recipe.epochs, seed=recipe.seed
    )
    device = next(model.parameters()).device
    share_prefix = recipe.dropout == 0 and can_share_prefix(model.config)
    optimizer = Optimizer(model, recipe, steps=len(plan))
    total = sum(len(row.tokens) for row in sequences) * recipe.epochs
    losses: list[float] = []
    seen = 0
    started = time.perf_counter()
    for step, indices in enumerate(plan, start=1):
        rows = [sequences[index] for index in indices]
        loss = batch_loss(model, collate(rows, share_prefix=share_prefix, device=device))
        loss.backward()  # type: ignore[no-untyped-call]
        rate = optimizer.step()
        losses.append(_finite(loss.item(), step, "loss"))
        seen += sum(len(row.tokens) for row in rows)
        elapsed = time.perf_counter() - started
        on_progress(
            Progress(
                step=step,
                steps=len(plan),
                epoch=step * recipe.epochs / len(plan),
                loss=losses[-1],
                learning_rate=rate,
                tokens_per_s=seen / elapsed,
                seconds_left=elapsed * (total - seen) / seen,
                memory_bytes=_memory(device),
            )
        )
    last = losses[-(len(plan) // recipe.epochs) :]
    return Training(
        steps=len(plan),
        tokens=seen,
        trained_tokens=sum(sum(row.trained) for row in sequences) * recipe.epochs,
        seconds=time.perf_counter() - started,
        final_loss=sum(last) / len(last),
        losses=tuple(losses),
    )


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
        self._adamw = torch.optim.AdamW(
            self._originals, lr=recipe.learning_rate, weight_decay=recipe.weight_decay, foreach=True
        )

    def step(self) -> float:
        """Apply the gradients and clear them; returns the learning rate used. Raises LossNotFinite."""
        self._step += 1
        rate = self._recipe.learning_rate * schedule(self._step, self._steps, self._recipe)
        for original, parameter in zip(self._originals, self._parameters, strict=True):
            original.grad = None if parameter.grad is None else parameter.grad.float()
            parameter.grad = None
        norm = torch.nn.utils.clip_grad_norm_(self._originals, self._recipe.max_grad_norm)
        _finite(norm.item(), self._step, "gradient")
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


def _finite(value: float, step: int, what: str) -> float:
    if not math.isfinite(value):
        raise LossNotFinite(
            f"The {what} is {value} at step {step}. A lower learning rate usually helps; so does a look at the data."
        )
    return value


def _memory(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return int(psutil.Process().memory_info().rss)
