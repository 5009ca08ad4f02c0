"""The route by which the gateway sees that this engine is one of ours, what it is, and what is in its memory."""

from __future__ import annotations

from importlib import import_module
from importlib.metadata import version
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse
from pydantic import ValidationError

from service.engine.contract import PLUGIN_NAME, PLUGIN_PROTOCOL, PLUGIN_ROUTE
from service.engine.identity import boot_id, plugin_digest, read_store_id
from service.engine.plugin import cut_calls
from service.engine.plugin.answers import AdapterFault, fault_handler, install_api_routes, unreadable_handler
from service.engine.plugin.parameters import read_parameters


class HatrackEndpoint:
    """vLLM's endpoint plugin: one route, and the handler of contained faults."""

    name = PLUGIN_NAME
    required_tasks = None

    def __init__(self) -> None:
        parameters = read_parameters()
        self._store = parameters.store
        # Taken once: the files on disk may be those of a newer Hatrack before this process ends.
        self._start: dict[str, Any] = {
            "protocol": PLUGIN_PROTOCOL,
            "plugin": plugin_digest(),
            "boot": boot_id(parameters.token),
            "signature": parameters.signature,
            "base": parameters.base,
            "hatrack": version("hatrack"),
            "vllm": _module_version("vllm"),
            "torch": _module_version("torch"),
        }

    def attach_router(self, app: FastAPI) -> None:
        """Add the route and the handler to vLLM's API server; without the patches there is no route: no engine."""
        install_api_routes()
        cut_calls.install_api_routes()
        app.add_api_route(PLUGIN_ROUTE, self.report, methods=["GET"], include_in_schema=False)
        app.add_exception_handler(AdapterFault, fault_handler)
        app.add_exception_handler(ValidationError, unreadable_handler)

    async def init_state(self, engine_client: Any, state: Any, args: Any) -> None:
        """Nothing to prepare: the route reads vLLM's own state."""

    async def report(self, request: Request, loaded: bool = False) -> JSONResponse:
        """What the engine is; with `loaded`, also the digests in its memory (waits for the running step).

        `asked` counts the adapters that it was ever asked for and found: at 0 no file in the store matters to it.
        """
        state = request.app.state
        config = state.vllm_config
        inode = self._store.stat()
        names = config.model_config.served_model_name
        adapters = state.openai_serving_models.lora_requests
        answer: dict[str, Any] = {
            **self._start,
            "store": str(self._store),
            "store_device": inode.st_dev,
            "store_inode": inode.st_ino,
            "store_id": read_store_id(self._store),
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
            "asked": len(adapters),
        }
        if loaded:
            known = {adapter.lora_int_id: digest for digest, adapter in adapters.items()}
            resident = await state.engine_client.list_loras()
            answer["loaded"] = sorted(known[number] for number in resident if number in known)
        return JSONResponse(answer)


def _module_version(name: str) -> str:
    """The version of what is in memory, whatever is on disk by now."""
    return str(import_module(name).__version__)
