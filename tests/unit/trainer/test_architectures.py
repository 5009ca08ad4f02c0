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
from trainer.errors import NothingTrainable
from trainer.finetune.capacity import BaseModelInfo
from trainer.tune.memory import STREAMED_TYPES
from trainer.tune.model import attach_lora, load_base
from trainer.tune.recipe import Recipe
from trainer.tune.streaming import stream_base

SPLIT = ["down_proj", "gate_proj", "k_proj", "o_proj", "q_proj", "up_proj", "v_proj"]
ATTENTION = ["k_proj", "o_proj", "q_proj", "v_proj"]
MODULES = dict.fromkeys(ARCHITECTURES, SPLIT) | {
    "phi3": ["down_proj", "gate_up_proj", "o_proj", "qkv_proj"],
    "mixtral": ATTENTION,
    "qwen3_moe": ATTENTION,
    "qwen2_moe": sorted([*SPLIT, "shared_expert_gate"]),
}
CPU = torch.device("cpu")


@pytest.fixture(scope="module", params=ARCHITECTURES)
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
    assert list(inspection.target_modules) == MODULES[model_type] == list(described.adaptable)
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
    ("model_type", "target", "kind"),
    [
        ("mixtral", "w1", "an expert of a mixture of experts"),
        ("mixtral", "gate", "a router of experts"),
        ("qwen3_moe", "gate_proj", "an expert of a mixture of experts"),
        ("qwen3_moe", "gate", "a router of experts"),
        ("qwen2_moe", "mlp.experts.0.up_proj", "an expert of a mixture of experts"),
    ],
    scope="module",
)
def test_experts_and_routers_are_refused_by_name_before_anything_is_trained_or_stored(
    base_dir: Path, tmp_path: Path, target: str, kind: str
) -> None:
    info = BaseModelInfo.read(base_dir)
    assert info.unknown_targets([target, "o_proj"]) == [target]
    reason = info.describe_unknown([target])
    assert f"{target!r} is {kind} (model.layers.0." in reason
    assert reason.endswith(f"the base has {', '.join(info.module_suffixes())}")
    described = describe(base_dir, served_name="b", dtype="float32", quantization=None, engine_version="0")
    files = make_adapter(tmp_path, described, modules=(target.rpartition(".")[2], "o_proj"))
    manifest = Manifest.parse(files.config, max_rank=16)
    with pytest.raises(ModuleUnsupported, match=f"is {kind}, .*allowed are {', '.join(described.adaptable)}"):
        inspect_weights(files.weights_path, manifest, described)
    with pytest.raises(NothingTrainable):  # what creation refuses would have failed in the middle of the job
        attach_lora(
            load_base(base_dir, dtype=torch.float32, device=CPU, longest=64), Recipe(rank=4, target_modules=(target,))
        )


def test_a_streamed_base_computes_what_a_whole_one_does(model_type: str, base_dir: Path) -> None:
    if model_type not in STREAMED_TYPES:
        pytest.skip("loaded as a whole for the proof")
    ids = torch.arange(3, 40)[None]
    with torch.no_grad():
        whole = load_base(base_dir, dtype=torch.bfloat16, device=CPU, longest=64).eval()(input_ids=ids).logits
        streamed = stream_base(base_dir, dtype=torch.bfloat16, device=CPU, attention="eager")(input_ids=ids).logits
    assert torch.equal(whole, streamed)
