"""One gate for all users of an engine: turns over sessions, and what becomes of them when a session ends."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from adapters.manifest import Manifest
from adapters.store import digest_of
from service.agent.process import AgentProcess
from service.config import Settings
from service.engine.agent_link import AgentLink
from service.engine.assemble import describe_base
from service.errors import Conflict, EngineUnavailable, Unavailable
from service.objects.adapters import put_adapter
from service.objects.client import open_object_store
from tests.support.adapters import make_adapter, make_base
from tests.unit.service.agent.support import Site, site, until

ONE_PLACE = {"engine_max_seqs": 1, "admission_width": 1}
HEADERS = {"content-type": "application/json"}
STREAM = b'{"model": "tiny", "stream": true}'


@pytest.fixture(scope="module")
def base_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_base(tmp_path_factory.mktemp("agent-base"))


@pytest.fixture
async def one_place(tmp_path: Path, base_dir: Path) -> AsyncIterator[tuple[Site, AgentProcess]]:
    async with site(tmp_path / "home", base_dir, **ONE_PLACE) as made, made.agent() as agent:
        yield made, agent


async def test_two_users_share_one_place(one_place: tuple[Site, AgentProcess]) -> None:
    made, agent = one_place
    first, second = [await (await made.user()).until_ready() for _ in range(2)]
    permit = await first.enter()
    waiting = asyncio.ensure_future(second.enter())
    await until(lambda: agent.admission.queue.scheduler.queued == 1)
    assert not waiting.done()
    permit.first_token()
    permit.leave(10)
    permit.leave(10)  # does nothing
    second_permit = await waiting
    assert agent.admission.queue.scheduler.in_flight == 1
    second_permit.leave(10)
    await until(lambda: agent.admission.queue.scheduler.in_flight == 0)
    assert agent.admission.queue.scheduler.counts.left == 2


async def test_all_users_see_the_queue_of_all(one_place: tuple[Site, AgentProcess]) -> None:
    made, _ = one_place
    first, second = [await (await made.user()).until_ready() for _ in range(2)]
    permit = await first.enter()
    await until(lambda: second.admission.queue.snapshot().in_flight == 1)
    assert second.admission.queue.callers_load == (0, 1)
    assert second.admission.queue.load == 1
    permit.leave(None)


async def test_whoever_leaves_the_queue_gives_its_place_to_the_next(one_place: tuple[Site, AgentProcess]) -> None:
    made, agent = one_place
    user = await (await made.user()).until_ready()
    permit = await user.enter()
    leaves = asyncio.ensure_future(user.enter())
    await until(lambda: agent.admission.queue.scheduler.queued == 1)
    stays = asyncio.ensure_future(user.enter())
    await until(lambda: agent.admission.queue.scheduler.queued == 2)
    leaves.cancel()
    await until(lambda: agent.admission.queue.scheduler.queued == 1)
    permit.leave(10)
    (await stays).leave(10)


async def test_the_agent_keeps_the_deadline_and_its_words_cross(one_place: tuple[Site, AgentProcess]) -> None:
    made, _ = one_place
    user = await (await made.user()).until_ready()
    await user.enter()
    with pytest.raises(Unavailable, match="HATRACK_QUEUE_TIMEOUT_S") as refused:
        await user.enter(wait_s=0.05)
    assert refused.value.code == "queue_timeout"


async def test_a_session_that_ends_takes_its_turns_with_it(one_place: tuple[Site, AgentProcess]) -> None:
    made, agent = one_place
    gone, stays = [await (await made.user()).until_ready() for _ in range(2)]
    await gone.enter()
    also_gone = asyncio.ensure_future(gone.enter())
    await until(lambda: agent.admission.queue.scheduler.queued == 1)
    waiting = asyncio.ensure_future(stays.enter())
    await until(lambda: agent.admission.queue.scheduler.queued == 2)
    await gone.engine.stop()
    with pytest.raises(EngineUnavailable):
        await also_gone
    (await waiting).leave(10)
    await until(lambda: len(agent.gate.sessions) == 1)


async def test_a_user_that_falls_silent_is_gone(tmp_path: Path, base_dir: Path) -> None:
    async with site(tmp_path / "home", base_dir, **ONE_PLACE, agent_timeout_s=8) as made, made.agent() as agent:
        silent = await (await made.user(agent_timeout_s=1000)).until_ready()
        await silent.enter()
        # its process stands still: nothing is written, nothing is closed
        [writer] = [task for task in asyncio.all_tasks() if is_writer_of(silent.engine.link, task)]
        writer.cancel()
        await until(lambda: not agent.gate.sessions or agent.admission.queue.scheduler.in_flight == 0)
        other = await (await made.user()).until_ready()
        (await other.enter()).leave(10)


def is_writer_of(link: AgentLink, task: asyncio.Task[Any]) -> bool:
    coroutine: Any = task.get_coro()
    return str(coroutine.__qualname__) == "AgentLink._write" and coroutine.cr_frame.f_locals["self"] is link


async def test_an_engine_that_is_away_closes_the_queue_for_all(one_place: tuple[Site, AgentProcess]) -> None:
    made, agent = one_place
    user = await (await made.user()).until_ready()
    await user.enter()
    waiting = asyncio.ensure_future(user.enter())
    await until(lambda: agent.admission.queue.scheduler.queued == 1)
    await user.engine.restart("its answers are poisoned")
    with pytest.raises(EngineUnavailable, match="poisoned"):
        await waiting
    await until(lambda: agent.watched.state.name == "stalled")
    assert "poisoned" in agent.watched.state.reason


async def test_requests_of_a_session_that_ended_are_cut_in_the_engine(tmp_path: Path, base_dir: Path) -> None:
    async with site(tmp_path / "home", base_dir) as made, made.agent() as agent:
        user = await (await made.user()).until_ready()
        response = await user.engine.client.send("/v1/chat/completions", STREAM, dict(HEADERS))
        chunks = response.chunks()
        assert (await anext(chunks)).startswith(b"data: ")
        next(iter(agent.gate.sessions.values())).close()
        async with asyncio.timeout(60):
            await made.engine.aborted.wait()
        response.close()


async def test_a_client_that_leaves_is_cut_in_the_engine(tmp_path: Path, base_dir: Path) -> None:
    async with site(tmp_path / "home", base_dir) as made, made.agent() as agent:
        user = await (await made.user()).until_ready()
        response = await user.engine.client.send("/v1/chat/completions", STREAM, dict(HEADERS))
        assert agent.clock.open == 1
        response.close()
        async with asyncio.timeout(60):
            await made.engine.aborted.wait()
        await until(lambda: agent.clock.open == 0)


async def test_the_users_clock_follows_the_agents(tmp_path: Path, base_dir: Path) -> None:
    async with site(tmp_path / "home", base_dir) as made, made.agent() as agent:
        user = await (await made.user()).until_ready()
        entered = user.engine.clock.enter()
        response = await user.engine.client.send("/v1/chat/completions", STREAM, dict(HEADERS))
        await until(lambda: user.engine.clock.busy_s > 0)
        made.engine.ends.set()
        assert (await response.read()).endswith(b"data: [DONE]\n\n")
        response.close()
        assert user.engine.clock.leave(entered) > 0
        await until(lambda: user.engine.clock.open == 0)
        await until(lambda: abs(user.engine.clock.busy_s - agent.clock.busy_s) < 1e-6)


async def test_over_an_object_store_an_adapter_is_fetched_before_its_turn(tmp_path: Path, base_dir: Path) -> None:
    (tmp_path / "bucket").mkdir()
    bucket = f"file://{tmp_path / 'bucket'}"
    async with site(tmp_path / "home", base_dir, **ONE_PLACE, store_url=bucket) as made, made.agent() as agent:
        digest = stored_adapter(made.agent_settings, tmp_path / "adapter")
        user = await (await made.user()).until_ready()
        permit = await user.enter()
        waiting = asyncio.ensure_future(user.enter(adapter=digest))
        await until(lambda: agent.admission.queue.scheduler.queued == 1)
        assert agent.adapters.exists(digest), "it takes nobody's place while it is fetched"
        copies = agent.adapters.copies
        assert copies is not None
        permit.leave(1)
        cold = await waiting
        copies.cache.max_bytes = 0
        await copies.cache.trim()
        assert agent.adapters.exists(digest), "its turn holds its files"
        cold.leave(1)
        await until(lambda: agent.admission.queue.scheduler.in_flight == 0)
        agent.admission.residency.engine_changed(ready=False)
        with pytest.raises(Conflict, match="object store"):
            await user.enter(adapter="0" * 64)


async def test_whoever_waits_for_files_waits_no_longer_than_in_the_queue(tmp_path: Path, base_dir: Path) -> None:
    (tmp_path / "bucket").mkdir()
    bucket = f"file://{tmp_path / 'bucket'}"
    async with site(tmp_path / "home", base_dir, store_url=bucket) as made, made.agent() as agent:
        digest = stored_adapter(made.agent_settings, tmp_path / "adapter")
        user = await (await made.user()).until_ready()
        copies = agent.adapters.copies
        assert copies is not None
        fetch, flows = copies._fetch_copy, asyncio.Event()

        async def fetch_slowly(name: str) -> int:
            await flows.wait()
            return await fetch(name)

        copies._fetch_copy = fetch_slowly
        for _ in range(2):
            with pytest.raises(Unavailable, match="did not come from the object store in time") as refused:
                async with asyncio.timeout(100):
                    await user.enter(adapter=digest, wait_s=0.05)
            assert refused.value.code == "queue_timeout"
        patient = asyncio.ensure_future(user.enter(adapter=digest))
        await until(lambda: copies.is_held(digest))
        flows.set()
        (await patient).leave(1)
        await until(lambda: not copies.is_held(digest))
        assert copies.counts.outcomes == {"fetched": 1}, "one fetch, which went on for the next one"


def stored_adapter(settings: Settings, directory: Path) -> str:
    """An adapter in the object store alone; returns its digest."""
    files = make_adapter(directory, describe_base(settings))
    objects = open_object_store(settings)
    assert objects is not None
    config = Manifest.parse(files.config, max_rank=settings.engine_max_rank).canonical()
    digest = digest_of(config, hashlib.sha256(files.weights_path.read_bytes()).hexdigest())
    put_adapter(objects, digest, config, files.weights_path)
    return digest
