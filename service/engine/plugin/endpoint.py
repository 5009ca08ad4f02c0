"""The route by which the gateway sees that this engine is one of ours, and what is in its memory."""

from __future__ import annotations

from importlib.metadata import version
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse

from service.engine.contract import PLUGIN_NAME, PLUGIN_PROTOCOL, PLUGIN_ROUTE
from service.engine.plugin.answers import AdapterFault, fault_handler
from service.engine.plugin.parameters import read_parameters


class HatrackEndpoint:
    """vLLM's endpoint plugin: one route, and the handler of contained faults."""

    name = PLUGIN_NAME
    required_tasks = None

    def attach_router(self, app: FastAPI) -> None:
        """Add the route and the handler to vLLM's API server."""
        app.add_api_route(PLUGIN_ROUTE, report, methods=["GET"], include_in_schema=False)
        app.add_exception_handler(AdapterFault, fault_handler)

    async def init_state(self, engine_client: Any, state: Any, args: Any) -> None:
        """Nothing to prepare: the route reads vLLM's own state."""


async def report(request: Request, loaded: bool = False) -> JSONResponse:
    """What the engine is; with `loaded`, also the digests in its memory (waits for the running step)."""
    state = request.app.state
    config = state.vllm_config
    store = read_parameters().store
    inode = store.stat()
    names = config.model_config.served_model_name
    answer: dict[str, Any] = {
        "protocol": PLUGIN_PROTOCOL,
        "hatrack": version("hatrack"),
        "vllm": _vllm_version(),
        "store": str(store),
        "store_device": inode.st_dev,
        "store_inode": inode.st_ino,
        "model": config.model_config.model,
        "names": names if isinstance(names, list) else [names],
        "dtype": str(config.model_config.dtype).removeprefix("torch."),
        "quantization": config.model_config.quantization,
        "context": config.model_config.max_model_len,
        "slots": config.lora_config.max_loras,
        "max_rank": config.lora_config.max_lora_rank,
        "resident_limit": config.lora_config.max_cpu_loras,
        "max_sequences": config.scheduler_config.max_num_seqs,
        "tasks": sorted(await state.engine_client.get_supported_tasks()),
    }
    if loaded:
        known = {adapter.lora_int_id: digest for digest, adapter in state.openai_serving_models.lora_requests.items()}
        resident = await state.engine_client.list_loras()
        answer["loaded"] = sorted(known[number] for number in resident if number in known)
    return JSONResponse(answer)


def _vllm_version() -> str:
    import vllm

    return str(vllm.__version__)
