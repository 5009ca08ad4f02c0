"""The start of an engine of our own, up to its first answer."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from service.engine.liveness import EngineFailed, LivenessMonitor
from service.engine.supervisor import Supervisor
from tests.unit.service.engine.fake import BASE, FakeEngine, config_for

ALIVE: Any = SimpleNamespace(alive=True, exit_code=None, log_start=0)


@pytest.mark.parametrize(("patience_s", "is_ready"), [(600.0, True), (0.01, False)])
async def test_the_first_answer_may_take_longer_than_a_later_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, patience_s: float, is_ready: bool
) -> None:
    monkeypatch.setattr(LivenessMonitor.canary, "__defaults__", (0.01,))
    monkeypatch.setattr("service.engine.supervisor.CANARY_TIMEOUT_S", 0.01)
    monkeypatch.setattr("service.engine.supervisor.FIRST_ANSWER_S", patience_s)
    config = config_for(tmp_path)
    fake = FakeEngine.of(config)
    fake.answers_after_s = 0.5
    supervisor = Supervisor(config, BASE)
    await fake.start()
    try:
        if is_ready:
            await supervisor._wait_until_ready(ALIVE)
        else:
            with pytest.raises(EngineFailed, match="the engine's first response is missing"):
                await supervisor._wait_until_ready(ALIVE)
    finally:
        await supervisor._probe.close()
        await fake.stop()
