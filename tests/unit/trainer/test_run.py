from __future__ import annotations

import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from adapters.base import BaseDescription, describe
from tests.unit.trainer.conftest import make_base
from trainer.data.render import TokenSequence
from trainer.errors import NothingTrainable, OutOfMemory
from trainer.tune.export import cast_parameters
from trainer.tune.lineage import WEIGHTS_FILE, Lineage, Metadata, packages
from trainer.tune.loss import batch_loss, collate
from trainer.tune.model import attach_lora, load_base, load_tokenizer
from trainer.tune.proof import measure
from trainer.tune.recipe import Recipe
from trainer.tune.run import TrainingInputs, _load, train_adapter
from trainer.tune.train import evaluate

RECIPE = Recipe(rank=4, alpha=8, learning_rate=1e-2, epochs=6, batch_size=2, max_length=256, seed=5)


@pytest.fixture(scope="module")
def description(base_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> BaseDescription:
    cache = tmp_path_factory.mktemp("cache")
    return describe(
        base_dir, served_name="tiny", dtype="bfloat16", quantization=None, engine_version="none", cache_dir=cache
    )


def made(
    base: Path,
    description: BaseDescription,
    rows: list[TokenSequence],
    target: Path,
    recipe: Recipe,
    parent: Path | None,
) -> Metadata:
    lineage = Lineage(data=(), recipe=recipe, base_name="tiny", base=description.fingerprint, packages=packages())
    inputs = TrainingInputs(
        base, description, rows, recipe, lineage, held_out=rows[:1], parent=parent, device="cpu", price_per_hour=36.0
    )
    return train_adapter(inputs, target, on_stage=lambda _: None, on_progress=lambda _: None)


def test_a_training_goes_on_from_its_parent(
    base_dir: Path, description: BaseDescription, sequences: list[TokenSequence], tmp_path: Path
) -> None:
    first = made(base_dir, description, sequences, tmp_path / "first", RECIPE, None)
    assert first.training.cost == pytest.approx(first.training.seconds / 100, rel=0.01)
    assert first.training.held_out_loss is not None
    short = RECIPE.model_copy(update={"epochs": 1, "learning_rate": 1e-5})
    second = made(base_dir, description, sequences, tmp_path / "second", short, tmp_path / "first")
    fresh = made(base_dir, description, sequences, tmp_path / "fresh", short, None)
    assert second.training.final_loss < first.training.final_loss + 0.3
    assert second.training.final_loss < fresh.training.final_loss - 0.5
    before, after = load_file(tmp_path / "first" / WEIGHTS_FILE), load_file(tmp_path / "second" / WEIGHTS_FILE)
    assert before.keys() == after.keys()
    assert all(torch.allclose(before[name].float(), after[name].float(), atol=0.02) for name in before)


@pytest.mark.slow
def test_a_parent_of_another_shape_is_refused(
    base_dir: Path, description: BaseDescription, sequences: list[TokenSequence], tmp_path: Path
) -> None:
    made(base_dir, description, sequences, tmp_path / "first", RECIPE.model_copy(update={"epochs": 1}), None)
    other = RECIPE.model_copy(update={"rank": 8, "epochs": 1})
    with pytest.raises(NothingTrainable):
        made(base_dir, description, sequences, tmp_path / "second", other, tmp_path / "first")
    assert not (tmp_path / "second").exists()


@pytest.mark.slow
def test_in_four_bits_it_learns_and_is_proven_on_the_whole_base(sequences: list[TokenSequence], tmp_path: Path) -> None:
    base = make_base(tmp_path / "wide", hidden=64)  # as narrow as four-bit kernels take
    whole = describe(base, served_name="tiny", dtype="bfloat16", quantization=None, engine_version="none")
    in_four_bits = RECIPE.model_copy(update={"quantization": "nf4"})
    quantized = made(base, whole, sequences, tmp_path / "q", in_four_bits, None)
    plain = made(base, whole, sequences, tmp_path / "p", RECIPE, None)
    assert quantized.training.final_loss < 5.0
    # the base's part of the proof is that of the whole base, to the bit; a four-bit copy would differ
    assert [probe.base for probe in quantized.proof.probes] == [probe.base for probe in plain.proof.probes]
    assert [probe.adapter for probe in quantized.proof.probes] != [probe.base for probe in quantized.proof.probes]


@pytest.mark.parametrize(("dtype", "compute"), [("float32", torch.bfloat16), ("float16", torch.float32)])
def test_adapter_and_proof_are_in_the_dtype_that_the_engine_computes_in(
    base_dir: Path,
    sequences: list[TokenSequence],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    dtype: str,
    compute: Any,
) -> None:
    monkeypatch.setattr("trainer.tune.model.compute_dtype", lambda _device: compute)
    serves = describe(base_dir, served_name="tiny", dtype=dtype, quantization=None, engine_version="none")
    found = made(base_dir, serves, sequences, tmp_path / "made", RECIPE.model_copy(update={"epochs": 1}), None)
    assert {tensor.dtype for tensor in load_file(tmp_path / "made" / WEIGHTS_FILE).values()} == {getattr(torch, dtype)}
    assert found.proof.stack.endswith(dtype)
    # the base as the engine loads it, not what is left of it after the training's shorter numbers
    base = load_base(base_dir, dtype=torch.float32, device=torch.device("cpu"), longest=256)
    model = attach_lora(base, RECIPE)
    cast_parameters(model, getattr(torch, dtype))
    plain = measure(model, load_tokenizer(base_dir))
    assert [probe.base for probe in found.proof.probes] == [probe.base for probe in plain.probes]


@pytest.mark.slow
@pytest.mark.parametrize("streamed", [True, False])
def test_the_base_is_not_loaded_twice_and_the_first_is_gone_before(
    sequences: list[TokenSequence], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, streamed: bool
) -> None:
    base = make_base(tmp_path / "wide", hidden=64)
    if not streamed:  # with names that transformers takes, but that are not the model's own
        path = base / "model.safetensors"
        save_file({name.removeprefix("model."): tensor for name, tensor in load_file(path).items()}, path)
    loaded: list[weakref.ref[Any]] = []

    def load(*arguments: Any) -> Any:
        assert [found() for found in loaded] == [None] * len(loaded)
        model = _load(*arguments)
        loaded.append(weakref.ref(model))
        return model

    monkeypatch.setattr("trainer.tune.run._load", load)
    whole = describe(base, served_name="tiny", dtype="bfloat16", quantization=None, engine_version="none")
    made(base, whole, sequences, tmp_path / "q", RECIPE.model_copy(update={"quantization": "nf4", "epochs": 1}), None)
    assert len(loaded) == (1 if streamed else 2)


@pytest.mark.parametrize("where", ["trainer.tune.run._load", "trainer.tune.proof.measure"])
def test_memory_that_does_not_reach_is_told_as_such_wherever_it_was(
    base_dir: Path,
    description: BaseDescription,
    sequences: list[TokenSequence],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    where: str,
) -> None:
    def full(*_: object, **__: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(where, full)
    with pytest.raises(OutOfMemory) as told:
        made(base_dir, description, sequences, tmp_path / "a", RECIPE.model_copy(update={"epochs": 1}), None)
    assert told.value.code == "out_of_memory"
    assert not (tmp_path / "a").exists()


def test_looking_at_the_held_out_examples_does_not_spoil_four_bit_gradients(
    sequences: list[TokenSequence], tmp_path: Path
) -> None:
    base = make_base(tmp_path / "wide", hidden=64)
    device = torch.device("cpu")
    recipe = RECIPE.model_copy(update={"quantization": "nf4"})
    model = attach_lora(load_base(base, dtype=torch.bfloat16, device=device, longest=256, quantization="nf4"), recipe)
    batch = collate(sequences, share_prefix=False, device=device)

    def gradients() -> list[torch.Tensor]:
        model.zero_grad(set_to_none=True)
        batch_loss(model, batch)[0].backward()
        return [parameter.grad.clone() for parameter in model.parameters() if parameter.grad is not None]

    before = gradients()
    evaluate(model, sequences, recipe)
    after = gradients()
    assert any(gradient.abs().sum() > 0 for gradient in before)
    assert all(torch.equal(one, other) for one, other in zip(before, after, strict=True))
