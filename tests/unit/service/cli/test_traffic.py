"""`hatrack split pin unpin` and their calls of the client, against a gateway in a thread."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import TypeAlias

import pytest
from typer.testing import CliRunner, Result

from service.cli.main import app
from service.client import ClientError, HatrackClient
from tests.unit.service.wire import KEY, Gateway, running

Hatrack: TypeAlias = Callable[..., Result]


@pytest.fixture
def gateway() -> Iterator[Gateway]:
    with running() as server:
        for _ in range(3):
            server.add("voice")
        yield server


@pytest.fixture
def hatrack(gateway: Gateway, monkeypatch: pytest.MonkeyPatch) -> Hatrack:
    monkeypatch.setenv("HATRACK_URL", gateway.url)
    monkeypatch.setenv("HATRACK_KEY", KEY)
    return lambda *arguments: CliRunner().invoke(app, list(arguments))


def test_split_sends_the_weights_and_says_what_goes_where(hatrack: Hatrack, gateway: Gateway) -> None:
    result = hatrack("split", "voice", "3=1", "1=3", "--alias", "canary")
    assert (result.exit_code, result.stdout) == (0, "voice:canary now goes 75% to voice@1, 25% to voice@3\n")
    method, path, _, body = gateway.requests[-1]
    assert (method, path, json.loads(body)) == ("PUT", "/v1/adapters/voice/aliases/canary", {"split": {"3": 1, "1": 3}})
    shown = json.loads(hatrack("split", "voice", "@1=90", "@2=10", "--json").stdout)
    assert shown["split"] == {"1": 90, "2": 10}


@pytest.mark.parametrize(
    ("shares", "says"),
    [
        (["3"], "VERSION=WEIGHT"),
        (["3=x", "4=1"], "VERSION=WEIGHT"),
        (["3=-1", "4=1"], "VERSION=WEIGHT"),
        (["live=1", "4=1"], "is not a valid version"),
        (["4=1", "@4=2"], "twice"),
        ([], "Missing argument"),
    ],
)
def test_a_mistake_in_a_share_is_a_usage_error(
    hatrack: Hatrack, gateway: Gateway, shares: list[str], says: str
) -> None:
    result = hatrack("split", "voice", *shares)
    assert result.exit_code == 2
    assert says in result.stderr
    assert gateway.requests == []


def test_what_the_gateway_refuses_is_said(hatrack: Hatrack) -> None:
    result = hatrack("split", "voice", "1=1", "9=1")
    assert result.exit_code == 1
    assert "voice@9" in result.stderr


def test_lists_and_objects_show_splits_and_pins(hatrack: Hatrack) -> None:
    hatrack("split", "voice", "1=90", "2=10")
    hatrack("pin", "voice")
    row = hatrack("ls").stdout.splitlines()[1].split()
    assert row[:7] == ["voice", "1:-", "2:-", "live→1:90+2:10", "3", "-", "pinned"]
    assert hatrack("show", "voice").stdout.splitlines()[0] == "voice   live→1:90+2:10   pinned"
    refused = hatrack("show", "voice:live")
    assert refused.exit_code == 1
    assert "voice@1, voice@2" in refused.stderr


def test_pin_and_unpin(hatrack: Hatrack, gateway: Gateway) -> None:
    assert hatrack("pin", "voice").stdout == "voice is pinned: voice@1 is kept warm\n"
    assert gateway.pinned == {"voice"}
    assert json.loads(hatrack("pin", "voice", "--json").stdout)["pinned"] is True
    assert hatrack("unpin", "voice").stdout == "voice is not pinned\n"
    assert gateway.pinned == set()
    assert hatrack("pin", "absent").exit_code == 1
    assert hatrack("pin", "voice@1").exit_code == 2


def test_the_client(gateway: Gateway) -> None:
    with HatrackClient(gateway.url, KEY) as client:
        assert client.adapters.split("voice", {1: 1, 2: 2})["split"] == {"1": 1, "2": 2}
        assert client.adapters.retrieve("voice")["splits"] == {"live": {"1": 1, "2": 2}}
        assert client.adapters.pin("voice")["pinned"] is True
        assert client.adapters.unpin("voice")["pinned"] is False
        with pytest.raises(ClientError) as raised:
            client.adapters.pin("absent")
        assert raised.value.status == 404
