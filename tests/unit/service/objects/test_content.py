"""One process manages a folder of copies."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from service.agent.process import AgentProcess, agent_settings
from service.config import Settings
from service.errors import SettingsError
from service.objects import content
from service.objects.content import objects_for
from tests.support.adapters import make_base


@pytest.fixture
def given(tmp_path: Path) -> dict[str, Any]:
    """The settings of a gateway and of an agent in one home."""
    (tmp_path / "bucket").mkdir()
    base = make_base(tmp_path / "base")
    own = {"home": tmp_path / "home", "store_url": f"file://{tmp_path / 'bucket'}", "agent_key": "k" * 20}
    return {**own, "base_model": str(base), "engine_device": "cpu", "trainer": "off"}


async def test_an_agent_is_refused_the_cache_of_a_gateway(given: dict[str, Any]) -> None:
    objects = objects_for(Settings(**given))
    theirs = agent_settings(Settings(**given, engine_url="unix:/e.sock"), None)
    assert objects is not None
    assert objects.folder == theirs.store_dir
    async with objects.running():
        with pytest.raises(SettingsError, match=rf"process {os.getpid()}\).*HATRACK_HOME of their own"):
            AgentProcess(theirs)
        AgentProcess(agent_settings(Settings(**given), None))  # whose engine is its own, as is its cache
    AgentProcess(theirs)


async def test_a_gateway_is_refused_the_cache_of_an_agent(given: dict[str, Any]) -> None:
    objects = objects_for(agent_settings(Settings(**given, engine_url="unix:/e.sock"), None))
    late = objects_for(Settings(**given))
    assert objects is not None
    assert late is not None
    async with objects.running():
        with pytest.raises(SettingsError, match="the cache of adapters of another"):
            objects_for(Settings(**given))
        with pytest.raises(SettingsError, match="the cache of adapters of another"):
            async with late.running():
                """It was made while nobody had it."""


async def test_a_file_system_without_locks_is_used_as_it_is(
    given: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(95, "not supported")

    monkeypatch.setattr(content.fcntl, "flock", refuse)
    objects = objects_for(Settings(**given))
    assert objects is not None
    async with objects.running():
        assert objects_for(Settings(**given)) is not None
