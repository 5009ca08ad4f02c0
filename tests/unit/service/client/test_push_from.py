"""`adapters.push_from` and `hatrack push NAME SOURCE`, against a gateway that sends events."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from service.cli.main import app
from service.client import ClientError, HatrackClient
from tests.support.http import serving

SOURCE = "hf://acme/voice@v1"
FETCHING = {"object": "adapter.push", "stage": "fetching", "file": "adapter_model.safetensors", "bytes": 1, "total": 2}
PROVING = {"object": "adapter.push", "stage": "proving"}
VERSION = {
    "object": "adapter.version", "adapter": "voice", "version": 1, "state": "ready", "digest": "a" * 64, "rank": 4,
    "bytes": 2048, "aliases": ["live"], "warnings": [], "held_back": None,
}  # fmt: skip


@dataclass
class Pushing:
    """A gateway whose pushes go as `events` say, and what it was asked."""

    events: list[Any] = field(default_factory=lambda: [FETCHING, PROVING, VERSION])
    refusal: tuple[int, dict[str, Any]] | None = None
    asked: list[tuple[str, dict[str, Any]]] = field(default_factory=list)

    def answer(self, _method: str, path: str, body: bytes, _key: str) -> tuple[int, bytes, dict[str, str]]:
        self.asked.append((path, json.loads(body)))
        if self.refusal is not None:
            return self.refusal[0], json.dumps(self.refusal[1]).encode(), {}
        told = b":\n\n".join(b"data: " + json.dumps(event).encode() + b"\n\n" for event in self.events)
        return 200, told, {"content-type": "text/event-stream"}


@pytest.fixture
def gateway(monkeypatch: pytest.MonkeyPatch) -> Iterator[Pushing]:
    pushing = Pushing()
    with serving(pushing.answer) as url:
        monkeypatch.setenv("HATRACK_URL", url)
        monkeypatch.setenv("HATRACK_KEY", "hk-test")
        yield pushing


def hatrack(*arguments: str) -> Result:
    return CliRunner().invoke(app, list(arguments))


def test_the_progress_and_the_version(gateway: Pushing) -> None:
    seen: list[Any] = []
    with HatrackClient() as client:
        version = client.adapters.push_from(
            "voice", SOURCE, sha256="a" * 64, settings={"system_prompt": "Hi"}, alias="canary", progress=seen.append
        )
    assert (version, seen) == (VERSION, [FETCHING, PROVING])
    assert gateway.asked == [
        (
            "/v1/adapters?stream=true",
            {
                "name": "voice",
                "source": {"url": SOURCE, "sha256": "a" * 64},
                "settings": {"system_prompt": "Hi"},
                "alias": "canary",
            },
        )
    ]


def test_an_error_in_the_stream_is_raised(gateway: Pushing) -> None:
    error = {"message": "It came otherwise.", "type": "t", "param": "source.url", "code": "source_digest_mismatch"}
    gateway.events = [FETCHING, {"error": error, "status": 422}]
    with HatrackClient() as client, pytest.raises(ClientError) as caught:
        client.adapters.push_from("voice", SOURCE)
    assert (caught.value.status, caught.value.code, caught.value.param) == (422, "source_digest_mismatch", "source.url")


def test_a_stream_that_ends_too_early_is_an_error(gateway: Pushing) -> None:
    gateway.events = [FETCHING]
    with HatrackClient() as client, pytest.raises(ClientError, match="push again to go on"):
        client.adapters.push_from("voice", SOURCE)


def test_the_command_says_what_became_of_it(gateway: Pushing) -> None:
    result = hatrack("push", "voice", SOURCE)
    assert (result.exit_code, result.stdout) == (0, "voice@1 is ready (rank 4, 2.0 KiB, alias live)\n")
    options = ("--sha256", "A" * 64, "--no-wait", "--no-alias", "--temperature", "0.5", "--json")
    assert json.loads(hatrack("push", "voice", "s3://models/voice/", *options).stdout) == VERSION
    assert gateway.asked[1] == (
        "/v1/adapters?stream=true&wait=false",
        {
            "name": "voice",
            "source": {"url": "s3://models/voice", "sha256": "a" * 64},
            "settings": {"sampling": {"temperature": 0.5}},
            "alias": "",
        },
    )


def test_a_refusal_names_the_setting(gateway: Pushing) -> None:
    error = {"message": "HATRACK_SOURCES is empty.", "type": "t", "param": "source.url", "code": "source_not_allowed"}
    gateway.refusal = (403, {"error": error})
    result = hatrack("push", "voice", SOURCE)
    assert (result.exit_code, result.stderr) == (1, "hatrack: HATRACK_SOURCES is empty. [source_not_allowed]\n")


@pytest.mark.parametrize(
    "arguments",
    [
        ("voice", "hf://acme"),
        ("voice", "ftp://files.example/voice"),
        ("voice", SOURCE, "--sha256", "abc"),
        ("voice", "{directory}", "--sha256", "a" * 64),
    ],
)
def test_wrong_usage(gateway: Pushing, tmp_path: Path, arguments: tuple[str, ...]) -> None:
    result = hatrack("push", *(argument.format(directory=tmp_path) for argument in arguments))
    assert (result.exit_code, gateway.asked) == (2, [])
