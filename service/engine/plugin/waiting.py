"""On a CPU, engine core and worker sleep while one waits for the other.

vLLM's two processes speak through shared memory, and each looks for the next message without a pause for a second after
the last one: while the worker computes a step, the engine core uses a whole core to look for its result. On a machine
with GPUs that is one core of many. On a CPU it is one that gateway, trainer and everything else could use.

A sleeping reader is woken by a message on a ZeroMQ socket, which vLLM sends with every write as it is. That message can
be lost: all streams stood still for five seconds then, with every thread of the engine asleep, beside a training once
in some minutes. Where it is lost was not found; the likely place is a reader that is preempted as it falls asleep. So a
reader also looks by itself every few milliseconds.

(To compute on the core that vLLM leaves to its engine core, too, is twice as fast at best, and half as fast beside any
other busy process: the threads of a product wait for each other, several thousand times a step.)
"""

from __future__ import annotations

import time
from typing import Any, Final

from service.engine.plugin.guard import checked_attribute, is_patched, mark_patched

SPIN_S: Final = 0.005
"""How long a reader goes on looking after it has read. A sender's socket may take some three million cycles to notice
that it can send again: of two writes within that time, only the first one may wake anybody."""
LOOK_MS: Final = 20
"""A sleeping reader looks so often whether its message is there: a step takes longer."""
IDLE_LOOK_MS: Final = 200
"""… and so often once it has read nothing for `IDLE_S`."""
IDLE_S: Final = 2.0


def install() -> None:
    """Patch how vLLM's readers of shared memory wait, where the engine runs on a CPU.

    Raises:
        PluginError: Their class is not as expected.
    """
    from vllm.distributed.device_communicators.shm_broadcast import SpinCondition
    from vllm.platforms import current_platform

    checked_attribute(SpinCondition, "__init__", "self", "is_reader", "context", "notify_address", "busy_loop_s")
    record_read = checked_attribute(SpinCondition, "record_read", "self")
    wait = checked_attribute(SpinCondition, "wait", "self", "timeout_ms")
    if is_patched(record_read) or not current_platform.is_cpu():
        return

    def patched_record_read(self: Any) -> None:
        record_read(self)
        self.busy_loop_s = SPIN_S  # from the first message on: its sockets are connected

    def patched_wait(self: Any, timeout_ms: int | None = None) -> None:
        look_ms = LOOK_MS if time.monotonic() - self.last_read < IDLE_S else IDLE_LOOK_MS
        wait(self, look_ms if timeout_ms is None else min(timeout_ms, look_ms))

    SpinCondition.record_read = mark_patched(patched_record_read)
    SpinCondition.wait = mark_patched(patched_wait)
