"""How a run is requested from the trainer: its key and its files are there before it, and no key is left behind where
there is no run."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from aiohttp import web

from service.access.audit import Actor
from service.errors import DiskFull
from tests.unit.service.files.files_app import LINE, bearer, error_of
from tests.unit.service.inference.fakes import until
from tests.unit.service.training.training_gateway import BASE, JOB, TrainingGateway


async def test_where_the_trainer_refuses_no_key_is_left_and_its_words_are_the_answer(gateway: TrainingGateway) -> None:
    gateway.trainer.status = 400
    gateway.trainer.body = {"error": {"message": "no", "type": "invalid_request_error", "param": "method", "code": "x"}}
    training = await gateway.made()
    answer = await gateway.create(model=BASE, training_file=training, method={"type": "dpo"})
    assert (answer.status_code, error_of(answer)["param"]) == (400, "method")
    assert await gateway.living_keys() == []
    await gateway.http.delete(f"/v1/files/{training}")
    assert gateway.on_disk() == set()


async def test_a_replayed_creation_leaves_one_key(gateway: TrainingGateway) -> None:
    training = await gateway.made()
    assert (await gateway.create(model=BASE, training_file=training)).status_code == 200
    before = await gateway.living_keys()
    gateway.trainer.headers = {"x-hatrack-replayed": "true"}
    again = await gateway.create(model=BASE, training_file=training)
    assert (again.status_code, again.json()) == (200, JOB)
    assert again.headers["x-hatrack-replayed"] == "true"
    assert await gateway.living_keys() == before


async def test_the_job_holds_its_data(gateway: TrainingGateway) -> None:
    training, held_out = await gateway.made(LINE), await gateway.made(LINE * 2)
    await gateway.create(model=BASE, training_file=training, validation_file=held_out)
    for file_id in (training, held_out):
        await gateway.http.delete(f"/v1/files/{file_id}")
    key = gateway.trainer.asked[0].headers["x-hatrack-job-key"]
    assert (await gateway.http.get(f"/v1/files/{held_out}/content", headers=bearer(key))).content == LINE * 2
    await gateway.http.delete("/v1/keys/current", headers=bearer(key))
    await gateway.files.collect()
    assert gateway.on_disk() == set()


async def test_a_creation_goes_on_when_its_client_leaves(gateway: TrainingGateway) -> None:
    arrived, go_on = asyncio.Event(), asyncio.Event()

    async def slow(_request: web.Request) -> web.StreamResponse:
        arrived.set()
        await go_on.wait()
        return web.json_response(JOB)

    gateway.trainer.answer = slow
    asking = asyncio.create_task(gateway.create(model=BASE, training_file=await gateway.made()))
    await arrived.wait()
    asking.cancel()
    await asyncio.gather(asking, return_exceptions=True)
    go_on.set()
    created: list[dict[str, Any]] = []
    async with asyncio.timeout(60):
        while not created:
            await asyncio.sleep(0.01)
            created = (await gateway.http.get("/v1/audit?action=job.create")).json()["data"]
    assert created[0]["target"] == "ftjob-1"
    assert gateway.trainer.cut == 0
    assert [key["id"] for key in await gateway.living_keys()] == [
        gateway.trainer.asked[0].headers["x-hatrack-job-key-id"]
    ]


async def test_without_a_trainer_no_key_is_left(gateway: TrainingGateway) -> None:
    training = await gateway.made()
    gateway.trainer_socket.unlink()
    answer = await gateway.create(model=BASE, training_file=training)
    assert (answer.status_code, error_of(answer)["code"]) == (503, "trainer_unavailable")
    assert await gateway.living_keys() == []


def hanging_up(first: int, found: dict[str, Any] | None) -> Any:
    """A trainer that cuts its first answers, and then tells which job was made."""
    asked: list[str] = []

    async def answer(request: web.Request) -> web.StreamResponse:
        asked.append(request.path)
        if len(asked) <= first:
            assert request.transport is not None
            request.transport.abort()
        assert len(asked) <= first or request.path.startswith("/internal/jobs/claim/key_")
        return web.json_response({"job": found})

    return answer


async def until_settled(gateway: TrainingGateway) -> None:
    await until(lambda: not gateway.training._settling)


@pytest.fixture
def _soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("service.training.service.SETTLE_S", (0.01,))


@pytest.mark.usefixtures("_soon")
@pytest.mark.parametrize("cut", [1, 3])
async def test_a_trainer_that_goes_away_in_the_middle_leaves_no_key_where_it_made_no_job(
    gateway: TrainingGateway, cut: int
) -> None:
    gateway.trainer.answer = hanging_up(cut, None)
    answer = await gateway.create(model=BASE, training_file=await gateway.made())
    assert (answer.status_code, error_of(answer)["code"]) == (502, "trainer_cut")
    await until_settled(gateway)
    assert await gateway.living_keys() == []


@pytest.mark.usefixtures("_soon")
@pytest.mark.parametrize("cut", [1, 3])
async def test_a_job_whose_answer_was_lost_keeps_its_key(gateway: TrainingGateway, cut: int) -> None:
    gateway.trainer.answer = hanging_up(cut, JOB)
    answer = await gateway.create(model=BASE, training_file=await gateway.made())
    assert (answer.status_code, error_of(answer)["code"]) == (502, "trainer_cut")
    await until_settled(gateway)
    (key,) = await gateway.living_keys()
    assert gateway.trainer.asked[-1].path == f"/internal/jobs/claim/{key['id']}"
    created = (await gateway.http.get("/v1/audit?action=job.create")).json()["data"][0]
    assert (created["target"], created["detail"]["key"]) == ("ftjob-1", key["id"])


@pytest.mark.usefixtures("_soon")
async def test_a_key_that_cannot_be_revoked_on_a_full_disk_is_revoked_later(
    gateway: TrainingGateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    delete, refused = gateway.keys.delete, []

    async def full_twice(actor: Actor, key_id: str) -> list[str]:
        if len(refused) < 2:
            refused.append(key_id)
            raise DiskFull("the disk is full; nothing was changed")
        return await delete(actor, key_id)

    monkeypatch.setattr(gateway.keys, "delete", full_twice)
    gateway.trainer.status = 400
    gateway.trainer.body = {"error": {"message": "no", "type": "invalid_request_error", "param": None, "code": "x"}}
    assert (await gateway.create(model=BASE, training_file=await gateway.made())).status_code == 400
    await until_settled(gateway)
    assert (len(refused), await gateway.living_keys()) == (2, [])


async def test_the_same_request_again_is_the_same_job_though_its_file_has_gone(gateway: TrainingGateway) -> None:
    training = await gateway.made()
    asked = {"model": BASE, "training_file": training, "idempotency-key": "once"}
    assert (await gateway.create(**asked)).status_code == 200
    before = await gateway.living_keys()
    await gateway.http.delete(f"/v1/files/{training}")
    assert (await gateway.create(**asked)).status_code == 404
    gateway.trainer.headers = {"x-hatrack-replayed": "true"}
    again = await gateway.create(**asked)
    assert (again.status_code, again.json(), again.headers["x-hatrack-replayed"]) == (200, JOB, "true")
    assert await gateway.living_keys() == before
    gateway.trainer.status, gateway.trainer.headers = 409, {}
    gateway.trainer.body = {
        "error": {"message": "no", "type": "invalid_request_error", "param": None, "code": "reused"}
    }
    assert (await gateway.create(**asked)).status_code == 409
