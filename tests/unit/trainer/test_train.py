from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import BaseModel
from transformers import AutoModelForCausalLM

from trainer.data.render import TokenSequence
from trainer.errors import DataTooSmall, LossNotFinite, NothingTrainable, OutOfMemory
from trainer.tune import objectives
from trainer.tune.checkpoint import Checkpoints
from trainer.tune.loss import Batch, batch_loss
from trainer.tune.model import attach_lora, compute_dtype
from trainer.tune.optimizer import Optimizer, schedule
from trainer.tune.progress import Training, TrainingProgress
from trainer.tune.recipe import Recipe, RecordedRecipe
from trainer.tune.train import train

RECIPE = Recipe(rank=4, alpha=8, learning_rate=1e-2, epochs=10, batch_size=2, max_length=256, seed=5)

GOLDEN_LOSSES = (6.0197, 3.0504)
"""First and last loss of RECIPE on the tiny base: what changes them changes every training."""
GROUPED_GOLDEN_LOSSES = (5.9589, 3.0438)
"""The same as measured by releases that grouped by length, whose jobs resume with `group_by_length`."""


EARLIER_RECIPE = RECIPE.model_dump(exclude={"group_by_length", "micro_batch_tokens"})


class RecordedPlan(BaseModel):
    recipe: RecordedRecipe


def lora(base_model: Any, recipe: Recipe = RECIPE) -> Any:
    with torch.random.fork_rng():
        torch.manual_seed(recipe.seed)
        return attach_lora(base_model, recipe)


def run(
    base_model: Any, sequences: list[TokenSequence], recipe: Recipe = RECIPE
) -> tuple[Training, list[TrainingProgress]]:
    events: list[TrainingProgress] = []
    return train(lora(base_model, recipe), sequences, recipe, on_progress=events.append), events


def test_golden_losses(base_model: Any, sequences: list[TokenSequence]) -> None:
    training, _ = run(base_model, sequences)
    assert training.losses[0] == pytest.approx(GOLDEN_LOSSES[0], abs=1e-3)
    assert training.losses[-1] == pytest.approx(GOLDEN_LOSSES[1], abs=2e-2)


def test_golden_losses_of_an_earlier_release(base_model: Any, sequences: list[TokenSequence]) -> None:
    grouped = RecordedPlan.model_validate({"recipe": EARLIER_RECIPE}).recipe
    assert (grouped.group_by_length, grouped.micro_batch_tokens) == (True, 2 * 256)
    training, _ = run(base_model, sequences, grouped)
    assert training.losses[0] == pytest.approx(GROUPED_GOLDEN_LOSSES[0], abs=1e-4)
    assert training.losses[-1] == pytest.approx(GROUPED_GOLDEN_LOSSES[1], abs=2e-2)


def test_the_same_seed_gives_the_same_losses_to_the_bit(base_dir: Any, sequences: list[TokenSequence]) -> None:
    def losses(seed: int) -> tuple[float, ...]:
        model = AutoModelForCausalLM.from_pretrained(base_dir, dtype=torch.float32, attn_implementation="eager")
        recipe = RECIPE.model_copy(update={"seed": seed, "epochs": 2, "dropout": 0.1})
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            return train(attach_lora(model, recipe), sequences, recipe, on_progress=lambda _: None).losses

    assert losses(1) == losses(1)
    assert losses(1) != losses(2)


@pytest.mark.slow
def test_progress_counts_up_to_the_end(base_model: Any, sequences: list[TokenSequence]) -> None:
    training, events = run(base_model, sequences)
    assert [event.step for event in events] == list(range(1, 21))
    assert {event.steps for event in events} == {20} == {training.steps}
    assert events[-1].epoch == RECIPE.epochs
    assert events[-1].seconds_left == 0
    assert all(event.tokens_per_s > 0 and event.memory_bytes > 1_000_000 for event in events)
    assert tuple(event.loss for event in events) == training.losses
    assert training.tokens == 10 * sum(len(row.tokens) for row in sequences)
    assert training.trained_tokens == 10 * sum(sum(row.trained) for row in sequences)
    assert training.final_loss == pytest.approx(sum(training.losses[-2:]) / 2)


def test_only_the_adapter_changes(base_model: Any, sequences: list[TokenSequence]) -> None:
    model = lora(base_model)
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    train(model, sequences, RECIPE.model_copy(update={"epochs": 2}), on_progress=lambda _: None)
    changed = {name for name, parameter in model.named_parameters() if not torch.equal(parameter, before[name])}
    assert changed == {name for name in before if "lora_" in name}


def test_a_small_update_is_not_lost_in_bfloat16(base_model: Any) -> None:
    model = lora(base_model.to(torch.bfloat16))
    recipe = Recipe(learning_rate=1e-5, scheduler="constant", warmup_ratio=0, max_grad_norm=1e9)
    target = next(p for name, p in model.named_parameters() if "lora_A" in name)
    with torch.no_grad():
        target.fill_(1.0)  # where bfloat16's step is 2**-7, eight hundred times the rate
    optimizer = Optimizer(model, recipe, steps=2000)
    for _ in range(2000):
        target.grad = torch.ones_like(target)
        optimizer.step()
    assert target.dtype is torch.bfloat16
    assert target.flatten()[0].item() == pytest.approx(1.0 - 2000 * 1e-5, abs=2**-7)


def test_nan_is_an_error_and_says_where(base_model: Any, sequences: list[TokenSequence]) -> None:
    model = lora(base_model)
    with torch.no_grad():
        next(p for name, p in model.named_parameters() if "lora_A" in name).fill_(float("nan"))
    with pytest.raises(LossNotFinite, match="nan at step 1"):
        train(model, sequences, RECIPE, on_progress=lambda _: None)


def weights(model: Any) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}


def test_micro_batches_of_any_size_give_the_same_training(base_dir: Path, sequences: list[TokenSequence]) -> None:
    found = {}
    for tokens in (1, 100, 10_000):
        recipe = RECIPE.model_copy(update={"epochs": 2, "batch_size": 4, "micro_batch_tokens": tokens})
        model = lora(AutoModelForCausalLM.from_pretrained(base_dir, dtype=torch.float32), recipe)
        losses = train(model, sequences, recipe, on_progress=lambda _: None).losses
        found[tokens] = losses, weights(model)
    for losses, trained in found.values():
        assert losses == pytest.approx(found[1][0], rel=1e-4)
        for name, weight in found[1][1].items():
            torch.testing.assert_close(trained[name], weight, rtol=1e-2, atol=1e-4)


def limited(monkeypatch: pytest.MonkeyPatch, tokens: int, *, recomputed: int | None = None) -> None:
    """A device that has memory for this many tokens at a time; with gradient checkpointing for `recomputed`."""

    def loss(model: Any, batch: Batch, **options: Any) -> Any:
        result = batch_loss(model, batch, **options)
        limit = recomputed if recomputed is not None and model.is_gradient_checkpointing else tokens
        if batch.tokens.numel() > limit:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return result

    monkeypatch.setattr(objectives, "batch_loss", loss)


def test_out_of_memory_halves_the_micro_batch_and_changes_nothing_else(
    base_dir: Path, sequences: list[TokenSequence], monkeypatch: pytest.MonkeyPatch
) -> None:
    def go(micro_batch_tokens: int) -> tuple[tuple[float, ...], list[str]]:
        # dropout: the step that is done again draws the same masks as if nothing had happened
        update = {"epochs": 2, "batch_size": 4, "dropout": 0.1, "micro_batch_tokens": micro_batch_tokens}
        recipe = RECIPE.model_copy(update=update)
        events: list[str] = []
        with torch.random.fork_rng():
            torch.manual_seed(1)
            model = attach_lora(AutoModelForCausalLM.from_pretrained(base_dir, dtype=torch.float32), recipe)
            done = train(model, sequences, recipe, on_progress=lambda _: None, on_event=events.append)
        return done.losses, events

    widest = max(len(row.tokens) for row in sequences)
    limited(monkeypatch, widest + 64)
    losses, events = go(100_000)
    assert len(events) == 1
    assert "ran out of memory at step 1" in events[0]
    tokens = sum(len(row.tokens) for row in sequences) // 2
    assert f"at most {tokens} tokens" in events[0]
    assert go(tokens) == (losses, [])


@pytest.mark.parametrize("dropout", [0.0, 0.1])
def test_out_of_memory_with_one_example_switches_checkpointing_on_and_changes_nothing_else(
    base_dir: Path, sequences: list[TokenSequence], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dropout: float
) -> None:
    update = {"epochs": 2, "batch_size": 4, "dropout": dropout, "micro_batch_tokens": 1}
    recipe = RECIPE.model_copy(update=update)

    def go(on_progress: Callable[[TrainingProgress], None] = lambda _: None, **options: Any) -> tuple[Any, ...]:
        events: list[str] = []
        with torch.random.fork_rng():
            torch.manual_seed(1)
            model = attach_lora(AutoModelForCausalLM.from_pretrained(base_dir, dtype=torch.float32), recipe)
            done = train(model, sequences, recipe, on_progress=on_progress, on_event=events.append, **options)
        return done.losses, weights(model), events

    class Crash(Exception):
        pass

    def crash(now: TrainingProgress) -> None:
        if now.step == 1:
            raise Crash

    losses, trained, _ = go()
    limited(monkeypatch, 8, recomputed=10_000)
    switched, switched_weights, events = go()
    assert switched == pytest.approx(losses, rel=1e-4)
    for name, weight in trained.items():
        torch.testing.assert_close(switched_weights[name], weight, rtol=1e-2, atol=1e-4)
    assert len(events) == 1
    assert "at step 1 with one example at a time: from here on gradient checkpointing is on" in events[0]
    checkpoints = Checkpoints(tmp_path / "c", key="k", every_s=0)
    with pytest.raises(Crash):
        go(crash, checkpoints=checkpoints)
    resumed, resumed_weights, events = go(checkpoints=checkpoints)
    assert resumed == switched
    assert all(torch.equal(resumed_weights[name], weight) for name, weight in switched_weights.items())
    assert "at step 2" in events[0]


def test_a_micro_batch_is_halved_before_checkpointing_is_switched_on(
    base_model: Any, sequences: list[TokenSequence], monkeypatch: pytest.MonkeyPatch
) -> None:
    widest = max(len(row.tokens) for row in sequences)
    limited(monkeypatch, 8, recomputed=widest + 64)
    recipe = RECIPE.model_copy(update={"epochs": 1, "batch_size": 4, "micro_batch_tokens": 10_000})
    events: list[str] = []
    train(lora(base_model, recipe), sequences, recipe, on_progress=lambda _: None, on_event=events.append)
    assert ["checkpointing" in event for event in events] == [*[False] * (len(events) - 1), True]
    assert len(events) > 1


def test_out_of_memory_with_one_example_and_checkpointing_is_an_error(
    base_model: Any, sequences: list[TokenSequence], monkeypatch: pytest.MonkeyPatch
) -> None:
    limited(monkeypatch, 8)
    with pytest.raises(OutOfMemory, match="at step 1 with one example at a time and gradient checkpointing"):
        train(lora(base_model), sequences, RECIPE, on_progress=lambda _: None)


def test_a_callback_ends_the_training(base_model: Any, sequences: list[TokenSequence]) -> None:
    class Cancelled(Exception):
        pass

    def cancel(now: TrainingProgress) -> None:
        if now.step == 3:
            raise Cancelled

    with pytest.raises(Cancelled):
        train(lora(base_model), sequences, RECIPE, on_progress=cancel)


def test_no_data_is_refused(base_model: Any) -> None:
    with pytest.raises(DataTooSmall):
        train(lora(base_model), [], RECIPE, on_progress=lambda _: None)


def test_modules_that_the_base_lacks_are_refused(base_model: Any) -> None:
    with pytest.raises(NothingTrainable, match="no_such_layer"):
        attach_lora(base_model, Recipe(target_modules=("no_such_layer",)))


def test_the_rate_rises_then_falls() -> None:
    recipe = Recipe(warmup_ratio=0.2, scheduler="linear")
    factors = [schedule(step, 10, recipe) for step in range(1, 11)]
    assert factors[:2] == [0.5, 1.0]
    assert factors[2:] == pytest.approx([8 / 9, 7 / 9, 6 / 9, 5 / 9, 4 / 9, 3 / 9, 2 / 9, 1 / 9])
    cosine = [schedule(step, 10, Recipe(warmup_ratio=0, scheduler="cosine")) for step in range(1, 11)]
    assert cosine == sorted(cosine, reverse=True)
    assert 0 < cosine[-1] < 0.05
    assert schedule(10, 10, Recipe(warmup_ratio=0.2, scheduler="constant")) == 1.0


def test_the_dtype_is_one_that_the_machine_multiplies_in() -> None:
    abilities = torch.cpu.get_capabilities()
    native = abilities.get("avx512_bf16") or abilities.get("amx_bf16") or abilities.get("bf16")
    assert compute_dtype(torch.device("cpu")) is (torch.bfloat16 if native else torch.float32)
    assert compute_dtype(torch.device("meta")) is torch.float32
