"""`hatrack advice --clean`: the store that a ladder made is deleted, once it is said what that breaks."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from service.cli.main import app
from tests.support.http import serving

STORE = {"id": "vs_1", "name": "support-examples-1a2b3c", "file_counts": {"total": 1}}
RUNG: dict[str, Any] = {"key": "retrieved_examples", "title": "t", "model": "support@3", "mean": 0.5}


def version(number: int, *stores: str, aliases: tuple[str, ...] = ()) -> dict[str, Any]:
    settings = {"grounding": {"vector_store_ids": list(stores)}} if stores else {"grounding": None}
    return {"version": number, "aliases": list(aliases), "settings": settings}


@dataclass
class Gateway:
    """A gateway with one ladder and its store; ``requests`` has what changed something."""

    status: str = "succeeded"
    rungs: list[dict[str, Any]] = field(default_factory=lambda: [{**RUNG, "vector_store_id": "vs_1"}])
    stores: list[dict[str, Any]] = field(default_factory=lambda: [STORE])
    adapters_status: int = 200
    requests: list[str] = field(default_factory=list)

    def answer(self, method: str, path: str, _body: bytes, _key: str) -> tuple[int, bytes, dict[str, str]]:
        path = path.partition("?")[0]
        if path == "/v1/adapters" and self.adapters_status != 200:
            error = {"error": {"message": "The API key is missing the scope `adapters`.", "code": "missing_scope"}}
            return self.adapters_status, json.dumps(error).encode(), {}
        return 200, json.dumps(self._answer(method, path)).encode(), {}

    def _answer(self, method: str, path: str) -> dict[str, Any]:
        if method == "DELETE":
            self.requests.append(f"{method} {path}")
            return {"id": path.rpartition("/")[2], "deleted": True}
        if path == "/v1/adapters":
            ours = [version(2), version(3, "vs_1", aliases=("live",)), version(5, "vs_0", "vs_1")]
            return page({"name": "support", "versions": ours}, {"name": "other", "versions": [version(1, "vs_0")]})
        if path == "/v1/vector_stores":
            return page(*self.stores)
        if path == "/v1/vector_stores/vs_1":
            return STORE
        if path == "/v1/vector_stores/vs_1/files":
            return page({"id": "file-1"})
        ladder = {"id": "ladder-1", "status": self.status, "rungs": self.rungs, "children": [], "error": None}
        return page(ladder) if path == "/v1/ladders" else ladder


def page(*items: dict[str, Any]) -> dict[str, Any]:
    return {"object": "list", "data": list(items), "has_more": False}


@pytest.fixture
def gateway(monkeypatch: pytest.MonkeyPatch) -> Iterator[Gateway]:
    fake = Gateway()
    with serving(fake.answer) as url:
        monkeypatch.setenv("HATRACK_URL", url)
        monkeypatch.setenv("HATRACK_KEY", "hk-test")
        yield fake


def hatrack(*arguments: str, sent: str | None = None) -> Result:
    return CliRunner().invoke(app, list(arguments), input=sent)


def test_what_it_breaks_is_said_before_anything_is_deleted(gateway: Gateway) -> None:
    left = hatrack("advice", "ladder-1", "--clean", sent="n\n")
    assert left.exit_code == 1
    text = " ".join(left.output.split())
    assert "ladder-1 made the store vs_1 (support-examples-1a2b3c). 2 versions are served with it" in text
    assert "`vector_store_not_found`" in text
    assert "support@3 (live), support@5." in text
    assert gateway.requests == []


def test_the_store_and_its_file_are_deleted(gateway: Gateway) -> None:
    done = hatrack("advice", "--clean", "--yes")
    assert done.exit_code == 0, done.output
    assert "vs_1 deleted, with 1 file" in done.output
    assert gateway.requests == ["DELETE /v1/vector_stores/vs_1", "DELETE /v1/files/file-1"]


def test_a_program_gets_what_broke(gateway: Gateway) -> None:
    done = hatrack("advice", "ladder-1", "--clean", "--yes", "--json")
    assert json.loads(done.stdout) == {
        "ladder": "ladder-1",
        "vector_store_id": "vs_1",
        "deleted": True,
        "broken": ["support@3 (live)", "support@5"],
    }


@pytest.mark.parametrize(
    ("rungs", "stores", "said"),
    [
        ([{**RUNG, "vector_store_id": None}], [STORE], "ladder-1 made no store."),
        ([RUNG], [STORE], "ladder-1 made no store."),
        ([{**RUNG, "vector_store_id": "vs_1"}], [], "ladder-1 has lost its store already."),
    ],
    ids=["no rung with a store", "an older gateway", "deleted"],
)
def test_nothing_to_delete_is_no_failure(
    gateway: Gateway, rungs: list[dict[str, Any]], stores: list[dict[str, Any]], said: str
) -> None:
    gateway.rungs, gateway.stores = rungs, stores
    done = hatrack("advice", "ladder-1", "--clean", "--yes")
    assert (done.exit_code, done.stdout.strip()) == (0, said)
    assert gateway.requests == []


def test_a_ladder_that_runs_keeps_its_store(gateway: Gateway) -> None:
    gateway.status = "running"
    refused = hatrack("advice", "ladder-1", "--clean", "--yes")
    assert refused.exit_code == 1
    assert "needs its store" in refused.output
    assert gateway.requests == []


@pytest.mark.parametrize("options", [("--follow",), ("--html", "a.html"), ("--json",)])
def test_options_that_make_no_sense_beside_it_are_refused(gateway: Gateway, options: tuple[str, ...]) -> None:
    assert hatrack("advice", "ladder-1", "--clean", *options).exit_code == 2
    assert gateway.requests == []


def test_deleting_a_store_by_hand_says_the_same_if_the_key_may_see_adapters(gateway: Gateway) -> None:
    left = hatrack("kb", "rm", "vs_1", sent="n\n")
    assert "support@3 (live), support@5." in " ".join(left.output.split())
    gateway.adapters_status = 403
    done = hatrack("kb", "rm", "vs_1", sent="y\n")
    assert done.exit_code == 0, done.output
    assert "served with" not in done.output
    assert gateway.requests == ["DELETE /v1/vector_stores/vs_1"]
