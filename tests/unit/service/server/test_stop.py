"""How long a server that stops lets requests go on, and what those are told that it cuts."""

from __future__ import annotations

import asyncio
import signal

import pytest
import uvicorn

from service.config import Settings
from service.server.serve import uvicorn_config
from service.server.stopping import Stopping, StoppingServer
from tests.unit.service.inference.fakes import World, chat_body, event_error, token, until
from tests.unit.service.inference.test_routes import request_bytes


def test_requests_may_go_on_for_as_long_as_the_settings_say() -> None:
    assert uvicorn_config(World().app, Settings(drain_s=300)).timeout_graceful_shutdown == 300


@pytest.mark.parametrize("in_a_hurry", [False, True], ids=["time is over", "second Ctrl-C"])
async def test_a_stream_that_a_stop_cuts_ends_in_an_error_event(in_a_hurry: bool) -> None:
    world = World()
    world.engine.chunks = [token("A"), asyncio.Event()]
    settings = Settings(engine_device="cpu", port=0, drain_s=1e4 if in_a_hurry else 0.2)
    server = uvicorn.Server(uvicorn_config(world.app, settings, lifespan="off"))
    running = asyncio.create_task(server.serve())
    await until(lambda: server.started)
    port = server.servers[0].sockets[0].getsockname()[1]
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(request_bytes(**chat_body(stream=True)))
    await reader.readuntil(b"data: ")
    for _ in range(1 + in_a_hurry):
        server.handle_exit(signal.SIGINT, None)
    server._captured_signals.clear()  # or it would raise them again once it has stopped
    await asyncio.wait_for(running, 60)
    if in_a_hurry:  # asyncio cancels what is left when the loop ends
        for task in server.server_state.tasks:
            task.cancel()
    rest = await asyncio.wait_for(reader.read(), 60)
    assert event_error(rest.split(b"0\r\n\r\n")[0].rpartition(b"\r\n")[0])["code"] == "shutdown"
    writer.close()


async def serving(server: uvicorn.Server) -> tuple[asyncio.Task[None], int]:
    """The server's task, once it listens, and its port."""
    running = asyncio.create_task(server.serve())
    await until(lambda: server.started)
    port: int = server.servers[0].sockets[0].getsockname()[1]
    return running, port


def stopping_server(delay_s: float) -> tuple[StoppingServer, Stopping]:
    config = uvicorn_config(World().app, Settings(engine_device="cpu", port=0), lifespan="off")
    return StoppingServer(config, stopping := Stopping(), delay_s), stopping


async def test_new_requests_are_taken_until_balancers_have_seen_that_it_stops() -> None:
    server, stopping = stopping_server(delay_s=1e6)
    running, port = await serving(server)
    server.handle_exit(signal.SIGTERM, None)
    assert stopping.began
    await asyncio.sleep(0.3)  # some of uvicorn's ticks
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(b"GET /v1/models HTTP/1.1\r\nhost: x\r\n\r\n")
    assert (await asyncio.wait_for(reader.readline(), 60)).startswith(b"HTTP/1.1 ")
    writer.close()
    server.handle_exit(signal.SIGTERM, None)
    server._captured_signals.clear()
    await asyncio.wait_for(running, 60)


@pytest.mark.parametrize(
    ("delay_s", "sent", "says_so"),
    [(0.2, signal.SIGTERM, True), (0, signal.SIGTERM, False), (1e6, signal.SIGINT, False)],
    ids=["after the delay", "no delay", "Ctrl-C does not wait"],
)
async def test_it_stops_by_itself(delay_s: float, sent: signal.Signals, says_so: bool) -> None:
    server, stopping = stopping_server(delay_s)
    running, _ = await serving(server)
    server.handle_exit(sent, None)
    server._captured_signals.clear()
    await asyncio.wait_for(running, 60)
    assert stopping.began is says_so
