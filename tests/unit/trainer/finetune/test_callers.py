"""What a key sees and moves of a project's jobs, and what the gateway asks for itself: replays and claims."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.unit.trainer.finetune.conftest import KEY, FakeGateway
from tests.unit.trainer.finetune.trainers import Client, Running, context, running
from tests.unit.trainer.through_gateway import CONTEXT_HEADER

BODY = {"model": "tiny", "training_file": "train"}


@pytest.fixture
async def trainer(tmp_path: Path, base_dir: Path, gateway: FakeGateway) -> AsyncIterator[Running]:
    async with running(tmp_path, base_dir, gateway) as found:
        yield found


@pytest.fixture
def client(trainer: Running) -> Client:
    return trainer.client()


async def make(client: Client, name: str, key_id: str = "key_job", **more: str) -> httpx.Response:
    headers = {
        "x-hatrack-job-key": KEY,
        "x-hatrack-job-key-id": key_id,
        CONTEXT_HEADER: context(name),
        **more,
    }
    return await client.http.post("/v1/fine_tuning/jobs", json=BODY, headers=headers)


async def test_a_job_of_an_adapter_that_the_key_may_not_use_is_like_none(client: Client) -> None:
    ids = {name: (await make(client, name)).json()["id"] for name in ("voice", "legal", "law")}
    narrow = {"x-hatrack-adapters": "v*,la?"}

    async def ask(method: str, rest: str, headers: dict[str, str]) -> httpx.Response:
        return await client.http.request(method, f"/v1/fine_tuning/jobs{rest}", headers=headers)

    seen = (await ask("GET", "", narrow)).json()
    assert [job["hatrack"]["adapter"] for job in seen["data"]] == ["law", "voice"]
    assert [job["id"] for job in (await ask("GET", "?limit=1", narrow)).json()["data"]] == [ids["law"]]
    assert (await ask("GET", "", {"x-hatrack-adapters": ""})).json()["data"] == []
    ways = [
        ("GET", ""),
        ("GET", "/events"),
        ("GET", "/events?stream=true"),
        ("GET", "/checkpoints"),
        ("GET", "/report"),
    ]
    for method, rest in [*ways, *[("POST", f"/{verb}") for verb in ("cancel", "pause", "resume")]]:
        hidden = await ask(method, f"/{ids['legal']}{rest}", narrow)
        never = await ask(method, f"/ftjob-none{rest}", narrow)
        assert (hidden.status_code, hidden.text.replace(ids["legal"], "IT")) == (
            404,
            never.text.replace("ftjob-none", "IT"),
        )
    assert (await ask("GET", f"?after={ids['legal']}", narrow)).status_code == 404
    assert (await ask("GET", f"/{ids['law']}", narrow)).status_code == 200
    assert (await ask("GET", f"/{ids['legal']}", {})).json()["status"] not in ("cancelled", "paused")


async def test_a_replay_needs_the_key_and_the_body_and_nothing_else(client: Client) -> None:
    async def replay(body: dict[str, Any] = BODY, **more: str) -> httpx.Response:
        headers = {"idempotency-key": "once", **more}
        return await client.http.post("/internal/jobs/replay", json=body, headers=headers)

    assert (await replay()).status_code == 404
    made = (await make(client, "voice", **{"idempotency-key": "once"})).json()
    again = await replay()
    assert (again.status_code, again.json()["id"], again.headers["x-hatrack-replayed"]) == (200, made["id"], "true")
    assert (await replay(BODY | {"seed": 1})).status_code == 409
    assert (await replay(**{"x-hatrack-adapters": "other"})).status_code == 404
    assert (await replay(**{"x-hatrack-project": "other"})).status_code == 404


async def test_a_key_that_was_claimed_for_no_job_gets_none_any_more(trainer: Running, client: Client) -> None:
    async def claim(key_id: str, **more: str) -> Any:
        return (await client.http.post(f"/internal/jobs/claim/{key_id}", headers=more)).json()["job"]

    made = (await make(client, "voice", "key_1")).json()
    assert (await claim("key_1"))["id"] == made["id"]
    assert await claim("key_1", **{"x-hatrack-project": "other"}) is None
    assert await claim("key_2") is None
    late = await make(client, "voice", "key_2")
    assert (late.status_code, late.json()["error"]["code"]) == (500, "internal_error")
    assert trainer.trainer.jobs.directories.ids() == [made["id"]]


async def test_a_gateway_is_told_which_keys_no_run_has_and_none_gets_them_any_more(
    trainer: Running, client: Client
) -> None:
    await make(client, "voice", "key_1")
    answer = await client.http.post("/internal/keys/unused", json={"keys": ["key_1", "key_2", "key_3"]})
    assert (answer.status_code, answer.json()) == (200, {"unused": ["key_2", "key_3"]})
    late = await make(client, "voice", "key_2")
    assert (late.status_code, late.json()["error"]["code"]) == (500, "internal_error")
    wrong = await client.http.post("/internal/keys/unused", json={"keys": "key_1"})
    assert wrong.status_code == 400
