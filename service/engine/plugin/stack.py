"""The copy of a layer's slots that LoRA on a CPU computes with, and its products of whole matrices."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

KERNEL_TYPES = (torch.bfloat16, torch.float32)
"""What the copy of the slots and the loop exist for; float16, which hardly a CPU computes, goes through torch alone."""


class Stack:
    """A copy of one layer's slots, laid out for products over all slices at once.

    Args:
        lora_a: vLLM's slots: for each slice of the layer [slots, 1, max rank, in].
        lora_b: For each slice [slots, 1, out, max rank].
    """

    @staticmethod
    def fits(lora_a: tuple[torch.Tensor, ...], lora_b: tuple[torch.Tensor, ...]) -> bool:
        """Whether a copy may be made: not of other numbers, nor of a rank that several processes share."""
        return lora_a[0].dtype in KERNEL_TYPES and all(
            a.shape[2] == b.shape[3] for a, b in zip(lora_a, lora_b, strict=True)
        )

    def __init__(self, lora_a: tuple[torch.Tensor, ...], lora_b: tuple[torch.Tensor, ...]) -> None:
        self._lora_a = lora_a  # kept, so that its identity stays a valid key
        self._lora_b = lora_b
        slots, _, max_rank, inner = lora_a[0].shape
        self.edges = np.cumsum([0, *(part.shape[2] for part in lora_b)], dtype=np.int64)
        """[slices + 1]: where each slice begins in the output, and the end of the last."""
        self.width = int(self.edges[-1])
        rows = len(lora_a) * max_rank
        # Zeros that nobody writes take no memory: only as much of the largest rank as adapters use becomes resident.
        # numpy's arrays, for vLLM makes tensors in inference mode and loads adapters outside of it, where torch
        # refuses to write to them. numpy has no bfloat16: it moves the bits.
        number = _number(lora_a[0])
        self.a_array = np.zeros((slots, rows, inner), dtype=number)
        self.b_array = np.zeros((slots, rows, self.width), dtype=number)
        self.a = torch.from_numpy(self.a_array).view(lora_a[0].dtype)
        self.b = torch.from_numpy(self.b_array).view(lora_a[0].dtype)
        self.ranks: npt.NDArray[np.int64] = np.zeros((len(lora_a), slots), dtype=np.int64)
        """[slices, slots]: the true rank in each slot; 0 where the slot's adapter leaves the slice alone."""
        self.totals: npt.NDArray[np.int64] = np.zeros(slots, dtype=np.int64)
        """[slots]: the ranks of all slices together, which is how many rows of `a` and `b` the slot uses."""

    def copy(self, slot: int, ranks: Sequence[int]) -> None:
        """Copy what vLLM has put into a slot: `ranks` are the true ranks of its slices."""
        self.ranks[:, slot] = self.totals[slot] = 0  # where this ends early, the slot adds nothing
        self.b_array[slot, : sum(ranks)] = 0
        first = 0
        for part, rank in enumerate(ranks):
            rows, columns = slice(first, first + rank), slice(self.edges[part], self.edges[part + 1])
            self.a_array[slot, rows] = bits(self._lora_a[part][slot, 0, :rank])
            self.b_array[slot, rows, columns] = bits(self._lora_b[part][slot, 0, :, :rank]).T
            first += rank
        self.ranks[:, slot] = ranks
        self.totals[slot] = first


def add_products(y: torch.Tensor, x: torch.Tensor, a: torch.Tensor, b: torch.Tensor, scale: float) -> None:
    """``y += scale * x aᵀ b`` in place, rounded once, also in bfloat16, for which a CPU may have units of its own.

    Their products come rounded to 8 bits, which for the short vector ``x aᵀ`` is too few. What was rounded off is what
    the same product leaves if its rounded self is subtracted before it is rounded; the two together have 16 bits.

    Args:
        y: [rows, width].
        x: [rows, in].
        a: [rank, in].
        b: [rank, width].
        scale: Factor of the update.
    """
    if y.dtype is torch.float32:
        y.addmm_(x @ a.T, b, alpha=scale)
    elif products_keep_remainders():
        high = x @ a.T
        low = torch.addmm(high, x, a.T, beta=-1)
        y.addmm_(torch.cat((high, low), dim=1), torch.cat((b, b)), alpha=scale)
    else:
        y.copy_(y.float().addmm_(x.float() @ a.float().T, b.float(), alpha=scale))


@cache
def products_keep_remainders() -> bool:
    """Whether torch sums products of bfloat16 in float32 here and adds what is there before it rounds.

    oneDNN does where the CPU has instructions for bfloat16; what else may compute such a product is not promised.
    """
    x = torch.linspace(1, 2, 64 * 64).view(64, 64).bfloat16()
    for other in (x.T, x):
        high = x @ other
        low = torch.addmm(high, x, other, beta=-1)
        exact = x.double() @ other.double()
        if (high.double() + low.double() - exact).abs().max() > 1e-4 * exact.max():
            return False
    return True


def _number(tensor: torch.Tensor) -> npt.DTypeLike:
    """What numpy calls the tensor's numbers; the bits of a bfloat16 are a uint16 to it."""
    return np.uint16 if tensor.dtype is torch.bfloat16 else np.float32


def bits(tensor: torch.Tensor) -> npt.NDArray[Any]:
    """The tensor's memory as numpy's array."""
    array: npt.NDArray[Any] = (tensor.view(torch.uint16) if tensor.dtype is torch.bfloat16 else tensor).numpy()
    return array
