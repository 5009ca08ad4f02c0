"""The app behind a real HTTP server, and the models that it lists."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from urllib.parse import quote

import httpx
import orjson
import pytest

from tests.support.asgi import web_server
from tests.unit.service.inference.fakes import (
    DIGESTS,
    DONE,
    KEY,
    World,
    chat_body,
    completion,
    token,
    until,
    usage_event,
)

WITHIN_S = 60.0
"""Nothing else would ever end what is waited for, so patience proves as much as haste."""
BUFFER = 2**16
"""Of a socket, on either side: with the kernel's own sizes a machine may take a whole answer in."""


@asynccontextmanager
async def served(world: World) -> AsyncIterator[int]:
    """The port of a server for the world's app."""
    server = web_server(world.app, port=0, log_config=None, lifespan="off", timeout_graceful_shutdown=1)
    running = asyncio.create_task(server.serve())
    await until(lambda: server.started)
    listening = server.servers[0].sockets[0]
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, BUFFER)  # which connections inherit
    try:
        yield listening.getsockname()[1]
    finally:
        server.should_exit = True
        await running


def request_bytes(**fields: object) -> bytes:
    body = orjson.dumps(chat_body(**fields))
    head = (
        f"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {KEY}\r\n"
        f"content-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


@pytest.mark.parametrize("stream", [True, False])
async def test_a_client_that_leaves_ends_its_request_in_the_engine(stream: bool) -> None:
    world = World()
    world.engine.chunks = [token("A"), asyncio.Event()] if stream else [asyncio.Event()]
    async with served(world) as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(request_bytes(stream=stream))
        if stream:
            await reader.readuntil(b"data: ")
        await until(lambda: world.engine.in_flight)
        writer.close()
        await asyncio.wait_for(world.engine.aborted.wait(), WITHIN_S)
        await until(lambda: world.records)
    assert (world.records[0].outcome, world.records[0].status) == ("left", 499)
    assert world.app.pipeline.in_flight == 0


async def test_a_client_that_does_not_read_holds_back_the_engine() -> None:
    world = World()
    many = 4000
    world.engine.chunks = [*[token("x" * 4096)] * many, usage_event(), DONE]
    async with served(world) as port:
        mine = socket.socket()
        mine.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, BUFFER)
        mine.setblocking(False)
        await asyncio.get_running_loop().sock_connect(mine, ("127.0.0.1", port))
        reader, writer = await asyncio.open_connection(sock=mine, limit=BUFFER)
        writer.write(request_bytes(stream=True))
        looks = [0]
        # counted in looks and not in time: between any two of them the loop has given the engine its turn, too
        while not looks[-1] or len(looks) < 20 or len(set(looks[-20:])) > 1:
            looks.append(world.signs)
            await asyncio.sleep(0.02)
        assert 0 < world.signs < many
        while b"[DONE]" not in await reader.read(2**20):
            continue
        writer.close()
    assert world.signs >= many


async def test_a_client_that_leaves_in_its_body_is_nobody() -> None:
    world = World()
    async with served(world) as port:
        _, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(request_bytes()[:-10])
        await writer.drain()
        await asyncio.sleep(0.05)
        writer.close()
        await until(lambda: world.records)
    assert world.records[0].outcome == "left"


async def test_connections_are_kept_after_answers_streams_and_errors() -> None:
    world = World()
    world.engine.chunks = [completion("x")]
    kept = httpx.Limits(keepalive_expiry=None)  # the client must not be what gives a connection up, as after 5 s
    url = "http://127.0.0.1:{}".format
    async with served(world) as port, httpx.AsyncClient(base_url=url(port), timeout=60, limits=kept) as client:
        client.headers["authorization"] = f"Bearer {KEY}"
        ports = set()
        for body in (chat_body(), chat_body(n=99), chat_body(stream=True), chat_body()):
            world.engine.chunks = [token("A"), DONE] if body.get("stream") else [completion("x")]
            async with client.stream("POST", "/v1/chat/completions", json=body) as answer:
                await answer.aread()
                ports.add(answer.extensions["network_stream"].get_extra_info("client_addr"))
    assert len(world.records) == 4
    assert len(ports) == 1


async def test_models_over_http_with_escaped_names() -> None:
    world = World()
    async with served(world) as port, httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=60) as client:
        client.headers["authorization"] = f"Bearer {KEY}"
        for name, created in (("voice", 800), ("voice@1", 1001), ("voice:canary", 1001), ("smol", 500)):
            for path in (name, quote(name, safe="")):
                found = (await client.get(f"/v1/models/{path}")).json()
                assert (found["id"], found["object"], found["created"]) == (name, "model", created)


async def test_the_list_has_the_base_first_and_then_what_is_live_oldest_first() -> None:
    answer = await World().ask("/v1/models", b"", method="GET")
    assert [(card["id"], card["created"], card["root"], card["parent"]) for card in answer.json()["data"]] == [
        ("smol", 500, "smol", None),
        ("voice", 800, "voice@3", "smol"),
        ("younger", 900, "younger@1", "smol"),
    ]
    assert answer.json()["object"] == "list"


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/v1/models/secret", 404),
        ("/v1/models/", 404),
        ("/v1/models/" + DIGESTS[3], 404),
        ("/v1/models/unborn", 404),
        ("/v1/models/voice@2", 409),
    ],
)
async def test_models_that_cannot_be_shown(path: str, status: int) -> None:
    assert (await World().ask(path, b"", method="GET")).status == status


async def test_methods_and_keys() -> None:
    world = World()
    for method, path, allowed in (("GET", "/v1/chat/completions", "POST"), ("DELETE", "/v1/models/voice", "GET")):
        answer = await world.ask(path, b"", method=method)
        assert (answer.status, answer.headers["allow"], answer.error["code"]) == (405, allowed, "method_not_allowed")
    answer = await world.ask("/v1/models", b"", method="GET", headers={"authorization": "Bearer no"})
    assert answer.status == 401
    assert answer.headers["x-request-id"]


def test_the_app_handles_its_own_paths_only() -> None:
    app = World().app
    ours = ["/v1/chat/completions", "/v1/completions", "/v1/embeddings", "/tokenize", "/v1/detokenize", "/v1/models/a"]
    others = [
        "/v1/load_lora_adapter",
        "/metrics",
        "/pause",
        "/sleep",
        "/invocations",
        "/v1/adapters",
        "/v1/modelsx",
        "/",
    ]
    assert all(app.handles({"type": "http", "path": path}) for path in ours)
    assert not any(app.handles({"type": "http", "path": path}) for path in others)
    assert not app.handles({"type": "websocket", "path": ours[0]})


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/embeddings", {"input": ["a", "b"], "encoding_format": "base64", "user": "u"}),
        ("/v1/tokenize", {"prompt": "a"}),
        ("/detokenize", {"tokens": [1, 2]}),
    ],
)
async def test_the_other_routes_reach_the_engine(path: str, body: dict[str, object]) -> None:
    world = World()
    world.engine.chunks = [b'{"count":1,"data":[]}']
    answer = await world.ask(path, {"model": "smol", **body})
    assert (answer.status, answer.json()) == (200, {"count": 1, "data": []})
    assert world.engine.last.path in ("/v1/embeddings", "/tokenize", "/detokenize")
    assert world.engine.last.body["model"] == "smol"


async def test_tokenize_takes_a_prompt_or_messages() -> None:
    world = World()
    both = {"model": "smol", "prompt": "a", "messages": [{"role": "user", "content": "a"}]}
    for body in (both, {"model": "smol"}):
        assert (await world.ask("/tokenize", body)).status == 400
    assert world.engine.asked == []


async def test_embeddings_of_a_model_that_makes_none() -> None:
    world = World()
    world.engine.status, world.engine.chunks = 404, [b'{"detail":"Not Found"}']
    answer = await world.ask("/v1/embeddings", {"model": "smol", "input": "a"})
    assert (answer.status, answer.error["code"]) == (404, "model_not_embedding")
