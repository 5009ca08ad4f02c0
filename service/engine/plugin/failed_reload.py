"""An adapter that cannot be loaded again fails its own requests, not the engine.

vLLM loads an adapter once when it is first asked for; a bad file is refused there. Later it may fall out of the LRU of
resident adapters and is loaded again in the middle of a step, where any error ends the engine. Here such an adapter
gets a stand-in whose weights are NaN: the containment ends the requests that use it. Each new request tries the files
again.
"""

from __future__ import annotations

from typing import Any

import torch
from vllm.logger import init_logger
from vllm.lora.worker_manager import LRUCacheWorkerLoRAManager

from service.engine.plugin.guard import checked_attribute, is_patched, mark_patched

logger = init_logger("vllm.hatrack.failed_reload")

SUBSTITUTE_RANK = 1


def nan_adapter(manager: Any, adapter_id: int, embedding_modules: dict[str, str]) -> Any:
    """An adapter of rank 1 for every module, all of whose weights are NaN."""
    model = manager.create_dummy_lora(adapter_id, SUBSTITUTE_RANK, embedding_modules)
    for layer in model.loras.values():
        for weights in (layer.lora_a, layer.lora_b):
            for tensor in weights if isinstance(weights, list) else [weights]:
                if isinstance(tensor, torch.Tensor):
                    tensor.fill_(float("nan"))
    return model


def load_or_substitute(worker: Any, request: Any) -> None:
    """Load and activate one adapter for a step that is about to run; never raises for a bad file."""
    manager = worker._adapter_manager
    # The set of substitutes lives on the worker's manager, beside the adapters that it speaks of.
    substitutes: set[int] = worker.__dict__.setdefault("hatrack_substitutes", set())
    if request.lora_int_id in substitutes:
        substitutes.discard(request.lora_int_id)
        manager.remove_adapter(request.lora_int_id)
    try:
        worker.add_adapter(request)
    except Exception:  # whatever reading a broken file raises
        logger.exception("Adapter %s cannot be loaded again; its requests will fail", request.lora_name)
        manager.remove_adapter(request.lora_int_id)
        if len(manager) + 1 > manager.capacity:
            manager.remove_oldest_adapter()
        manager.add_adapter(nan_adapter(manager, request.lora_int_id, worker.embedding_modules))
        manager.activate_adapter(request.lora_int_id)
        substitutes.add(request.lora_int_id)


def install() -> None:
    """Patch the loading of adapters inside a step.

    Raises:
        PluginError: vLLM's manager of adapters is not as expected.
    """
    apply = checked_attribute(LRUCacheWorkerLoRAManager, "_apply_adapters", "self", "lora_requests")
    checked_attribute(LRUCacheWorkerLoRAManager, "add_adapter", "self", "lora_request")
    if is_patched(apply):
        return

    def apply_adapters(self: Any, lora_requests: Any) -> None:
        requests = {request.lora_int_id: request for request in lora_requests if request}
        slots = self._adapter_manager.lora_slots
        if len(requests) > slots:
            raise RuntimeError(f"{len(requests)} adapters in one step, but only {slots} slots")
        for request in requests.values():
            load_or_substitute(self, request)

    LRUCacheWorkerLoRAManager._apply_adapters = mark_patched(apply_adapters)
