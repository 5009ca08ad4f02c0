"""The worker processes that a test's supervisor starts."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from typing import Any

import pytest

from trainer.runs import process, supervisor

__all__ = ["end_workers"]


@pytest.fixture(autouse=True)
def end_workers(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No worker outlives its test, not even one that outlives its trainer. Import it to use it."""
    workers: list[process.Spawned] = []

    def recorded(*arguments: Any) -> process.Spawned:
        workers.append(process.spawn(*arguments))
        return workers[-1]

    monkeypatch.setattr(supervisor, "spawn", recorded)
    yield
    for worker in workers:
        while worker.poll() is None:
            worker.signal(signal.SIGKILL)
            time.sleep(0.01)
