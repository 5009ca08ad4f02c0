"""CORS: what a page of another origin may do, and that nothing changes where nobody has set it up."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from starlette.types import Message, Receive, Scope, Send

from service.app import DataPathFirst
from service.config import load_settings
from service.cors import EXPOSED, Cors
from service.errors import SettingsError
from tests.support.adapters import make_base
from tests.unit.service.fronts.support import cluster
from tests.unit.service.gateway_app import BASE, running

PAGE = "https://app.example.com"
SCHEMA = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "object"}}}
ASK = {"model": BASE, "messages": [{"role": "user", "content": "Ahoy?"}]}


def preflight(origin: str, method: str = "POST") -> dict[str, str]:
    asked = "authorization,content-type,x-stainless-os"
    return {"origin": origin, "access-control-request-method": method, "access-control-request-headers": asked}


async def test_a_page_of_a_named_origin_may_ask(tmp_path: Path) -> None:
    async with running(tmp_path / "home", make_base(tmp_path / "base"), cors_origins=PAGE) as gateway:
        http = gateway.http
        asks = await http.options("/v1/chat/completions", headers=preflight(PAGE))
        assert asks.status_code == 200
        assert asks.headers["access-control-allow-origin"] == PAGE
        assert asks.headers["access-control-allow-headers"] == preflight(PAGE)["access-control-request-headers"]
        answer = await http.post("/v1/chat/completions", json=ASK, headers={"origin": PAGE})
        assert answer.status_code == 200
        assert answer.headers["access-control-allow-origin"] == PAGE
        exposed = answer.headers["access-control-expose-headers"].split(", ")
        assert {"x-hatrack-adapter", "x-ratelimit-remaining-tokens", "retry-after", "x-request-id"} <= set(exposed)
        assert "access-control-allow-credentials" not in answer.headers
        assert "Origin" in answer.headers["vary"]
        # a refusal must be readable, too, on the data path and beside it
        for path in ("/v1/models", "/v1/adapters", "/v1/nothing"):
            refused = await http.get(path, headers={"origin": PAGE, "authorization": "Bearer hk-wrong"})
            assert refused.status_code == 401
            assert refused.headers["access-control-allow-origin"] == PAGE


async def test_a_page_of_another_origin_may_not(tmp_path: Path) -> None:
    async with running(tmp_path / "home", make_base(tmp_path / "base"), cors_origins=PAGE) as gateway:
        for other, method in (("https://evil.example.com", "POST"), ("null", "GET"), (PAGE, "TRACE")):
            refused = await gateway.http.options("/v1/adapters", headers=preflight(other, method))
            assert refused.status_code == 403
            assert refused.json()["error"]["code"] == "origin_not_allowed"
            assert "HATRACK_CORS_ORIGINS" in refused.json()["error"]["message"]
            assert "access-control-allow-origin" not in refused.headers
        answer = await gateway.http.get("/v1/models", headers={"origin": "https://evil.example.com"})
        assert "access-control-allow-origin" not in answer.headers


async def test_without_the_setting_no_request_passes_through_it(tmp_path: Path) -> None:
    async with running(tmp_path / "home", make_base(tmp_path / "base")) as gateway:
        assert isinstance(gateway.app, DataPathFirst)
        answer = await gateway.http.get("/v1/models", headers={"origin": PAGE})
        assert not [name for name in answer.headers if name.startswith("access-control")]
        missing = await gateway.http.post("/chat/completions", json=ASK)
        assert "`/v1` is missing: did you mean /v1/chat/completions?" in missing.json()["error"]["message"]
        beside = await gateway.http.get("/adapters")
        assert "did you mean /v1/adapters?" in beside.json()["error"]["message"]
        doubled = await gateway.http.get("/v1/v1/models")
        assert "did you mean /v1/models?" in doubled.json()["error"]["message"]
        assert doubled.json()["error"]["code"] == "unknown_route"


async def test_pages_may_ask_a_front_where_they_may_ask_its_gateway(tmp_path: Path) -> None:
    other = "https://evil.example.com"
    asks = {"access-control-request-method": "POST", "access-control-request-headers": "authorization"}
    async with cluster(tmp_path / "home", make_base(tmp_path / "base"), cors_origins=PAGE) as made:
        front = await made.front(cors_origins=other)  # what its own environment says does not count
        for path in ("/v1/chat/completions", "/v1/adapters", "/readyz"):
            for origin in (PAGE, other):
                own, here = [
                    await http.options(path, headers={"origin": origin, **asks})
                    for http in (made.gateway.http, front.http)
                ]
                assert here.status_code == own.status_code == (200 if origin == PAGE else 403), (path, origin)
                assert _cors_headers(here) == _cors_headers(own)
        for more in ({}, {"response_format": SCHEMA}):  # answered here, and passed on
            for origin in (PAGE, other):
                own, here = [
                    await http.post("/v1/chat/completions", json={**ASK, **more}, headers={"origin": origin})
                    for http in (made.gateway.http, front.http)
                ]
                assert here.status_code == own.status_code == 200
                assert _cors_headers(here) == _cors_headers(own)
                assert ("access-control-allow-origin" in here.headers) == (origin == PAGE)
                assert "Origin" in here.headers["vary"]
        beside = await front.http.get("/v1/adapters", headers={"origin": PAGE})
        assert beside.headers.get_list("access-control-allow-origin") == [PAGE]
        await made.vanish()
        away = await front.http.get("/v1/adapters", headers={"origin": PAGE})
        assert (away.status_code, away.headers["access-control-allow-origin"]) == (503, PAGE), "readable, too"


def _cors_headers(answer: httpx.Response) -> list[tuple[str, str]]:
    return sorted((name, value) for name, value in answer.headers.multi_items() if name.startswith("access-control"))


async def test_without_origins_a_front_answers_no_page(tmp_path: Path) -> None:
    async with cluster(tmp_path / "home", make_base(tmp_path / "base")) as made:
        front = await made.front(cors_origins="*")
        answer = await front.http.get("/v1/models", headers={"origin": PAGE})
        assert answer.status_code == 200
        assert not _cors_headers(answer)


async def test_a_stream_passes_through_as_it_comes() -> None:
    order: list[str] = []

    async def stream(_scope: Scope, _receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/event-stream")]})
        for number in range(3):
            order.append(f"made {number}")
            await send({"type": "http.response.body", "body": b"data: {}\n\n", "more_body": True})
        await send({"type": "http.response.body", "body": b""})

    async def send(message: Message) -> None:
        order.append("sent " + message["type"].rpartition(".")[2])

    async def receive() -> Message:
        return {"type": "http.request", "body": b"", "more_body": False}

    scope: dict[str, Any] = {"type": "http", "method": "POST", "path": "/", "headers": [(b"origin", PAGE.encode())]}
    await Cors(stream, ("*",))(scope, receive, send)
    assert order == ["sent start", "made 0", "sent body", "made 1", "sent body", "made 2", "sent body", "sent body"]


def test_every_header_of_ours_in_an_answer_is_exposed() -> None:
    found = set(_response_headers())
    assert found, "the search finds nothing"
    assert found <= set(EXPOSED)


def _response_headers() -> Iterator[str]:
    """The names under which the data path adds headers to its answers."""
    root = Path(__file__).parents[3] / "service"
    for path in (*root.glob("inference/*.py"), *root.glob("grounding/*.py"), *root.glob("access/*.py")):
        yield from re.findall(r'b"(x-(?:hatrack|ratelimit)-[a-z-]+)"', path.read_text())


@pytest.mark.parametrize(
    "origin", ["app.example.com", "https://app.example.com/", "https://a.example/x", "https://*", "HTTPS://A", "null"]
)
def test_what_is_no_origin_is_named(monkeypatch: pytest.MonkeyPatch, origin: str) -> None:
    monkeypatch.setenv("HATRACK_CORS_ORIGINS", f"http://localhost:3000 {origin}")
    with pytest.raises(SettingsError, match="HATRACK_CORS_ORIGINS") as caught:
        load_settings()
    assert origin in str(caught.value)


def test_several_origins(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HATRACK_CORS_ORIGINS", "http://localhost:3000  https://a.example http://[::1]:8080 *")
    assert load_settings().cors_origins == ("http://localhost:3000", "https://a.example", "http://[::1]:8080", "*")
