"""The start of an engine of our own, up to its first answer."""

from __future__ import annotations

import asyncio
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from service.engine.liveness import EngineFailed, LivenessMonitor
from service.engine.supervisor import BACK_OFF_S, Supervisor
from tests.unit.service.engine.fake import BASE, FakeEngine, config_for
from tests.unit.service.inference.fakes import until

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


class Failing(Supervisor):
    """One whose engines are ready after ``starts_s``, run for ``runs_s`` and fail; ``pauses`` is what comes between."""

    starts_s, runs_s = 0.0, 0.0

    def __init__(self, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        super().__init__(config_for(home), BASE)
        self.now, self.pauses, sleep = 0.0, list[float](), asyncio.sleep
        monkeypatch.setattr("service.engine.supervisor.time", SimpleNamespace(monotonic=lambda: self.now))

        async def pause(seconds: float) -> None:
            await sleep(0)
            if seconds in BACK_OFF_S and isinstance(seconds, float):  # others let the loop turn
                self.pauses.append(seconds)

        monkeypatch.setattr("service.engine.supervisor.asyncio.sleep", pause)

    async def _run_once(self) -> None:
        self.now += self.starts_s
        if self.runs_s:
            self._ready_at = self.now
        self.now += self.runs_s
        raise EngineFailed("it failed")


@pytest.mark.parametrize(("runs_s", "waits"), [(0.0, True), (5.0, True), (100.0, False)])
async def test_only_an_engine_that_ran_for_a_while_is_started_again_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, runs_s: float, waits: bool
) -> None:
    supervisor = Failing(tmp_path, monkeypatch)
    supervisor.starts_s, supervisor.runs_s = 120.0, runs_s
    await supervisor.start()
    await until(lambda: len(supervisor.pauses) >= 7)
    await supervisor.stop()
    assert supervisor.pauses[:7] == ([*BACK_OFF_S, BACK_OFF_S[-1]] if waits else [0.0] * 7)
