"""Trainings that finish on a machine whose cores are busy."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

import psutil

LOOK_S: Final = 0.5


@contextmanager
def normal_priority(ancestor: Callable[[], int | None] = os.getpid) -> Iterator[None]:
    """Meanwhile, give a process's descendants the priority that this process has.

    A worker lowers its own (`trainer/runs/priority.py`), and hardly moves beside others that keep the cores busy.

    Args:
        ancestor: The process's id; None: it does not run now. A fixture that outlives its test names a process of its
            own: this one may have other tests' children then.
    """
    over = threading.Event()
    watch = threading.Thread(target=_watch, args=(ancestor, over), daemon=True)
    watch.start()
    try:
        yield
    finally:
        over.set()
        watch.join()


def _watch(ancestor: Callable[[], int | None], over: threading.Event) -> None:
    niceness, session_niceness = os.getpriority(os.PRIO_PROCESS, 0), _session_niceness("self") or "0"
    while not over.wait(LOOK_S):
        for process in _descendants(ancestor()):
            with suppress(psutil.Error, OSError):
                if _session_niceness(process.pid) not in ("", session_niceness):
                    with suppress(PermissionError):
                        Path(f"/proc/{process.pid}/autogroup").write_text(session_niceness)
                if os.sched_getscheduler(process.pid) == os.SCHED_IDLE:
                    _raise_priority(process, niceness)


def _descendants(pid: int | None) -> list[psutil.Process]:
    if pid is None:
        return []
    try:
        return psutil.Process(pid).children(recursive=True)
    except psutil.Error:
        return []


def _session_niceness(pid: int | str) -> str:
    """The niceness of a process's session, as the kernel writes it.

    Nothing for one without an autogroup: in a container's own CPU group the file is there and empty.
    """
    try:
        return Path(f"/proc/{pid}/autogroup").read_text().rpartition(" ")[2].strip()
    except OSError:
        return ""


def _raise_priority(process: psutil.Process, niceness: int) -> None:
    for thread in process.threads():
        os.sched_setscheduler(thread.id, os.SCHED_OTHER, os.sched_param(0))
        with suppress(PermissionError):  # less niceness is for root alone
            os.setpriority(os.PRIO_PROCESS, thread.id, niceness)
