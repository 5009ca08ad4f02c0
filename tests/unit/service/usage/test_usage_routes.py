"""`GET /v1/usage` and `hatrack usage`: over a real database, real keys and a real socket."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, TypeAlias

import httpx
import pytest
import uvicorn
from fastapi import FastAPI
from typer.testing import CliRunner, Result

from service.access.authentication import Authenticator, KeyEntry
from service.access.caller import Caller, Scope
from service.access.keys import make_key
from service.cli.main import app as command
from service.client import HatrackClient
from service.database import Database
from service.error_handlers import RequestIds, add_error_handlers
from service.errors import DiskFull
from service.http.schema import add_routes
from service.http.stream import TokenUsage
from service.registry.catalog import Target
from service.telemetry.record import Record
from service.usage.account import UsageAccount
from service.usage.report import UsageReport
from service.usage.routes import router
from tests.support.asgi import web_server
from tests.unit.service.access.clock import MIDNIGHT, Clock

ADMIN = "the-admin-key-of-these-tests"
HOUR = MIDNIGHT + 10 * 3600
Ask: TypeAlias = Callable[..., Any]
Hatrack: TypeAlias = Callable[..., Result]


class Office:
    """TokenUsage and its route, with an admin's key and one for each of two projects."""

    def __init__(self, home: Path) -> None:
        self.clock = Clock()
        self.database = Database(home / "hatrack.db")
        self.account = UsageAccount(self.database, flush_s=3600, wall=self.clock.wall)
        authenticator = Authenticator(ADMIN)
        self.callers: dict[str, Caller] = {}
        self.keys = {"admin": ADMIN}
        for key_id, project in (("key_a", "acme"), ("key_b", "acme"), ("key_c", "bolt")):
            self.keys[key_id] = make_key()
            self.callers[key_id] = Caller(key_id, project, frozenset({Scope.INFER}))
            authenticator.put(authenticator.hmac(self.keys[key_id]), KeyEntry(self.callers[key_id]))
        api = FastAPI()
        api.state.authenticator = authenticator
        api.state.usage_report = UsageReport(self.database, self.account, wall=self.clock.wall)
        add_routes(api, router)
        add_error_handlers(api)
        self.app = RequestIds(api)

    @asynccontextmanager
    async def open(self) -> AsyncIterator[Office]:
        await self.database.open()
        try:
            yield self
        finally:
            await self.database.close()

    def use(self, key_id: str, adapter: str = "", version: int = 0, times: int = 1) -> None:
        """Requests of 10 tokens in, of which 4 from the cache, and 5 out; without an adapter of the base."""
        target = Target(adapter or "smol", "0" * 64, adapter or None, version or None)
        for _ in range(times):
            self.account(Record("r", "/v1/x", self.callers[key_id], target, usage=TokenUsage(10, 5, 4)))

    def use_much(self) -> None:
        """Four hours over midnight, in which three keys of two projects ask for two versions, the base and nothing."""
        self.clock.unix = MIDNIGHT - 7200
        for _ in range(4):
            self.use("key_a", "voice", 1, times=3)
            self.use("key_a", "voice", 2)
            self.use("key_b")
            self.use("key_c", "voice", 1)
            self.clock.pass_s(3600)
        self.clock.pass_s(-3600)
        self.account(Record("r", "/v1/x", self.callers["key_c"], None, outcome="refused"))


@pytest.fixture
async def office(tmp_path: Path) -> AsyncIterator[Office]:
    async with Office(tmp_path).open() as opened:
        yield opened


@pytest.fixture
async def ask(office: Office) -> AsyncIterator[Ask]:
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app=office.app), base_url="http://test") as client:

        async def get(who: str = "admin", /, **params: Any) -> Any:
            headers = {"authorization": f"Bearer {office.keys[who]}"}
            return (await client.get("/v1/usage", params=params, headers=headers)).json()

        yield get


def brief(page: dict[str, Any], *names: str) -> list[tuple[Any, ...]]:
    return [tuple(row[name] for name in (*names, "requests")) for row in page["data"]]


async def test_a_row_says_all_there_is(office: Office, ask: Ask) -> None:
    office.use("key_a", "voice", 3, times=2)
    page = await ask()
    assert page["data"] == [
        {
            "object": "usage",
            "id": page["data"][0]["id"],
            "start": HOUR,
            "end": HOUR + 3600,
            "project": "acme",
            "key": "key_a",
            "key_name": None,
            "adapter": "voice",
            "version": 3,
            "requests": 2,
            "errors": 0,
            "prompt_tokens": 20,
            "completion_tokens": 10,
            "cached_tokens": 8,
        }
    ]
    del page["data"]
    assert page == {"object": "list", "start": HOUR - 86_400, "end": HOUR + 3600, "only_key": None, "has_more": False}


async def test_the_base_and_what_stands_for_nothing(office: Office, ask: Ask) -> None:
    office.use_much()
    page = await ask("key_c", group_by="adapter,version")
    assert brief(page, "adapter", "version", "errors") == [(None, None, 1, 1), ("voice", 1, 0, 4)]
    assert brief(await ask("key_b", group_by="version"), "adapter", "version") == [("smol", None, 4)]


async def test_grouping(office: Office, ask: Ask) -> None:
    office.use_much()
    assert brief(await ask(group_by="project"), "project") == [("acme", 20), ("bolt", 5)]
    assert brief(await ask(group_by=["key", "project"]), "project", "key") == [
        ("acme", "key_a", 16),
        ("acme", "key_b", 4),
        ("bolt", "key_c", 5),
    ]
    assert brief(await ask(group_by="hour"), "start", "end") == [
        (MIDNIGHT + offset, MIDNIGHT + offset + 3600, 6 + (offset == 3600)) for offset in (-7200, -3600, 0, 3600)
    ]
    assert brief(await ask(group_by="hour", bucket="day"), "start", "end") == [
        (MIDNIGHT - 86_400, MIDNIGHT, 12),
        (MIDNIGHT, MIDNIGHT + 86_400, 13),
    ]
    total = await ask(group_by="")
    assert brief(total, "prompt_tokens", "completion_tokens") == [(240, 120, 25)]
    assert brief(await ask(group_by="", key="nobody"), "prompt_tokens") == [(0, 0)]
    assert set(total["data"][0]) & {"project", "key", "adapter", "version"} == set()


async def test_filters_and_time(office: Office, ask: Ask) -> None:
    office.use_much()
    assert brief(await ask(group_by="adapter", adapter="voice", project="acme"), "adapter") == [("voice", 16)]
    assert brief(await ask(group_by="adapter", key="key_c"), "adapter") == [(None, 1), ("voice", 4)]
    assert brief(await ask(group_by="adapter", key="key_x"), "adapter") == []
    cut = await ask(group_by="hour", start=MIDNIGHT - 1, end=MIDNIGHT + 1)
    assert (cut["start"], cut["end"]) == (MIDNIGHT - 3600, MIDNIGHT + 3600)
    assert brief(cut, "start") == [(MIDNIGHT - 3600, 6), (MIDNIGHT, 6)]
    whole = await ask(group_by="hour", bucket="day", start=MIDNIGHT - 1, end=MIDNIGHT)
    assert brief(whole, "start") == [(MIDNIGHT - 86_400, 12)]
    office.clock.pass_s(3 * 86_400)
    assert (await ask())["data"] == []


async def test_a_key_sees_its_own_usage_and_nothing_tells_it_of_another(office: Office, ask: Ask) -> None:
    office.use_much()
    assert brief(await ask("key_a", group_by="project,key"), "project", "key") == [("acme", "key_a", 16)]
    assert brief(await ask("key_a", group_by="key", key="key_a", project="acme"), "key") == [("key_a", 16)]
    never = await ask("key_a", group_by="key", key="key_of_nobody")
    assert (never["data"], never["only_key"]) == ([], "key_a")
    assert brief(await ask("key_a", group_by="")) == [(16,)]
    for hidden in ({"key": "key_b"}, {"key": "key_c"}, {"project": "bolt"}, {"key": "key_a", "project": "bolt"}):
        assert await ask("key_a", group_by="key", **hidden) == never


async def test_pages_are_whole_and_overlap_nowhere(office: Office, ask: Ask) -> None:
    office.use_much()
    whole = await ask(limit=1000)
    assert (len(whole["data"]), whole["has_more"]) == (17, False)
    found: list[Any] = []
    params: dict[str, Any] = {}
    while True:
        page = await ask(limit=4, **params)
        found += page["data"]
        if not page["has_more"]:
            break
        params = {"after": page["data"][-1]["id"]}
    assert found == whole["data"]


async def test_it_is_never_stale(office: Office, ask: Ask) -> None:
    for number in (1, 2, 3):
        office.use("key_a")
        assert brief(await ask(group_by="key"), "key") == [("key_a", number)]


@pytest.mark.parametrize(
    ("params", "param"),
    [
        ({"start": 10, "end": 10}, "start"),
        ({"start": 0, "end": 400 * 86_400}, "start"),
        ({"start": -1}, "start"),
        ({"end": "noon"}, "end"),
        ({"end": 2**60}, "end"),
        ({"bucket": "week"}, "bucket"),
        ({"group_by": "colour"}, "group_by"),
        ({"group_by": ["key"] * 17}, "group_by"),
        ({"limit": 0}, "limit"),
        ({"limit": 1001}, "limit"),
        ({"after": "%%%"}, "after"),
        ({"after": "ä"}, "after"),
        ({"after": "WzFd"}, "after"),
        ({"after": "e30", "group_by": "hour"}, "after"),
        ({"after": "WzE4NDQ2NzQ0MDczNzA5NTUxNjE1XQ", "group_by": "hour"}, "after"),
        ({"after": "A" * 3000}, "after"),
        ({"after": "W10", "group_by": ""}, "after"),
        ({"project": "p" * 300}, "project"),
    ],
)
async def test_a_question_that_makes_no_sense_is_refused_by_name(ask: Ask, params: dict[str, Any], param: str) -> None:
    error = (await ask(**params))["error"]
    assert (error["type"], error["param"].split(".")[0]) == ("invalid_request_error", param)


async def test_without_a_key_there_is_no_usage(office: Office) -> None:
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app=office.app), base_url="http://test") as client:
        answer = await client.get("/v1/usage?group_by=colour")
    assert (answer.status_code, answer.json()["error"]["code"]) == (401, "invalid_api_key")


@pytest.mark.sqlite
async def test_a_full_disk_is_an_answer(office: Office, ask: Ask) -> None:
    for number in range(2000):
        office.use("key_a", f"voice-{number}", 1)
    await office.database.run(
        lambda db: db.exec_driver_sql(f"PRAGMA max_page_count = {db.exec_driver_sql('PRAGMA page_count').scalar_one()}")
    )
    assert (await ask())["error"]["code"] == DiskFull.default_code


# the command and the client


@pytest.fixture
def url(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """An office with much usage, on a socket, in a thread of its own."""
    office, servers, opened = Office(tmp_path), list[uvicorn.Server](), threading.Event()
    listener = socket.create_server(("127.0.0.1", 0))

    async def serve() -> None:
        async with office.open():
            office.use_much()
            servers.append(web_server(office.app, lifespan="off", log_level="warning"))
            opened.set()
            await servers[0].serve(sockets=[listener])

    for name in ("HATRACK_PROJECT", "OPENAI_BASE_URL", "OPENAI_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HATRACK_KEY", ADMIN)
    thread = threading.Thread(target=lambda: asyncio.run(serve()))
    thread.start()
    try:
        assert opened.wait(60)
        monkeypatch.setenv("HATRACK_URL", f"http://127.0.0.1:{listener.getsockname()[1]}")
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        for server in servers:
            server.should_exit = True
        thread.join()


@pytest.fixture
def hatrack(url: str) -> Hatrack:
    return lambda *arguments: CliRunner().invoke(command, ["usage", *arguments])


SPAN = ("--since", "2024-10-03", "--until", "2024-10-05")
"""The days before and after the clock's midnight, 2024-10-04."""


def table(result: Result) -> list[list[str]]:
    assert result.exit_code == 0, result.stderr
    return [line.split() for line in result.stdout.splitlines()]


def test_the_table(hatrack: Hatrack) -> None:
    assert table(hatrack(*SPAN)) == [
        ["ADAPTER", "REQUESTS", "ERRORS", "TOKENS", "IN", "TOKENS", "OUT", "IN", "FROM", "CACHE"],
        ["(no", "such", "model)", "1", "1", "0", "0", "0"],
        ["smol", "4", "0", "40", "20", "16"],
        ["voice", "20", "0", "200", "100", "80"],
        ["total", "25", "1", "240", "120", "96"],
    ]
    rows = table(hatrack(*SPAN, "--by", "day,project", "--project", "bolt"))
    assert rows[1:] == [
        ["2024-10-03", "bolt", "2", "0", "20", "10", "8"],
        ["2024-10-04", "bolt", "3", "1", "20", "10", "8"],
        ["total", "5", "1", "40", "20", "16"],
    ]
    rows = table(hatrack(*SPAN, "--by", "hour", "--by", "version", "--key", "key_b"))
    assert rows[1] == ["2024-10-03", "22:00Z", "smol", "-", "1", "0", "10", "5", "4"]
    assert hatrack(*SPAN, "--adapter", "nobody").stdout == "No usage in that time.\n"
    assert hatrack("--since", "90m", "--until", "1m").stdout == "No usage in that time.\n"


def test_json_is_the_rows(hatrack: Hatrack) -> None:
    rows = json.loads(hatrack(*SPAN, "--by", "version", "--json").stdout)
    assert [(row["adapter"], row["version"], row["requests"]) for row in rows] == [
        (None, None, 1),
        ("smol", None, 4),
        ("voice", 1, 16),
        ("voice", 2, 4),
    ]


@pytest.mark.parametrize(
    "wrong",
    [("--by", "colour"), ("--by", "hour,day"), ("--since", "yesterday"), ("--since", "2024-02-30"), ("--until", "7x")],
)
def test_wrong_usage_is_told_without_asking(hatrack: Hatrack, wrong: tuple[str, ...]) -> None:
    result = hatrack(*wrong)
    assert (result.exit_code, result.stdout) == (2, "")


def test_the_client_reads_all_pages(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("service.client.access.USAGE_PAGE", 3)
    with HatrackClient(url, ADMIN) as client:
        rows = list(client.usage.list(start=MIDNIGHT - 86_400, end=MIDNIGHT + 86_400))
    assert len(rows) == len({row["id"] for row in rows}) == 17
    assert sum(row["requests"] for row in rows) == 25
