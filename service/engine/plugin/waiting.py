"""On a CPU, engine core and worker sleep while one waits for the other.

vLLM's two processes speak through shared memory, and each looks for the next message without a pause for a second after
the last one: while the worker computes a step, the engine core uses a whole core to look for its result. On a machine
with GPUs that is one core of many. On a CPU it is one that gateway, trainer and everything else could use.

A sleeping reader is woken by a message on a socket, which vLLM sends with every write as it is. (To compute on the core
that vLLM leaves to its engine core, too, is twice as fast at best, and half as fast beside any other busy process:
the threads of a product wait for each other, several thousand times a step.)
"""

from __future__ import annotations

from typing import Any

from service.engine.plugin.guard import checked_attribute, is_patched, mark_patched


def install() -> None:
    """Patch how vLLM's readers of shared memory wait, where the engine runs on a CPU.

    Raises:
        PluginError: Their class is not as expected.
    """
    from vllm.distributed.device_communicators.shm_broadcast import SpinCondition
    from vllm.platforms import current_platform

    original = checked_attribute(
        SpinCondition, "__init__", "self", "is_reader", "context", "notify_address", "busy_loop_s"
    )
    if is_patched(original) or not current_platform.is_cpu():
        return

    def sleeping(self: Any, is_reader: bool, context: Any, notify_address: str, busy_loop_s: float = 0.0) -> None:
        original(self, is_reader, context, notify_address, 0.0)

    SpinCondition.__init__ = mark_patched(sleeping)
