"""LoRA on a CPU: right in mixed batches, and fast.

vLLM's ``PunicaWrapperCPU`` gathers a copy of an adapter's weights for every row of the batch. A row without an adapter
carries index -1, which in torch is the *last* slot: a base request that shares a step with an adapter's is answered
with some adapter, or with its NaN. (Kernels for a GPU skip such rows; nothing here applies there.)

Here the rows of a step are grouped by slot once, when vLLM announces the step, and each group is computed with its own
slot's weights only. A row without an adapter is in no group and is never read or written. Large groups (prefill) are
two matrix products; rows of small groups (decode), where the calls would cost more than the arithmetic, go through one
compiled loop for all of them (:mod:`service.engine.plugin.kernel`).

Beside vLLM's slots stands a float32 copy of them, laid out for reading along rows of A and of Bᵀ: small bf16 products
are slower on a CPU than float32 ones, and B as vLLM lays it out, padded to the largest rank, is mostly padding.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from vllm.lora.model_manager import LoRAModelManager
from vllm.lora.punica_wrapper.punica_cpu import PunicaWrapperCPU
from vllm.platforms import current_platform

from service.engine.plugin.guard import PluginError, checked_attribute, is_patched, mark_patched
from service.engine.plugin.kernel import compile_kernel

LARGE_GROUP = 16
"""Rows of one adapter from which two matrix products are faster than the loop (measured: rank 8 to 32, width 576)."""

Index = slice | torch.Tensor


@dataclass(frozen=True, slots=True)
class Groups:
    """The rows of one step by the slot that they use; rows without an adapter are in none."""

    large: tuple[tuple[int, Index], ...]
    """(slot, rows) of each slot with at least LARGE_GROUP rows; a slice where the rows are contiguous."""
    small_rows: torch.Tensor
    """[m] int64: the rows of all other slots."""
    small_slots: npt.NDArray[np.int64]
    """[m]: the slot of each."""

    @property
    def every(self) -> tuple[tuple[int, Index], ...]:
        """(slot, rows) of each slot, large and small."""
        small = tuple(
            (int(slot), self.small_rows[torch.from_numpy(self.small_slots == slot)])
            for slot in np.unique(self.small_slots)
        )
        return self.large + small


def group_rows(slots: npt.NDArray[np.int64]) -> Groups:
    """Group the rows of a step.

    Args:
        slots: [rows], the slot of each row, -1 for none.
    """
    large: list[tuple[int, Index]] = []
    in_small = slots >= 0
    for slot in np.unique(slots[in_small]):
        rows = np.flatnonzero(slots == slot)
        if len(rows) < LARGE_GROUP:
            continue
        in_small &= slots != slot
        first, last = int(rows[0]), int(rows[-1])
        contiguous = last - first + 1 == len(rows)
        large.append((int(slot), slice(first, last + 1) if contiguous else torch.from_numpy(rows)))
    small = np.flatnonzero(in_small)
    return Groups(tuple(large), torch.from_numpy(small), np.ascontiguousarray(slots[small], dtype=np.int64))


class Stack:
    """The float32 copy of the slots' weights of one layer.

    Args:
        lora_a: vLLM's slots: for each slice of the layer [slots, 1, max rank, in].
        lora_b: For each slice [slots, 1, out, max rank].
    """

    def __init__(self, lora_a: tuple[torch.Tensor, ...], lora_b: tuple[torch.Tensor, ...]) -> None:
        self._lora_a = lora_a  # kept, so that its identity stays a valid key
        self._lora_b = lora_b
        # Zeros that nobody writes take no memory: only as much of the largest rank as adapters use becomes resident.
        # numpy's arrays, for vLLM makes tensors in inference mode and loads adapters outside of it, where torch
        # refuses to write to them.
        self.a_arrays = [_zeros(part.shape[0], part.shape[2], part.shape[3]) for part in lora_a]
        self.b_arrays = [_zeros(part.shape[0], part.shape[3], part.shape[2]) for part in lora_b]
        self.a = [torch.from_numpy(array) for array in self.a_arrays]
        self.b = [torch.from_numpy(array) for array in self.b_arrays]
        self.ranks: npt.NDArray[np.int64] = np.zeros((len(lora_a), lora_a[0].shape[0]), dtype=np.int64)
        """[slices, slots]: the true rank in each slot; 0 where the slot's adapter leaves the slice alone."""

    def copy(self, slot: int, ranks: Sequence[int]) -> None:
        """Copy what vLLM has put into a slot: `ranks` are the true ranks of its slices."""
        for part, rank in enumerate(ranks):
            self.a_arrays[part][slot, :rank] = self._lora_a[part][slot, 0, :rank].float().numpy()
            self.b_arrays[part][slot, :rank] = self._lora_b[part][slot, 0, :, :rank].T.float().numpy()
        self.ranks[:, slot] = ranks


class GroupedPunica(PunicaWrapperCPU):  # type: ignore[misc]
    """vLLM's wrapper for a CPU with every product computed by groups of rows."""

    def __init__(self, max_num_batched_tokens: int, max_batches: int, device: Any, **kwargs: Any) -> None:
        super().__init__(max_num_batched_tokens, max_batches, device, **kwargs)
        none = np.empty(0, dtype=np.int64)
        self._tokens = group_rows(none)
        self._samples = group_rows(none)
        # Keyed by the identity of vLLM's own tuples and tensors, which live as long as the model does.
        self._stacks: dict[int, Stack] = {}
        self._single_ranks: dict[int, dict[int, int]] = {}
        self._kernel = compile_kernel()

    def update_metadata(
        self, mapping: Any, lora_index_to_id: list[int | None], max_loras: int, vocab_size: int, **kwargs: Any
    ) -> None:
        """Take the step's mapping of rows to slots, and group it."""
        self._update_base_metadata(mapping, lora_index_to_id, max_loras, vocab_size)
        self.is_prefill = mapping.is_prefill
        self._tokens = group_rows(self.token_lora_indices.numpy())
        self._samples = group_rows(self.sampler_indices.numpy())

    def loaded(self, lora_a: Any, lora_b: Any, slot: int, ranks: Sequence[int]) -> None:
        """Take note that vLLM has put an adapter's weights for one layer into a slot.

        Args:
            lora_a: The layer's slots as vLLM holds them: a tuple of slices, or one tensor for the output layer.
            lora_b: The same for B.
            slot: The slot.
            ranks: The true rank of each slice, 0 where the adapter leaves it alone.
        """
        if isinstance(lora_a, tuple):
            self._stack(lora_a, lora_b).copy(slot, ranks)
        else:
            self._single_ranks.setdefault(id(lora_a), {})[slot] = ranks[0]

    def add_lora_linear(
        self,
        y: torch.Tensor,
        x: torch.Tensor,
        lora_a_stacked: tuple[torch.Tensor, ...],
        lora_b_stacked: tuple[torch.Tensor, ...],
        scale: float,
        output_slices: tuple[int, ...],
        *,
        buffer: tuple[torch.Tensor, ...] | None = None,
        **kwargs: Any,
    ) -> None:
        """``y[rows, slice] += scale * x[rows] Aᵀ Bᵀ`` for each group of rows and each slice, in place.

        Args:
            y: [rows, sum of output_slices].
            x: [rows, in].
            lora_a_stacked: For each slice [slots, 1, max rank, in].
            lora_b_stacked: For each slice [slots, 1, out, max rank].
            scale: Factor of the update.
            output_slices: Width of each slice of y.
            buffer: Not used.
            kwargs: Not used.
        """
        groups = self._tokens
        y = y.view(-1, y.shape[-1])
        x = x.view(-1, x.shape[-1])
        stack = self._stack(lora_a_stacked, lora_b_stacked)
        for slot, rows in groups.large:
            rows_x = x[rows].float()
            offset = 0
            for part, width in enumerate(output_slices):
                rank = int(stack.ranks[part, slot])
                if rank:
                    update = rows_x @ stack.a[part][slot, :rank].T @ stack.b[part][slot, :rank]
                    _add(y, rows, offset, update, scale)
                offset += width
        if len(groups.small_slots):
            self._add_small(y, x, stack, scale, output_slices)

    def _add_small(
        self, y: torch.Tensor, x: torch.Tensor, stack: Stack, scale: float, output_slices: tuple[int, ...]
    ) -> None:
        groups = self._tokens
        if not stack.ranks[:, groups.small_slots].any():
            return
        rows_x = x.index_select(0, groups.small_rows).float().numpy()
        rows_y = y.index_select(0, groups.small_rows).float()
        update = rows_y.numpy()
        offset = 0
        for part, width in enumerate(output_slices):
            a, b = stack.a_arrays[part], stack.b_arrays[part]
            self._kernel(rows_x, update, groups.small_slots, stack.ranks[part], a, b, offset, scale)
            offset += width
        y.index_copy_(0, groups.small_rows, rows_y.to(y.dtype))

    def add_shrink(
        self,
        y: tuple[torch.Tensor, ...] | torch.Tensor,
        x: torch.Tensor,
        lora_a_stacked: tuple[torch.Tensor, ...],
        scale: float,
        **kwargs: Any,
    ) -> None:
        """``y[slice][rows] = scale * x[rows] Aᵀ`` (only sharded layers call this)."""
        x = x.view(-1, x.shape[-1])
        for slot, rows in self._tokens.every:
            for part, stacked in enumerate(lora_a_stacked):
                target = y[part].view(-1, y[part].shape[-1])
                target[rows, : stacked.shape[-2]] = (x[rows].float() @ stacked[slot, 0].float().T * scale).to(
                    target.dtype
                )

    def add_expand(
        self,
        y: torch.Tensor,
        x: tuple[torch.Tensor, ...] | torch.Tensor,
        lora_b_stacked: tuple[torch.Tensor, ...],
        output_slices: tuple[int, ...],
        offset_start: int = 0,
        add_inputs: bool = True,
        **kwargs: Any,
    ) -> None:
        """``y[rows, slice] += x[slice][rows] Bᵀ`` (only sharded layers call this)."""
        y = y.view(-1, y.shape[-1])
        for slot, rows in self._tokens.every:
            offset = offset_start
            for part, width in enumerate(output_slices):
                update = x[part][rows].float() @ lora_b_stacked[part][slot, 0].float().T
                if not add_inputs:
                    y[rows, offset : offset + width] = 0
                _add(y, rows, offset, update, 1.0)
                offset += width

    def add_lora_embedding(
        self,
        y: torch.Tensor,
        x: torch.Tensor,
        lora_b_stacked: torch.Tensor,
        add_inputs: bool = True,
        **kwargs: Any,
    ) -> None:
        """``y[rows] += x[rows] Bᵀ``, where x holds the rows of A that the tokens picked."""
        y = y.view(-1, y.shape[-1])
        for slot, rows in self._tokens.every:
            _add(y, rows, 0, x[rows].float() @ lora_b_stacked[slot, 0].float().T, 1.0)

    def add_lora_logits(
        self,
        y: torch.Tensor,
        x: torch.Tensor,
        lora_a_stacked: torch.Tensor,
        lora_b_stacked: torch.Tensor,
        scale: float,
        *,
        buffer: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> None:
        """``y[rows] += scale * x[rows] Aᵀ Bᵀ`` over the rows that are sampled."""
        y = y.view(-1, y.shape[-1])
        x = x.view(-1, x.shape[-1])
        known = self._single_ranks.get(id(lora_a_stacked), {})
        for slot, rows in self._samples.every:
            rank = known.get(slot, lora_a_stacked.shape[-2])
            if rank:
                shrunk = x[rows].float() @ lora_a_stacked[slot, 0, :rank].float().T
                _add(y, rows, 0, shrunk @ lora_b_stacked[slot, 0, :, :rank].float().T, scale)

    def _stack(self, lora_a: tuple[torch.Tensor, ...], lora_b: tuple[torch.Tensor, ...]) -> Stack:
        stack = self._stacks.get(id(lora_a))
        if stack is None:
            stack = self._stacks[id(lora_a)] = Stack(lora_a, lora_b)
        return stack


def _zeros(*shape: int) -> npt.NDArray[np.float32]:
    return np.zeros(shape, dtype=np.float32)


def _add(y: torch.Tensor, rows: Index, offset: int, update: torch.Tensor, scale: float) -> None:
    """``y[rows, offset:] += scale * update``, summed in float32 and rounded once; surplus columns are padding."""
    width = min(update.shape[1], y.shape[1] - offset)
    target = y[rows, offset : offset + width]
    y[rows, offset : offset + width] = (target.float() + update[:, :width] * scale).to(y.dtype)


def true_ranks(weights: Any, slices: int) -> list[int]:
    """The rank of each slice of a layer's weights as loaded; 0 where there are none.

    Args:
        weights: vLLM's LoRALayerWeights or PackedLoRALayerWeights of the layer, or None.
        slices: Number of slices that the layer has.
    """
    if weights is None:
        return [0] * slices
    parts = weights.lora_a if isinstance(weights.lora_a, list) else [weights.lora_a] * slices
    return [0 if part is None else int(part.shape[0]) for part in parts]


def install() -> None:
    """Make vLLM on a CPU use :class:`GroupedPunica`; on another platform do nothing.

    Raises:
        PluginError: A patched place is not as expected.
    """
    if not current_platform.is_cpu():
        return
    platform = type(current_platform)
    checked_attribute(platform, "get_punica_wrapper")
    checked_attribute(
        PunicaWrapperCPU, "add_lora_linear", "self", "y", "x", "lora_a_stacked", "lora_b_stacked", "scale"
    )
    checked_attribute(
        PunicaWrapperCPU, "add_lora_logits", "self", "y", "x", "lora_a_stacked", "lora_b_stacked", "scale"
    )
    checked_attribute(
        PunicaWrapperCPU, "update_metadata", "self", "mapping", "lora_index_to_id", "max_loras", "vocab_size"
    )
    checked_attribute(LoRAModelManager, "_get_lora_layer_weights", "self", "lora_model", "module_name")
    activate = checked_attribute(LoRAModelManager, "activate_adapter", "self", "lora_id")
    if is_patched(activate):
        return

    def get_punica_wrapper(cls: Any) -> str:
        return f"{GroupedPunica.__module__}.{GroupedPunica.__qualname__}"

    def activate_adapter(self: Any, lora_id: int) -> bool:
        activated: bool = activate(self, lora_id)
        if activated:
            _copy_slot(self, lora_id)
        return activated

    platform.get_punica_wrapper = classmethod(get_punica_wrapper)
    LoRAModelManager.activate_adapter = mark_patched(activate_adapter)
    _keep_cpu_kernels_for_experts()


def _keep_cpu_kernels_for_experts() -> None:
    """vLLM picks Triton's kernels for every expert as soon as any layer takes a LoRA, and a CPU has none: each request
    to a mixture of experts would end the engine. No expert takes one here (``--lora-target-modules``)."""
    from vllm.model_executor.layers.fused_moe.config import FusedMoEConfig

    finish = checked_attribute(FusedMoEConfig, "__post_init__", "self")
    if "is_lora_enabled" not in FusedMoEConfig.__dataclass_fields__:
        raise PluginError("FusedMoEConfig has no is_lora_enabled in this vLLM")

    def without_lora(self: Any) -> None:
        self.is_lora_enabled = False
        finish(self)

    FusedMoEConfig.__post_init__ = mark_patched(without_lora)


def _copy_slot(manager: Any, lora_id: int) -> None:
    slot = manager.lora_index_to_id.index(lora_id)
    model = manager._registered_adapters[lora_id]
    for name, module in manager.modules.items():
        lora_a = getattr(module, "lora_a_stacked", None)
        if lora_a is None:  # a classification head has none and is selected row by row
            continue
        if not isinstance(module.punica_wrapper, GroupedPunica):
            raise PluginError(f"{name} has a different Punica wrapper; its rows would not be grouped")
        weights = manager._get_lora_layer_weights(model, name)
        ranks = true_ranks(weights, len(lora_a) if isinstance(lora_a, tuple) else 1)
        module.punica_wrapper.loaded(lora_a, module.lora_b_stacked, slot, ranks)
