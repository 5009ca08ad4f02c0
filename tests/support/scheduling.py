"""Trainings that finish on a machine whose cores are busy."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Final

import psutil

LOOK_S: Final = 0.5


@contextmanager
def normal_priority() -> Iterator[None]:
    """Meanwhile, take this process's descendants out of the class SCHED_IDLE, in which a worker hardly moves beside
    others that keep the cores busy."""
    over = threading.Event()
    watch = threading.Thread(target=_watch, args=(over,), daemon=True)
    watch.start()
    try:
        yield
    finally:
        over.set()
        watch.join()


def _watch(over: threading.Event) -> None:
    while not over.wait(LOOK_S):
        for process in psutil.Process().children(recursive=True):
            with suppress(psutil.Error, OSError):
                for thread in process.threads():
                    if os.sched_getscheduler(thread.id) == os.SCHED_IDLE:
                        os.sched_setscheduler(thread.id, os.SCHED_OTHER, os.sched_param(0))
