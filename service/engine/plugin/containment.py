"""One adapter cannot hurt its neighbours: what plain vLLM lets through, and what ends it here.

Two things go wrong with an adapter whose activations become NaN or infinite:

- its NaN stays in the KV blocks that it gave back, and attention multiplies a masked position by zero, which keeps
  NaN: every later request that reuses such a block answers nothing. Cure: blocks are zeroed when they are handed out,
  which vLLM does itself for models that need it.
- its own answer is an empty text with status 200. Cure: each row of logits is looked at, and a request with a row that
  is no distribution ends with an error.

A row is looked at by its maximum: NaN wins a maximum, +inf is one, and -inf is the maximum only where every entry is
-inf. A single -inf is no fault: grammars, ``min_tokens`` and allowed-token lists put them there on purpose.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from vllm.logger import init_logger
from vllm.v1.core.sched.scheduler import Scheduler
from vllm.v1.engine import EngineCoreOutput, EngineCoreOutputs
from vllm.v1.kv_cache_interface import KVCacheConfig
from vllm.v1.request import RequestStatus
from vllm.v1.worker import gpu_model_runner

from service.engine.contract import ADAPTER_NOT_FINITE, ADAPTER_UNLOADABLE, ENGINE_NOT_FINITE
from service.engine.plugin.guard import PluginError, checked_attribute, is_patched, mark_patched

logger = init_logger("vllm.hatrack.containment")


def broken_rows(logits: torch.Tensor) -> torch.Tensor:
    """Which rows are no distribution over tokens.

    Args:
        logits: [rows, vocabulary], any floating type.

    Returns:
        [rows] int32 on the same device: 1 for a row with a NaN or +inf, or with nothing but -inf; else 0.
    """
    return torch.isfinite(logits.amax(dim=-1)).logical_not_().to(torch.int32)


def broken_requests(scheduler: Any, output: Any) -> list[str]:
    """Ids of the unfinished requests whose logits or prompt log-probabilities of this step are not numbers.

    Requests for embeddings have neither and are left alone.
    """
    suspects = {request_id for request_id, count in (output.num_nans_in_logits or {}).items() if count}
    for request_id, prompt in (output.prompt_logprobs_dict or {}).items():
        if prompt is not None and bool(torch.isnan(prompt.logprobs).any()):
            suspects.add(request_id)
    broken = []
    for request_id in suspects:
        request = scheduler.requests.get(request_id)
        if request is not None and not request.is_finished() and request.sampling_params is not None:
            broken.append(request_id)
    return broken


def fault_of(request: Any) -> str:
    """Why the request's numbers are no numbers, as far as can be told here."""
    if request.lora_request is None:
        return ENGINE_NOT_FINITE
    directory = Path(request.lora_request.lora_path)
    try:
        json.loads((directory / "adapter_config.json").read_bytes())
        with safe_open(directory / "adapter_model.safetensors", framework="np"):  # reads the header, checks the size
            return ADAPTER_NOT_FINITE
    except (OSError, ValueError, SafetensorError):
        return ADAPTER_UNLOADABLE


def end_broken(scheduler: Any, request_ids: list[str]) -> dict[int, list[Any]]:
    """Finish requests with an error, and forget their blocks in the prefix cache.

    The blocks are forgotten so that what was a passing fault does not come back with the next request that shares
    the prefix.

    Returns:
        The last output of each request, by the client that it belongs to.
    """
    for request_id in request_ids:
        blocks = scheduler.kv_cache_manager.get_block_ids(request_id)
        scheduler.kv_cache_manager.evict_blocks({block for group in blocks for block in group})
    outputs: dict[int, list[Any]] = {}
    for request in scheduler.finish_requests(request_ids, RequestStatus.FINISHED_ERROR):
        fault = fault_of(request)
        name = request.lora_request.lora_name if request.lora_request else "the base"
        logger.error("%s: request %s of %s ended", fault, request.request_id, name)
        outputs.setdefault(request.client_index, []).append(
            EngineCoreOutput(
                request_id=request.request_id,
                new_token_ids=[],
                finish_reason=request.get_finished_reason(),
                stop_reason=fault,
                events=request.take_events(),
                trace_headers=request.trace_headers,
                num_nans_in_logits=1,
            )
        )
    return outputs


def install() -> None:
    """Patch the KV cache's configuration, the count of bad logits and the scheduler.

    Raises:
        PluginError: vLLM does not count (``VLLM_COMPUTE_NANS_IN_LOGITS`` is not set), or a patched place is not as
            expected.
    """
    from vllm import envs

    if not envs.VLLM_COMPUTE_NANS_IN_LOGITS:
        raise PluginError("VLLM_COMPUTE_NANS_IN_LOGITS=1 must be set: otherwise NaN logits go undetected")
    _zero_new_blocks()
    _count_broken_rows()
    _end_in_scheduler()


def _zero_new_blocks() -> None:
    if not isinstance(checked_attribute(KVCacheConfig, "needs_kv_cache_zeroing"), property):
        raise PluginError("KVCacheConfig.needs_kv_cache_zeroing is not a property in this vLLM")
    checked_attribute(gpu_model_runner.GPUModelRunner, "_zero_block_ids", "self", "block_ids")
    KVCacheConfig.needs_kv_cache_zeroing = property(lambda self: True)


def _count_broken_rows() -> None:
    checked_attribute(gpu_model_runner, "count_nans_per_row", "logits")
    gpu_model_runner.count_nans_per_row = broken_rows
    from vllm.v1.worker.gpu.sample import sampler

    # The second model runner (the default on a GPU) has a sampler and a counter of its own.
    checked_attribute(sampler, "get_num_nans", "logits")
    sampler.get_num_nans = broken_rows


def _end_in_scheduler() -> None:
    update = checked_attribute(Scheduler, "update_from_output", "self", "scheduler_output", "model_runner_output")
    checked_attribute(Scheduler, "finish_requests", "self", "request_ids", "finished_status")
    if is_patched(update):
        return

    def update_from_output(self: Any, scheduler_output: Any, model_runner_output: Any) -> Any:
        broken = broken_requests(self, model_runner_output)
        if not broken:
            return update(self, scheduler_output, model_runner_output)
        # Finished before vLLM reads the step, so that it skips them as it skips what was aborted meanwhile: no token
        # of theirs is emitted, and no block of theirs is cached.
        ended = end_broken(self, broken)
        outputs = update(self, scheduler_output, model_runner_output)
        for client, last in ended.items():
            if client in outputs:
                outputs[client].outputs = [*outputs[client].outputs, *last]
            else:
                outputs[client] = EngineCoreOutputs(outputs=last)
        return outputs

    Scheduler.update_from_output = mark_patched(update_from_output)
