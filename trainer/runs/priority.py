"""Lowers a worker's CPU priority below every other process."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Final

NICENESS: Final = 10
AUTOGROUP: Final = Path("/proc/self/autogroup")
AUTOGROUP_NICENESS: Final = 19
TRIES: Final = 20
RETRY_S: Final = 0.05


def lower_priority() -> None:
    """Let this process, and those it starts, run only on cores that no other process wants.

    On Linux this is the scheduling class SCHED_IDLE (sched(7)): any other process that wakes up gets the core at once.
    But if the kernel groups processes by session (autogroup), classes and niceness count only within a session, and
    every session gets the same share of a core, so a worker's session would get as much as the engine's. Therefore the
    session's priority is lowered, too. On other systems only the niceness changes.
    """
    os.nice(NICENESS)
    if hasattr(os, "SCHED_IDLE"):
        os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
    if os.getsid(0) == os.getpid():  # otherwise this would lower the priority of a user's terminal
        lower_session_priority()


def lower_session_priority() -> None:
    """Lower the autogroup priority of this process's session, if the kernel has autogroups and permits it.

    Linux accepts one such change per 100 ms from all unprivileged users together (kernel/sched/autogroup.c) and refuses
    others meanwhile, as when two workers start at once. So this retries.
    """
    for _ in range(TRIES):
        try:
            AUTOGROUP.write_text(str(AUTOGROUP_NICENESS))
        except BlockingIOError:
            time.sleep(RETRY_S)
        except OSError:  # no autogroups here, or /proc is read-only
            return
        else:
            return
