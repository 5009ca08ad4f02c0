"""What the gateway and the plugin inside the engine must agree on. Imports nothing, so that both sides can."""

from __future__ import annotations

from typing import Final

PLUGIN_NAME: Final = "hatrack"
"""The entry points' name, and what ``VLLM_PLUGINS`` must hold."""

PLUGIN_PROTOCOL: Final = 2
"""Raised when the plugin's route, its error codes or its parameters change."""

PLUGIN_ROUTE: Final = "/hatrack/plugin"
"""Answers what the engine is, as JSON; with ``?loaded=1`` also which adapters are in its memory."""

STORE_VARIABLE: Final = "HATRACK_PLUGIN_STORE"
"""Environment of the engine: the adapter store's directory."""

RESIDENT_BYTES_VARIABLE: Final = "HATRACK_PLUGIN_RESIDENT_BYTES"
"""Environment of the engine: how many bytes of host memory all resident adapters may take; unset: no limit."""

TOKEN_VARIABLE: Final = "HATRACK_ENGINE_TOKEN"  # noqa: S105 (a variable's name)
"""Environment of the engine and of all its children: a random mark by which they are known as ours."""

SIGNATURE_VARIABLE: Final = "HATRACK_ENGINE_SIGNATURE"
"""Environment of the engine: the digest of what it was started with, which the plugin repeats."""

BASE_VARIABLE: Final = "HATRACK_ENGINE_BASE"
"""Environment of the engine: the fingerprint of the base that it was started with, JSON, which the plugin repeats."""

ADAPTER_NOT_FINITE: Final = "adapter_not_finite"
"""``error.type`` of a request whose adapter's logits were not finite. Only that request failed."""

ADAPTER_UNLOADABLE: Final = "adapter_unloadable"
"""``error.type`` of a request whose adapter the engine once had and can no longer read from the store."""

ENGINE_NOT_FINITE: Final = "engine_not_finite"
"""``error.type`` of a request to the base whose logits were not finite: the engine itself is at fault."""

FAULT_CODES: Final = frozenset({ADAPTER_NOT_FINITE, ADAPTER_UNLOADABLE, ENGINE_NOT_FINITE})
