"""A worker's place at the cores: behind everybody else."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Final

NICENESS: Final = 10
AUTOGROUP: Final = Path("/proc/self/autogroup")
AUTOGROUP_NICENESS: Final = 19
TRIES: Final = 20
PAUSE: Final = 0.05
"""Seconds between two tries."""


def lower_priority() -> None:
    """Have this process, and what it will start, run where nobody else wants to.

    Under Linux in the class SCHED_IDLE (sched(7)): whoever else wakes up has the core at once. But where the kernel
    groups processes by session, classes and niceness count within a session alone, and each session gets the same part
    of a core: a worker, which has a session of its own, as much as the engine. So its group steps back, too. Elsewhere
    just the niceness.
    """
    os.nice(NICENESS)
    if hasattr(os, "SCHED_IDLE"):
        os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
    if os.getsid(0) == os.getpid():  # else it is somebody's terminal that would step back
        lower_session_priority()


def lower_session_priority() -> None:
    """Have this process's session step back, where the kernel groups by session and lets it.

    Linux lets the whole machine's users change such a group once in 100 ms (kernel/sched/autogroup.c) and refuses the
    next for so long, as where two workers start together.
    """
    for _ in range(TRIES):
        try:
            AUTOGROUP.write_text(str(AUTOGROUP_NICENESS))
        except BlockingIOError:
            time.sleep(PAUSE)
        except OSError:  # no such groups here, or /proc cannot be written
            return
        else:
            return
