"""A base that is streamed for the proof: the same numbers as a whole one, from one layer at a time."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForCausalLM,
    Gemma3TextConfig,
    GraniteConfig,
    LlamaConfig,
    MistralConfig,
    Phi3Config,
    PreTrainedConfig,
    Qwen2Config,
    Qwen3Config,
    SmolLM3Config,
)

from trainer.errors import BaseModelIncomplete
from trainer.tune.memory import STREAMED_TYPES, read_shape
from trainer.tune.model import adapter_weights, attach_lora, load_tokenizer, set_adapter_weights
from trainer.tune.proof import measure
from trainer.tune.recipe import Recipe
from trainer.tune.streaming import stream_base

CPU = torch.device("cpu")
SIZES: dict[str, Any] = {
    "vocab_size": 259,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "initializer_range": 0.2,
    "bos_token_id": None,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
CONFIGS: dict[str, PreTrainedConfig] = {
    "llama": LlamaConfig(**SIZES),
    "llama, tied": LlamaConfig(**SIZES, tie_word_embeddings=True),
    "mistral": MistralConfig(**SIZES, sliding_window=None),
    "qwen2": Qwen2Config(**SIZES),
    "qwen3": Qwen3Config(**SIZES, head_dim=8),
    "smollm3": SmolLM3Config(**SIZES),
    "phi3": Phi3Config(**SIZES),
    "granite": GraniteConfig(**SIZES, embedding_multiplier=12.0, residual_multiplier=0.22, logits_scaling=8.0),
    "gemma3": Gemma3TextConfig(
        **SIZES,
        head_dim=8,
        sliding_window=16,
        layer_types=["sliding_attention", "sliding_attention", "full_attention"],
    ),
}


def saved(config: PreTrainedConfig, directory: Path, **options: Any) -> Path:
    with torch.random.fork_rng():
        torch.manual_seed(1)
        AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).save_pretrained(directory, **options)
    return directory


def with_adapter(base: Any, weights: dict[str, torch.Tensor] | None) -> Any:
    """A LoRA whose B is not zero; with `weights`, it is set to these."""
    model = attach_lora(base, Recipe(rank=4))
    if weights is not None:
        set_adapter_weights(model, weights, CPU)
        return model
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.copy_(0.1 * torch.randn(parameter.shape, generator=generator))
    return model


def test_every_streamed_type_is_tested() -> None:
    assert {config.model_type for config in CONFIGS.values()} == STREAMED_TYPES


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("name", CONFIGS)
def test_a_streamed_base_gives_the_proof_of_a_whole_one_to_the_bit(
    name: str, attention: str, base_dir: Path, tmp_path: Path
) -> None:
    # several files, as large checkpoints have
    base = saved(CONFIGS[name], tmp_path / "base", max_shard_size="40KB")
    assert len(list(base.glob("*.safetensors"))) > 1
    assert read_shape(base).streams
    loaded = AutoModelForCausalLM.from_pretrained(base, dtype=torch.bfloat16, attn_implementation=attention)
    whole = with_adapter(loaded, None)
    streamed = with_adapter(
        stream_base(base, dtype=torch.bfloat16, device=CPU, attention=attention), adapter_weights(whole)
    )
    tokenizer = load_tokenizer(base_dir)
    expected = measure(whole, tokenizer)
    assert measure(streamed, tokenizer) == expected
    assert expected.base != expected.adapter


def test_no_more_than_one_layer_is_there_at_a_time(tmp_path: Path) -> None:
    base = saved(CONFIGS["llama"], tmp_path / "base")
    model = stream_base(base, dtype=torch.bfloat16, device=CPU, attention="eager")
    present: list[int] = []

    def count(*_: Any) -> None:
        present.append(sum(parameter.numel() for parameter in model.parameters() if not parameter.is_meta))

    for module in model.modules():
        module.register_forward_hook(count)
    with torch.no_grad():
        model(input_ids=torch.tensor([[5, 6, 7]]))
    shape = read_shape(base)
    norms = 3 * shape.hidden
    assert 0 < max(present) <= shape.largest_block + norms < shape.weights / 2
    assert all(parameter.is_meta for parameter in model.parameters())


def test_a_checkpoint_with_other_names_is_not_streamed(tmp_path: Path) -> None:
    base = saved(CONFIGS["llama"], tmp_path / "base")
    path = base / "model.safetensors"
    save_file({name.removeprefix("model."): tensor for name, tensor in load_file(path).items()}, path)
    with pytest.raises(BaseModelIncomplete, match="no tensor named"):
        stream_base(base, dtype=torch.bfloat16, device=CPU, attention="eager")
