"""`hatrack keys` and `hatrack audit`, against the real routes on a real socket."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeAlias

import pytest
import uvicorn
from typer.testing import CliRunner, Result

from service.cli.main import app
from service.client import ClientError, HatrackClient
from tests.support.asgi import web_server
from tests.unit.service.access.keys_app import KeysApp

Hatrack: TypeAlias = Callable[..., Result]


@contextmanager
def listening(keys_app: KeysApp) -> Iterator[str]:
    """The URL of a server of the key routes, in a thread of its own."""
    servers: list[uvicorn.Server] = []
    opened = threading.Event()
    listener = socket.create_server(("127.0.0.1", 0))  # who connects before the server accepts waits

    async def serve() -> None:
        async with keys_app.run():
            servers.append(web_server(keys_app.app, lifespan="off", log_level="warning"))
            opened.set()
            await servers[0].serve(sockets=[listener])

    thread = threading.Thread(target=lambda: asyncio.run(serve()))
    thread.start()
    try:
        assert opened.wait(60)
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        for server in servers:
            server.should_exit = True
        thread.join()


@pytest.fixture
def url(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    for name in ("HATRACK_KEY", "HATRACK_PROJECT", "OPENAI_BASE_URL", "OPENAI_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HATRACK_HOME", str(tmp_path))
    with listening(KeysApp(tmp_path)) as address:
        monkeypatch.setenv("HATRACK_URL", address)
        yield address


@pytest.fixture
def hatrack(url: str) -> Hatrack:
    return lambda *arguments: CliRunner().invoke(app, list(arguments))


def made(hatrack: Hatrack, *arguments: str) -> Any:
    result = hatrack("keys", "create", *arguments, "--json")
    assert result.exit_code == 0, result.stderr
    return json.loads(result.stdout)


def test_a_new_key_is_alone_on_stdout_and_works(hatrack: Hatrack, url: str) -> None:
    result = hatrack("keys", "create", "shop", "--project", "acme", "--scope", "admin")
    assert result.exit_code == 1
    assert "project" in result.stderr
    result = hatrack("keys", "create", "shop", "--project", "acme")
    key = result.stdout.strip()
    assert key.startswith("hk_")
    assert result.stdout == key + "\n"
    assert "may infer in project acme" in result.stderr
    assert key not in result.stderr
    with HatrackClient(url, key) as client, pytest.raises(ClientError) as caught:
        list(client.keys.list())
    assert (caught.value.status, caught.value.code) == (403, "insufficient_scope")


def test_all_options_of_a_key(hatrack: Hatrack) -> None:
    before = int(time.time())
    key = made(
        hatrack, "shop", "--project", "acme", "--scope", "infer", "--scope", "train", "--adapter", "brand-*",
        "--adapter", "v?", "--store", "docs", "--limit", "tokens_per_minute=1000", "--limit", "concurrent=2",
        "--expires", "30d",
    )  # fmt: skip
    assert (key["scopes"], key["adapters"], key["stores"]) == (["infer", "train"], ["brand-*", "v?"], ["docs"])
    assert key["limits"] == {"tokens_per_minute": 1000, "concurrent": 2}
    assert before + 30 * 86_400 <= key["expires_at"] <= time.time() + 30 * 86_400
    dated = made(hatrack, "dated", "--expires", "2099-01-31")
    assert datetime.fromtimestamp(dated["expires_at"], UTC) == datetime(2099, 1, 31, tzinfo=UTC)
    shown = hatrack("keys", "ls").stdout
    assert "brand-* v?" in shown
    assert "tokens_per_minute=1000 concurrent=2" in shown
    assert "2099-01-31 00:00Z" in shown
    assert key["key"] not in shown


@pytest.mark.parametrize(
    "wrong",
    [
        ("--limit", "tokens=1"),
        ("--limit", "concurrent"),
        ("--limit", "concurrent=-1"),
        ("--limit", "concurrent=²"),
        ("--expires", "soon"),
        ("--expires", "0d"),
        ("--expires", "2027-02-30"),
        ("--scope", "root"),
    ],
)
def test_a_wrong_option_is_a_usage_error(hatrack: Hatrack, wrong: tuple[str, str]) -> None:
    result = hatrack("keys", "create", "shop", *wrong)
    assert result.exit_code == 2
    assert wrong[0] in result.stderr
    assert hatrack("keys", "ls", "--json").stdout == "[]\n"


def test_rm_revokes(hatrack: Hatrack, url: str) -> None:
    key = made(hatrack, "ops", "--scope", "admin")
    with HatrackClient(url, key["key"]) as client:
        assert [item["id"] for item in client.keys.list()] == [key["id"]]
        assert hatrack("keys", "rm", key["id"]).stdout == f"Revoked {key['id']}.\n"
        with pytest.raises(ClientError) as caught:
            list(client.keys.list())
    assert caught.value.status == 401
    again = hatrack("keys", "rm", key["id"], "--json")
    assert (again.exit_code, json.loads(again.stderr)["error"]["code"]) == (1, "not_found")
    assert "No keys except the admin key" in hatrack("keys", "ls").stdout


def test_rotate_admin_prints_the_key_that_the_next_command_finds(hatrack: Hatrack, tmp_path: Path) -> None:
    old = (tmp_path / "admin.key").read_text()
    result = hatrack("keys", "rotate-admin")
    assert result.exit_code == 0
    assert result.stdout == (tmp_path / "admin.key").read_text()
    assert result.stdout != old
    assert hatrack("keys", "ls").exit_code == 0


def test_the_audit_in_a_table_and_as_json(hatrack: Hatrack) -> None:
    key = made(hatrack, "shop", "--project", "acme")
    hatrack("keys", "rm", key["id"])
    lines = hatrack("audit").stdout.splitlines()
    assert lines[0].split() == ["WHEN", "WHO", "PROJECT", "ACTION", "TARGET", "DETAIL"]
    assert ["key.delete" in lines[1], "key.create" in lines[2], len(lines)] == [True, True, 3]
    assert "acme" in lines[1]
    found = json.loads(hatrack("audit", "--action", "key.create", "--project", "acme", "--json").stdout)
    assert [(entry["target"], entry["key_id"]) for entry in found] == [(key["id"], "admin")]
    assert len(json.loads(hatrack("audit", "-n", "1", "--json").stdout)) == 1


def test_an_admin_acts_in_the_project_of_the_environment(hatrack: Hatrack, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HATRACK_PROJECT", "globex")
    assert made(hatrack, "shop")["project"] == "globex"
    monkeypatch.setenv("HATRACK_PROJECT", "Not A Name")
    assert hatrack("keys", "ls").exit_code == 1


def test_lists_are_read_page_after_page(hatrack: Hatrack, url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("service.client.connection.PAGE", 2)
    ids = [made(hatrack, f"k{number}")["id"] for number in range(5)]
    with HatrackClient(url) as client:
        assert [key["id"] for key in client.keys.list()] == ids
        assert [entry["target"] for entry in client.audit.list()] == ids[::-1]
        assert [entry["target"] for entry in client.audit.list(limit=3)] == ids[:1:-1]


@pytest.mark.parametrize("command", ["keys", "keys ls", "keys create", "keys rm", "keys rotate-admin", "audit"])
def test_every_command_has_help_with_examples(command: str) -> None:
    result = CliRunner().invoke(app, [*command.split(), "--help"])
    assert result.exit_code == 0
    assert f"Examples:\n    hatrack {command}" in result.stdout


def test_a_keys_filters_are_text_unless_they_are_json(hatrack: Hatrack, url: str) -> None:
    filters = ("customer=c-1017", "year=2026", 'number="2026"', "gift=true", f"id={10**17 + 1}")
    options = [option for pair in filters for option in ("--filter", pair)]
    key = made(hatrack, "shopper", *options)
    expected = {"customer": "c-1017", "year": 2026, "number": "2026", "gift": True, "id": "100000000000000001"}
    assert key["filters"] == expected
    filters = (*filters[:-1], f'id="{10**17 + 1}"')
    assert " ".join(filters) in " ".join(hatrack("keys", "ls").stdout.split())
    refused = hatrack("keys", "create", "k", "--scope", "knowledge", "--filter", "customer=c-1")
    assert (refused.exit_code, "`infer`" in refused.stderr) == (1, True)
    assert hatrack("keys", "create", "k", "--filter", "=c-1").exit_code == 2
