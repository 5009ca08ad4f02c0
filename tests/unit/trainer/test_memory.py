"""The estimate of activations against what autograd saves in tiny random models of several architectures and ratios."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from tests.support.tiny_models import make_base
from trainer.data.render import TokenSequence
from trainer.tune.memory import ModelShape, layer_bytes, read_shape
from trainer.tune.model import attach_lora
from trainer.tune.objectives import make_objective
from trainer.tune.recipe import Recipe

TOKENS = 128
RECIPE = Recipe(rank=8, batch_size=2, micro_batch_tokens=2 * TOKENS)
HIDDEN = 128
MAX_RATIO = 1.3
"""How far an estimate may be above what is measured: the padding that a mask assumes, and the experts' share."""


def saved_bytes(base: Path, recipe: Recipe, dtype: torch.dtype) -> int:
    """Bytes that autograd saves for the backward pass of one micro-batch, without parameters; each storage once."""
    loaded: Any = AutoModelForCausalLM.from_pretrained(base, dtype=dtype, attn_implementation="sdpa")
    model = attach_lora(loaded, recipe)
    objective = make_objective(model, recipe, training=True)
    rows = [
        TokenSequence(tuple((at * 31 + row) % 1000 for at in range(TOKENS)), (False, *(True,) * (TOKENS - 1)), row)
        for row in range(2)
    ]
    parts = objective.micro_batches(rows, max_tokens=recipe.micro_batch_tokens)
    assert len(parts) == 1
    own = {tensor.untyped_storage().data_ptr() for tensor in (*model.parameters(), *model.buffers())}
    saved: dict[int, torch.UntypedStorage] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            saved[storage.data_ptr()] = storage
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        objective.loss(parts[0], count=2 * TOKENS)
    return sum(storage.nbytes() for storage in saved.values())


def measured_layer(
    directory: Path, kind: str, recipe: Recipe, dtype: torch.dtype, changes: dict[str, Any]
) -> tuple[float, ModelShape]:
    """The bytes that a layer adds, and the shape."""
    sizes = []
    for layers in (1, 2):
        types = ["full_attention", "sliding_attention"][:layers]
        kinds = {"layer_types": types} if kind == "gemma3_text" else {}
        configuration = {"hidden_size": HIDDEN, "num_hidden_layers": layers, **kinds, **changes}
        base = make_base(kind, directory / str(layers), **configuration)
        sizes.append(saved_bytes(base, recipe, dtype))
    return sizes[1] - sizes[0], read_shape(base)


@pytest.mark.parametrize(
    ("kind", "changes", "update", "dtype"),
    [
        ("llama", {"intermediate_size": 344}, {}, "bfloat16"),  # 2.7 times the hidden size
        ("llama", {"intermediate_size": 448}, {}, "bfloat16"),  # 3.5: Llama 3.1 8B
        ("llama", {"intermediate_size": 688}, {"dropout": 0.1}, "bfloat16"),
        ("llama", {"intermediate_size": 448}, {}, "float32"),
        ("qwen2", {"intermediate_size": 696}, {}, "bfloat16"),  # 5.4: Qwen2.5 0.5B and 32B
        ("qwen3", {"intermediate_size": 384, "head_dim": 64}, {}, "bfloat16"),  # heads wider than the hidden size
        ("gemma3_text", {"intermediate_size": 768}, {}, "bfloat16"),  # 6
        ("gemma3_text", {"intermediate_size": 768, "head_dim": 64}, {}, "bfloat16"),
        ("mistral", {"intermediate_size": 448}, {}, "bfloat16"),
        ("phi3", {"intermediate_size": 344}, {}, "bfloat16"),
        ("granite", {"intermediate_size": 512}, {}, "bfloat16"),
        ("qwen3_moe", {"moe_intermediate_size": 128}, {}, "bfloat16"),
        ("mixtral", {"intermediate_size": 448}, {}, "bfloat16"),
    ],
)
def test_a_layers_activations_are_bounded_by_the_estimate(
    tmp_path: Path, kind: str, changes: dict[str, Any], update: dict[str, Any], dtype: str
) -> None:
    recipe = RECIPE.model_copy(update=update)
    numbers: torch.dtype = getattr(torch, dtype)
    measured, shape = measured_layer(tmp_path, kind, recipe, numbers, changes)
    bound = layer_bytes(shape, recipe, tokens=2 * TOKENS, fused=True, number_bytes=numbers.itemsize)
    assert measured <= bound < MAX_RATIO * measured


def test_the_shape_has_the_widths_of_heads_norms_and_experts(tmp_path: Path) -> None:
    gemma = read_shape(make_base("gemma3_text", tmp_path / "gemma"))
    # four norms of 128, queries of 4 heads and keys of 2 with 32 numbers each
    assert (gemma.attention, gemma.norms) == (128, 4 * 128 + 128 + 64)
    experts = read_shape(make_base("qwen2_moe", tmp_path / "experts", intermediate_size=512))
    assert (experts.experts_per_token, experts.intermediate, experts.norms) == (2, 2 * 64 + 128, 256)
    mixed = read_shape(make_base("qwen2_moe", tmp_path / "mixed", intermediate_size=512, mlp_only_layers=[0]))
    assert mixed.intermediate == 512
    llama = read_shape(make_base("llama", tmp_path / "llama", head_dim=64))
    assert (llama.attention, llama.norms, llama.experts_per_token) == (256, 256, 0)
