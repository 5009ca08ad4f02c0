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
from trainer.tune.progress import Evaluation, Progress, Training, nothing
from trainer.tune.recipe import Recipe

EVALUATED_MOST: Final = 200
"""Held-out examples looked at after each epoch: a tenth of a point is not worth a tenth of the time."""


def train(
    model: Any,
    sequences: Sequence[TokenSequence],
    recipe: Recipe,
    *,
    on_progress: Callable[[Progress], None],
    between: Callable[[], None] = nothing,
    held_out: Sequence[TokenSequence] = (),
    checkpoints: Checkpoints | None = None,
) -> Training:
    """Train the LoRA on `model` (from attach_lora) in place.

    The same model, sequences, recipe and number of threads give the same losses and weights on a CPU, whether the
    training was interrupted or not. `between` is called before each batch of the held-out part, which is looked at
    after each epoch. An exception from it or from `on_progress` ends the training and passes through, after a
    checkpoint.

    Raises:
        DataTooSmall: There are no sequences.
        LossNotFinite: The loss or its gradient became NaN or infinite.
        OutOfMemory: The device's memory did not reach.
        CheckpointUnusable: The checkpoints are another training's.
    """
    if not sequences:
        raise DataTooSmall("There is nothing to train on.")
    loop = _Loop(model, sequences, recipe, on_progress, between, held_out, checkpoints)
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
        between: Callable[[], None],
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
        self._between = between
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
        self._rate, self._accuracy = 0.0, 0.0
        self.step = 0

    def run(self) -> Training:
        self._resume()
        self._began = time.perf_counter()
        self._resumed_at = self._seen
        if self._is_unseen():
            self._look_up()  # it was interrupted in the middle of that
        while self.step < len(self._plan):
            self._one_step()
            self._look_up()
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

    def _one_step(self) -> None:
        rows = [self._sequences[index] for index in self._plan[self.step]]
        batch = self._batch(rows)
        loss, right = batch_loss(self._model, batch)
        loss.backward()  # type: ignore[no-untyped-call]
        self._rate = self._optimizer.step()
        self.step += 1
        self._losses.append(finite(loss.item(), self.step, "loss"))
        self._accuracy = right / len(batch.targets)
        self._seen += sum(len(row.tokens) for row in rows)

    def _look_up(self) -> None:
        """After a step: how it stands, at an epoch's end on what is held out too, and a checkpoint where it is time."""
        evaluation = None
        try:
            if self._is_unseen():
                evaluation = evaluate(self._model, self._held_out, self._recipe, between=self._between)
                self._evaluations.append(evaluation)
            self._on_progress(self._progress(evaluation))
        except BaseException:
            self._keep()
            raise
        if self._checkpoints is not None and (self._ends_epoch() or self._checkpoints.due()):
            self._keep()

    def _ends_epoch(self) -> bool:
        return self.step > 0 and self.step % self._epoch_steps == 0

    def _is_unseen(self) -> bool:
        """Whether an epoch has ended, and what is held out was not looked at since."""
        behind = len(self._evaluations) < self.step // self._epoch_steps
        return bool(self._held_out) and self._ends_epoch() and behind

    def _progress(self, evaluation: Evaluation | None) -> Progress:
        new_s, new = time.perf_counter() - self._began, self._seen - self._resumed_at
        pace = new / new_s if new else self._seen / self._seconds()
        return Progress(
            step=self.step,
            steps=len(self._plan),
            epoch=self.step * self._recipe.epochs / len(self._plan),
            loss=self._losses[-1],
            learning_rate=self._rate,
            tokens_per_s=pace,
            seconds_left=(self._total - self._seen) / pace,
            memory_bytes=_memory(self._device),
            accuracy=self._accuracy,
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
        self._rate, self._accuracy = found.position.learning_rate, found.position.accuracy

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
            learning_rate=self._rate,
            accuracy=self._accuracy,
        )
        self._checkpoints.save(Checkpoint(position, self._optimizer.state()), self._device)


@torch.no_grad()
def evaluate(
    model: Any, sequences: Sequence[TokenSequence], recipe: Recipe, *, between: Callable[[], None] = nothing
) -> Evaluation:
    """Loss and token accuracy over `sequences`, as the model is now, without dropout; needs one sequence or more.

    `between` is called before each batch; an exception from it passes through.
    """
    share_prefix, device = can_share_prefix(model.config), next(model.parameters()).device
    ordered = sorted(sequences, key=lambda row: len(row.tokens))
    loss_sum, right_sum, tokens = 0.0, 0, 0
    with evaluating(model):
        for start in range(0, len(ordered), recipe.batch_size):
            between()
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
