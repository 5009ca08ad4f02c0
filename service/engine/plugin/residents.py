"""Resident adapters are bounded in bytes, too, not in number alone.

vLLM keeps `max_cpu_loras` adapters in host memory, whatever their size: 256 of 200 MB are 50 GB. Here the least
recently used leave as well while all of them together take more than a limit. As many as there are slots always stay:
a step's adapters are the most recently used ones, so that none of them leaves before the step has run.
"""

from __future__ import annotations

from typing import Any

import torch
from vllm.logger import init_logger
from vllm.lora.model_manager import LRUCacheLoRAModelManager

from service.engine.plugin.guard import checked_attribute, is_patched, mark_patched

logger = init_logger("vllm.hatrack.residents")


def host_bytes(adapter: Any) -> int:
    """Bytes of host memory that an adapter's weights take; what layers share counts once.

    Args:
        adapter: A ``LoRAModel``.
    """
    storages: dict[int, int] = {}
    for layer in adapter.loras.values():
        for weights in (layer.lora_a, layer.lora_b):
            for tensor in weights if isinstance(weights, list) else [weights]:
                if isinstance(tensor, torch.Tensor) and tensor.device.type == "cpu":
                    storage = tensor.untyped_storage()
                    storages[storage.data_ptr()] = storage.nbytes()
    return sum(storages.values())


def evict(manager: Any, limit: int) -> None:
    """Remove the least recently used adapters until those that stay take at most ``limit`` bytes, or fill the slots.

    Args:
        manager: vLLM's ``LRUCacheLoRAModelManager``.
        limit: Bytes.
    """
    sizes = {number: adapter.hatrack_bytes for number, adapter in manager.list_adapters().items()}
    total = sum(sizes.values())
    pinned = manager._registered_adapters.pinned_items
    while total > limit and len(sizes.keys() - pinned) > manager.lora_slots:
        manager.remove_oldest_adapter()
        removed = sizes.keys() - manager.list_adapters().keys()
        total -= sum(sizes.pop(number) for number in removed)
        logger.debug("Adapters take %d bytes of host memory after %s left", total, removed)


def install(limit: int | None) -> None:
    """Patch the adding of an adapter to those in memory.

    Args:
        limit: Bytes; None leaves vLLM's number as the only bound.

    Raises:
        PluginError: vLLM's manager of adapters is not as expected.
    """
    add = checked_attribute(LRUCacheLoRAModelManager, "add_adapter", "self", "lora")
    checked_attribute(LRUCacheLoRAModelManager, "remove_oldest_adapter", "self")
    checked_attribute(LRUCacheLoRAModelManager, "list_adapters", "self")
    if limit is None or is_patched(add):
        return

    def add_adapter(self: Any, lora: Any) -> bool:
        added: bool = add(self, lora)
        if added:
            lora.hatrack_bytes = host_bytes(lora)  # as it stays: vLLM has merged its layers by now
            evict(self, limit)
        return added

    LRUCacheLoRAModelManager.add_adapter = mark_patched(add_adapter)
