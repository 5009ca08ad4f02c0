"""Time without the event loop's own grain: timers of the kernel, and the CPU time of other processes."""

from __future__ import annotations

import ctypes
import os
import struct
import time
from contextlib import suppress
from dataclasses import dataclass

import psutil

_NS = 1_000_000_000
_TFD_NONBLOCK = 0o4000
_TFD_TIMER_ABSTIME = 1


class Timer:
    """A Linux timerfd on the monotonic clock. Event loops' timers round to milliseconds; arrivals must not."""

    def __init__(self) -> None:
        self._libc = ctypes.CDLL(None, use_errno=True)
        self.fd: int = self._libc.timerfd_create(time.CLOCK_MONOTONIC, _TFD_NONBLOCK)
        if self.fd < 0:
            raise OSError(ctypes.get_errno(), "timerfd_create")

    def set(self, at_s: float) -> None:
        """Become readable at ``at_s`` on ``time.monotonic()``'s clock, at once where that has passed."""
        at_ns = max(1, int(at_s * _NS))
        when = struct.pack("@qqqq", 0, 0, at_ns // _NS, at_ns % _NS)  # struct itimerspec: interval, value
        if self._libc.timerfd_settime(self.fd, _TFD_TIMER_ABSTIME, when, None) < 0:
            raise OSError(ctypes.get_errno(), "timerfd_settime")

    def clear(self) -> None:
        """Take note that it has fired."""
        with suppress(BlockingIOError):
            os.read(self.fd, 8)

    def close(self) -> None:
        """Free the descriptor."""
        os.close(self.fd)


def cpu_s(pid: int) -> float:
    """CPU time that a process and its living descendants have used, user and system, s.

    Read from each process's own CPU clock, in nanoseconds: the ticks in /proc are too coarse for a run of seconds.
    """
    return sum(_clock_s(process.pid) for process in family(pid))


def family(pid: int) -> list[psutil.Process]:
    """A process and its descendants that live now."""
    try:
        process = psutil.Process(pid)
        return [process, *process.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


def _clock_s(pid: int) -> float:
    # Linux makes the id of a process's CPU clock from its pid: see clock_getcpuclockid(3)
    try:
        return time.clock_gettime((~pid << 3) | 2)
    except OSError:
        return 0.0


def resident_mib(pid: int) -> float:
    """Resident memory of a process and its descendants, MiB; pages that they share count once for each."""
    total = 0
    for process in family(pid):
        with suppress(psutil.NoSuchProcess):
            total += process.memory_info().rss
    return total / 2**20


@dataclass(frozen=True, slots=True)
class Reading:
    """CPU time used until now, s: by this process, by others that were named, and by the whole machine."""

    wall_s: float
    own_s: float
    named_s: dict[str, float]
    machine_s: float
    stolen_s: float

    @classmethod
    def take(cls, pids: dict[str, int]) -> Reading:
        """Read all clocks."""
        machine = psutil.cpu_times()
        idle = machine.idle + machine.iowait
        return cls(
            wall_s=time.monotonic(),
            own_s=time.process_time(),
            named_s={name: cpu_s(pid) for name, pid in pids.items()},
            machine_s=sum(machine[:8]) - idle - machine.steal,
            stolen_s=machine.steal,
        )

    def since(self, earlier: Reading) -> Usage:
        """What was used from ``earlier`` until this reading."""
        named = {name: value - earlier.named_s[name] for name, value in self.named_s.items()}
        own = self.own_s - earlier.own_s
        others = self.machine_s - earlier.machine_s - own - sum(named.values())
        return Usage(
            wall_s=self.wall_s - earlier.wall_s,
            own_s=own,
            named_s=named,
            others_s=max(0.0, others) + self.stolen_s - earlier.stolen_s,
        )


@dataclass(frozen=True, slots=True)
class Usage:
    """CPU time used in a span of time, s. ``others_s`` is what everything else on the machine took, or its host."""

    wall_s: float
    own_s: float
    named_s: dict[str, float]
    others_s: float
