"""Trainings that finish on a machine whose cores are busy."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

import psutil

LOOK_S: Final = 0.5


@contextmanager
def normal_priority() -> Iterator[None]:
    """Meanwhile, give this process's descendants the priority that it has itself.

    A worker lowers its own (`trainer/runs/priority.py`), and hardly moves beside others that keep the cores busy.
    """
    over = threading.Event()
    watch = threading.Thread(target=_watch, args=(over,), daemon=True)
    watch.start()
    try:
        yield
    finally:
        over.set()
        watch.join()


def _watch(over: threading.Event) -> None:
    niceness, session_niceness = os.getpriority(os.PRIO_PROCESS, 0), _session_niceness("self")
    while not over.wait(LOOK_S):
        for process in psutil.Process().children(recursive=True):
            with suppress(psutil.Error, OSError):
                if _session_niceness(process.pid) != session_niceness:
                    Path(f"/proc/{process.pid}/autogroup").write_text(session_niceness)
                if os.sched_getscheduler(process.pid) == os.SCHED_IDLE:
                    _raise_priority(process, niceness)


def _session_niceness(pid: int | str) -> str:
    """The niceness of a process's session, as the kernel writes it; nothing where it has no autogroups."""
    try:
        return Path(f"/proc/{pid}/autogroup").read_text().split()[-1]
    except OSError:
        return ""


def _raise_priority(process: psutil.Process, niceness: int) -> None:
    for thread in process.threads():
        os.sched_setscheduler(thread.id, os.SCHED_OTHER, os.sched_param(0))
        with suppress(PermissionError):  # less niceness is for root alone
            os.setpriority(os.PRIO_PROCESS, thread.id, niceness)
