"""Samples a process's own stack while it uses the CPU: put on PYTHONPATH by `profile.py`, imported by Python at start.

SIGUSR1 begins, SIGUSR2 ends and writes `frame;frame;… count` lines to the file that GATEWAY_PROFILE names. Samples are
taken by the process's CPU time (ITIMER_PROF): a process that waits, or that others keep from running, gives none.
"""

from __future__ import annotations

import os
import signal
from collections import Counter
from pathlib import Path
from types import FrameType

INTERVAL_S = 0.002


def install(out: Path) -> None:
    """Listen for the two signals."""
    stacks: Counter[str] = Counter()

    def sample(_number: int, frame: FrameType | None) -> None:
        names = []
        while frame is not None:
            code = frame.f_code
            names.append(f"{getattr(code, 'co_qualname', code.co_name)} ({code.co_filename})")
            frame = frame.f_back
        stacks[";".join(reversed(names))] += 1

    def begin(_number: int, _frame: FrameType | None) -> None:
        stacks.clear()
        signal.setitimer(signal.ITIMER_PROF, INTERVAL_S, INTERVAL_S)

    def end(_number: int, _frame: FrameType | None) -> None:
        signal.setitimer(signal.ITIMER_PROF, 0.0)
        part = out.with_suffix(".part")
        part.write_text("".join(f"{stack} {count}\n" for stack, count in stacks.items()))
        part.replace(out)

    signal.signal(signal.SIGPROF, sample)
    signal.signal(signal.SIGUSR1, begin)
    signal.signal(signal.SIGUSR2, end)


if "GATEWAY_PROFILE" in os.environ:
    install(Path(os.environ["GATEWAY_PROFILE"]))
