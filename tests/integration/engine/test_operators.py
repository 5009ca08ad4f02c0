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
                "rope": lambda dtype: get_rope(
                    HEAD, 128, rope_parameters={"rope_type": "default", "rope_theta": 10000.0}, dtype=dtype
                ),
            }


def norm_of(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    x = x.double()
    return x / (x.pow(2).mean(-1, keepdim=True) + 1e-5).sqrt() * weight.double()


@pytest.mark.parametrize(("dtype", "unit"), [(torch.bfloat16, 2**-7), (torch.float32, 1e-5)], ids=str)
@pytest.mark.parametrize("rows", [1, 3, 130])
def test_the_norm_is_the_norm(layers: dict[str, Any], dtype: torch.dtype, unit: float, rows: int) -> None:
    torch.manual_seed(1)
    layer = layers["norm"](dtype)
    layer.weight.data = torch.randn(WIDTH).to(dtype)
    x, residual = torch.randn(rows, WIDTH).to(dtype), torch.randn(rows, WIDTH).to(dtype)
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


@pytest.mark.parametrize(("dtype", "unit"), [(torch.bfloat16, 2**-6), (torch.float32, 1e-5)], ids=str)
def test_queries_and_keys_are_turned_by_their_positions(
    layers: dict[str, Any], dtype: torch.dtype, unit: float
) -> None:
    torch.manual_seed(3)
    layer = layers["rope"](dtype)
    rows = 7
    projection = torch.randn(rows, 3 * WIDTH).to(dtype)
    positions = torch.tensor([0, 1, 2, 50, 51, 127, 3])
    query, key = projection[:, :WIDTH], projection[:, WIDTH : 2 * WIDTH]
    angles = positions.double()[:, None] * 10000.0 ** (-torch.arange(0, HEAD, 2).double() / HEAD)

    def turned(states: torch.Tensor) -> torch.Tensor:
        first, second = states.double().view(rows, -1, 2, HEAD // 2).unbind(2)
        cos, sin = angles.cos()[:, None], angles.sin()[:, None]
        return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1).view(rows, -1)

    want = turned(query), turned(key)
    got = layer(positions, query, key)
    for found, expected in zip(got, want, strict=True):
        torch.testing.assert_close(found.double(), expected, rtol=unit, atol=unit)
