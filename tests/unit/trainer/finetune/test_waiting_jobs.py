"""What jobs say that they wait for, to whom; the workers are processes that train nothing."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from tests.unit.trainer.finetune.conftest import FakeGateway
from tests.unit.trainer.finetune.trainers import CONTEXT_HEADER, PATIENCE_S, Client, Running, context, running
from tests.unit.trainer.worker_processes import end_workers
from trainer.runs import supervisor

__all__ = ["end_workers"]


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervisor, "TICK_S", 0.05)
    monkeypatch.setattr(supervisor, "TURN_S", 0.1)


@pytest.fixture
async def trainer(tmp_path: Path, base_dir: Path, gateway: FakeGateway) -> AsyncIterator[Running]:
    async with running(tmp_path, base_dir, gateway) as found:
        yield found


def of(adapter: str) -> dict[str, str]:
    return {CONTEXT_HEADER: context(adapter)}


async def waits(client: Client, job_id: str, position: int) -> dict[str, Any]:
    job = await client.until(
        job_id, lambda job: ((job.hatrack["waiting"] or {}).get("position")) == position, f"position {position}"
    )
    waiting: dict[str, Any] = job.hatrack["waiting"]
    return waiting


async def places(client: Client, job_id: str) -> list[tuple[str, int]]:
    """The events that tell the job's place in line, oldest first."""
    events = await client.events(job_id)
    return [(event.message, event.data["position"]) for event in events if "position" in event.data]


async def told(client: Client, job_id: str, position: int) -> None:
    """Wait until the job has this place, and the last event to tell one tells it."""
    await waits(client, job_id, position)
    deadline = time.monotonic() + PATIENCE_S
    while [at for _, at in await places(client, job_id)][-1:] != [position]:
        assert time.monotonic() < deadline, await places(client, job_id)
        await asyncio.sleep(0.02)


async def test_a_job_tells_its_place_and_who_is_ahead(trainer: Running) -> None:
    client = trainer.client()
    first = await client.create(of("acc-intent"), metadata={"hold": "3", "steps": "60"})
    await client.at_step(first.id, 3)
    assert (await client.openai.fine_tuning.jobs.retrieve(first.id)).hatrack["waiting"] is None
    second = await client.create(of("voice"))
    waiting = await waits(client, second.id, 2)
    assert waiting["reason"] == "turn"
    assert waiting["message"].startswith("2nd in line behind acc-intent, step 3 of 60, ")
    ahead = waiting["behind"]
    assert (ahead["id"], ahead["adapters"]) == (first.id, ["acc-intent"])
    assert (ahead["stage"], ahead["done"], ahead["total"]) == ("training", 3, 60)
    third = await client.create(of("voice"))
    assert (await waits(client, third.id, 3))["message"].startswith("3rd in line behind acc-intent, ")
    listed = {job.id: job.hatrack["waiting"] async for job in client.openai.fine_tuning.jobs.list()}
    assert {job_id: waiting and waiting["position"] for job_id, waiting in listed.items()} == {
        first.id: None, second.id: 2, third.id: 3,
    }  # fmt: skip
    # events tell a place a moment after the job has it
    await told(client, third.id, 3)
    await client.openai.fine_tuning.jobs.cancel(second.id)
    await told(client, third.id, 2)
    await client.openai.fine_tuning.jobs.cancel(first.id)
    done = await client.ended(third.id)
    assert done.hatrack["waiting"] is None
    assert await places(client, third.id) == [
        ("3rd in line for its turn", 3),
        ("2nd in line for its turn: it starts next", 2),
    ]


@pytest.mark.slow
async def test_a_job_of_another_project_or_a_hidden_one_is_not_named(trainer: Running) -> None:
    own, other = trainer.client("default"), trainer.client("rival")
    first = await own.create(of("acc-intent"), metadata={"hold": "3", "steps": "60"})
    await own.at_step(first.id, 3)
    waiting = await waits(other, (await other.create(of("voice"))).id, 2)
    assert waiting["message"].startswith("2nd in line behind another project's run, ")
    hidden = {"id": None, "adapters": [], "stage": None, "done": None, "total": None}
    assert waiting["behind"] | hidden == waiting["behind"]
    mine = await own.create(of("voice"))
    await waits(own, mine.id, 3)  # the other project's turn comes first
    narrow = {"x-hatrack-adapters": "voice*"}
    seen = await own.openai.fine_tuning.jobs.retrieve(mine.id, extra_headers=narrow)
    assert seen.hatrack["waiting"]["message"].startswith("3rd in line behind another run of the project, ")
    assert "acc-intent" not in seen.model_dump_json()
    events = await own.openai.fine_tuning.jobs.list_events(mine.id, extra_headers=narrow)
    assert "acc-intent" not in events.model_dump_json()


@pytest.mark.slow
async def test_a_paused_job_waits_for_no_turn(trainer: Running) -> None:
    client = trainer.client()
    first = await client.create(metadata={"hold": "1"})
    await client.at_step(first.id, 1)
    second = await client.create()
    await waits(client, second.id, 2)
    assert (await client.openai.fine_tuning.jobs.pause(second.id)).hatrack["waiting"] is None
