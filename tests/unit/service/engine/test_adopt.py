"""An engine on record is gone on with only where it is alive, well, and by its own word what would be started."""

from __future__ import annotations

import os
import secrets
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from service.config import inherited_environment
from service.engine.adopt import NotAdopted, adopt
from service.engine.client import EngineClient
from service.engine.config import EngineConfig
from service.engine.contract import TOKEN_VARIABLE
from service.engine.identity import boot_id
from service.engine.liveness import LivenessMonitor
from service.engine.process import EngineProcess, members
from service.engine.record import EngineRecord, Signature
from tests.unit.service.engine.fake import BASE, FakeEngine, config_for

TOKEN = secrets.token_hex(16)
"""Its own in each test process: what carries it is looked for on the whole machine, and ended."""


@pytest.fixture
def config(tmp_path: Path) -> EngineConfig:
    return config_for(tmp_path)


@pytest.fixture
def server() -> Iterator[subprocess.Popen[bytes]]:
    """A process that carries the mark of an API server."""
    process = subprocess.Popen(
        [sys.executable, "-c", "import time; print(flush=True); time.sleep(60)"],
        env={"PATH": os.environ["PATH"], TOKEN_VARIABLE: TOKEN},
        stdout=subprocess.PIPE,
    )
    assert process.stdout is not None
    process.stdout.readline()
    yield process
    process.kill()
    process.wait(60)
    process.stdout.close()


@pytest_asyncio.fixture
async def engine(config: EngineConfig, server: subprocess.Popen[bytes]) -> AsyncIterator[FakeEngine]:
    """An engine that may be adopted, with its record."""
    signature = Signature.of(config, BASE, inherited_environment())
    fake = FakeEngine.of(config, boot=boot_id(TOKEN), signature=signature.digest)
    EngineRecord(TOKEN, server.pid, signature).write(config.record)
    await fake.start()
    yield fake
    await fake.stop()


async def adopted(config: EngineConfig, **more: Any) -> EngineProcess | None:
    probe = EngineClient(socket=str(config.socket))
    liveness = LivenessMonitor(probe, probe, base_name=config.base_name, stall_s=1, canary_s=1)
    try:
        return await adopt(config, more.get("base", BASE), probe, liveness)
    finally:
        await probe.close()


async def test_it_is_adopted_and_watched_though_it_is_no_child_of_ours(
    config: EngineConfig, engine: FakeEngine, server: subprocess.Popen[bytes]
) -> None:
    found = await adopted(config)
    assert found is not None
    assert (found.pid, found.token, found.alive, found.exit_code) == (server.pid, TOKEN, True, None)
    server.kill()
    server.wait(60)
    assert not found.alive
    found.release()


async def test_what_was_adopted_can_be_ended(
    config: EngineConfig, engine: FakeEngine, server: subprocess.Popen[bytes]
) -> None:
    found = await adopted(config)
    assert found is not None
    found.end()
    assert server.wait(60) < 0
    assert members(TOKEN) == []


async def test_nothing_is_adopted_where_nothing_is_on_record(config: EngineConfig) -> None:
    assert await adopted(config) is None


@pytest.mark.parametrize(
    ("report", "reason"),
    [
        ({"boot": "another"}, "a different engine is listening on its socket"),
        ({"signature": "0" * 64}, "a different engine is listening on its socket"),
        ({"signature": None}, "a different engine is listening on its socket"),
        ({"plugin": "old"}, "another version of the plugin"),
        ({"protocol": 1}, "uses protocol 1"),
        ({"store_id": "other"}, "it reads the adapter store"),
    ],
)
async def test_its_own_word_counts_and_not_the_record_alone(
    config: EngineConfig, engine: FakeEngine, report: dict[str, Any], reason: str
) -> None:
    engine.report |= report
    with pytest.raises(NotAdopted, match=reason):
        await adopted(config)


@pytest.mark.parametrize("logprob", [None, float("nan")])
async def test_one_that_answers_no_numbers_is_not_adopted(
    config: EngineConfig, engine: FakeEngine, logprob: float | None
) -> None:
    engine.logprob = logprob
    with pytest.raises(NotAdopted, match="not finite"):
        await adopted(config)


async def test_one_that_does_not_answer_is_not_adopted(config: EngineConfig, engine: FakeEngine) -> None:
    await engine.stop()
    with pytest.raises(NotAdopted, match="does not respond"):
        await adopted(config)


async def test_one_whose_server_has_ended_is_not_adopted(
    config: EngineConfig, engine: FakeEngine, server: subprocess.Popen[bytes]
) -> None:
    server.kill()
    server.wait(60)
    with pytest.raises(NotAdopted, match="API server has exited"):
        await adopted(config)
    assert engine.asked == []


async def test_a_process_that_was_given_the_number_again_is_not_taken_for_it(
    config: EngineConfig, engine: FakeEngine
) -> None:
    EngineRecord(TOKEN, os.getpid(), Signature.of(config, BASE, inherited_environment())).write(config.record)
    with pytest.raises(NotAdopted, match="API server has exited"):
        await adopted(config)


async def test_a_changed_flag_is_named_without_asking_the_engine(tmp_path: Path, engine: FakeEngine) -> None:
    with pytest.raises(NotAdopted, match="different settings: the flag --max-loras"):
        await adopted(config_for(tmp_path, engine_slots=4))
    assert engine.asked == []


@pytest.mark.parametrize(
    ("record", "reason"), [(EngineRecord(TOKEN), "its record has no signature"), (None, "was interrupted")]
)
async def test_half_a_record_adopts_nothing(
    config: EngineConfig, engine: FakeEngine, record: EngineRecord | None, reason: str
) -> None:
    (record or EngineRecord(TOKEN, None, Signature.of(config, BASE, inherited_environment()))).write(config.record)
    with pytest.raises(NotAdopted, match=reason):
        await adopted(config)


async def test_without_the_bases_identity_nothing_is_adopted(config: EngineConfig, engine: FakeEngine) -> None:
    with pytest.raises(NotAdopted, match="identity"):
        await adopted(config, base=None)
