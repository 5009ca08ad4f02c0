"""The paged optimizer on a CPU, where it pages nothing: when it is chosen, that it is AdamW, and its checkpoints."""

from __future__ import annotations

import io
from typing import Any

import pytest
import torch

from trainer.tune import paged
from trainer.tune.optimizer import Optimizer
from trainer.tune.recipe import Recipe

NF4 = Recipe(quantization="nf4", learning_rate=1e-2, warmup_ratio=0)
STEPS = 6


class Layer(torch.nn.Module):
    """Two trained tensors, one of them large enough to be paged."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(1)
        self.one = torch.nn.Parameter(torch.randn(400, 300, generator=generator))
        self.two = torch.nn.Parameter(torch.randn(3, 5, generator=generator))


def made(monkeypatch: pytest.MonkeyPatch, *, is_paged: bool) -> tuple[Layer, Optimizer]:
    monkeypatch.setattr(paged, "is_paged", lambda *_: is_paged)
    layer = Layer()
    return layer, Optimizer(layer, NF4, steps=STEPS)


def stepped(layer: Layer, optimizer: Optimizer, steps: range) -> None:
    for step in steps:
        for parameter in layer.parameters():
            parameter.grad = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(step))
        optimizer.step()


def same(one: Layer, other: Layer) -> bool:
    return all(torch.allclose(a, b, atol=1e-5) for a, b in zip(one.parameters(), other.parameters(), strict=True))


def through_a_file(state: dict[str, Any]) -> dict[str, Any]:
    content = io.BytesIO()
    torch.save(state, content)
    content.seek(0)
    found: dict[str, Any] = torch.load(content, weights_only=True)
    return found


def test_it_is_chosen_for_a_four_bit_base_on_a_gpu_alone() -> None:
    gpu, cpu = torch.device("cuda"), torch.device("cpu")
    assert paged.is_paged(gpu, NF4)
    assert not paged.is_paged(cpu, NF4)
    assert not paged.is_paged(gpu, Recipe())


@pytest.mark.filterwarnings("ignore:Paged optimizers are not supported on CPU")
def test_it_is_adamw_and_either_goes_on_from_the_others_checkpoint(monkeypatch: pytest.MonkeyPatch) -> None:
    usual, its = made(monkeypatch, is_paged=False)
    stepped(usual, its, range(STEPS))
    layer, optimizer = made(monkeypatch, is_paged=True)
    assert type(optimizer._adamw).__name__ == "PagedAdamW32bit"
    stepped(layer, optimizer, range(STEPS))
    assert same(layer, usual)
    for before, after in ((True, True), (True, False), (False, True)):
        first, kept = made(monkeypatch, is_paged=before)
        stepped(first, kept, range(3))
        state = through_a_file(kept.state())
        second, goes_on = made(monkeypatch, is_paged=after)
        goes_on.restore(state)
        stepped(second, goes_on, range(3, STEPS))
        assert same(second, usual)
