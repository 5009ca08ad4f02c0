"""What the trainer wants of a worker, and how a worker hears of it."""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import Callable, Coroutine
from typing import Any, Final, TypeVar

from trainer.runs.directory import RunDirectory
from trainer.runs.protocol import PAUSED, STOPPED, Control

T = TypeVar("T")
CHECK_INTERVAL_S: Final = 0.5
"""How often the control file is read while something is awaited."""


class Interrupted(Exception):
    """The trainer wants the worker to end; ``code`` is the exit code, None a cancelled run."""

    def __init__(self, code: int | None) -> None:
        super().__init__()
        self.code = code


class WorkerControl:
    """What the trainer wants, by the control file and by SIGTERM; looked at before every step and in every wait."""

    def __init__(self, directory: RunDirectory) -> None:
        self._directory = directory
        self._term = False
        signal.signal(signal.SIGTERM, self._on_term)

    def _on_term(self, _signal: int, _frame: object) -> None:
        self._term = True

    def check(self) -> None:
        """Raise Interrupted where the worker is to end."""
        wanted = self._directory.control()
        if wanted is Control.CANCEL:
            raise Interrupted(None)
        if self._term:
            raise Interrupted(STOPPED)
        if wanted is Control.PAUSE:
            raise Interrupted(PAUSED)

    def wait(self, seconds: float) -> None:
        """Sleep, and look."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            self.check()
            time.sleep(min(0.2, max(0.0, end - time.monotonic())))


async def run_interruptible(work: Coroutine[Any, Any, T], check: Callable[[], None]) -> T:
    """Await it, and check twice a second meanwhile: an answer may take minutes. Raises what `check` raises."""
    task = asyncio.ensure_future(work)
    try:
        while not (await asyncio.wait({task}, timeout=CHECK_INTERVAL_S))[0]:
            check()
        return task.result()
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
