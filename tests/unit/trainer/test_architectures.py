"""What may be trained on each architecture is what PEFT can train and the registry takes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from adapters.base import describe
from adapters.errors import ModuleUnsupported
from adapters.inspect import inspect_weights
from adapters.manifest import Manifest
from tests.support.adapters import make_adapter
from tests.support.tiny_models import ARCHITECTURES, make_base
from trainer.data.render import TokenSequence
from trainer.errors import NothingTrainable
from trainer.finetune.capacity import BaseModelInfo
from trainer.tune.loss import Collator, batch_loss
from trainer.tune.model import attach_lora, load_base
from trainer.tune.recipe import Recipe

SPLIT = ["down_proj", "gate_proj", "k_proj", "o_proj", "q_proj", "up_proj", "v_proj"]
ATTENTION = ["k_proj", "o_proj", "q_proj", "v_proj"]
MODULES = dict.fromkeys(ARCHITECTURES, SPLIT) | {
    "phi3": ["down_proj", "gate_up_proj", "o_proj", "qkv_proj"],
    "mixtral": ATTENTION,
    "qwen3_moe": ATTENTION,
    "qwen2_moe": ATTENTION,
}
CPU = torch.device("cpu")
SERVED = sorted(ARCHITECTURES.keys() - {"gpt2"})  # vLLM has no LoRA for it


@pytest.fixture(scope="module", params=SERVED)
def model_type(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def base_dir(model_type: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny checkpoint of the architecture."""
    return make_base(model_type, tmp_path_factory.mktemp(model_type))


def test_all_linear_trains_what_the_base_is_said_to_have_and_the_registry_takes_it(
    model_type: str, base_dir: Path, tmp_path: Path
) -> None:
    info = BaseModelInfo.read(base_dir)
    assert info.module_suffixes() == MODULES[model_type]
    model = attach_lora(load_base(base_dir, dtype=torch.float32, device=CPU, longest=64), Recipe(rank=4))
    model.save_pretrained(tmp_path, save_embedding_layers=False)
    manifest = Manifest.parse((tmp_path / "adapter_config.json").read_bytes(), max_rank=16)
    described = describe(base_dir, served_name="b", dtype="float32", quantization=None, engine_version="0")
    inspection = inspect_weights(tmp_path / "adapter_model.safetensors", manifest, described)
    assert list(inspection.target_modules) == MODULES[model_type]
    assert set(MODULES[model_type]) <= set(described.adaptable)
    assert inspection.modules == len(info.modules)


def test_each_allowed_target_alone_adapts_the_layers_that_it_is_said_to(model_type: str, base_dir: Path) -> None:
    info = BaseModelInfo.read(base_dir)
    for target in MODULES[model_type]:
        assert info.unknown_targets([target]) == []
        model = load_base(base_dir, dtype=torch.float32, device=CPU, longest=64)
        adapted = attach_lora(model, Recipe(rank=4, target_modules=(target,)))
        trained = [name for name, parameter in adapted.named_parameters() if parameter.requires_grad]
        assert len(trained) == 2 * len(info.matching_layers([target]))


@pytest.mark.parametrize(
    ("architecture", "target", "kind"),
    [
        ("mixtral", "w1", "an expert of a mixture of experts"),
        ("mixtral", "gate", "a router of experts"),
        ("qwen3_moe", "gate_proj", "an expert of a mixture of experts"),
        ("qwen3_moe", "gate", "a router of experts"),
        ("qwen2_moe", "mlp.experts.0.up_proj", "an expert of a mixture of experts"),
        ("qwen2_moe", "shared_expert_gate", "a shared expert of a mixture of experts"),
    ],
)
def test_experts_and_routers_are_refused_by_name_before_anything_is_trained_or_stored(
    tmp_path: Path, architecture: str, target: str, kind: str
) -> None:
    base_dir = make_base(architecture, tmp_path / "base")
    info = BaseModelInfo.read(base_dir)
    assert info.unknown_targets([target, "o_proj"]) == [target]
    reason = info.describe_unknown([target])
    assert f"{target!r} cannot be adapted: model.layers.0." in reason
    assert f" is {kind}; the base has" in reason
    assert reason.endswith(f"the base has {', '.join(info.module_suffixes())}")
    described = describe(base_dir, served_name="b", dtype="float32", quantization=None, engine_version="0")
    files = make_adapter(tmp_path / "adapter", described, modules=(target.rpartition(".")[2], "o_proj"))
    manifest = Manifest.parse(files.config, max_rank=16)
    with pytest.raises(ModuleUnsupported, match=f"is {kind}, .*allowed are {', '.join(described.adaptable)}"):
        inspect_weights(files.weights_path, manifest, described)
    with pytest.raises(NothingTrainable):  # what creation refuses would have failed in the middle of the job
        attach_lora(
            load_base(base_dir, dtype=torch.float32, device=CPU, longest=64), Recipe(rank=4, target_modules=(target,))
        )


def test_a_step_has_the_loss_and_the_gradients_that_transformers_computes_one_example_at_a_time(base_dir: Path) -> None:
    recipe = Recipe(rank=4)
    model = attach_lora(load_base(base_dir, dtype=torch.float32, device=CPU, longest=128), recipe)
    randomize(model)
    rows = [sequence(start=line, length=20 + 31 * line) for line in range(3)]
    count = sum(sum(row.trained) for row in rows)
    expected = 0.0
    for row in rows:
        labels = [token if trained else -100 for token, trained in zip(row.tokens, row.trained, strict=True)]
        loss = (
            model(input_ids=torch.tensor([row.tokens]), labels=torch.tensor([labels])).loss * sum(row.trained) / count
        )
        loss.backward()
        expected += loss.item()
    gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    collator = Collator(model, recipe, training=True)
    total = 0.0
    for part in collator.micro_batches(rows, max_tokens=512):
        loss, _ = batch_loss(model, collator.collate(part), step_tokens=count)
        loss.backward()
        total += loss.item()
    assert total == pytest.approx(expected, rel=1e-4)
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            torch.testing.assert_close(parameter.grad, gradients[name], rtol=1e-3, atol=1e-5)


def test_dense_layers_beside_experts_are_not_taken_for_them(tmp_path: Path) -> None:
    base_dir = make_base("qwen2_moe", tmp_path, mlp_only_layers=[0])
    info = BaseModelInfo.read(base_dir)
    dense = "model.layers.0.mlp.up_proj"
    assert info.unknown_targets([dense]) == [dense]
    assert f"{dense} is named like the experts, for which PEFT takes it" in info.describe_unknown([dense])
    model = attach_lora(load_base(base_dir, dtype=torch.float32, device=CPU, longest=64), Recipe(rank=4))
    assert {name.split(".lora_")[0].rpartition(".")[2] for name, p in model.named_parameters() if p.requires_grad} == {
        *ATTENTION
    }


def test_towers_are_left_alone_though_their_layers_have_the_same_names(tmp_path: Path) -> None:
    model = load_base(make_base("llama", tmp_path), dtype=torch.float32, device=CPU, longest=64)
    model.model.vision_tower = torch.nn.ModuleDict({"q_proj": torch.nn.Linear(4, 4)}).requires_grad_(False)
    for targets in ("all-linear", ("q_proj",)):
        adapted = attach_lora(model, Recipe(rank=4, target_modules=targets))
        trained = [name for name, parameter in adapted.named_parameters() if parameter.requires_grad]
        assert any(".layers.1.self_attn.q_proj.lora_A" in name for name in trained)
        assert not any("vision_tower" in name for name in trained)
        model = adapted.unload()


def randomize(model: torch.nn.Module) -> None:
    """An adapter with an effect: B is zero in a fresh one."""
    torch.manual_seed(3)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.05)


def sequence(*, start: int, length: int) -> TokenSequence:
    """Tokens of which the first 16 are those of every sequence, and the last ten are trained."""
    tokens = (*range(3, 19), *((7 * (start + at)) % 900 + 20 for at in range(length - 16)))
    return TokenSequence(tokens, tuple(at >= length - 10 for at in range(length)), start + 1)
