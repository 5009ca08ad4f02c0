"""The validation part: what is set aside, when it is measured, which weights are kept, and when a training stops."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest
import torch

from adapters.dataset.held_out import validation_target
from tests.unit.trainer.test_train import RECIPE, lora
from trainer.data.render import TokenSequence
from trainer.tune import train as training_module
from trainer.tune.checkpoint import Checkpoints
from trainer.tune.model import adapter_weights
from trainer.tune.progress import Evaluation, Training, TrainingProgress
from trainer.tune.recipe import Recipe
from trainer.tune.train import train
from trainer.tune.validation import MAX_COST, PASSES, measured_steps, stops


@pytest.mark.parametrize(
    ("examples", "share", "given", "target"),
    [
        (199, None, False, 0),
        (200, None, False, 20),
        (99, None, True, 0),
        (100, None, True, 20),
        (5000, None, False, 200),
        (5000, 0, False, 0),
        (60, 0.5, False, 30),
        (39, 0.5, True, 0),
    ],
)
def test_enough_examples_have_a_validation_part(examples: int, share: float | None, given: bool, target: int) -> None:
    assert validation_target(examples, share, given=given) == target


def test_few_epochs_are_measured_between_their_ends_and_the_last_step_always_is() -> None:
    def points(epochs: int, validation_tokens: int) -> tuple[int, ...]:
        return measured_steps(100 * epochs, epochs, tokens=10_000, validation_tokens=validation_tokens)

    assert points(1, 500) == (25, 50, 75, 100)
    assert points(3, 1000) == (50, 100, 150, 200, 250, 300)
    assert points(6, 1000) == tuple(range(100, 700, 100))
    assert points(10, 6000) == (200, 400, 600, 800, 1000)
    assert points(1, 10**6) == (100,)


@pytest.mark.parametrize(("epochs", "share"), [*itertools.product((1, 2, 5, 20), (0.01, 0.1, 0.3, 1.0))])
def test_measuring_costs_a_tenth_of_the_training_at_most(epochs: int, share: float) -> None:
    points = measured_steps(64 * epochs, epochs, tokens=10_000, validation_tokens=int(share * 10_000))
    assert len(points) == 1 or len(points) * share / PASSES <= MAX_COST * epochs + 1e-9
    assert points[-1] == 64 * epochs
    assert list(points) == sorted(set(points))


def test_it_stops_after_as_many_measurements_that_are_no_better() -> None:
    losses = [2.0, 1.5, 1.6, 1.5]
    measured = [Evaluation(loss, 0.0, 1, step) for step, loss in enumerate(losses)]
    assert [stops(measured[:number], 2) for number in range(5)] == [False, False, False, False, True]
    assert not stops(measured, 0)


def run(
    base_model: Any,
    sequences: list[TokenSequence],
    recipe: Recipe,
    directory: Path | None = None,
    die_at: int | None = None,
) -> tuple[Training, dict[str, torch.Tensor], list[TrainingProgress]]:
    """A training with the last sequence as its validation part, and the weights that it ends with."""
    model = lora(base_model, recipe)
    events: list[TrainingProgress] = []

    def on_progress(now: TrainingProgress) -> None:
        events.append(now)
        if now.step == die_at:
            raise KeyboardInterrupt

    checkpoints = None if directory is None else Checkpoints(directory, key="k", every_s=1e9)
    try:
        training = train(
            model, sequences[:-1], recipe, validation=sequences[-1:], checkpoints=checkpoints, on_progress=on_progress
        )
        return training, adapter_weights(model), events
    finally:
        model.unload()


@pytest.fixture
def worsening(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Validation losses in the order in which they are measured, one after each epoch, instead of the real ones."""
    losses = [3.0, 2.0, 2.5, 2.4, 1.0]

    def evaluate(*_arguments: Any, **_options: Any) -> Evaluation:
        return Evaluation(losses.pop(0), 0.5, 10)

    monkeypatch.setattr(training_module, "evaluate", evaluate)
    monkeypatch.setattr(training_module, "measured_steps", lambda steps, epochs, **_: tuple(range(2, steps + 1, 2)))
    return losses


SHORT = RECIPE.model_copy(update={"epochs": 5, "patience": 2})


@pytest.mark.usefixtures("worsening")
def test_the_best_weights_are_kept_and_the_training_stops(base_model: Any, sequences: list[TokenSequence]) -> None:
    training, weights, events = run(base_model, sequences, SHORT)
    assert training.best == Evaluation(2.0, 0.5, 10, step=4)
    assert (training.stopped_early, training.steps) == (True, 8)
    assert [event.evaluation.loss for event in events if event.evaluation is not None] == [3.0, 2.0, 2.5, 2.4]
    assert training.trained_tokens == sum(sum(row.trained) for row in sequences[:-1]) * 4
    two_epochs = SHORT.model_copy(update={"patience": 0})
    _, last, _ = run_until(base_model, sequences, two_epochs, 4)
    assert all(torch.equal(weights[name], last[name]) for name in weights)


def run_until(
    base_model: Any, sequences: list[TokenSequence], recipe: Recipe, step: int
) -> tuple[None, dict[str, torch.Tensor], None]:
    """The weights after this step, without a validation part."""
    model = lora(base_model, recipe)
    weights: dict[str, torch.Tensor] = {}

    def on_progress(now: TrainingProgress) -> None:
        if now.step == step:
            weights.update(adapter_weights(model))

    train(model, sequences[:-1], recipe, on_progress=on_progress)
    model.unload()
    return None, weights, None


def test_after_a_kill_the_best_weights_and_the_patience_are_as_they_were(
    base_model: Any, sequences: list[TokenSequence], tmp_path: Path, worsening: list[float]
) -> None:
    with pytest.raises(KeyboardInterrupt):
        run(base_model, sequences, SHORT, tmp_path, die_at=7)  # a step after the third measurement
    assert worsening == [2.4, 1.0]
    training, weights, _ = run(base_model, sequences, SHORT, tmp_path)
    assert worsening == [1.0]
    assert (training.best, training.stopped_early, training.steps) == (Evaluation(2.0, 0.5, 10, step=4), True, 8)
    _, expected, _ = run_until(base_model, sequences, SHORT.model_copy(update={"patience": 0}), 4)
    assert all(torch.equal(weights[name], expected[name]) for name in weights)
    # a training that had stopped when the worker died trains no further
    again, _, events = run(base_model, sequences, SHORT, tmp_path)
    assert (again.steps, events, worsening) == (8, [], [1.0])


def test_the_held_out_examples_are_measured_once_and_choose_nothing(
    base_model: Any, sequences: list[TokenSequence]
) -> None:
    recipe = RECIPE.model_copy(update={"epochs": 4})
    training = train(
        lora(base_model, recipe),
        sequences[:-2],
        recipe,
        validation=sequences[-2:-1],
        held_out=sequences[-1:],
        on_progress=lambda _: None,
    )
    assert training.held_out is not None
    assert training.held_out.tokens == sum(sequences[-1].trained)
    assert {evaluation.tokens for evaluation in training.evaluations} == {sum(sequences[-2].trained)}
    assert training.best == min(training.evaluations, key=lambda each: each.loss)
