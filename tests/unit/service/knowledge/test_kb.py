"""`hatrack kb` against the real stores, over a real port."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import TypeAlias

import pytest
from typer.testing import CliRunner, Result

from service.cli import kb
from service.cli.main import app
from service.error_handlers import RequestIds
from tests.support.asgi import web_server
from tests.unit.service.files.files_app import ADMIN_KEY
from tests.unit.service.inference.fakes import until
from tests.unit.service.knowledge.knowledge_app import KnowledgeApp
from tests.unit.service.knowledge.test_vector_stores import DELIVERY, RETURNS

Hatrack: TypeAlias = Callable[..., Awaitable[Result]]


@pytest.fixture
async def hatrack(knowledge_app: KnowledgeApp, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Hatrack]:
    server = web_server(RequestIds(knowledge_app.app()), host="127.0.0.1", port=0, log_level="error", lifespan="off")
    serving = asyncio.create_task(server.serve())
    await until(lambda: server.started)
    port = server.servers[0].sockets[0].getsockname()[1]
    monkeypatch.setenv("HATRACK_URL", f"http://127.0.0.1:{port}")
    monkeypatch.setenv("HATRACK_KEY", ADMIN_KEY)

    async def run(*arguments: object) -> Result:
        return await asyncio.to_thread(CliRunner().invoke, app, ["kb", *map(str, arguments)])

    yield run
    server.should_exit = True
    await serving


@pytest.fixture
def docs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "docs"
    (folder / "more").mkdir(parents=True)
    (folder / "returns.md").write_text(RETURNS)
    (folder / "more" / "delivery.md").write_text(DELIVERY)
    (folder / "picture.png").write_bytes(b"\x89PNG")
    monkeypatch.chdir(tmp_path)
    return folder


async def test_from_nothing_to_an_answer_and_back(hatrack: Hatrack, docs: Path) -> None:
    made = await hatrack("create", "policies", "--description", "rules")
    assert made.exit_code == 0, made.output
    assert "is policies" in made.output
    added = await hatrack("add", "policies", docs, "--attribute", "region=eu", "--attribute", "year=2026")
    assert added.exit_code == 0, added.output
    assert "2 of 2 files indexed, 2 passages" in added.output
    found = await hatrack("search", "policies", "How many days for unworn goods?", "-k", 1)
    assert "[1]" in found.output
    assert "returns.md" in found.output
    assert "45 days" in found.output
    none = await hatrack("search", "policies", "days", "--filter", '{"type": "eq", "key": "year", "value": 1999}')
    assert none.output == "No passages match.\n"
    listed = json.loads((await hatrack("list", "policies", "--json")).stdout)
    assert {file["filename"] for file in listed} == {"returns.md", "delivery.md"}
    attributes = {file["attributes"].pop("path"): file["attributes"] for file in listed}
    assert attributes == {path: {"region": "eu", "year": 2026} for path in ("docs/returns.md", "docs/more/delivery.md")}
    assert "policies" in (await hatrack("list")).output
    assert "returns.md" in (await hatrack("list", "policies")).output
    gone = await hatrack("rm", "policies", "returns.md")
    assert gone.output == "returns.md deleted\n"
    assert "45 days" not in (await hatrack("search", "policies", "unworn goods")).output
    assert (await hatrack("rm", "policies", "--yes")).exit_code == 0
    missing = await hatrack("search", "policies", "x")
    assert missing.exit_code == 1
    assert "vector_store_not_found" in missing.output


async def test_a_document_takes_the_place_of_the_older_one(
    hatrack: Hatrack, docs: Path, knowledge_app: KnowledgeApp
) -> None:
    await hatrack("create", "policies")
    await hatrack("add", "policies", docs / "returns.md")
    (docs / "returns.md").write_text(RETURNS.replace("45", "60"))
    again = await hatrack("add", "policies", docs / "returns.md")
    assert again.exit_code == 0, again.output
    found = (await hatrack("search", "policies", "How many days?")).output
    assert "60 days" in found
    assert "45 days" not in found
    assert len(await knowledge_app.listed()) == 1
    await hatrack("add", "policies", docs / "returns.md", "--keep")
    assert len(json.loads((await hatrack("list", "policies", "--json")).stdout)) == 2


async def test_a_file_is_known_by_its_path_and_no_other_takes_its_place(hatrack: Hatrack, docs: Path) -> None:
    for region in ("eu", "us"):
        (docs / region).mkdir()
        (docs / region / "returns.md").write_text(RETURNS.replace("45", {"eu": "14", "us": "30"}[region]))
    await hatrack("create", "policies")
    for paths in (["docs/eu/"], ["docs/us"], ["./docs/eu/returns.md", docs / "us" / "returns.md"]):
        added = await hatrack("add", "policies", *paths)
        assert added.exit_code == 0, added.output
    held = {file["attributes"]["path"] for file in json.loads((await hatrack("list", "policies", "--json")).stdout)}
    assert held == {"docs/eu/returns.md", "docs/us/returns.md"}
    found = (await hatrack("search", "policies", "How many days?")).output
    assert "14 days" in found
    assert "30 days" in found
    assert "docs/us/returns.md" in found
    both = await hatrack("rm", "policies", "returns.md")
    assert both.exit_code == 2
    assert (await hatrack("rm", "policies", "docs/eu/returns.md")).exit_code == 0
    assert (await hatrack("rm", "policies", "returns.md")).exit_code == 0, "now there is one of that name"


async def test_a_file_of_another_client_is_never_replaced(
    hatrack: Hatrack, docs: Path, knowledge_app: KnowledgeApp
) -> None:
    await hatrack("create", "policies")
    client = knowledge_app.client()
    store = (await client.vector_stores.list()).data[0].id
    other = await knowledge_app.text("returns.md", RETURNS)
    await client.vector_stores.files.create_and_poll(other, vector_store_id=store, poll_interval_ms=10)
    assert (await hatrack("add", "policies", "docs/returns.md")).exit_code == 0
    assert len(json.loads((await hatrack("list", "policies", "--json")).stdout)) == 2
    assert (await hatrack("rm", "policies", other)).exit_code == 0


async def test_what_cannot_be_read_takes_nobodys_place(hatrack: Hatrack, docs: Path) -> None:
    await hatrack("create", "policies")
    await hatrack("add", "policies", docs / "returns.md")
    (docs / "returns.md").write_bytes(b"\x00\xff\xfe\x00" * 100)
    failed = await hatrack("add", "policies", docs / "returns.md")
    assert failed.exit_code == 1
    assert "0 of 1 file indexed, 0 passages" in failed.output
    assert "hatrack: docs/returns.md: " in failed.output
    assert "45 days" in (await hatrack("search", "policies", "days")).output


async def test_wrong_usage(hatrack: Hatrack, knowledge_app: KnowledgeApp, docs: Path) -> None:
    await hatrack("create", "twice")
    again = await hatrack("create", "twice")
    assert (again.exit_code, "There is already a store named twice" in again.output) == (1, True)
    await knowledge_app.client().vector_stores.create(name="twice")  # the API lets names be equal
    both = await hatrack("search", "twice", "x")
    assert (both.exit_code, "vector_store_ambiguous" in both.output) == (1, True)
    for wrong in (
        ("add", "twice", docs / "nowhere.md"),
        ("add", "twice", docs, "--attribute", "region"),
        ("add", "twice", docs, "--attribute", "path=elsewhere"),
        ("search", "twice", "x", "--filter", "[1]"),
        ("search", "twice", "x", "--filter", "{"),
    ):
        assert (await hatrack(*wrong)).exit_code == 2, wrong


def test_why_a_file_waits_is_shown_while_it_does() -> None:
    done = {"status": "completed", "last_error": None}
    waits = {"status": "in_progress", "last_error": {"code": "server_error", "message": "it waits: no room\x1b[2J"}}
    assert kb._why_it_waits([done, waits]) == "it waits: no room[2J"
    assert kb._why_it_waits([done, {"status": "in_progress", "last_error": None}, waits | {"status": "failed"}]) == ""
