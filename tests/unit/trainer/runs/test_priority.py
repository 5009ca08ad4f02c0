"""A worker stands behind everybody else at the cores, and so does every thread that it starts."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from trainer.runs import priority

PROGRAM = """
import os, threading
from trainer.runs.priority import AUTOGROUP, lower_priority

def group():
    words = AUTOGROUP.read_text().split() if AUTOGROUP.exists() else []
    return words[-1] if words else "none"

before = group()
lower_priority()
print(os.sched_getscheduler(0), os.nice(0))
thread = threading.Thread(target=lambda: print(os.sched_getscheduler(threading.get_native_id())))
thread.start()
thread.join()
print(before, group())
"""


@pytest.mark.parametrize("own_session", [True, False])
def test_it_runs_where_nobody_else_wants_to(own_session: bool) -> None:
    command = [sys.executable, "-c", PROGRAM]
    done = subprocess.run(
        command, capture_output=True, text=True, check=True, timeout=240, start_new_session=own_session
    )
    niceness = min(19, os.nice(0) + 10)
    *told, before, after = done.stdout.split()
    assert [int(word) for word in told] == [os.SCHED_IDLE, niceness, os.SCHED_IDLE]
    # the file is empty where control groups, as a container's, come before groups by session; a session that is new
    # may have a group all the same where its parent has none, so the process itself must tell
    assert after == ("19" if own_session and before != "none" else before)


@pytest.mark.parametrize(("refusals", "written"), [(2, True), (1000, False)])
def test_a_kernel_that_is_asked_too_often_is_asked_again(
    refusals: int, written: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    group = Refusing(refusals)
    monkeypatch.setattr(priority, "AUTOGROUP", group)
    monkeypatch.setattr(priority, "RETRY_S", 0.0)
    priority.lower_session_priority()
    assert (group.text == "19") is written


def test_where_there_are_no_such_groups_nothing_is_asked_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(priority, "AUTOGROUP", tmp_path / "nowhere" / "autogroup")
    monkeypatch.setattr(priority, "RETRY_S", 60.0)
    priority.lower_session_priority()


class Refusing:
    """A file that the kernel lets nobody write for a while."""

    def __init__(self, refusals: int) -> None:
        self.refusals = refusals
        self.text = ""

    def write_text(self, text: str) -> None:
        if self.refusals:
            self.refusals -= 1
            raise BlockingIOError(errno.EAGAIN, "asked too often")
        self.text = text
