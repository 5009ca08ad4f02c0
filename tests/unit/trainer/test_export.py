from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors import SafetensorError
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from adapters.base import BaseDescription, describe
from adapters.proof import PROBES, Proof, distance
from trainer.data.format import Dataset
from trainer.durable import replaced_directory
from trainer.errors import DataInvalid, ExportRefused, LossNotFinite
from trainer.runs.failures import explain
from trainer.tune import export as exporting
from trainer.tune import proof, run
from trainer.tune.lineage import Metadata, read_lineage
from trainer.tune.model import attach_lora
from trainer.tune.os_errors import reraise_as_oserror
from trainer.tune.recipe import Recipe
from trainer.tune.run import TrainingSpec, make_adapter

RECIPE = Recipe(rank=4, alpha=8, learning_rate=1e-2, epochs=4, batch_size=2, max_length=256, seed=5)


@pytest.fixture(scope="module")
def description(base_dir: Path) -> BaseDescription:
    return describe(base_dir, served_name="tiny", dtype="bfloat16", quantization=None, engine_version="none")


@pytest.fixture
def order(base_dir: Path, description: BaseDescription, dataset: Dataset) -> TrainingSpec:
    return TrainingSpec(
        base=base_dir, description=description, data=dataset, recipe=RECIPE, system_prompt="Be a sailor."
    )


@pytest.fixture(scope="module")
def made(
    base_dir: Path, description: BaseDescription, dataset: Dataset, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, Metadata, list[str]]:
    target = tmp_path_factory.mktemp("out") / "voice"
    stages: list[str] = []
    whole = TrainingSpec(
        base=base_dir, description=description, data=dataset, recipe=RECIPE, system_prompt="Be a sailor."
    )
    return target, make_adapter(whole, target, on_stage=stages.append, on_progress=lambda _: None), stages


def test_a_full_disk_is_told_as_what_it_is(
    base_dir: Path, description: BaseDescription, made: tuple[Path, Metadata, list[str]], tmp_path: Path
) -> None:
    model = attach_lora(AutoModelForCausalLM.from_pretrained(base_dir), RECIPE)

    def save(*_: Any, **__: Any) -> None:
        # what a full tmpfs makes of it; not tried at /dev/full, which safetensors would put its file in the place of
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    model.save_pretrained = save
    with pytest.raises(OSError, match="No space left") as raised:
        exporting.export(model, tmp_path, base=description, metadata=made[1])
    assert explain(raised.value).code == "disk_full"


def test_an_error_of_another_kind_stays_what_it_is() -> None:
    for error in (RuntimeError("shapes"), SafetensorError("a header is too large")):
        with pytest.raises(type(error)), reraise_as_oserror():
            raise error


def test_the_directory_holds_what_the_registry_takes(made: tuple[Path, Metadata, list[str]]) -> None:
    target, metadata, stages = made
    assert sorted(path.name for path in target.iterdir()) == [
        "adapter_config.json",
        "adapter_model.safetensors",
        "metadata.json",
        "settings.json",
    ]
    assert [path.name for path in target.parent.iterdir()] == ["voice"]
    config = json.loads((target / "adapter_config.json").read_bytes())
    assert config["base_model_name_or_path"] == "tiny"
    assert config["target_modules"] == sorted(config["target_modules"])
    assert {tensor.dtype for tensor in load_file(target / "adapter_model.safetensors").values()} == {torch.bfloat16}
    assert json.loads((target / "settings.json").read_bytes()) == {"system_prompt": "Be a sailor."}
    assert Metadata.model_validate_json((target / "metadata.json").read_bytes()) == metadata
    assert stages[-2:] == ["training", "measuring and writing"]


def test_metadata_says_where_it_comes_from(made: tuple[Path, Metadata, list[str]], dataset: Dataset) -> None:
    metadata = made[1]
    assert metadata.lineage.data[0].sha256 == dataset.sha256
    assert metadata.lineage.data[0].examples == 4
    assert metadata.lineage.recipe == RECIPE
    assert metadata.lineage.packages.keys() >= {"torch", "peft", "transformers"}
    assert metadata.training.steps == 8
    assert 0 < metadata.training.trained_tokens < metadata.training.tokens


def test_the_proof_is_what_plain_peft_measures_on_the_saved_files(
    made: tuple[Path, Metadata, list[str]], base_dir: Path, tokenizer: Any
) -> None:
    target, metadata, _ = made
    found = Proof.parse(json.loads((target / "metadata.json").read_bytes())["proof"])
    base = AutoModelForCausalLM.from_pretrained(base_dir, dtype=torch.bfloat16, attn_implementation="eager")
    adapted = PeftModel.from_pretrained(base, target, autocast_adapter_dtype=False).eval()
    assert found == metadata.proof
    for text, probe in zip(PROBES, found.probes, strict=True):
        ids = torch.tensor([tokenizer(text)["input_ids"]])
        with torch.no_grad():
            logprobs = adapted(input_ids=ids).logits[0].float().log_softmax(-1)
        expected = [logprobs[index, token].item() for index, token in enumerate(ids[0, 1:].tolist())]
        assert list(probe.token_ids) == ids[0].tolist()
        assert list(probe.adapter) == pytest.approx(expected, abs=1e-3)
    assert distance(found.base, found.adapter) > 0.01


def test_done_is_done_until_data_recipe_prompt_or_base_change(
    made: tuple[Path, Metadata, list[str]], order: TrainingSpec
) -> None:
    target = made[0]
    assert order.is_done(target)
    assert not order.is_done(target.parent)
    other_data = Dataset(name=order.data.name, sha256="0" * 64, examples=order.data.examples)
    other_base = order.description.fingerprint.model_copy(update={"weights": "0" * 16})
    for change in (
        {"data": other_data},
        {"recipe": RECIPE.model_copy(update={"seed": 6})},
        {"system_prompt": None},
        {"description": type(order.description)(**{**_fields(order.description), "fingerprint": other_base})},
    ):
        assert not TrainingSpec(**{**_fields(order), **change}).is_done(target)


def _fields(value: Any) -> dict[str, Any]:
    return {name: getattr(value, name) for name in value.__dataclass_fields__}


def test_a_directory_that_is_not_whole_has_no_lineage(made: tuple[Path, Metadata, list[str]], tmp_path: Path) -> None:
    for path in made[0].iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    assert read_lineage(tmp_path) == made[1].lineage
    (tmp_path / "metadata.json").write_text('{"format": 1}')
    assert read_lineage(tmp_path) is None
    (tmp_path / "metadata.json").write_bytes((made[0] / "metadata.json").read_bytes())
    (tmp_path / "adapter_model.safetensors").unlink()
    assert read_lineage(tmp_path) is None


def test_a_failed_training_leaves_the_old_adapter(order: TrainingSpec, tmp_path: Path) -> None:
    target = tmp_path / "voice"
    target.mkdir()
    (target / "old").touch()

    def fail(_: object) -> None:
        raise LossNotFinite("as if")

    with pytest.raises(LossNotFinite):
        make_adapter(order, target, on_stage=lambda _: None, on_progress=fail)
    short = TrainingSpec(**{**_fields(order), "recipe": RECIPE.model_copy(update={"max_length": 8})})
    with pytest.raises(DataInvalid):
        make_adapter(short, target, on_stage=lambda _: None, on_progress=lambda _: None)
    assert [path.name for path in tmp_path.rglob("*")] == ["voice", "old"]


@pytest.mark.parametrize(("value", "reason"), [(0.0, "has no effect"), (float("nan"), "weights_not_finite")])
def test_what_could_not_be_served_is_not_written(
    base_model: Any,
    tokenizer: Any,
    description: BaseDescription,
    made: tuple[Path, Metadata, list[str]],
    tmp_path: Path,
    value: float,
    reason: str,
) -> None:
    model = attach_lora(base_model, RECIPE)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.fill_(value)
    with pytest.raises(ExportRefused, match=reason), replaced_directory(tmp_path / "voice") as directory:
        exporting.export(model, directory, base=description, metadata=made[1])
    assert list(tmp_path.iterdir()) == []


def test_measuring_leaves_the_model_as_it_was(base_model: Any, tokenizer: Any) -> None:
    model = attach_lora(base_model, RECIPE)
    measured = proof.measure(model, tokenizer)
    assert model.training
    assert measured.base == measured.adapter  # B is zero
    assert "float32" in measured.stack
    assert run.SERVING_DTYPE == "bfloat16"
