"""From a digest to its directory in the store: the only adapters that the engine can be asked for."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from vllm.lora.request import LoRARequest
from vllm.lora.resolver import LoRAResolver, LoRAResolverRegistry

from service.engine.contract import PLUGIN_NAME

DIGEST = re.compile(r"[0-9a-f]{64}")


class DigestResolver(LoRAResolver):  # type: ignore[misc]
    """Finds ``<store>/<digest>``; any other name is not found.

    A digest is hexadecimal, so no name can lead out of the store; a link in its place is not followed either.
    """

    def __init__(self, store: Path) -> None:
        self._store = store

    async def resolve_lora(self, base_model_name: str, lora_name: str) -> Any:
        """The request that loads the adapter, or None.

        Args:
            base_model_name: vLLM's name of the base; whether the adapter fits it was decided at upload.
            lora_name: The name that the client asked for.
        """
        if DIGEST.fullmatch(lora_name) is None:
            return None
        directory = self._store / lora_name
        if directory.is_symlink() or not (directory / "adapter_config.json").is_file():
            return None
        # vLLM overwrites the id with its own counter; it only must not be 0.
        return LoRARequest(lora_name=lora_name, lora_int_id=1, lora_path=str(directory))


def install(store: Path) -> None:
    """Register the resolver in this process."""
    if PLUGIN_NAME not in LoRAResolverRegistry.get_supported_resolvers():
        LoRAResolverRegistry.register_resolver(PLUGIN_NAME, DigestResolver(store))
