"""`hatrack kb rm`: what is said of the versions that a store serves, before it is deleted, and what is asked."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from types import SimpleNamespace
from typing import TypeAlias

import pytest
from typer.testing import CliRunner, Result

from service.cli.main import app
from tests.support.http import serving

Remove: TypeAlias = Callable[..., Result]
FILE = {"id": "file_1", "filename": "returns.md", "attributes": {"path": "docs/returns.md"}}
STORE = {"id": "vs_1", "name": "shop", "file_counts": {"total": 2}}
GROUNDED = {"version": 3, "aliases": ["live"], "settings": {"grounding": {"vector_store_ids": ["vs_1"]}}}


class Stores:
    """A gateway with one store; ``status`` is its answer to a request for the adapters."""

    def __init__(self) -> None:
        self.status = 200
        self.asked: list[str] = []

    def answer(self, method: str, path: str, _body: bytes, _key: str) -> tuple[int, bytes, Mapping[str, str]]:
        self.asked.append(f"{method} {path.partition('?')[0]}")
        if path.startswith("/v1/adapters"):
            error = {"error": {"message": "not now", "code": "insufficient_permissions", "param": None}}
            page = {"data": [{"name": "voice", "versions": [GROUNDED]}], "has_more": False}
            return self.status, json.dumps(page if self.status == 200 else error).encode(), {}
        listed = FILE if path.partition("?")[0].endswith("/files") else STORE
        page = {"data": [listed], "has_more": False}
        return 200, json.dumps(page if method == "GET" else {"deleted": True}).encode(), {}


@pytest.fixture
def stores() -> Stores:
    return Stores()


@pytest.fixture
def remove(stores: Stores, monkeypatch: pytest.MonkeyPatch) -> Iterator[Remove]:
    with serving(stores.answer) as url:
        monkeypatch.setenv("HATRACK_URL", url)
        monkeypatch.setenv("HATRACK_KEY", "hk-test")
        yield lambda *more, typed="y\n": CliRunner().invoke(app, ["kb", "rm", "shop", *more], input=typed)


def test_the_versions_that_a_store_serves_are_named(remove: Remove) -> None:
    removed = remove()
    assert removed.exit_code == 0, removed.output
    assert "1 version is served with it" in removed.stderr
    assert "voice@3 (live)" in removed.stderr


def test_a_key_that_may_not_see_adapters_is_told(stores: Stores, remove: Remove) -> None:
    stores.status = 403
    removed = remove()
    assert removed.exit_code == 0, removed.output
    assert "This key may not see which versions use this store." in removed.stderr
    assert "DELETE /v1/vector_stores/vs_1" in stores.asked


def test_where_the_adapters_cannot_be_read_nothing_is_deleted(stores: Stores, remove: Remove) -> None:
    stores.status = 503
    assert remove().exit_code == 1
    assert not any(asked.startswith("DELETE") for asked in stores.asked)


REMOVAL = "DELETE /v1/vector_stores/vs_1/files/file_1"


@pytest.mark.parametrize("options", [[], ["--json"]])
def test_a_file_is_removed_once_that_is_confirmed_at_a_terminal(
    stores: Stores, remove: Remove, monkeypatch: pytest.MonkeyPatch, options: list[str]
) -> None:
    monkeypatch.setattr("service.cli.kb.sys", SimpleNamespace(stdin=SimpleNamespace(isatty=lambda: True)))
    kept = remove("returns.md", *options, typed="n\n")
    assert kept.exit_code == 1
    assert "Remove returns.md from shop?" in kept.stderr
    assert REMOVAL not in stores.asked
    removed = remove("returns.md", *options)
    assert removed.exit_code == 0, removed.output
    assert "Remove" not in removed.stdout
    assert stores.asked.count(REMOVAL) == 1
    assert remove("returns.md", "--yes", *options, typed="").exit_code == 0
    assert stores.asked.count(REMOVAL) == 2


def test_a_script_removes_a_file_unasked(stores: Stores, remove: Remove) -> None:
    assert remove("docs/returns.md", typed="").exit_code == 0
    assert REMOVAL in stores.asked


def test_what_is_asked_leaves_the_json_whole(remove: Remove) -> None:
    removed = remove("--json")
    assert "Delete shop with its 2 files?" in removed.stderr
    # the runner, like a terminal, shows what is typed
    assert json.loads(removed.stdout.removeprefix(" y\n")) == [{"deleted": True}]
