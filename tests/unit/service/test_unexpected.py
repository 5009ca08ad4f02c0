"""An error that nobody foresaw is a 500 of the one shape, on every route, and is logged once."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from tests.support.adapters import make_base
from tests.unit.service.gateway_app import running


async def test_an_unexpected_error_has_the_one_shape_and_is_logged_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def broken(*_: object, **__: object) -> object:
        raise OSError("the secret path /srv/x is broken")

    async with running(tmp_path / "home", make_base(tmp_path / "base")) as gateway:
        monkeypatch.setattr("service.registry.service.Registry.adapters", broken)
        with caplog.at_level(logging.ERROR):
            answer = await gateway.http.get("/v1/adapters")
    assert answer.status_code == 500
    assert answer.json()["error"]["code"] == "internal_error"
    assert "secret" not in answer.text
    assert answer.headers["x-request-id"]
    # others log errors of their own: a base without a vocabulary has no trial process
    logged = [record for record in caplog.records if record.name == "hatrack.http" and record.levelno >= logging.ERROR]
    assert [record.exc_info is not None for record in logged] == [True]
