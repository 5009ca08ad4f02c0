"""The plugin's parameters.

They come from the environment, against the rule that only ``service/config/`` reads it: vLLM starts its engine core
and its workers as processes of its own and hands a plugin nothing else. Whoever starts the engine sets them.
"""

from __future__ import annotations

import json
import os
import secrets
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from service.engine.contract import (
    BASE_VARIABLE,
    RESIDENT_BYTES_VARIABLE,
    SIGNATURE_VARIABLE,
    STORE_VARIABLE,
    TOKEN_VARIABLE,
)
from service.engine.plugin.guard import PluginError


@dataclass(frozen=True, slots=True)
class Parameters:
    """What the supervisor tells the plugin."""

    store: Path
    """The adapter store: ``<store>/<digest>/`` holds one adapter."""

    token: str
    """The mark of this engine's processes; random where nobody gave one."""

    signature: str | None
    """The digest of what it was started with."""

    base: dict[str, Any] | None
    """The parts of the base's fingerprint; None where whoever started the engine did not say."""

    resident_bytes: int | None
    """Host memory that all resident adapters may take, bytes; None: no limit."""


def read_parameters() -> Parameters:
    """Read the parameters from the environment.

    Raises:
        PluginError: The store is not given or is no directory, the base's fingerprint is not a JSON object, or the
            bytes of the resident adapters are no positive number.
    """
    value = os.environ.get(STORE_VARIABLE, "")
    store = Path(value)
    if not value or not store.is_dir():
        raise PluginError(f"{STORE_VARIABLE} must be the adapter store's directory; got {value!r}")
    return Parameters(
        store=store.resolve(),
        token=os.environ.get(TOKEN_VARIABLE) or secrets.token_hex(16),
        signature=os.environ.get(SIGNATURE_VARIABLE) or None,
        base=_base(os.environ.get(BASE_VARIABLE, "")),
        resident_bytes=_positive(RESIDENT_BYTES_VARIABLE),
    )


def _positive(variable: str) -> int | None:
    text = os.environ.get(variable, "")
    if text and not (text.isascii() and text.isdigit() and int(text) > 0):
        raise PluginError(f"{variable} must be a positive number of bytes; got {text[:80]!r}")
    return int(text) if text else None


def _base(text: str) -> dict[str, Any] | None:
    try:
        value = json.loads(text) if text else None
    except ValueError:
        value = text
    if value is not None and not isinstance(value, dict):
        raise PluginError(f"{BASE_VARIABLE} must be a JSON object; got {text[:80]!r}")
    return value
