"""LoRA on a CPU: right in mixed batches, and fast.

vLLM's ``PunicaWrapperCPU`` gathers a copy of an adapter's weights for every row of the batch. A row without an adapter
carries index -1, which in torch is the *last* slot: a base request that shares a step with an adapter's is answered
with some adapter, or with its NaN. (Kernels for a GPU skip such rows; nothing here applies there.)

Here the rows of a step are grouped by slot once, when vLLM announces the step, and each group is computed with its own
slot's weights only. A row without an adapter is in no group and is never read or written. Large groups (prefill) are
two matrix products for all slices of a layer at once; the other rows (decode), where the calls would cost more than the
arithmetic, go through one compiled loop for all of them (:mod:`service.engine.plugin.kernel`).

Beside vLLM's slots stands a copy of them in the same numbers, laid out for both: A of all slices of a layer one below
the other, and Bᵀ beside them with zeros where a row of A belongs to another slice. What the largest rank would need
beyond an adapter's own is in neither product, where it is most of what vLLM holds.
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
from service.engine.plugin.stack import KERNEL_TYPES, Stack, add_products, bits

LARGE_RUN = 16
"""Neighbouring rows of one adapter from which two matrix products are faster than the loop (measured: rank 16, width
576 to 3,072, one core with AMX)."""
LARGE_GROUP = 64
"""The same for rows of one adapter that are no neighbours, and have to be gathered and put back."""

Index = slice | torch.Tensor


@dataclass(frozen=True, slots=True)
class Groups:
    """The rows of one step by the slot that they use; rows without an adapter are in none."""

    large: tuple[tuple[int, Index], ...]
    """(slot, rows) that are worth a matrix product; a slice where the rows are neighbours. A slot may have several."""
    small_rows: npt.NDArray[np.int64]
    """[m]: all other rows, those of a slot together."""
    small_slots: npt.NDArray[np.int64]
    """[m]: the slot of each."""
    end: int
    """One more than the last of all these rows."""

    @property
    def every(self) -> tuple[tuple[int, Index], ...]:
        """(slot, rows) of all rows that have an adapter."""
        small = tuple(
            (int(slot), torch.from_numpy(self.small_rows[self.small_slots == slot]))
            for slot in np.unique(self.small_slots)
        )
        return self.large + small


def group_rows(slots: npt.NDArray[np.int64]) -> Groups:
    """Group the rows of a step.

    Args:
        slots: [rows], the slot of each row, -1 for none.
    """
    large: list[tuple[int, Index]] = []
    small: list[npt.NDArray[np.int64]] = []
    for slot in np.unique(slots[slots >= 0]):
        rows = np.flatnonzero(slots == slot)
        scattered: list[npt.NDArray[np.int64]] = []
        for run in np.split(rows, np.flatnonzero(np.diff(rows) > 1) + 1):
            if len(run) < LARGE_RUN:
                scattered.append(run)
            else:
                large.append((int(slot), slice(int(run[0]), int(run[-1]) + 1)))
        if sum(map(len, scattered)) < LARGE_GROUP:
            small += scattered
        else:
            large.append((int(slot), torch.from_numpy(np.concatenate(scattered))))
    small_rows = np.concatenate(small) if small else np.empty(0, dtype=np.int64)
    small_slots = np.ascontiguousarray(slots[small_rows], dtype=np.int64)
    return Groups(tuple(large), small_rows, small_slots, end=int(np.flatnonzero(slots >= 0).max(initial=-1)) + 1)


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
        self._kernel(getattr(kwargs.get("lora_config"), "lora_dtype", None))  # now, and not during the first request

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
            stack = self._stack(lora_a, lora_b)
            if stack is not None:
                stack.copy(slot, ranks)
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
        if not groups.large and not len(groups.small_rows):
            return
        y = y.view(-1, y.shape[-1])
        x = x.view(-1, x.shape[-1])
        if min(len(x), len(y)) < groups.end:  # the loop checks no bounds
            raise IndexError(f"a layer has {len(x)} rows of a step in which row {groups.end - 1} has an adapter")
        stack = self._stack(lora_a_stacked, lora_b_stacked)
        fits = stack is not None and x.dtype == y.dtype == stack.a.dtype and y.shape[1] == stack.width
        if stack is None or not fits or not y.is_contiguous():
            self._add_slowly(y, x, lora_a_stacked, lora_b_stacked, scale)
            return
        for slot, rows in groups.large:
            total = int(stack.totals[slot])
            if total:
                target = y[rows]
                add_products(target, x[rows], stack.a[slot, :total], stack.b[slot, :total], scale)
                if not isinstance(rows, slice):
                    y[rows] = target
        if len(groups.small_rows):
            self._kernel(y.dtype)(
                bits(x.contiguous()),
                bits(y),
                groups.small_rows,
                groups.small_slots,
                stack.ranks,
                stack.a_array,
                stack.b_array,
                stack.edges,
                scale,
            )

    def _add_slowly(
        self,
        y: torch.Tensor,
        x: torch.Tensor,
        lora_a: tuple[torch.Tensor, ...],
        lora_b: tuple[torch.Tensor, ...],
        scale: float,
    ) -> None:
        """The same from vLLM's own slots, with the zeros that they are padded with."""
        for slot, rows in self._tokens.every:
            offset = 0
            for a, b in zip(lora_a, lora_b, strict=True):
                update = x[rows].float() @ a[slot, 0].float().T @ b[slot, 0].float().T
                _add(y, rows, offset, update, scale)
                offset += b.shape[2]

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

    @staticmethod
    def _kernel(dtype: torch.dtype | None) -> Any:
        return compile_kernel(bfloat16=dtype is torch.bfloat16) if dtype in KERNEL_TYPES else None

    def _stack(self, lora_a: tuple[torch.Tensor, ...], lora_b: tuple[torch.Tensor, ...]) -> Stack | None:
        stack = self._stacks.get(id(lora_a))
        if stack is None and Stack.fits(lora_a, lora_b):
            stack = self._stacks[id(lora_a)] = Stack(lora_a, lora_b)
        return stack


def _add(y: torch.Tensor, rows: Index, offset: int, update: torch.Tensor, scale: float) -> None:
    """``y[rows, offset:] += scale * update``, summed in float32 and rounded once; surplus columns are padding."""
    width = min(update.shape[1], y.shape[1] - offset)
    target = y[rows, offset : offset + width]
    y[rows, offset : offset + width] = (target.float() + update[:, :width] * scale).to(y.dtype)


def true_ranks(weights: Any, slices: int, module: Any = None) -> list[int]:
    """The rank of each slice of a layer's weights as loaded; 0 where there are none.

    Args:
        weights: vLLM's LoRALayerWeights or PackedLoRALayerWeights of the layer, or None.
        slices: Number of slices that the layer has.
        module: vLLM's layer, which knows how fewer parts of an adapter cover its slices.
    """
    if weights is None:
        return [0] * slices
    parts = weights.lora_a if isinstance(weights.lora_a, list) else [weights.lora_a] * slices
    if len(parts) != slices:
        parts, _ = module.expand_packed_lora(parts, weights.lora_b)
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
            try:
                _copy_slot(self, lora_id)
            except Exception:
                self.deactivate_adapter(lora_id)
                raise
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
        ranks = true_ranks(weights, len(lora_a) if isinstance(lora_a, tuple) else 1, module)
        module.punica_wrapper.loaded(lora_a, module.lora_b_stacked, slot, ranks)
