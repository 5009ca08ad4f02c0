"""Small adapters made in place, sound or broken, without torch: a PEFT output directory for any base.

files = make_adapter(directory, base, rank=4, seed=1)
files = make_adapter(directory, base, variant="nan")
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import ml_dtypes
import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save_file

from adapters.base import BaseDescription, describe

Variant = Literal[
    "sound",
    "nan",
    "infinite",
    "overflow",
    "zero_effect",
    "wrong_shape",
    "dora",
    "truncated",
    "missing_pair",
    "unknown_layer",
]

DEFAULT_MODULES = ("q_proj", "v_proj", "down_proj")

_DTYPES: Mapping[str, Any] = {"F32": np.float32, "F16": np.float16, "BF16": ml_dtypes.bfloat16}


@dataclass(frozen=True, slots=True)
class AdapterFiles:
    """Where an adapter was written, with the two files as an upload needs them."""

    directory: Path

    @property
    def config_path(self) -> Path:
        return self.directory / "adapter_config.json"

    @property
    def weights_path(self) -> Path:
        return self.directory / "adapter_model.safetensors"

    @property
    def config(self) -> bytes:
        return self.config_path.read_bytes()

    @property
    def weights(self) -> bytes:
        return self.weights_path.read_bytes()


def peft_config(
    *, rank: int = 4, alpha: float = 8, modules: Sequence[str] = DEFAULT_MODULES, **overrides: Any
) -> dict[str, Any]:
    """What PEFT 0.21 writes for a plain LoRA, key by key."""
    off: dict[str, Any] = dict.fromkeys(
        [
            *(
                "alora_invocation_tokens",
                "arrow_config",
                "auto_mapping",
                "corda_config",
                "eva_config",
                "exclude_modules",
            ),
            *("kasa_config", "layer_replication", "layers_pattern", "layers_to_transform", "lora_ga_config"),
            *("megatron_config", "modules_to_save", "monteclora_config", "revision", "target_parameters"),
            *("trainable_token_indices", "use_bdlora", "velora_config", "base_model_name_or_path"),
        ]
    )
    return {
        **off,
        "alpha_pattern": {},
        "bias": "none",
        "ensure_weight_tying": False,
        "fan_in_fan_out": False,
        "inference_mode": True,
        "init_lora_weights": True,
        "loftq_config": {},
        "lora_alpha": alpha,
        "lora_bias": False,
        "lora_dropout": 0.05,
        "megatron_core": "megatron.core",
        "peft_type": "LORA",
        "peft_version": "0.21.2",
        "qalora_group_size": 16,
        "r": rank,
        "rank_pattern": {},
        "target_modules": list(modules),
        "task_type": "CAUSAL_LM",
        "use_dora": False,
        "use_qalora": False,
        "use_rslora": False,
        **overrides,
    }


def lora_tensors(
    base: BaseDescription,
    *,
    rank: int = 4,
    scale: float = 0.02,
    seed: int = 0,
    modules: Sequence[str] = DEFAULT_MODULES,
    layers: Sequence[int] | None = None,
    dtype: str = "F32",
) -> dict[str, NDArray[Any]]:
    """Random A [r, in] (variance 1/in) and B [out, r] (standard deviation `scale`) for every layer named in `modules`.

    `scale` 0.02 moves SmolLM2-135M plainly and leaves its language alone; `layers` restricts it to these blocks.
    """
    random = np.random.default_rng(seed)
    tensors: dict[str, NDArray[Any]] = {}
    for name, shape in sorted(base.modules.items()):
        if name.rpartition(".")[2] not in modules or not _in_layers(name, layers):
            continue
        if shape.in_features is None or shape.out_features is None:
            raise ValueError(f"{name} of this base has no known shape")
        a = random.standard_normal((rank, shape.in_features)) / math.sqrt(shape.in_features)
        b = random.standard_normal((shape.out_features, rank)) * scale
        tensors[f"base_model.model.{name}.lora_A.weight"] = a.astype(_DTYPES[dtype])
        tensors[f"base_model.model.{name}.lora_B.weight"] = b.astype(_DTYPES[dtype])
    if not tensors:
        raise ValueError(f"the base has no layer named {', '.join(modules)}")
    return tensors


def _in_layers(name: str, layers: Sequence[int] | None) -> bool:
    return layers is None or any(f".{layer}." in name for layer in layers)


def make_adapter(
    directory: Path,
    base: BaseDescription,
    *,
    variant: Variant = "sound",
    rank: int = 4,
    alpha: float = 8,
    scale: float = 0.02,
    seed: int = 0,
    modules: Sequence[str] = DEFAULT_MODULES,
    layers: Sequence[int] | None = None,
    dtype: str = "F32",
    config: Mapping[str, Any] | None = None,
) -> AdapterFiles:
    """Write adapter_config.json and adapter_model.safetensors into `directory` and return where.

    `config` overrides keys of the config. A variant breaks one thing: "overflow" is B times 1e30, finite and fatal;
    "zero_effect" is B = 0, what an untrained adapter is; "truncated" loses its last kilobyte.
    """
    directory.mkdir(parents=True, exist_ok=True)
    files = AdapterFiles(directory)
    tensors = lora_tensors(base, rank=rank, scale=scale, seed=seed, modules=modules, layers=layers, dtype=dtype)
    _break(tensors, variant)
    save_file(tensors, files.weights_path, metadata={"format": "pt"})
    overrides = {"use_dora": True} if variant == "dora" else {}
    settings = peft_config(rank=rank, alpha=alpha, modules=modules, **{**overrides, **(config or {})})
    files.config_path.write_text(json.dumps(settings, indent=2, sort_keys=True))
    if variant == "truncated":
        files.weights_path.write_bytes(files.weights[:-1024])
    return files


def _break(tensors: dict[str, NDArray[Any]], variant: Variant) -> None:
    sides = {side: [name for name in sorted(tensors) if name.endswith(f".lora_{side}.weight")] for side in "AB"}
    last = sides["B"][-1]
    if variant == "nan":
        tensors[last][-1, -1] = np.nan
    elif variant == "infinite":
        tensors[last][-1, -1] = np.inf
    elif variant == "overflow":
        for name in sides["B"]:
            tensors[name] = tensors[name] * np.asarray(1e30, dtype=tensors[name].dtype)
    elif variant == "zero_effect":
        for name in sides["B"]:
            tensors[name] = np.zeros_like(tensors[name])
    elif variant == "wrong_shape":
        tensors[last] = np.ascontiguousarray(tensors[last][:-1])
    elif variant == "missing_pair":
        del tensors[last]
    elif variant == "unknown_layer":
        for name in [name for name in tensors if ".layers." in name]:
            tensors[name.replace(".layers.", ".layers.9")] = tensors.pop(name)


def make_base(
    directory: Path, *, layers: int = 2, hidden: int = 16, vocabulary: int = 32, seed: int = 0, **config: Any
) -> Path:
    """Write a tiny checkpoint of Llama's layer names (bf16, one file, tied embeddings) and return its directory."""
    directory.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(seed)

    def weight(out_features: int, in_features: int) -> NDArray[Any]:
        return (random.standard_normal((out_features, in_features)) * 0.02).astype(ml_dtypes.bfloat16)

    tensors = {"model.embed_tokens.weight": weight(vocabulary, hidden), "model.norm.weight": weight(1, hidden)[0]}
    for layer in range(layers):
        prefix = f"model.layers.{layer}"
        tensors[f"{prefix}.input_layernorm.weight"] = weight(1, hidden)[0]
        for name in ("q_proj", "o_proj"):
            tensors[f"{prefix}.self_attn.{name}.weight"] = weight(hidden, hidden)
        for name in ("k_proj", "v_proj"):
            tensors[f"{prefix}.self_attn.{name}.weight"] = weight(hidden // 2, hidden)
        for name in ("gate_proj", "up_proj"):
            tensors[f"{prefix}.mlp.{name}.weight"] = weight(hidden * 3, hidden)
        tensors[f"{prefix}.mlp.down_proj.weight"] = weight(hidden, hidden * 3)
    save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})
    settings = {
        "architectures": ["LlamaForCausalLM"],
        "dtype": "bfloat16",
        "hidden_size": hidden,
        "initializer_range": 0.02,
        "model_type": "llama",
        "num_hidden_layers": layers,
        "vocab_size": vocabulary,
        **config,
    }
    (directory / "config.json").write_text(json.dumps(settings))
    (directory / "tokenizer.json").write_text('{"version": "1.0"}')
    (directory / "tokenizer_config.json").write_text('{"eos_token": "</s>"}')
    (directory / "chat_template.jinja").write_text("{{ messages }}")
    return directory


def describe_base(model_dir: Path, *, served_name: str = "tiny", cache_dir: Path | None = None) -> BaseDescription:
    """A description for tests, with the engine's usual dtype."""
    return describe(
        model_dir,
        served_name=served_name,
        dtype="bfloat16",
        quantization=None,
        engine_version="0.32.0",
        cache_dir=cache_dir,
    )
