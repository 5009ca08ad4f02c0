"""The keys of runs that a former gateway was killed while creating are revoked; those of runs stay."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest
from aiohttp import web

from service.access import records
from service.training import leftover_keys
from service.training.leftover_keys import LeftoverKeys
from tests.unit.service.training.test_forward import eventually
from tests.unit.service.training.training_gateway import BASE, TrainingGateway


@pytest.fixture
async def leftover(gateway: TrainingGateway) -> AsyncIterator[LeftoverKeys]:
    started = LeftoverKeys(gateway.client, gateway.database, gateway.keys)
    yield started
    await started.stop()


async def two_run_keys(gateway: TrainingGateway) -> list[str]:
    """The ids of two keys that were made for runs; a file of their own is held by each, beside a plain key."""
    for _ in range(2):
        made = await gateway.create(model=BASE, training_file=await gateway.made())
        assert made.status_code == 200
    await gateway.key("infer")
    ids = await gateway.database.run(records.run_key_ids)
    assert len(ids) == 2
    gateway.trainer.asked.clear()
    return ids


async def living(gateway: TrainingGateway) -> list[str]:
    return [key["id"] for key in await gateway.living_keys()]


async def test_a_key_without_a_run_is_revoked_and_lets_its_files_go(
    gateway: TrainingGateway, leftover: LeftoverKeys
) -> None:
    unused, used = await two_run_keys(gateway)
    before = await living(gateway)
    plain = (set(before) - {unused, used}).pop()
    # whatever it says: a key that it was not asked about is not its business
    gateway.trainer.body = {"unused": [unused, plain]}
    await leftover.start()
    await eventually(lambda: leftover._task is not None and leftover._task.done())
    assert gateway.trainer.asked[0].path == "/internal/keys/unused"
    assert sorted(gateway.trainer.asked[0].json["keys"]) == sorted([unused, used])
    assert await living(gateway) == [key for key in before if key != unused]
    for file_id in gateway.on_disk():
        await gateway.http.delete(f"/v1/files/{file_id}")
    await gateway.files.collect()
    assert len(gateway.on_disk()) == 1, "the other key's run has its file"


async def test_a_trainer_that_does_not_answer_yet_is_asked_again(
    gateway: TrainingGateway, leftover: LeftoverKeys, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(leftover_keys, "RETRY_S", (0.01,))
    unused, used = await two_run_keys(gateway)
    asked: list[Any] = []

    async def slow(request: web.Request) -> web.StreamResponse:
        asked.append(await request.json())
        if len(asked) < 3 and request.transport is not None:
            request.transport.abort()
        return web.json_response({"unused": [unused]})

    gateway.trainer.answer = slow
    await leftover.start()
    await eventually(lambda: leftover._task is not None and leftover._task.done())
    assert len(asked) == 3
    assert used in await living(gateway)
    assert unused not in await living(gateway)


@pytest.mark.parametrize("status", [404, 500])
async def test_a_trainer_that_cannot_tell_loses_no_key(
    gateway: TrainingGateway, leftover: LeftoverKeys, status: int
) -> None:
    await two_run_keys(gateway)
    before = await living(gateway)
    gateway.trainer.status = status
    await leftover.start()
    await eventually(lambda: leftover._task is not None and leftover._task.done())
    assert await living(gateway) == before


async def test_without_keys_of_runs_nobody_is_asked(gateway: TrainingGateway, leftover: LeftoverKeys) -> None:
    await gateway.key("infer")
    await leftover.start()
    assert leftover._task is None
