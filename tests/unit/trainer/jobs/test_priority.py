"""A worker stands behind everybody else at the cores, and so does every thread that it starts."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from trainer.jobs.priority import AUTOGROUP

PROGRAM = """
import os, threading
from trainer.jobs.priority import AUTOGROUP, step_back
step_back()
print(os.sched_getscheduler(0), os.nice(0))
thread = threading.Thread(target=lambda: print(os.sched_getscheduler(threading.get_native_id())))
thread.start()
thread.join()
group = AUTOGROUP.read_text().split() if AUTOGROUP.exists() else []
print(group[-1] if group else "none")
"""


@pytest.mark.parametrize("own_session", [True, False])
def test_it_runs_where_nobody_else_wants_to(own_session: bool) -> None:
    command = [sys.executable, "-c", PROGRAM]
    done = subprocess.run(
        command, capture_output=True, text=True, check=True, timeout=60, start_new_session=own_session
    )
    niceness = min(19, os.nice(0) + 10)
    *told, group = done.stdout.split()
    assert [int(word) for word in told] == [os.SCHED_IDLE, niceness, os.SCHED_IDLE]
    ours = AUTOGROUP.read_text().split() if AUTOGROUP.exists() else []
    # the file is empty where control groups, as a container's, come before groups by session
    assert group == (("19" if own_session else ours[-1]) if ours else "none")
