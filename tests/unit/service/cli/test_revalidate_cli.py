"""`hatrack revalidate`, and what the tables show of verdicts, against a gateway in a thread."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from http.server import ThreadingHTTPServer
from typing import Any, TypeAlias

import pytest
from typer.testing import CliRunner, Result

from service.cli import revalidate as command
from service.cli.main import app
from service.client import HatrackClient
from tests.support.http import QuietHandler

Hatrack: TypeAlias = Callable[..., Result]


def version(number: int, state: str | None, *reasons: str) -> dict[str, Any]:
    return {
        "object": "adapter.version", "adapter": "voice", "version": number, "state": "ready", "servable": "ok",
        "aliases": [], "rank": 8, "bytes": 9, "created_at": 1767225600, "digest": "a" * 64,
        "verdict": None if state is None else {"verdict": "pass", "sentence": "Better."},
        "revalidation": None if state is None else {"state": state, "reasons": list(reasons)},
    }  # fmt: skip


VERSIONS = [
    version(1, None),
    version(2, "fresh"),
    version(3, "due", "template", "age"),
    version(4, "failed", "engine_version"),
]
ADAPTER = {"name": "voice", "aliases": {"live": 2}, "versions": VERSIONS, "created_at": 1767225600}


class Server(ThreadingHTTPServer):
    """Evaluations succeed when they are first asked for; their verdict is ``verdict``."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.asked: list[tuple[str, str, Any]] = []
        self.verdict: str | None = "pass"
        self.status = "succeeded"
        self.batches: list[list[str]] = [["voice@3", "other@1"]]
        self.refused: list[str] = []
        self.conflicts: dict[str, int] = {}
        """Numbers of versions that cannot be judged again, with the status of the answer."""

    def evaluation(self, of: str, status: str = "queued") -> dict[str, Any]:
        ended = {"verdict": self.verdict, "sentence": "So it is."} if status == "succeeded" else {}
        return {"id": f"eval-{of}", "status": status, "verdict": None, "sentence": None, **ended}

    def page(self) -> dict[str, Any]:
        left = len(self.batches) - 1
        batch = self.batches.pop(0) if len(self.batches) > 1 else self.batches[0]
        data = [
            {"version": of, "reasons": ["template"], "evaluation": self.evaluation(of), "error": None} for of in batch
        ]
        error = {"code": "never_judged", "message": "It was never judged."}
        data += [{"version": of, "reasons": [], "evaluation": None, "error": error} for of in self.refused]
        return {"object": "list", "data": data, "left": left}


class Handler(QuietHandler):
    server: Server

    def _serve(self) -> None:
        body = self.rfile.read(int(self.headers.get("content-length", 0)))
        self.server.asked.append((self.command, self.path, json.loads(body) if body else None))
        status = 404
        parts = self.path.partition("?")[0].removeprefix("/v1/").split("/")
        match parts:
            case ["revalidations"]:
                answer: dict[str, Any] = self.server.page()
            case ["adapters"]:
                answer = {"data": [ADAPTER], "has_more": False}
            case ["adapters", "voice"]:
                answer = ADAPTER
            case ["adapters", "voice", "versions", number, "revalidate"] if number in self.server.conflicts:
                answer = {"error": {"message": "It cannot serve.", "code": "version_damaged"}}
                status = self.server.conflicts[number]
            case ["adapters", "voice", "versions", number, "revalidate"]:
                answer = self.server.evaluation(f"voice@{number}")
            case ["adapters", "voice", "versions", _, "verdicts"]:
                answer = {"data": [{"id": "verdict-2"}, {"id": "verdict-1"}]}
            case ["adapters", "voice", "versions", number]:
                answer = VERSIONS[int(number) - 1]
            case ["evaluations", found]:
                of = found.removeprefix("eval-").replace("%40", "@")
                answer = self.server.evaluation(of, self.server.status)
            case _:
                answer = {"error": {"message": "No such route", "code": "not_found"}}
        text = json.dumps(answer).encode()
        self.send_response(status if "error" in answer else 200)
        self.send_header("content-length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    do_GET = do_POST = _serve


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as ready:
        thread = threading.Thread(target=ready.serve_forever, args=(0.02,), daemon=True)
        thread.start()
        yield ready
        ready.shutdown()
        thread.join(10)


@pytest.fixture
def hatrack(server: Server, monkeypatch: pytest.MonkeyPatch) -> Hatrack:
    monkeypatch.setenv("HATRACK_URL", f"http://127.0.0.1:{server.server_address[1]}")
    monkeypatch.setenv("HATRACK_KEY", "hk_test")
    monkeypatch.setattr(command, "POLL_S", 0.01)
    return lambda *arguments: CliRunner().invoke(app, list(arguments))


def rows(result: Result) -> list[list[str]]:
    return [line.split() for line in result.stdout.splitlines()[1:]]


def test_what_is_due_is_begun_and_not_waited_for(hatrack: Hatrack, server: Server) -> None:
    result = hatrack("revalidate")
    assert result.exit_code == 0, result.stderr
    assert rows(result) == [
        ["voice@3", "template", "eval-voice@3", "queued", "-"],
        ["other@1", "template", "eval-other@1", "queued", "-"],
    ]
    assert server.asked == [("POST", "/v1/revalidations", {"all": False})]


def test_all_means_all(hatrack: Hatrack, server: Server) -> None:
    assert hatrack("revalidate", "--all").exit_code == 0
    assert server.asked == [("POST", "/v1/revalidations", {"all": True})]


def test_nothing_due_is_said(hatrack: Hatrack, server: Server) -> None:
    server.batches = [[]]
    assert hatrack("revalidate").stdout == "Nothing is due.\n"
    assert hatrack("revalidate", "--json").stdout == "[]\n"


@pytest.mark.parametrize(
    ("verdict", "status", "code"),
    [
        ("pass", "succeeded", 0),
        ("not_enough_evidence", "succeeded", 0),
        ("fail", "succeeded", 1),
        (None, "failed", 1),
        (None, "cancelled", 1),
    ],
)
def test_waiting_ends_with_the_verdict_and_its_exit_code(
    hatrack: Hatrack, server: Server, verdict: str | None, status: str, code: int
) -> None:
    server.verdict, server.status = verdict, status
    result = hatrack("revalidate", "voice@3", "--wait")
    assert result.exit_code == code
    assert rows(result)[0][:4] == ["voice@3", "-", "eval-voice@3", verdict or status]
    assert server.asked[0] == ("POST", "/v1/adapters/voice/versions/3/revalidate", None)


def test_waiting_goes_on_until_nothing_is_left(hatrack: Hatrack, server: Server) -> None:
    server.batches = [["a@1"], ["b@1"], ["c@1"]]
    found = json.loads(hatrack("revalidate", "--wait", "--json").stdout)
    assert [(item["version"], item["evaluation"]["verdict"]) for item in found] == [
        *(("a@1", "pass"), ("b@1", "pass"), ("c@1", "pass")),
    ]


def test_what_is_left_is_said_without_waiting(hatrack: Hatrack, server: Server) -> None:
    server.batches = [["a@1"], ["b@1"]]
    assert hatrack("revalidate").stdout.endswith("1 more are due; run this again when these have finished.\n")


def test_waiting_ends_where_the_same_is_begun_again_and_again(hatrack: Hatrack, server: Server) -> None:
    server.batches = [["a@1"], ["a@1"], ["a@1"]]
    assert hatrack("revalidate", "--wait").exit_code == 0


def test_what_cannot_be_judged_is_said_and_counts_as_failed(hatrack: Hatrack, server: Server) -> None:
    server.batches, server.refused = [[]], ["voice@1"]
    result = hatrack("revalidate", "--wait")
    assert result.exit_code == 1
    assert rows(result) == [["voice@1", "-", "-", "refused", "It", "was", "never", "judged."]]


@pytest.mark.parametrize(
    ("arguments", "numbers"),
    [(["voice"], [3, 4]), (["voice", "--all"], [2, 3, 4]), (["voice:live"], [2]), (["voice@1"], [1])],
)
def test_an_adapter_s_versions_are_chosen(
    hatrack: Hatrack, server: Server, arguments: list[str], numbers: list[int]
) -> None:
    assert hatrack("revalidate", *arguments).exit_code == 0
    posted = [path for method, path, _ in server.asked if method == "POST"]
    assert posted == [f"/v1/adapters/voice/versions/{number}/revalidate" for number in numbers]


def test_one_version_that_cannot_be_judged_keeps_none_of_the_others_from_it(hatrack: Hatrack, server: Server) -> None:
    server.conflicts = {"2": 409, "3": 404}
    result = hatrack("revalidate", "voice", "--all", "--wait")
    assert result.exit_code == 1
    assert [row[:4] for row in rows(result)] == [
        ["voice@2", "-", "-", "refused"],
        ["voice@3", "template", "age", "-"],
        ["voice@4", "engine_version", "eval-voice@4", "pass"],
    ]
    assert hatrack("revalidate", "voice@2").exit_code == 1
    server.conflicts = {"2": 403}
    denied = hatrack("revalidate", "voice", "--all")
    assert (denied.exit_code, denied.stdout) == (1, "")


def test_a_version_that_lost_its_pass_has_failed(hatrack: Hatrack, server: Server) -> None:
    server.verdict = "not_enough_evidence"
    assert hatrack("revalidate", "voice@4", "--wait").exit_code == 1
    assert hatrack("revalidate", "voice@2", "--wait").exit_code == 0


def test_an_alias_that_is_not_there_is_an_error(hatrack: Hatrack) -> None:
    result = hatrack("revalidate", "voice:canary")
    assert (result.exit_code, "not_found" in result.stderr) == (1, True)
    assert hatrack("revalidate", "Not A Name").exit_code == 2


def test_the_tables_show_verdicts_and_what_they_are_worth(hatrack: Hatrack) -> None:
    assert "1 due, 1 failed, 1 fresh" in hatrack("ls").stdout
    shown = hatrack("show", "voice").stdout
    assert "due: template age" in shown
    assert "failed: engine_version" in shown
    one = hatrack("show", "voice@3").stdout
    assert "pass: Better." in one
    assert "due: template age" in one


def test_the_client_reads_a_version_s_verdicts(hatrack: Hatrack) -> None:
    with HatrackClient() as client:
        verdicts = client.adapters.versions.verdicts("voice", 3)
        assert [verdict["id"] for verdict in verdicts] == ["verdict-2", "verdict-1"]
