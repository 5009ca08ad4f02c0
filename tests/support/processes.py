"""Whether processes still run."""

from __future__ import annotations

from collections.abc import Iterable

import psutil


def is_running(process: psutil.Process) -> bool:
    """Whether it runs. One that has ended may stay a zombie, as in containers where nobody reaps it."""
    try:
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def running(processes: Iterable[psutil.Process]) -> list[psutil.Process]:
    """Those that still run."""
    return [process for process in processes if is_running(process)]
