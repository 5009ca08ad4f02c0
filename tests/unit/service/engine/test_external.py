"""An engine that somebody else runs: checked, used, waited for; never started or ended."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from service.config import Settings
from service.engine.config import EngineConfig
from service.engine.external import ExternalEngine
from service.errors import EngineUnavailable, SettingsError
from tests.unit.service.engine.fake import BASE, FakeEngine, config_for

WAIT_S = 60.0


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("service.engine.external.RECHECK_S", 0.05)
    monkeypatch.setattr("service.engine.watched.TICK_S", 0.02)


@pytest.fixture
def config(tmp_path: Path) -> EngineConfig:
    return config_for(tmp_path)


@pytest_asyncio.fixture
async def fake(config: EngineConfig) -> AsyncIterator[FakeEngine]:
    server = FakeEngine.of(config)
    await server.start()
    yield server
    await server.stop()


def external(config: EngineConfig, key: str | None = None) -> ExternalEngine:
    return ExternalEngine(config, BASE, name="unix:/e.sock", socket=str(config.socket), key=key)


@pytest_asyncio.fixture
async def engine(config: EngineConfig, fake: FakeEngine) -> AsyncIterator[ExternalEngine]:
    """A gateway's view of the engine, once it is ready."""
    used = external(config)
    await used.start()
    await until(lambda: used.ready)
    yield used
    await used.stop()


async def until(what: Callable[[], bool]) -> None:
    async with asyncio.timeout(WAIT_S):
        while not what():  # noqa: ASYNC110 (any condition, not one event)
            await asyncio.sleep(0.01)


async def answers(engine: ExternalEngine) -> bool:
    try:
        await engine.client.logprobs("base", ["text"], timeout_s=WAIT_S)
    except EngineUnavailable:
        return False
    return True


async def test_one_that_fits_is_used(engine: ExternalEngine) -> None:
    assert engine.state.reason == "the engine at unix:/e.sock answers"
    assert engine.epoch == 1
    assert await answers(engine)


async def test_one_that_is_not_there_yet_is_waited_for(config: EngineConfig) -> None:
    used = external(config)
    await used.check()  # no reason to refuse the start
    await used.start()
    await until(lambda: used.state.name == "down")
    assert used.state.reason == "the engine at unix:/e.sock cannot be reached"
    late = FakeEngine.of(config)
    await late.start()
    await until(lambda: used.ready)
    await used.stop()
    await late.stop()


async def test_one_that_goes_away_is_down_until_it_is_back(fake: FakeEngine, engine: ExternalEngine) -> None:
    await fake.stop()
    await until(lambda: engine.state.name == "down")
    assert "cannot be reached" in engine.state.reason
    assert not await answers(engine)
    fake.report["boot"] = "boot-2"
    await fake.start()
    await until(lambda: engine.ready)
    assert engine.epoch == 2


async def test_one_that_was_restarted_unseen_is_checked_again(fake: FakeEngine, engine: ExternalEngine) -> None:
    fake.report |= {"boot": "boot-2", "slots": 1}
    await until(lambda: not engine.ready)
    await until(lambda: engine.state.name == "down")
    assert "it has 1 adapter slots" in engine.state.reason
    fake.report["slots"] = 8
    await until(lambda: engine.ready)
    assert engine.epoch == 2


async def test_one_that_answers_no_numbers_is_stalled_until_it_does(fake: FakeEngine, engine: ExternalEngine) -> None:
    fake.logprob = None
    await until(lambda: engine.state.name == "stalled")
    assert "canary" in engine.state.reason
    fake.logprob = -1.0
    await until(lambda: engine.ready)
    assert engine.epoch == 1, "it is the same engine"


async def test_a_poisoned_one_is_left_alone_until_somebody_has_restarted_it(
    fake: FakeEngine, engine: ExternalEngine
) -> None:
    await engine.restart("the base's answers have moved")
    assert not await answers(engine)
    seen = len(fake.asked)
    await until(lambda: len(fake.asked) > seen + 6)
    assert engine.state.name == "stalled"
    assert engine.state.reason == (
        "the base's answers have moved; the operator of the engine at unix:/e.sock must restart it"
    )
    fake.report["boot"] = "boot-2"
    await until(lambda: engine.ready)
    assert await answers(engine)


@pytest.mark.parametrize(("asked", "collected"), [(0, 1), (1, 0)])
async def test_files_are_removed_only_where_it_never_had_an_adapter(
    config: EngineConfig, fake: FakeEngine, asked: int, collected: int
) -> None:
    calls: list[str] = []
    used = external(config)

    async def collect() -> None:
        assert not used.ready, "by then a request may have loaded one"
        calls.append("collect")

    used.before_spawn = collect
    fake.report["asked"] = asked
    await used.start()
    await until(lambda: used.ready)
    await used.stop()
    assert len(calls) == collected


async def test_stopping_leaves_it_running(fake: FakeEngine, config: EngineConfig) -> None:
    used = external(config)
    await used.start()
    await until(lambda: used.ready)
    await used.stop()
    assert used.state.name == "down"
    assert not await answers(used)
    again = external(config)
    await again.start()
    await until(lambda: again.ready)
    await again.stop()


@pytest.mark.parametrize(
    ("report", "said"),
    [
        ({"names": ["llama"]}, "serves `llama`, not the base `base`"),
        ({"store_id": "other"}, "it reads the adapter store"),
        ({"protocol": None}, "protocol None"),
    ],
)
async def test_one_that_does_not_fit_is_refused_at_start(
    fake: FakeEngine, config: EngineConfig, report: dict[str, Any], said: str
) -> None:
    fake.report |= report
    with pytest.raises(SettingsError, match=r"unix:/e.sock \(HATRACK_ENGINE_URL\) is incompatible") as caught:
        await external(config).check()
    assert said in str(caught.value)


async def test_a_key_is_shown_and_a_wrong_one_is_named(fake: FakeEngine, config: EngineConfig) -> None:
    fake.key = "right"
    await external(config, key="right").check()
    for key in (None, "wrong"):
        with pytest.raises(SettingsError, match="HATRACK_ENGINE_KEY"):
            await external(config, key=key).check()
    used = external(config, key="right")
    await used.start()
    await until(lambda: used.ready)
    assert await answers(used)
    await used.stop()


@pytest.mark.parametrize(
    ("url", "socket"),
    [("unix:/run/e.sock", "/run/e.sock"), ("http://engine:8001/", None), ("https://e.example", None)],
)
def test_a_url_is_tcp_or_a_socket(tmp_path: Path, url: str, socket: str | None) -> None:
    settings = Settings(home=tmp_path, engine_url=url)
    assert settings.engine_socket == socket
    assert settings.engine_url == url.rstrip("/")


@pytest.mark.parametrize(
    "url", ["engine:8001", "ftp://engine", "unix:relative", "http://", "http://user:word@engine", "http://engine:99999"]
)
def test_any_other_url_is_refused(tmp_path: Path, url: str) -> None:
    with pytest.raises(ValueError, match="must be http://host:port"):
        Settings(home=tmp_path, engine_url=url)
