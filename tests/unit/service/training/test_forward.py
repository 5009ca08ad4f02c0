"""What is let through to the trainer and back, and that a client that leaves leaves nothing running."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import uvicorn
from aiohttp import web

from service.admission.request import AdmissionRequest
from service.config import Settings
from service.error_handlers import RequestIds
from service.server.serve import uvicorn_config
from tests.unit.service.files.files_app import ADMIN_KEY, MIB, bearer, error_of
from tests.unit.service.training.training_gateway import TrainingGateway

JOBS = "/v1/fine_tuning/jobs"


async def eventually(seen: Any) -> None:
    """Wait until ``seen()`` is true; fails after a minute."""
    async with asyncio.timeout(60):
        while not seen():  # noqa: ASYNC110 (any condition, not one event)
            await asyncio.sleep(0.01)


async def test_the_trainer_hears_of_the_keys_globs(gateway: TrainingGateway) -> None:
    key = await gateway.key("train", adapters=["shop-*", "v"], stores=["public"])
    await gateway.http.get(JOBS, headers=bearer(key) | {"x-hatrack-stores": "*"})
    headers = gateway.trainer.asked[0].headers
    assert (headers["x-hatrack-adapters"], headers["x-hatrack-stores"]) == ("shop-*,v", "public")


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", JOBS),
        ("GET", f"{JOBS}/ftjob-1/events?after=ev-1&limit=20&stream=true"),
        ("GET", f"{JOBS}/ftjob-1/checkpoints?after=a%2Fb"),
        ("POST", f"{JOBS}/ftjob-1/cancel"),
        ("GET", "/v1/evaluations"),
        ("POST", "/v1/reviews"),
        ("GET", "/v1/reviews/next?queue=q"),
        ("DELETE", "/v1/ladders/l-1"),
        ("GET", "/v1/fine_tuning/lineage/voice@3"),
    ],
)
async def test_method_path_and_query_reach_the_trainer_as_they_are(
    gateway: TrainingGateway, method: str, path: str
) -> None:
    answer = await gateway.http.request(method, path)
    assert answer.status_code == 200
    (asked,) = gateway.trainer.asked
    assert (asked.method, asked.path) == (method, path)
    assert asked.headers["x-hatrack-project"] == "default"


async def test_status_content_and_a_few_headers_come_back(gateway: TrainingGateway) -> None:
    gateway.trainer.status, gateway.trainer.body = (
        429,
        {"error": {"message": "m", "type": "t", "param": None, "code": "c"}},
    )
    gateway.trainer.headers = {"retry-after": "7", "x-should-retry": "false", "set-cookie": "a=b", "server": "x"}
    answer = await gateway.http.get(JOBS)
    assert (answer.status_code, answer.json()) == (429, gateway.trainer.body)
    assert (answer.headers["retry-after"], answer.headers["x-should-retry"]) == ("7", "false")
    assert "set-cookie" not in answer.headers
    assert answer.headers["content-type"].startswith("application/json")


async def test_what_a_client_says_of_itself_is_not_believed(gateway: TrainingGateway) -> None:
    key = await gateway.key("train", project="acme")
    said = {"x-hatrack-project": "other", "x-hatrack-key-id": "admin", "x-hatrack-job-key": "k", "cookie": "a"}
    await gateway.http.get(JOBS, headers=bearer(key) | said | {"last-event-id": "9"})
    headers = gateway.trainer.asked[0].headers
    assert headers["x-hatrack-project"] == "acme"
    assert headers["x-hatrack-key-id"].startswith("key_")
    assert headers["last-event-id"] == "9"
    assert not {"x-hatrack-job-key", "cookie", "authorization"} & set(headers)


@pytest.mark.parametrize(
    "path",
    [f"{JOBS}/a%2f..%2fb", f"{JOBS}/%2e%2e/x", f"{JOBS}//x", f"{JOBS}/a b", f"{JOBS}/é", "/v1/reviews/" + "a/" * 9],
)
async def test_a_path_that_is_no_path_of_the_trainer_s_never_reaches_it(gateway: TrainingGateway, path: str) -> None:
    answer = await gateway.http.get(path)
    assert answer.status_code == 404
    assert gateway.trainer.asked == []


async def test_a_key_without_the_scope_train_reaches_nothing(gateway: TrainingGateway) -> None:
    key = await gateway.key("infer", "adapters", "knowledge")
    for method, path in (
        ("GET", JOBS),
        ("POST", f"{JOBS}/ftjob-1/cancel"),
        ("POST", "/v1/fine_tuning/data_check"),
        ("GET", "/v1/evaluations"),
        ("POST", "/v1/reviews/r-1"),
        ("GET", "/v1/ladders"),
        ("GET", "/v1/load"),
    ):
        answer = await gateway.http.request(method, path, content=b"{", headers=bearer(key))
        assert (answer.status_code, error_of(answer)["code"]) == (403, "insufficient_scope"), path
        assert "`train`" in error_of(answer)["message"]
    assert gateway.trainer.asked == []


async def test_a_body_is_strict_json_and_bounded_and_written_anew(gateway: TrainingGateway) -> None:
    path = f"{JOBS}/ftjob-1/resume"
    for body, code in ((b"{", "invalid_json"), (b"[1]", "invalid_json"), (b'{"a": NaN}', "invalid_json")):
        answer = await gateway.http.post(path, content=body)
        assert (answer.status_code, error_of(answer)["code"]) == (400, code)
    assert (await gateway.http.post(path, content=b" " * (2 * MIB + 1))).status_code == 413
    many = await gateway.http.post(path, content=b'{"a": [' + b"[]," * 300_000 + b"[]]}")
    assert (many.status_code, error_of(many)["code"]) == (400, "invalid_json")
    assert "50000 arrays" in error_of(many)["message"]
    assert gateway.trainer.asked == []
    await gateway.http.post(path, content=b' {"a": 1, "a": 2} ')
    assert gateway.trainer.asked[0].body == b'{"a":2}'


async def test_a_change_is_in_the_audit_once_the_trainer_has_made_it(gateway: TrainingGateway) -> None:
    assert (await gateway.http.post(f"{JOBS}/ftjob-1/pause")).status_code == 200
    gateway.trainer.status = 404
    assert (await gateway.http.post(f"{JOBS}/ftjob-2/cancel")).status_code == 404
    entries = (await gateway.http.get("/v1/audit")).json()["data"]
    assert [(entry["action"], entry["target"]) for entry in entries] == [("job.pause", "ftjob-1")]


async def test_events_come_one_by_one_and_the_trainer_hears_that_the_client_left(gateway: TrainingGateway) -> None:
    said, more = asyncio.Event(), asyncio.Event()

    async def events(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"content-type": "text/event-stream; charset=utf-8"})
        await response.prepare(request)
        await response.write(b"id: 1\ndata: {}\n\n")
        said.set()
        await more.wait()
        await response.write(b"id: 2\ndata: {}\n\n")
        await asyncio.sleep(60)
        return response

    gateway.trainer.answer = events
    async with gateway.http.stream("GET", f"{JOBS}/ftjob-1/events?stream=true") as answer:
        assert answer.headers["content-type"].startswith("text/event-stream")
        assert answer.headers["cache-control"] == "no-store"
        pieces = answer.aiter_bytes()
        assert await anext(pieces) == b"id: 1\ndata: {}\n\n"
        assert said.is_set()
        more.set()
        assert await anext(pieces) == b"id: 2\ndata: {}\n\n"
    await eventually(lambda: gateway.trainer.cut == 1)


async def test_a_gateway_that_stops_does_not_wait_for_the_end_of_a_run(
    gateway: TrainingGateway, tmp_path: Path
) -> None:
    async def events(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"content-type": "text/event-stream"})
        await response.prepare(request)
        await response.write(b"id: 1\ndata: {}\n\n")
        await asyncio.Event().wait()
        return response

    gateway.trainer.answer = events
    socket = str(tmp_path / "stopping.sock")
    config = uvicorn_config(
        *(RequestIds(gateway.app()), Settings(home=tmp_path)),
        uds=socket,
        lifespan="off",
        timeout_graceful_shutdown=None,
    )
    server = uvicorn.Server(config)
    serving = asyncio.create_task(server.serve())
    await eventually(lambda: server.started)
    transport = httpx.AsyncHTTPTransport(uds=socket)
    async with (
        httpx.AsyncClient(transport=transport, base_url="http://test", headers=bearer(ADMIN_KEY)) as http,
        http.stream("GET", f"{JOBS}/ftjob-1/events?stream=true") as answer,
    ):
        pieces = answer.aiter_bytes()
        assert await anext(pieces) == b"id: 1\ndata: {}\n\n"
        server.should_exit = True
        with pytest.raises(httpx.RemoteProtocolError):
            await anext(pieces)
    await eventually(serving.done)
    await serving
    await eventually(lambda: gateway.trainer.cut == 1)


async def test_a_client_that_leaves_before_the_answer_ends_the_request(gateway: TrainingGateway) -> None:
    arrived = asyncio.Event()

    async def silent(_request: web.Request) -> web.StreamResponse:
        arrived.set()
        await asyncio.sleep(60)
        return web.Response()

    gateway.trainer.answer = silent
    asking = asyncio.create_task(gateway.http.get(JOBS))
    await arrived.wait()
    asking.cancel()
    await asyncio.gather(asking, return_exceptions=True)
    await eventually(lambda: gateway.trainer.cut == 1)


async def test_a_stream_whose_trainer_dies_ends_and_can_be_taken_up(gateway: TrainingGateway) -> None:
    async def dying(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"content-type": "text/event-stream"})
        await response.prepare(request)
        await response.write(b"id: 1\ndata: {}\n\n")
        assert request.transport is not None
        request.transport.abort()
        return response

    gateway.trainer.answer = dying
    assert (await gateway.http.get(f"{JOBS}/ftjob-1/events?stream=true")).content == b"id: 1\ndata: {}\n\n"


async def test_without_a_trainer_it_is_503_with_a_time_to_come_back(gateway: TrainingGateway) -> None:
    gateway.trainer_socket.unlink()
    for method, path in (("GET", JOBS), ("POST", "/v1/reviews"), ("POST", "/v1/fine_tuning/data_check")):
        answer = await gateway.http.request(method, path, content=b"{}")
        assert (answer.status_code, error_of(answer)["code"]) == (503, "trainer_unavailable")
        assert int(answer.headers["retry-after"]) > 0


@pytest.mark.parametrize("started", [False, True])
async def test_a_trainer_that_says_nothing_is_not_waited_for_for_ever(gateway: TrainingGateway, started: bool) -> None:
    async def silent(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        if started:
            await response.prepare(request)
            await response.write(b"{")
        await asyncio.sleep(60)
        return response

    gateway.trainer.answer = silent
    gateway.client.answer_s = gateway.client.silence_s = 0.1
    answer = await gateway.http.get(JOBS)
    assert (answer.status_code, error_of(answer)["code"]) == (504, "timeout")


async def test_the_file_of_a_data_check_is_streamed_through(gateway: TrainingGateway) -> None:
    first, sent = asyncio.Event(), asyncio.Event()

    async def reading(request: web.Request) -> web.StreamResponse:
        pieces = request.content.iter_any()
        total = len(await anext(pieces))
        first.set()
        await sent.wait()
        async for piece in pieces:
            total += len(piece)
        return web.json_response({"bytes": total, "type": request.content_type})

    async def body() -> AsyncIterator[bytes]:
        yield b"x" * 1000
        await first.wait()  # the trainer has the beginning while the rest is still to come
        sent.set()
        yield b"y" * 500_000

    gateway.trainer.answer = reading
    answer = await gateway.http.post(
        "/v1/fine_tuning/data_check?strict=true", content=body(), headers={"content-type": "application/jsonl"}
    )
    assert answer.json() == {"bytes": 501_000, "type": "application/jsonl"}
    assert gateway.trainer.asked[0].path == "/v1/fine_tuning/data_check?strict=true"


async def test_the_file_of_a_data_check_is_bounded(gateway: TrainingGateway) -> None:
    async def endless() -> AsyncIterator[bytes]:
        while True:
            yield b"x" * 65_536

    for content in (endless(), b"x" * (2 * MIB)):
        answer = await gateway.http.post("/v1/fine_tuning/data_check", content=content)
        assert (answer.status_code, error_of(answer)["code"]) == (413, "request_too_large")


async def test_a_client_that_leaves_in_the_middle_of_a_data_check_ends_it(gateway: TrainingGateway) -> None:
    arrived = asyncio.Event()

    async def reading(request: web.Request) -> web.StreamResponse:
        arrived.set()
        await request.read()
        return web.Response()

    async def body() -> AsyncIterator[bytes]:
        yield b"x" * 1000
        await arrived.wait()
        raise httpx.WriteError("the client's cable was pulled")

    gateway.trainer.answer = reading
    with pytest.raises(httpx.WriteError):
        await gateway.http.post("/v1/fine_tuning/data_check", content=body())
    await eventually(lambda: gateway.trainer.cut == 1)


async def test_the_load_counts_callers_and_not_jobs(gateway: TrainingGateway) -> None:
    key = await gateway.key("train")

    async def load() -> dict[str, Any]:
        answer = await gateway.http.get("/v1/load", headers=bearer(key))
        assert answer.status_code == 200
        found: dict[str, Any] = answer.json()
        return found

    assert await load() == {"object": "load", "waiting": 0, "in_flight": 0}
    deadline = asyncio.get_running_loop().time() + 60
    places = [await gateway.gate.enter(AdmissionRequest("p", "k", None, 1, background=True), deadline)]
    assert await load() == {"object": "load", "waiting": 0, "in_flight": 0}
    width = gateway.gate.scheduler.policy.width
    waiting = [
        asyncio.ensure_future(gateway.gate.enter(AdmissionRequest("p", "k", None, 1, background=False), deadline))
        for _ in range(width + 5)
    ]
    await asyncio.sleep(0)
    seen = await load()
    assert seen["waiting"] > 0
    assert seen["waiting"] + seen["in_flight"] == width + 5
    for task in waiting:
        task.cancel()
    for place in places:
        place.leave(1)
    await asyncio.gather(*waiting, return_exceptions=True)


async def test_the_trainer_is_told_which_adapters_the_key_may_use(gateway: TrainingGateway) -> None:
    narrow = await gateway.key("train", adapters=["v*", "new-?"])
    for key, told in ((narrow, "v*,new-?"), (None, None)):
        await gateway.http.get("/v1/fine_tuning/jobs", headers=bearer(key) if key else {})
        assert gateway.trainer.asked[-1].headers.get("x-hatrack-adapters") == told
