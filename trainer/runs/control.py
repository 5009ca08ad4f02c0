"""The worker's side of run control: notices cancel, pause and stop requests of the trainer."""

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
"""How often the control file is read during an await."""


class Interrupted(Exception):
    """The trainer asked the worker to exit. ``code`` is the exit code to use; None means that the run was cancelled."""

    def __init__(self, code: int | None) -> None:
        super().__init__()
        self.code = code


class WorkerControl:
    """The trainer's current request, from the control file and SIGTERM; check before every step and in every wait."""

    def __init__(self, directory: RunDirectory) -> None:
        self._directory = directory
        self._term = False
        signal.signal(signal.SIGTERM, self._on_term)

    def _on_term(self, _signal: int, _frame: object) -> None:
        self._term = True

    def check(self) -> None:
        """Raise Interrupted if the worker should exit."""
        control = self._directory.control()
        if control is Control.CANCEL:
            raise Interrupted(None)
        if self._term:
            raise Interrupted(STOPPED)
        if control is Control.PAUSE:
            raise Interrupted(PAUSED)

    def wait(self, seconds: float) -> None:
        """Sleep, checking all the while. Raises Interrupted."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            self.check()
            time.sleep(min(0.2, max(0.0, end - time.monotonic())))


async def run_interruptible(work: Coroutine[Any, Any, T], check: Callable[[], None]) -> T:
    """Await `work` while calling `check` every CHECK_INTERVAL_S; an exception from `check` cancels `work`."""
    task = asyncio.ensure_future(work)
    try:
        while not (await asyncio.wait({task}, timeout=CHECK_INTERVAL_S))[0]:
            check()
        return task.result()
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
