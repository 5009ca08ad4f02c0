"""The plugin's parameters.

They come from the environment, against the rule that only ``service/config.py`` reads it: vLLM starts its engine core
and its workers as processes of its own and hands a plugin nothing else. The supervisor sets them.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from service.engine.contract import STORE_VARIABLE
from service.engine.plugin.guard import PluginError


@dataclass(frozen=True, slots=True)
class Parameters:
    """What the supervisor tells the plugin."""

    store: Path
    """The adapter store: ``<store>/<digest>/`` holds one adapter."""


def read_parameters() -> Parameters:
    """Read the parameters from the environment.

    Raises:
        PluginError: The store is not given or is no directory.
    """
    value = os.environ.get(STORE_VARIABLE, "")
    store = Path(value)
    if not value or not store.is_dir():
        raise PluginError(f"{STORE_VARIABLE} must name the adapter store's directory (found {value!r})")
    return Parameters(store=store.resolve())
