"""Who may read /metrics."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI

from service.access.authentication import Authenticator, KeyEntry
from service.access.caller import Caller, Scope
from service.access.keys import make_key
from service.config import Settings, load_settings
from service.error_handlers import add_error_handlers
from service.errors import SettingsError
from service.http.schema import add_routes
from service.telemetry.routes import router
from service.telemetry.telemetry import Telemetry
from tests.unit.service.inference.fakes import catalog
from tests.unit.service.telemetry.support import parse, value

ADMIN = "the-admin-key-of-the-tests"
FOR_METRICS = "a-key-for-prometheus"


def app(home: Path, **fields: Any) -> tuple[FastAPI, str]:
    """The route, and a good key without the scope `admin`."""
    made = FastAPI()
    authenticator, key = Authenticator(ADMIN), make_key()
    entry = KeyEntry(Caller("key_1", "shop", frozenset({Scope.INFER, Scope.ADAPTERS})))
    authenticator.put(authenticator.hmac(key), entry)
    made.state.authenticator = authenticator
    settings = Settings(engine_device="cpu", home=home, **fields)
    made.state.telemetry = Telemetry(settings, catalog(), "0.32.0")
    add_routes(made, router)
    add_error_handlers(made)
    return made, key


async def get(made: FastAPI, key: str | None = None) -> httpx.Response:
    headers = {"authorization": f"Bearer {key}"} if key else {}
    transport = httpx.ASGITransport(made)
    async with httpx.AsyncClient(transport=transport, base_url="http://test", headers=headers) as client:
        return await client.get("/metrics")


@pytest.mark.parametrize(
    ("fields", "resolved"),
    [
        ({}, "open"),
        ({"host": "localhost"}, "open"),
        ({"host": "::1"}, "open"),
        ({"host": "192.0.2.7"}, "key"),
        ({"host": "127.example.com"}, "key"),
        ({"metrics_key": FOR_METRICS}, "key"),
        ({"host": "192.0.2.7", "metrics": "open"}, "open"),
        ({"metrics": "key"}, "key"),
        ({"metrics": "off"}, "off"),
    ],
)
def test_metrics_are_open_by_default_only_where_nobody_else_can_come(fields: dict[str, Any], resolved: str) -> None:
    assert Settings(engine_device="cpu", **fields).metrics_access == resolved


async def test_open_metrics_need_no_key(tmp_path: Path) -> None:
    made, _ = app(tmp_path)
    answer = await get(made)
    assert (answer.status_code, answer.headers["content-type"]) == (200, "text/plain; version=0.0.4; charset=utf-8")
    samples = parse(answer.content)
    assert value(samples, "hatrack_build_info", vllm="0.32.0") == 1
    assert value(samples, "hatrack_disk_free_bytes") > 0


async def test_open_metrics_need_no_key_beside_one_that_shows_more(tmp_path: Path) -> None:
    made, _ = app(tmp_path, metrics="open", metrics_key=FOR_METRICS)
    for key in (None, "wrong", FOR_METRICS, ADMIN):
        assert (await get(made, key)).status_code == 200


async def test_closed_metrics_open_to_their_own_key_and_to_an_admins(tmp_path: Path) -> None:
    made, without_scope = app(tmp_path, metrics_key=FOR_METRICS)
    assert (await get(made, FOR_METRICS)).status_code == 200
    assert (await get(made, ADMIN)).status_code == 200
    for key, status, code in (
        (None, 401, "invalid_api_key"),
        ("wrong", 401, "invalid_api_key"),
        (without_scope, 403, "insufficient_scope"),
    ):
        refused = await get(made, key)
        assert (refused.status_code, refused.json()["error"]["code"]) == (status, code)


async def test_metrics_that_are_off_are_not_there(tmp_path: Path) -> None:
    made, _ = app(tmp_path, metrics="off")
    assert (await get(made, ADMIN)).status_code == 404


def test_the_metrics_key_is_in_no_message(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HATRACK_METRICS_KEY", "too-short")
    with pytest.raises(SettingsError) as caught:
        load_settings()
    assert "HATRACK_METRICS_KEY" in str(caught.value)
    assert "too-short" not in str(caught.value)
