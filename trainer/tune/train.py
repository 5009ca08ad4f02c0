"""The training loop: AdamW on a LoRA over batches grouped by length, with progress, checkpoints and resumption."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any, Final

import psutil
import torch

from trainer.data.render import TokenSequence
from trainer.errors import DataTooSmall, OutOfMemory
from trainer.tune.batches import plan_batches
from trainer.tune.checkpoint import Checkpoint, Checkpoints, Position
from trainer.tune.loss import Batch, batch_loss, can_share_prefix, collate, pack
from trainer.tune.model import evaluating
from trainer.tune.optimizer import Optimizer, finite
from trainer.tune.progress import Evaluation, Progress, Training
from trainer.tune.recipe import Recipe

EVALUATED_MOST: Final = 200
"""Held-out examples looked at after each epoch: a tenth of a point is not worth a tenth of the time."""


def train(
    model: Any,
    sequences: Sequence[TokenSequence],
    recipe: Recipe,
    *,
    on_progress: Callable[[Progress], None],
    held_out: Sequence[TokenSequence] = (),
    checkpoints: Checkpoints | None = None,
) -> Training:
    """Train the LoRA on `model` (from attach_lora) in place.

    The same model, sequences, recipe and number of threads give the same losses and weights on a CPU, whether the
    training was interrupted or not. An exception from `on_progress` ends it and passes through, after a checkpoint.

    Raises:
        DataTooSmall: There are no sequences.
        LossNotFinite: The loss or its gradient became NaN or infinite.
        OutOfMemory: The device's memory did not reach.
        CheckpointUnusable: The checkpoints are another training's.
    """
    if not sequences:
        raise DataTooSmall("There is nothing to train on.")
    loop = _Loop(model, sequences, recipe, on_progress, held_out, checkpoints)
    try:
        return loop.run()
    except torch.OutOfMemoryError as error:
        raise OutOfMemory(
            f"The device ran out of memory at step {loop.step + 1} with batches of {recipe.batch_size}. "
            "A smaller batch_size or max_length, or quantization nf4, needs less."
        ) from error


class _Loop:
    """One training; `step` counts the steps that are done."""

    def __init__(
        self,
        model: Any,
        sequences: Sequence[TokenSequence],
        recipe: Recipe,
        on_progress: Callable[[Progress], None],
        held_out: Sequence[TokenSequence],
        checkpoints: Checkpoints | None,
    ) -> None:
        lengths = [len(row.tokens) for row in sequences]
        self._plan = plan_batches(lengths, batch_size=recipe.batch_size, epochs=recipe.epochs, seed=recipe.seed)
        self._epoch_steps = len(self._plan) // recipe.epochs
        self._total = sum(lengths) * recipe.epochs
        self._model = model
        self._sequences = sequences
        self._recipe = recipe
        self._on_progress = on_progress
        self._held_out = held_out[:EVALUATED_MOST]
        self._checkpoints = checkpoints
        self._device = next(model.parameters()).device
        # a prefix computed once draws one dropout for all rows, and gradient checkpointing keeps no cache
        plain = recipe.dropout == 0 and not recipe.gradient_checkpointing
        self._share_prefix = plain and can_share_prefix(model.config)
        self._optimizer = Optimizer(model, recipe, steps=len(self._plan))
        self._losses: list[float] = []
        self._evaluations: list[Evaluation] = []
        self._seen = 0
        self._before_s = 0.0
        self.step = 0

    def run(self) -> Training:
        self._resume()
        self._began = time.perf_counter()
        self._resumed_at = self._seen
        while self.step < len(self._plan):
            progress = self._one_step()
            try:
                self._on_progress(progress)
            except BaseException:
                self._keep()
                raise
            if self._checkpoints is not None and (progress.evaluation is not None or self._checkpoints.due()):
                self._keep()
        last = self._losses[-self._epoch_steps :]
        return Training(
            steps=len(self._plan),
            tokens=self._seen,
            trained_tokens=sum(sum(row.trained) for row in self._sequences) * self._recipe.epochs,
            seconds=self._seconds(),
            final_loss=sum(last) / len(last),
            losses=tuple(self._losses),
            evaluations=tuple(self._evaluations),
        )

    def _one_step(self) -> Progress:
        rows = [self._sequences[index] for index in self._plan[self.step]]
        batch = self._batch(rows)
        loss, right = batch_loss(self._model, batch)
        loss.backward()  # type: ignore[no-untyped-call]
        rate = self._optimizer.step()
        self.step += 1
        self._losses.append(finite(loss.item(), self.step, "loss"))
        self._seen += sum(len(row.tokens) for row in rows)
        ends_epoch = self.step % self._epoch_steps == 0
        evaluation = evaluate(self._model, self._held_out, self._recipe) if ends_epoch and self._held_out else None
        if evaluation is not None:
            self._evaluations.append(evaluation)
        new_s = time.perf_counter() - self._began
        pace = (self._seen - self._resumed_at) / new_s
        return Progress(
            step=self.step,
            steps=len(self._plan),
            epoch=self.step * self._recipe.epochs / len(self._plan),
            loss=self._losses[-1],
            learning_rate=rate,
            tokens_per_s=pace,
            seconds_left=(self._total - self._seen) / pace,
            memory_bytes=_memory(self._device),
            accuracy=right / len(batch.targets),
            evaluation=evaluation,
        )

    def _batch(self, rows: Sequence[TokenSequence]) -> Batch:
        if self._recipe.packing:
            return pack(rows, self._device)
        return collate(rows, share_prefix=self._share_prefix, device=self._device)

    def _seconds(self) -> float:
        return self._before_s + time.perf_counter() - self._began

    def _resume(self) -> None:
        found = self._checkpoints.load(self._device) if self._checkpoints is not None else None
        if found is None:
            return
        self._optimizer.restore(found.optimizer)
        self.step = found.position.step
        self._losses, self._evaluations = list(found.position.losses), list(found.position.evaluations)
        self._seen, self._before_s = found.position.tokens, found.position.seconds

    def _keep(self) -> None:
        if self._checkpoints is None or self.step == 0:
            return
        position = Position(
            key=self._checkpoints.key,
            step=self.step,
            losses=tuple(self._losses),
            tokens=self._seen,
            seconds=self._seconds(),
            evaluations=tuple(self._evaluations),
        )
        self._checkpoints.save(Checkpoint(position, self._optimizer.state()), self._device)


@torch.no_grad()
def evaluate(model: Any, sequences: Sequence[TokenSequence], recipe: Recipe) -> Evaluation:
    """Loss and token accuracy over `sequences`, as the model is now, without dropout; needs one sequence or more."""
    share_prefix, device = can_share_prefix(model.config), next(model.parameters()).device
    ordered = sorted(sequences, key=lambda row: len(row.tokens))
    loss_sum, right_sum, tokens = 0.0, 0, 0
    with evaluating(model):
        for start in range(0, len(ordered), recipe.batch_size):
            batch = collate(ordered[start : start + recipe.batch_size], share_prefix=share_prefix, device=device)
            loss, right = batch_loss(model, batch)
            loss_sum += loss.item() * len(batch.targets)
            right_sum += right
            tokens += len(batch.targets)
    return Evaluation(loss=loss_sum / tokens, accuracy=right_sum / tokens, tokens=tokens)


def _memory(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return int(psutil.Process().memory_info().rss)
