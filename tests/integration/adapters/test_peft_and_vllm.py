"""The rules of adapters/ against the two libraries that they describe: PEFT writes adapters, vLLM reads them."""

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.numpy import load_file
from transformers import LlamaConfig, LlamaForCausalLM
from vllm.config.lora import LoRAConfig
from vllm.lora.peft_helper import PEFTHelper

from adapters.base import BaseDescription
from adapters.errors import AdapterError, EmbeddingUnsupported, UnsupportedFeature
from adapters.features import FEATURES, IGNORED, UNDERSTOOD
from adapters.inspect import inspect_weights
from adapters.manifest import Manifest
from tests.support.adapters import describe_base, peft_config

MODULES = [f"model.layers.{i}.self_attn.{p}_proj" for i in range(2) for p in "qkvo"]


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A two-layer Llama with random weights, saved by transformers."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=64,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
    )
    directory = tmp_path_factory.mktemp("llama")
    LlamaForCausalLM(config).save_pretrained(directory)
    return directory


@pytest.fixture(scope="module")
def base(llama: Path) -> BaseDescription:
    return describe_base(llama)


def saved_by_peft(llama: Path, directory: Path, **settings: Any) -> Path:
    """An adapter that PEFT made and saved, with random B as if it had been trained."""
    model = get_peft_model(LlamaForCausalLM.from_pretrained(llama), LoraConfig(**settings))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.02)
    model.save_pretrained(directory)
    return directory


def module_of(tensor_name: str) -> str:
    """As vLLM's parse_fine_tuned_lora_name does it."""
    return tensor_name.removeprefix("base_model.model.").rpartition(".lora_")[0]


def load_in_vllm(config: bytes, max_rank: int = 64) -> PEFTHelper:
    helper = PEFTHelper.from_dict(json.loads(config))
    helper.validate_legal(LoRAConfig(max_lora_rank=max_rank))
    return helper


@pytest.mark.parametrize(
    "settings",
    [
        {"target_modules": ["q_proj", "v_proj"]},
        {"target_modules": "all-linear", "r": 4, "lora_alpha": 32, "use_rslora": True},
        {
            "target_modules": ["q_proj", "down_proj"],
            "rank_pattern": {"q_proj": 2},
            "alpha_pattern": {"layers.0.mlp.down_proj": 3},
        },
        {"target_modules": r".*layers\.1\..*(q|k)_proj", "init_lora_weights": "gaussian", "lora_dropout": 0.1},
        {"target_modules": ["q_proj"], "layers_to_transform": [1], "init_lora_weights": "orthogonal"},
    ],
)
def test_an_adapter_saved_by_peft_means_the_same_to_hatrack_and_vllm(
    llama: Path, base: BaseDescription, tmp_path: Path, settings: dict[str, Any]
) -> None:
    directory = saved_by_peft(llama, tmp_path, task_type="CAUSAL_LM", **settings)
    uploaded = (directory / "adapter_config.json").read_bytes()
    inspected = inspect_weights(directory / "adapter_model.safetensors", Manifest.parse(uploaded, max_rank=64), base)
    assert not inspected.effect_is_zero
    assert 0 < inspected.update_ratio < 100
    as_uploaded, as_stored = load_in_vllm(uploaded), load_in_vllm(inspected.manifest.canonical())
    modules = {module_of(name) for name in load_file(directory / "adapter_model.safetensors")}
    assert len(modules) == inspected.modules
    for module in modules:
        rank, scaling = as_uploaded.get_rank_and_scaling(module)
        assert as_stored.get_rank_and_scaling(module) == (rank, pytest.approx(scaling))
        manifest = inspected.manifest
        assert manifest.ranks([module])[module] == rank
        assert manifest.scaling(rank, manifest.alphas([module])[module]) == pytest.approx(scaling)


def test_the_update_is_the_one_that_peft_merges(llama: Path, base: BaseDescription, tmp_path: Path) -> None:
    directory = saved_by_peft(llama, tmp_path, r=4, lora_alpha=12, target_modules=["up_proj"], task_type="CAUSAL_LM")
    manifest = Manifest.parse((directory / "adapter_config.json").read_bytes(), max_rank=64)
    inspected = inspect_weights(directory / "adapter_model.safetensors", manifest, base)
    plain = LlamaForCausalLM.from_pretrained(llama)
    merged = PeftModel.from_pretrained(LlamaForCausalLM.from_pretrained(llama), directory).merge_and_unload()
    before = plain.get_submodule(inspected.update_ratio_module).weight.detach().double().numpy()
    after = merged.get_submodule(inspected.update_ratio_module).weight.detach().double().numpy()
    assert inspected.update_ratio == pytest.approx(np.linalg.norm(after - before) / np.linalg.norm(before), rel=1e-4)


def test_every_key_of_pefts_config_is_known() -> None:
    fields = set(LoraConfig(target_modules=["q_proj"]).to_dict())
    assert fields - UNDERSTOOD - IGNORED.keys() - FEATURES.keys() == set()


def test_the_test_helper_writes_the_keys_that_peft_writes(tmp_path: Path) -> None:
    LoraConfig(target_modules=["q_proj"], task_type="CAUSAL_LM").save_pretrained(tmp_path)
    written = json.loads((tmp_path / "adapter_config.json").read_text())
    assert peft_config().keys() == written.keys()


def test_every_feature_that_vllm_refuses_is_refused_here_first() -> None:
    known = {field.name for field in dataclasses.fields(PEFTHelper)}
    samples: dict[str, Any] = {
        "modules_to_save": ["lm_head"],
        "use_dora": True,
        "lora_bias": True,
        "init_lora_weights": "pissa",
        "alora_invocation_tokens": [1],
        "layer_replication": [[0, 1]],
        "use_bdlora": {"nblocks": 2},
        "use_qalora": True,
        "bias": "all",
    }
    checked = known - {"r", "lora_alpha", "target_modules", "use_rslora", "rank_pattern", "alpha_pattern"}
    assert {name for name in checked if not name.startswith("vllm_")} == samples.keys()
    for key, value in samples.items():
        config = json.dumps({**peft_config(), key: value}).encode()
        with pytest.raises(ValueError, match=r"."):
            load_in_vllm(config)
        with pytest.raises(UnsupportedFeature):
            Manifest.parse(config, max_rank=64)


@pytest.mark.parametrize(
    "settings", [{"r": 0}, {"r": 65}, {"rank_pattern": {"q_proj": 0}}, {"rank_pattern": {"q_proj": 65}}]
)
def test_ranks_that_vllm_refuses_are_refused_here(settings: dict[str, Any]) -> None:
    config = json.dumps({**peft_config(), **settings}).encode()
    with pytest.raises(ValueError, match=r"."):
        load_in_vllm(config)
    with pytest.raises(AdapterError):
        Manifest.parse(config, max_rank=64)


def test_a_rank_pattern_naming_every_module_is_compacted_and_stays_correct() -> None:
    """What EVA writes: every module by its full name."""
    modules = [f"model.layers.{i}.self_attn.{p}_proj" for i in range(80) for p in "qkvo"]
    ranks = {module: 2 + number % 30 for number, module in enumerate(modules)}
    manifest = Manifest.parse(json.dumps({**peft_config(), "rank_pattern": ranks}).encode(), max_rank=64).resolve(
        modules
    )
    helper = load_in_vllm(manifest.canonical())
    assert len(manifest.rank_pattern) < 30
    for module in modules:
        assert helper.get_rank_and_scaling(module)[0] == ranks[module]
    assert helper.get_rank_and_scaling(modules[0])[1] == 8 / ranks[modules[0]]


def test_rslora_scales_as_in_vllm() -> None:
    manifest = Manifest.parse(json.dumps({**peft_config(rank=8, alpha=16), "use_rslora": True}).encode(), max_rank=64)
    helper = load_in_vllm(manifest.canonical())
    assert helper.vllm_lora_scaling_factor == pytest.approx(16 / math.sqrt(8)) == manifest.scaling(8, 16)


@pytest.mark.filterwarnings("ignore:Setting `save_embedding_layers` to `True`:UserWarning")
@pytest.mark.parametrize("target", ["lm_head", "embed_tokens"])
def test_lora_on_embeddings_is_refused_as_peft_saves_it(
    llama: Path, base: BaseDescription, tmp_path: Path, target: str
) -> None:
    directory = saved_by_peft(llama, tmp_path, target_modules=["q_proj", target], task_type="CAUSAL_LM")
    manifest = Manifest.parse((directory / "adapter_config.json").read_bytes(), max_rank=64)
    with pytest.raises(EmbeddingUnsupported):
        inspect_weights(directory / "adapter_model.safetensors", manifest, base)
