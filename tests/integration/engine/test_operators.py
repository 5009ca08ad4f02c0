"""vLLM's kernels for a CPU against the definitions of RMS norm and rotary embedding."""

import warnings
from collections.abc import Iterator
from typing import Any

import pytest
import torch

WIDTH, HEAD = 96, 16


@pytest.fixture(scope="module")
def layers() -> Iterator[dict[str, Any]]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from vllm.config import VllmConfig, set_current_vllm_config
        from vllm.model_executor.layers.layernorm import RMSNorm
        from vllm.model_executor.layers.rotary_embedding import get_rope

        from service.engine.plugin import operators

        operators.install()
        operators.install()  # a process may register plugins twice
        with set_current_vllm_config(VllmConfig()):
            yield {
                "norm": lambda dtype, width=WIDTH: RMSNorm(width, eps=1e-5, dtype=dtype),
                "rope": lambda dtype, head=HEAD, part=1.0, pairs_apart=True: get_rope(
                    head,
                    128,
                    is_neox_style=pairs_apart,
                    rope_parameters={"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": part},
                    dtype=dtype,
                ),
            }


def norm_of(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    x = x.double()
    return x / (x.pow(2).mean(-1, keepdim=True) + 1e-5).sqrt() * weight.double()


@pytest.mark.parametrize(("dtype", "unit"), [(torch.bfloat16, 2**-7), (torch.float32, 1e-5)], ids=str)
@pytest.mark.parametrize(("rows", "width"), [(1, WIDTH), (3, WIDTH), (130, WIDTH), (3, 100), (3, 20)])
def test_the_norm_is_the_norm(layers: dict[str, Any], dtype: torch.dtype, unit: float, rows: int, width: int) -> None:
    torch.manual_seed(1)
    layer = layers["norm"](dtype, width)
    layer.weight.data = torch.randn(width).to(dtype)
    x, residual = torch.randn(rows, width).to(dtype), torch.randn(rows, width).to(dtype)
    kept = x.clone()
    got = layer(x)
    assert torch.equal(x, kept)
    torch.testing.assert_close(got.double(), norm_of(x, layer.weight), rtol=unit, atol=unit)
    total = x.double() + residual.double()
    normed, added = layer(x, residual)
    torch.testing.assert_close(added.double(), total, rtol=unit, atol=unit)
    torch.testing.assert_close(normed.double(), norm_of(total, layer.weight), rtol=2 * unit, atol=2 * unit)


def test_heads_of_a_projection_that_are_no_memory_of_their_own(layers: dict[str, Any]) -> None:
    torch.manual_seed(2)
    layer = layers["norm"](torch.float32, HEAD)
    projection = torch.randn(5, 3 * WIDTH)
    heads = projection[:, WIDTH : 2 * WIDTH].view(5, -1, HEAD)  # as a model with a norm for queries has them
    torch.testing.assert_close(layer(heads).double(), norm_of(heads, layer.weight), rtol=1e-5, atol=1e-5)


def turned(states: torch.Tensor, positions: torch.Tensor, head: int, rotary: int, pairs_apart: bool) -> torch.Tensor:
    """The definition (https://arxiv.org/abs/2104.09864) in float64, over ``[tokens, heads * head]``."""
    angles = positions.double()[:, None] * 10000.0 ** (-torch.arange(0, rotary, 2).double() / rotary)
    cos, sin = angles.cos()[:, None], angles.sin()[:, None]
    heads = states.double().reshape(len(positions), -1, head).clone()
    first, second = (
        (slice(0, rotary // 2), slice(rotary // 2, rotary))
        if pairs_apart
        else (
            slice(0, rotary, 2),
            slice(1, rotary, 2),
        )
    )
    one, other = heads[..., first].clone(), heads[..., second].clone()
    heads[..., first] = one * cos - other * sin
    heads[..., second] = other * cos + one * sin
    return heads


@pytest.mark.parametrize(("dtype", "unit"), [(torch.bfloat16, 2**-6), (torch.float32, 1e-4)], ids=str)
@pytest.mark.parametrize(
    ("head", "part", "pairs_apart"),
    [(16, 1.0, True), (64, 0.5, True), (64, 1.0, False), (120, 1.0, True), (100, 1.0, True), (80, 0.25, True)],
)
@pytest.mark.parametrize("shape", ["flat", "by head", "no keys", "positions apart", "off the vectors"])
def test_queries_and_keys_are_turned_by_their_positions(
    layers: dict[str, Any], dtype: torch.dtype, unit: float, head: int, part: float, pairs_apart: bool, shape: str
) -> None:
    torch.manual_seed(3)
    layer = layers["rope"](dtype, head, part, pairs_apart)
    rows, width, start = 7, 6 * head, 4 if shape == "off the vectors" else 0
    projection = torch.randn(rows, start + 3 * width).to(dtype)
    positions = torch.tensor([0, 1, 2, 50, 51, 127, 3])
    query, key = projection[:, start : start + width], projection[:, start + width : start + 2 * width]
    want = [turned(states, positions, head, int(head * part), pairs_apart) for states in (query, key)]
    if shape == "by head":
        query, key = query.view(rows, -1, head), key.view(rows, -1, head)
    if shape == "positions apart":
        positions = torch.stack((positions, positions), dim=1)[:, 0]
    got = layer(positions, query, None if shape == "no keys" else key)
    for found, expected in zip(got, want, strict=True):
        if found is not None:
            torch.testing.assert_close(found.double().reshape(expected.shape), expected, rtol=unit, atol=unit)
