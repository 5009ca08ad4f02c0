"""The training loop: AdamW on a LoRA, steps of micro-batches, with progress, checkpoints and resumption."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, Final

import psutil
import torch

try:
    from trainer.data.render import TokenSequence
    from trainer.errors import DataTooSmall, OutOfMemory
    from trainer.tune.batches import plan_batches
    from trainer.tune.checkpoint import Checkpoint, Checkpoints, TrainingState, random_states, set_random_states
    from trainer.tune.memory_release import release_memory
    from trainer.tune.model import adapter_weights, enable_checkpointing, evaluating
    from trainer.tune.objectives import make_objective, reference_logprobs
    from trainer.tune.optimizer import Optimizer, finite
    from trainer.tune.progress import Evaluation, Training, TrainingProgress, no_op
    from trainer.tune.recipe import Recipe
    from trainer.tune.validation import best_of, measured_steps, stops

    if "objective" not in Recipe.model_fields:
        raise ImportError("the recipe in memory is an earlier release's")
except ImportError:
    # a worker of an earlier release comes here late, with that release's modules in memory
    from trainer.restart import restart

    restart()

MAX_EVALUATED: Final = 200
"""Maximum number of held-out examples evaluated after each epoch; more would cost much time for little precision."""


def train(
    model: Any,
    sequences: Sequence[TokenSequence],
    recipe: Recipe,
    *,
    on_progress: Callable[[TrainingProgress], None],
    before_batch: Callable[[], None] = no_op,
    held_out: Sequence[TokenSequence] = (),
    validation: Sequence[TokenSequence] = (),
    checkpoints: Checkpoints | None = None,
    on_event: Callable[[str], None] = lambda _: None,
) -> Training:
    """Train the LoRA on `model` (from attach_lora) in place.

    The same model, sequences, recipe and number of threads give the same losses and weights on a CPU, whether the
    training was interrupted or not. `validation` is measured at some steps (`validation.measured_steps`): the weights
    of the best one are the result, and the training stops once `recipe.patience` measurements were no better. Without
    it the last weights are the result, and `held_out` is measured after each epoch, for the reader alone.

    `before_batch` is called before each batch of a measurement. An exception from it or from `on_progress` propagates
    after a checkpoint. If the device runs out of memory, the step is done again with micro-batches of half as many
    tokens, and once these are one example each, with gradient checkpointing; `on_event` is told of each change, which
    lasts until the end and changes the losses only by rounding.

    Raises:
        DataTooSmall: `sequences` is empty.
        LossNotFinite: The loss or its gradient became NaN or infinite.
        OutOfMemory: The device ran out of memory with one example at a time and gradient checkpointing.
        CheckpointUnusable: The checkpoints belong to another training.
    """
    if not sequences:
        raise DataTooSmall("There is nothing to train on.")
    if recipe.objective == "dpo":
        parts = _with_reference(
            model, (sequences, validation, held_out[:MAX_EVALUATED]), recipe, checkpoints, before_batch
        )
        sequences, validation, held_out = parts
    loop = _Loop(model, sequences, recipe, on_progress, before_batch, held_out, validation, checkpoints, on_event)
    try:
        return loop.run()
    except torch.OutOfMemoryError as error:
        raise OutOfMemory(
            f"The device ran out of memory at step {loop.step + 1} with one example at a time and gradient "
            "checkpointing. Use a smaller max_length or lora_rank, or quantization nf4."
        ) from error


def _with_reference(
    model: Any,
    parts: Sequence[Sequence[TokenSequence]],
    recipe: Recipe,
    checkpoints: Checkpoints | None,
    before_batch: Callable[[], None],
) -> list[list[TokenSequence]]:
    """The pairs of each part with their log-probabilities before the training."""
    pairs = [pair for part in parts for pair in part]
    values = None if checkpoints is None else checkpoints.load_reference()
    if values is None or len(values) != len(pairs):
        values = reference_logprobs(model, pairs, recipe, before_batch=before_batch)
        if checkpoints is not None:
            checkpoints.save_reference(values)
    known = iter(values)
    return [[replace(pair, reference=next(known)) for pair in part] for part in parts]


class _Loop:
    """One training; `step` is the number of finished steps."""

    def __init__(
        self,
        model: Any,
        sequences: Sequence[TokenSequence],
        recipe: Recipe,
        on_progress: Callable[[TrainingProgress], None],
        before_batch: Callable[[], None],
        held_out: Sequence[TokenSequence],
        validation: Sequence[TokenSequence],
        checkpoints: Checkpoints | None,
        on_event: Callable[[str], None],
    ) -> None:
        lengths = [row.size for row in sequences]
        self._plan = plan_batches(
            lengths,
            batch_size=recipe.batch_size,
            epochs=recipe.epochs,
            seed=recipe.seed,
            group_by_length=recipe.group_by_length,
        )
        self._epoch_steps = len(self._plan) // recipe.epochs
        self._total = sum(lengths) * recipe.epochs
        self._model = model
        self._sequences = sequences
        self._recipe = recipe
        self._on_progress = on_progress
        self._before_batch = before_batch
        self._held_out = held_out[:MAX_EVALUATED]
        self._validation = validation[:MAX_EVALUATED]
        self._measured_at = self._points(sum(lengths))
        self._best: dict[str, torch.Tensor] | None = None
        self._checkpoints = checkpoints
        self._device = next(model.parameters()).device
        self._objective = make_objective(model, recipe, training=True)
        self._on_event = on_event
        self._optimizer = Optimizer(model, recipe, steps=len(self._plan))
        self._losses: list[float] = []
        self._evaluations: list[Evaluation] = []
        self._tokens_seen = 0
        self._earlier_s = 0.0
        self._rate, self._accuracy = 0.0, 0.0
        self.step = 0

    def run(self) -> Training:
        self._resume()
        self._began = time.perf_counter()
        self._resumed_at = self._tokens_seen
        if self._is_evaluation_due():
            self._after_step()  # the evaluation was interrupted
        while self.step < len(self._plan) and not self._stopped():
            self._train_step()
            self._after_step()
        last = self._losses[-self._epoch_steps :]
        best, held_out = self._choose_best(), None
        if best is not None and self._held_out:
            held_out = self._evaluate(self._held_out)
        return Training(
            steps=self.step,
            tokens=self._tokens_seen,
            trained_tokens=sum(
                self._sequences[index].size_trained for step in self._plan[: self.step] for index in step
            ),
            seconds=self._seconds(),
            final_loss=sum(last) / len(last),
            losses=tuple(self._losses),
            evaluations=tuple(self._evaluations),
            held_out=held_out,
            best=best,
            stopped_early=self.step < len(self._plan),
        )

    def _points(self, tokens: int) -> tuple[int, ...]:
        """The steps after which examples that are not trained on are measured."""
        steps = len(self._plan)
        if self._validation:
            measured = sum(row.size for row in self._validation)
            return measured_steps(steps, self._recipe.epochs, tokens=tokens, validation_tokens=measured)
        return tuple(range(self._epoch_steps, steps + 1, self._epoch_steps)) if self._held_out else ()

    def _stopped(self) -> bool:
        return bool(self._validation) and stops(self._evaluations, self._recipe.patience)

    def _choose_best(self) -> Evaluation | None:
        """Give the model the weights of the best measurement, and tell which; None without a validation part."""
        best = best_of(self._evaluations) if self._validation else None
        if best is None:
            return None
        if self._best is not None and best.step < self.step:
            with torch.no_grad():
                for name, parameter in self._model.named_parameters():
                    if name in self._best:
                        parameter.copy_(self._best[name])
        self._on_event(_describe_best(best, self.step, len(self._plan), self._stopped()))
        return best

    def _train_step(self) -> None:
        rows = [self._sequences[index] for index in self._plan[self.step]]
        count = self._objective.count(rows)
        loss, right = self._accumulate_in_memory(rows, count)
        self._rate = self._optimizer.step()
        self.step += 1
        self._losses.append(finite(loss, self.step, "loss"))
        self._accuracy = right / count
        self._tokens_seen += sum(row.size for row in rows)

    def _accumulate_in_memory(self, rows: Sequence[TokenSequence], count: int) -> tuple[float, int]:
        """`_accumulate` in micro-batches that fit: halved whenever they do not, then with gradient checkpointing."""
        random_at_start = random_states(self._device)
        while True:
            parts = self._objective.micro_batches(rows, max_tokens=self._recipe.micro_batch_tokens)
            try:
                return self._accumulate(parts, count)
            except torch.OutOfMemoryError:
                if len(parts) == len(rows) and self._recipe.gradient_checkpointing:
                    raise
            # outside of the handler: its traceback would keep the activations alive
            self._optimizer.discard()
            release_memory()
            set_random_states(random_at_start, self._device)
            if len(parts) == len(rows):
                self._recompute()
            else:
                self._halve(parts)

    def _accumulate(self, parts: Sequence[Sequence[TokenSequence]], count: int) -> tuple[float, int]:
        """Add up the gradients of a step's micro-batches; its loss, and how much of it is right (`objectives`)."""
        loss_sum, right_sum = 0.0, 0
        for part in parts:
            loss, right = self._objective.loss(part, count=count)
            loss.backward()  # type: ignore[no-untyped-call]
            self._optimizer.accumulate()
            loss_sum, right_sum = loss_sum + loss.item(), right_sum + right
        return loss_sum, right_sum

    def _halve(self, parts: Sequence[Sequence[TokenSequence]]) -> None:
        most = max(sum(row.size for row in part) for part in parts if len(part) > 1)
        tokens = max(1, min(most, self._recipe.micro_batch_tokens) // 2)
        self._recipe = self._recipe.model_copy(update={"micro_batch_tokens": tokens})
        self._on_event(
            f"the device ran out of memory at step {self.step + 1}: from here on micro-batches have at most {tokens} "
            "tokens or one example"
        )

    def _recompute(self) -> None:
        """Switch gradient checkpointing on for the rest of the training."""
        self._recipe = self._recipe.model_copy(update={"gradient_checkpointing": True})
        enable_checkpointing(self._model)
        # a shared prefix is kept in a cache, which recomputation has none of
        self._objective = make_objective(self._model, self._recipe, training=True)
        self._on_event(
            f"the device ran out of memory at step {self.step + 1} with one example at a time: from here on gradient "
            "checkpointing is on, which is about a third slower"
        )

    def _after_step(self) -> None:
        """Report progress, measure where it is due, and save a checkpoint if one is due."""
        evaluation = None
        try:
            if self._is_evaluation_due():
                evaluation = self._evaluate(self._validation or self._held_out)
                self._evaluations.append(evaluation)
                if self._validation and best_of(self._evaluations) is evaluation:
                    self._best = adapter_weights(self._model)
            if self._checkpoints is not None and (self._ends_epoch() or self._stopped()):
                self._checkpoints.save_epoch(self.step, lambda: adapter_weights(self._model))
            self._on_progress(self._progress(evaluation))
        except BaseException:
            self._save_checkpoint()
            raise
        if self._checkpoints is not None and (self._ends_epoch() or self._stopped() or self._checkpoints.due()):
            self._save_checkpoint()

    def _evaluate(self, rows: Sequence[TokenSequence]) -> Evaluation:
        evaluation = evaluate(self._model, rows, self._recipe, before_batch=self._before_batch)
        return replace(evaluation, step=self.step)

    def _ends_epoch(self) -> bool:
        return self.step > 0 and self.step % self._epoch_steps == 0

    def _is_evaluation_due(self) -> bool:
        """Whether this is a measured point whose evaluation is missing."""
        return self.step in self._measured_at and len(self._evaluations) <= self._measured_at.index(self.step)

    def _progress(self, evaluation: Evaluation | None) -> TrainingProgress:
        elapsed_s, tokens = time.perf_counter() - self._began, self._tokens_seen - self._resumed_at
        pace = tokens / elapsed_s if tokens else self._tokens_seen / self._seconds()
        return TrainingProgress(
            step=self.step,
            steps=len(self._plan),
            epoch=self.step * self._recipe.epochs / len(self._plan),
            loss=self._losses[-1],
            learning_rate=self._rate,
            tokens_per_s=pace,
            seconds_left=(self._total - self._tokens_seen) / pace,
            memory_bytes=_memory(self._device),
            accuracy=self._accuracy,
            evaluation=evaluation,
            ends_epoch=self._ends_epoch() or self._stopped(),
        )

    def _seconds(self) -> float:
        return self._earlier_s + time.perf_counter() - self._began

    def _resume(self) -> None:
        checkpoint = self._checkpoints.load(self._device) if self._checkpoints is not None else None
        if checkpoint is None:
            return
        self._optimizer.restore(checkpoint.optimizer)
        self.step = checkpoint.state.step
        self._losses, self._evaluations = list(checkpoint.state.losses), list(checkpoint.state.evaluations)
        self._tokens_seen, self._earlier_s = checkpoint.state.tokens, checkpoint.state.seconds
        self._rate, self._accuracy = checkpoint.state.learning_rate, checkpoint.state.accuracy
        self._best = checkpoint.best

    def _save_checkpoint(self) -> None:
        if self._checkpoints is None or self.step == 0:
            return
        state = TrainingState(
            key=self._checkpoints.key,
            step=self.step,
            losses=tuple(self._losses),
            tokens=self._tokens_seen,
            seconds=self._seconds(),
            evaluations=tuple(self._evaluations),
            learning_rate=self._rate,
            accuracy=self._accuracy,
        )
        self._checkpoints.save(Checkpoint(state, self._optimizer.state(), self._best), self._device)


@torch.no_grad()
def evaluate(
    model: Any, sequences: Sequence[TokenSequence], recipe: Recipe, *, before_batch: Callable[[], None] = no_op
) -> Evaluation:
    """Loss and accuracy of the model over `sequences` (at least one), without dropout; its `step` is 0.

    `before_batch` is called before each batch; an exception from it propagates.
    """
    objective = make_objective(model, recipe, training=False)
    ordered = sorted(sequences, key=lambda row: row.size)
    total = objective.count(ordered)
    loss_sum, right_sum = 0.0, 0
    with evaluating(model):
        for start in range(0, len(ordered), recipe.batch_size):
            before_batch()
            rows = ordered[start : start + recipe.batch_size]
            for part in objective.micro_batches(rows, max_tokens=recipe.micro_batch_tokens):
                loss, right = objective.loss(part, count=1)
                loss_sum += loss.item()
                right_sum += right
    return Evaluation(loss=loss_sum / total, accuracy=right_sum / total, tokens=total)


def _describe_best(best: Evaluation, step: int, steps: int, stopped: bool) -> str:
    at = f"the adapter of step {best.step} is exported, whose validation loss is the lowest ({best.loss:.4f})"
    return f"the training stopped early, at step {step} of {steps}; {at}" if stopped and step < steps else at


def _memory(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return int(psutil.Process().memory_info().rss)
