"""`hatrack kb rm`: what is said of the versions that a store serves, before it is deleted."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from typing import TypeAlias

import pytest
from typer.testing import CliRunner, Result

from service.cli.main import app
from tests.support.http import serving

Remove: TypeAlias = Callable[[], Result]
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
        return (
            200,
            json.dumps({"data": [STORE], "has_more": False} if method == "GET" else {"deleted": True}).encode(),
            {},
        )


@pytest.fixture
def stores() -> Stores:
    return Stores()


@pytest.fixture
def remove(stores: Stores, monkeypatch: pytest.MonkeyPatch) -> Iterator[Remove]:
    with serving(stores.answer) as url:
        monkeypatch.setenv("HATRACK_URL", url)
        monkeypatch.setenv("HATRACK_KEY", "hk-test")
        yield lambda: CliRunner().invoke(app, ["kb", "rm", "shop"], input="y\n")


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
