"""The real gateway before it has seen a key: what it does not read, does not wait for and does not trust."""

from __future__ import annotations

import json
import socket
from contextlib import closing

import httpx

from tests.support.gateway import Gateway
from tests.support.processes import engine_processes

TIMEOUT_S = 180.0
CHAT = "POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\n"


def connect(gateway: Gateway) -> socket.socket:
    return socket.create_connection(("127.0.0.1", gateway.port), timeout=TIMEOUT_S)


def ask(gateway: Gateway, request: str) -> tuple[int, str]:
    """Status and error code of the answer to bytes on a connection of their own, which it ends."""
    with closing(connect(gateway)) as client:
        client.sendall(request.encode("latin-1"))
        answer = b""
        while part := client.recv(2**16):
            answer += part
    head, _, body = answer.partition(b"\r\n\r\n")
    return int(head.split()[1]), json.loads(body)["error"]["code"]


def test_an_endless_header_is_cut_off(gateway: Gateway) -> None:
    with closing(connect(gateway)) as client:
        client.sendall(b"GET /v1/models HTTP/1.1\r\nhost: x\r\na: ")
        sent = 0
        try:
            while sent < 32 * 2**20:
                sent += client.send(b"x" * 2**16)
        except ConnectionError:
            pass
    assert sent < 32 * 2**20
    assert httpx.get(f"{gateway.url}/healthz", timeout=TIMEOUT_S).status_code == 200


def test_ambiguous_request_heads_are_refused(gateway: Gateway) -> None:
    good = f"authorization: Bearer {gateway.key}\r\n"
    for start in (CHAT, "GET /v1/adapters HTTP/1.1\r\nhost: x\r\n"):
        for twice in (good + "authorization: Bearer wrong\r\n", "authorization: Bearer wrong\r\n" + good):
            assert ask(gateway, f"{start}{twice}\r\n") == (400, "repeated_header")
        chunked = f"{start}transfer-encoding: chunked\r\n\r\n1\r\nx\r\n0\r\n{good}\r\n"
        assert ask(gateway, chunked) == (400, "trailers_not_allowed")
        smuggled = f"{start}{good}content-length: 4\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n"
        assert ask(gateway, smuggled) == (400, "invalid_http")


def test_no_host_header_or_target_bypasses_authentication(gateway: Gateway) -> None:
    for target, host in (
        *(("/v1/models", host) for host in ("x/healthz?", "x#", "@x")),
        *(
            (target, "x")
            for target in ("/@x", "//v1/models", "/v1/..;/healthz", "/healthz/..;/v1/models", "/v1%2fmodels")
        ),
    ):
        request = f"GET {target} HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\n\r\n"
        assert ask(gateway, request) == (401, "invalid_api_key"), (target, host)


def test_a_stream_ends_with_done_and_its_connection_is_reused(gateway: Gateway) -> None:
    # the client itself would give up a connection that lay idle for 5 s, as it can on a busy machine
    with gateway.http(limits=httpx.Limits(keepalive_expiry=None)) as client:
        body = {
            "model": gateway.base_name(),
            "messages": [{"role": "user", "content": "Hello"}],
            "max_tokens": 8,
            "stream": True,
        }
        peers = set()
        for _ in range(2):
            with client.stream("POST", "/v1/chat/completions", json=body) as answer:
                assert "[DONE]" in answer.read().decode()
                peers.add(answer.extensions["network_stream"].get_extra_info("client_addr"))
    assert len(peers) == 1


def test_the_engine_core_sleeps_while_the_worker_computes(gateway: Gateway) -> None:
    processes = engine_processes(gateway.home / "engine" / "engine.json")
    before = {name: process.cpu_times() for name, process in processes.items()}
    body = {"model": gateway.base_name(), "prompt": "Once", "max_tokens": 64, "ignore_eos": True}
    with gateway.http() as client:
        client.post("/v1/completions", json=body).raise_for_status()
    used = {name: sum(process.cpu_times()[:2]) - sum(before[name][:2]) for name, process in processes.items()}
    assert used["EngineCore"] < used["Worker"] / 3, used
