"""Both ways into the engine: offered to the queue, and tried without it first."""

from __future__ import annotations

import pytest

from service.admission.scheduler import Scheduler
from tests.unit.service.admission.world import ClockedScheduler, EagerScheduler


@pytest.fixture(params=[Scheduler, EagerScheduler], ids=["offer", "try_enter"])
def scheduler_class(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> type[Scheduler]:
    """The scheduler of every clocked of the test."""
    chosen: type[Scheduler] = request.param
    monkeypatch.setattr(ClockedScheduler, "scheduler_class", chosen)
    return chosen
