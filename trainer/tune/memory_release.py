"""Giving a training's memory back while the process lives on: others, the engine among them, have use for it."""

from __future__ import annotations

import ctypes
import gc
import sys


def let_go_of_memory() -> None:
    """Collect what nobody holds any more, and hand the freed pages back to the system and to the device."""
    gc.collect()
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        torch.cuda.empty_cache()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # of glibc alone
    if trim is not None:
        trim(0)
