"""A whole gateway before a real agent; the engine is a small server of the test's."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.support.adapters import make_base
from tests.unit.service.gateway_app import BASE, GatewayApp, running

BODY = {"model": BASE, "messages": [{"role": "user", "content": "Hello"}]}


@pytest.fixture
async def gateway(tmp_path: Path) -> AsyncIterator[GatewayApp]:
    async with running(tmp_path / "home", make_base(tmp_path / "base"), through_agent=True) as app:
        yield app


async def test_a_request_is_answered_through_the_agent(gateway: GatewayApp) -> None:
    answer = await gateway.http.post("/v1/chat/completions", json=BODY)
    assert answer.status_code == 200, answer.text
    assert answer.json()["choices"][0]["message"]["content"] == "ahoy"
    ready = (await gateway.http.get("/readyz")).json()
    assert ready["engine"]["state"] == "ready"
