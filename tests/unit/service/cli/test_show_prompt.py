"""`hatrack chat --show-prompt`: what the model would be sent."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest
from typer.testing import CliRunner

from service.cli.main import app
from tests.unit.service.wire import KEY, Gateway, running


@pytest.fixture
def gateway(monkeypatch: pytest.MonkeyPatch) -> Iterator[Gateway]:
    with running() as server:
        monkeypatch.setenv("HATRACK_URL", server.url)
        monkeypatch.setenv("HATRACK_KEY", KEY)
        yield server


def test_messages_stand_under_their_roles_and_nobody_is_asked(gateway: Gateway) -> None:
    options = ("--system", "Be kind", "--temperature", "0.5", "--show-prompt")
    result = CliRunner().invoke(app, ["chat", "tiny-base", "Where\x1b is it?", *options])
    assert (result.exit_code, result.stdout) == (0, "system:\nBe kind\n\nuser:\nWhere is it?\n\n")
    assert result.stderr == "parameters: temperature 0.5\n"
    assert [path for _, path, _, _ in gateway.requests] == ["/v1/chat/completions/render"]


def test_json_is_the_answer_of_the_gateway(gateway: Gateway) -> None:
    result = CliRunner().invoke(app, ["chat", "tiny-base", "Hello", "--show-prompt", "--json"])
    assert json.loads(result.stdout)["messages"] == [{"role": "user", "content": "Hello"}]
    assert gateway.requests


def test_it_needs_a_question(gateway: Gateway, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("service.cli.chat.sys.stdin.isatty", lambda: True, raising=False)
    result = CliRunner().invoke(app, ["chat", "tiny-base", "--show-prompt"])
    assert result.exit_code == 2
    assert not gateway.requests
