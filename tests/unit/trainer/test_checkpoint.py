from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from trainer.data.render import TokenSequence
from trainer.errors import CheckpointUnusable
from trainer.finetune.registering import checkpoint_key
from trainer.finetune.spec import TrainingPlan
from trainer.runs.failures import explain
from trainer.tune.checkpoint import STATE_TENSORS, Checkpoint, Checkpoints, TrainingState
from trainer.tune.lineage import Lineage
from trainer.tune.model import attach_lora
from trainer.tune.progress import Training, TrainingProgress
from trainer.tune.recipe import Recipe
from trainer.tune.train import evaluate, train

RECIPE = Recipe(rank=4, alpha=8, dropout=0.1, learning_rate=1e-2, epochs=6, batch_size=2, max_length=256, seed=5)


class Stopped(Exception):
    pass


def run(
    base: Path,
    sequences: list[TokenSequence],
    checkpoints: Checkpoints | None,
    *,
    stop_after: int = 1_000,
    junk: int = 0,
) -> tuple[Training | None, dict[str, torch.Tensor]]:
    """Train a model that is made anew, as a new process would; `junk` numbers are drawn before, as it may do."""
    with torch.random.fork_rng():
        torch.manual_seed(RECIPE.seed)
        model: Any = attach_lora(
            AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32, attn_implementation="eager"), RECIPE
        )
        torch.rand(junk)

        def watch(now: TrainingProgress) -> None:
            if now.step == stop_after:
                raise Stopped

        try:
            done = train(model, sequences, RECIPE, on_progress=watch, held_out=sequences[:2], checkpoints=checkpoints)
        except Stopped:
            return None, {}
        return done, {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}


@pytest.mark.slow
@pytest.mark.parametrize("stop_after", [1, 5])
def test_an_interrupted_training_ends_with_the_same_losses_and_weights(
    base_dir: Path, sequences: list[TokenSequence], tmp_path: Path, stop_after: int
) -> None:
    whole, weights = run(base_dir, sequences, None)
    assert whole is not None

    def keeper() -> Checkpoints:
        return Checkpoints(tmp_path / "kept", key="this", every_s=0)

    run(base_dir, sequences, keeper(), stop_after=stop_after)
    run(base_dir, sequences, keeper(), stop_after=stop_after + 3, junk=7)
    resumed, resumed_weights = run(base_dir, sequences, keeper(), junk=11)
    assert resumed is not None
    assert (resumed.losses, resumed.evaluations) == (whole.losses, whole.evaluations)
    assert (resumed.steps, resumed.tokens) == (whole.steps, whole.tokens)
    assert resumed_weights.keys() == weights.keys()
    assert all(torch.equal(resumed_weights[name], weights[name]) for name in weights)


@pytest.mark.slow
def test_two_checkpoints_are_kept_and_a_broken_newest_one_is_passed_over(
    base_dir: Path, sequences: list[TokenSequence], tmp_path: Path
) -> None:
    run(base_dir, sequences, Checkpoints(tmp_path, key="this", every_s=0), stop_after=5)
    older, newest = sorted(tmp_path.iterdir())
    assert (older.name, newest.name) == ("step-00000004", "step-00000005")
    (newest / STATE_TENSORS).write_bytes((newest / STATE_TENSORS).read_bytes()[:100])
    found = Checkpoints(tmp_path, key="this", every_s=0).load(torch.device("cpu"))
    assert found is not None
    assert found.state.step == 4


def test_a_full_disk_is_told_as_what_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    @contextmanager
    def full(_place: Path) -> Iterator[Path]:
        (tmp_path / STATE_TENSORS).symlink_to("/dev/full")
        yield tmp_path

    monkeypatch.setattr("trainer.tune.checkpoint.replaced_directory", full)
    position = TrainingState(key="this", step=1, losses=(), tokens=0, seconds=0)
    with pytest.raises(OSError, match="No space left") as raised:
        Checkpoints(tmp_path, key="this", every_s=0).save(
            Checkpoint(position, {"moments": torch.zeros(1_000_000)}), torch.device("cpu")
        )
    assert raised.value.errno == errno.ENOSPC
    assert explain(raised.value).code == "disk_full"


EARLIER_LINEAGE = (
    '{"data":[{"name":"voice.jsonl","sha256":"ab","examples":80}],"recipe":{"rank":16,"alpha":32.0,"rslora":false,'
    '"dropout":0.0,"target_modules":"all-linear","learning_rate":0.0013,"scheduler":"cosine","warmup_ratio":0.1,'
    '"weight_decay":0.0,"max_grad_norm":1.0,"quantization":"none","packing":false,"gradient_checkpointing":false,'
    '"epochs":3,"batch_size":4,"max_length":1024,"seed":7},"system_prompt":"Sei fröhlich.","base_name":"smol",'
    '"base":{"weights":"w","config":"c","tokenizer":"t","template":"p","dtype":"bfloat16","quantization":"none",'
    '"engine_version":"none"},"parent":"voice@1"}'
)
EARLIER_KEY = "86228a8dbae7cee19902f26bb12a38c652b6377da5f759add9f5c2aba7f0b968"
"""The key that the release before `group_by_length` gave the checkpoints of this lineage."""


def test_a_job_of_an_earlier_release_finds_its_checkpoints_and_a_new_one_does_not() -> None:
    earlier = Lineage.model_validate_json(EARLIER_LINEAGE)
    assert earlier.key() == EARLIER_KEY
    now = earlier.model_copy(update={"recipe": earlier.recipe.model_copy(update={"group_by_length": False})})
    assert now.key() != EARLIER_KEY
    assert not now.same_training(earlier)
    # written again and read again by this release, it is still the same
    assert Lineage.model_validate_json(earlier.model_dump_json()).key() == EARLIER_KEY
    smaller = earlier.recipe.model_copy(update={"micro_batch_tokens": 64})
    assert earlier.model_copy(update={"recipe": smaller}).key() == EARLIER_KEY


def test_another_trainings_checkpoint_is_refused(
    base_dir: Path, sequences: list[TokenSequence], tmp_path: Path
) -> None:
    run(base_dir, sequences, Checkpoints(tmp_path, key="this", every_s=0), stop_after=2)
    with pytest.raises(CheckpointUnusable):
        Checkpoints(tmp_path, key="that", every_s=0).load(torch.device("cpu"))


def test_each_epoch_is_measured_on_the_held_out_examples_and_kept(
    base_dir: Path, sequences: list[TokenSequence], tmp_path: Path
) -> None:
    keeper = Checkpoints(tmp_path, key="this", every_s=1e9)
    done, _ = run(base_dir, sequences, keeper)
    assert done is not None
    assert len(done.evaluations) == RECIPE.epochs
    assert done.evaluations[-1].loss < done.evaluations[0].loss
    assert [place.name for place in sorted(tmp_path.iterdir())] == ["step-00000010", "step-00000012"]


def test_the_evaluation_is_the_mean_over_tokens_not_over_batches(
    base_model: Any, sequences: list[TokenSequence]
) -> None:
    one_by_one = [evaluate(base_model, [row], RECIPE) for row in sequences]
    tokens = sum(part.tokens for part in one_by_one)
    together = evaluate(base_model, sequences, RECIPE.model_copy(update={"batch_size": 3}))
    assert together.tokens == tokens == sum(sum(row.trained) for row in sequences)
    assert together.loss == pytest.approx(sum(part.loss * part.tokens for part in one_by_one) / tokens, rel=1e-4)
    assert together.accuracy == pytest.approx(sum(part.accuracy * part.tokens for part in one_by_one) / tokens)


@pytest.mark.slow
@pytest.mark.parametrize("stop_at", [1, 6])
def test_one_that_is_interrupted_while_it_looks_at_the_held_out_looks_again(
    base_dir: Path, sequences: list[TokenSequence], tmp_path: Path, stop_at: int
) -> None:
    recipe = RECIPE.model_copy(update={"epochs": 3, "dropout": 0.0})

    def go(checkpoints: Checkpoints | None, between: Any, told: list[TrainingProgress]) -> Training:
        with torch.random.fork_rng():
            torch.manual_seed(recipe.seed)
            base = AutoModelForCausalLM.from_pretrained(base_dir, dtype=torch.float32, attn_implementation="eager")
            model = attach_lora(base, recipe)
            return train(
                model, sequences, recipe, on_progress=told.append, before_batch=between, held_out=sequences,
                checkpoints=checkpoints,
            )  # fmt: skip

    calls: list[int] = []

    def stop() -> None:
        calls.append(1)
        if len(calls) == stop_at:
            raise Stopped

    told: list[TrainingProgress] = []
    checkpoints = Checkpoints(tmp_path / "checkpoints", key="k", every_s=1e9)
    with pytest.raises(Stopped):
        go(checkpoints, stop, told)
    at = len(told)
    again = go(checkpoints, lambda: None, told)
    straight: list[TrainingProgress] = []
    whole = go(None, lambda: None, straight)
    assert (again.losses, again.evaluations) == (whole.losses, whole.evaluations)
    assert [now.step for now in told] == [now.step for now in straight]
    first = told[at]
    assert (first.step, first.evaluation) == (straight[at].step, straight[at].evaluation)
    assert (first.learning_rate, first.accuracy) == (straight[at].learning_rate, straight[at].accuracy)
    assert first.tokens_per_s > 0


def test_an_epochs_end_is_kept_though_nothing_is_held_out(
    base_dir: Path, sequences: list[TokenSequence], tmp_path: Path
) -> None:
    recipe = RECIPE.model_copy(update={"epochs": 2})
    base = AutoModelForCausalLM.from_pretrained(base_dir, dtype=torch.float32, attn_implementation="eager")
    checkpoints = Checkpoints(tmp_path / "checkpoints", key="k", every_s=1e9)
    train(attach_lora(base, recipe), sequences, recipe, on_progress=lambda _: None, checkpoints=checkpoints)
    assert [place.name for place in sorted(checkpoints.directory.iterdir())] == ["step-00000002", "step-00000004"]


def test_the_adapters_of_the_last_epochs_are_kept_through_an_interruption(
    base_dir: Path, sequences: list[TokenSequence], tmp_path: Path
) -> None:
    steps = -(-len(sequences) // RECIPE.batch_size)
    whole = Checkpoints(tmp_path / "whole", key="k", every_s=1e9, keep_epochs=2)
    _, last = run(base_dir, sequences, whole)
    assert list(whole.epochs()) == [5 * steps, 6 * steps]
    at_the_end = load_file(whole.epochs()[6 * steps])
    assert all(torch.equal(at_the_end[name], weight) for name, weight in last.items())
    cut = Checkpoints(tmp_path / "cut", key="k", every_s=0, keep_epochs=2)
    run(base_dir, sequences, cut, stop_after=5 * steps)
    assert list(cut.epochs()) == [4 * steps, 5 * steps]
    run(base_dir, sequences, Checkpoints(tmp_path / "cut", key="k", every_s=0, keep_epochs=2))
    assert {step: path.read_bytes() for step, path in cut.epochs().items()} == {
        step: path.read_bytes() for step, path in whole.epochs().items()
    }
    none = Checkpoints(tmp_path / "none", key="k", every_s=1e9)
    none.save_epoch(1, lambda: last)
    assert none.epochs() == {}


def test_a_base_that_is_renamed_is_still_the_checkpoints_base() -> None:
    lineage = Lineage.model_validate_json(EARLIER_LINEAGE)
    plan = TrainingPlan(recipe=lineage.recipe, chosen={}, system_prompt=None, tokens_an_epoch=1, base_name="smol")
    renamed = lineage.model_copy(update={"base_name": "smol-2"})
    assert checkpoint_key(renamed, plan) == checkpoint_key(lineage, plan) == EARLIER_KEY
    other = renamed.model_copy(update={"base": renamed.base.model_copy(update={"weights": "other"})})
    assert checkpoint_key(other, plan) != EARLIER_KEY
    earlier_plan = plan.model_copy(update={"base_name": None})
    assert checkpoint_key(lineage, earlier_plan) == EARLIER_KEY
