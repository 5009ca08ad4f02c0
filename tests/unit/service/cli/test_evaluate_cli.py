"""`hatrack evaluate evaluations report`, against a gateway in a thread that knows one evaluation."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from http.server import ThreadingHTTPServer
from pathlib import Path
from typing import Any, TypeAlias

import pytest
from typer.testing import CliRunner, Result

from service.cli import evaluate
from service.cli.main import app
from tests.support.http import QuietHandler

Hatrack: TypeAlias = Callable[..., Result]
SENTENCE = "Pass: on 36 examples it had not seen, voice@3 scored 100 of 100, the base at its best 33."
REPORT: dict[str, Any] = {
    "adapter": "voice@3",
    "metric": "exact_match",
    "verdict": {
        "word": "pass",
        "sentence": SENTENCE,
        "checks": [
            {"name": "base", "state": "kept", "sentence": "Against “base” it is 67 points better."},
            {"name": "forgetting", "state": "open", "sentence": "What it forgot\x1b[31m was not measured."},
        ],
    },
    "served": {"voice@3": "voice@3", "base": "smol"},
    "means": [
        {"label": "voice@3", "mean": 1.0, "low": 0.9, "high": 1.0},
        {"label": "base", "mean": 0.33, "low": 0.2, "high": 0.5},
    ],
    "differences": [],
}
COMPARED: dict[str, Any] = REPORT | {
    "adapter": "old against new",
    "verdict": None,
    "differences": [{"of": "new", "against": "old", "estimate": 0.125, "low": -0.02, "high": 0.25}],
}


class Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.asked: list[tuple[str, str, bytes]] = []
        self.report = REPORT
        self.end: dict[str, Any] = {"status": "succeeded", "verdict": "pass", "note": "voice@3 is live"}
        self.looks = 2
        self.verdict: dict[str, Any] | None = {"files": {"report": "file-report", "page": "file-page"}}

    def evaluation(self) -> dict[str, Any]:
        self.looks -= 1
        found = {
            "id": "eval-1", "status": "running", "arms": [{"label": "voice@3"}, {"label": "base"}],
            "metric": "exact_match", "candidate": "voice@3", "created_at": 1767225600, "verdict": None,
            "progress": {"stage": "asking", "done": 3, "total": 72},
        }  # fmt: skip
        return found if self.looks > 0 else found | {"progress": None} | self.end


class Handler(QuietHandler):
    server: Server

    def _serve(self) -> None:
        body = self.rfile.read(int(self.headers.get("content-length", 0)))
        self.server.asked.append((self.command, self.path, body))
        status, content = self._answer(self.path.partition("?")[0])
        self.send_response(status)
        self.send_header("content-length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def _answer(self, path: str) -> tuple[int, bytes]:
        page = b"<!doctype html>"
        answers: dict[str, Any] = {
            "/v1/files": {"id": "file-held"},
            "/v1/evaluations/eval-1/report": self.server.report,
            "/v1/adapters/voice/versions/3": {"verdict": self.server.verdict},
            "/v1/files/file-report/content": self.server.report,
        }
        if path in ("/v1/evaluations/eval-1/report.html", "/v1/files/file-page/content"):
            return 200, page
        if path == "/v1/evaluations" and self.command == "GET":
            return 200, json.dumps({"data": [self.server.evaluation()], "has_more": False}).encode()
        if path in ("/v1/evaluations", "/v1/evaluations/eval-1"):
            return 200, json.dumps(self.server.evaluation()).encode()
        if path in answers:
            return 200, json.dumps(answers[path]).encode()
        return 404, json.dumps({"error": {"message": "no", "type": "t", "param": None, "code": "not_found"}}).encode()

    do_GET = do_POST = _serve


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as found:
        thread = threading.Thread(target=found.serve_forever, args=(0.02,))
        thread.start()
        yield found
        found.shutdown()
        thread.join()


@pytest.fixture
def hatrack(server: Server, monkeypatch: pytest.MonkeyPatch) -> Hatrack:
    monkeypatch.setenv("HATRACK_URL", f"http://127.0.0.1:{server.server_address[1]}")
    monkeypatch.setenv("HATRACK_KEY", "hk-test")
    monkeypatch.setattr(evaluate, "POLL_S", 0.01)
    return lambda *arguments: CliRunner().invoke(app, list(arguments))


@pytest.fixture
def held_out(tmp_path: Path) -> str:
    path = tmp_path / "held.jsonl"
    path.write_text('{"prompt": "q", "completion": "a"}\n')
    return str(path)


def created(server: Server) -> dict[str, Any]:
    (body,) = [body for method, path, body in server.asked if (method, path) == ("POST", "/v1/evaluations")]
    found: dict[str, Any] = json.loads(body)
    return found


def test_a_version_is_judged_and_the_verdict_told(server: Server, hatrack: Hatrack, held_out: str) -> None:
    done = hatrack(
        "evaluate", "voice@3", "--held-out", held_out, "--metric", "exact_match", "--suite", "general",
        "--promote", "auto", "--max-tokens", "20",
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    assert created(server) == {
        "model": "voice@3",
        "held_out": "file-held",
        "metric": "exact_match",
        "suites": ["general"],
        "promote": "auto",
        "max_tokens": 20,
    }
    upload = next(body for method, path, body in server.asked if path == "/v1/files")
    assert b"evals" in upload
    assert SENTENCE in done.output
    assert "✓ Against “base” it is 67 points better." in done.output
    assert "? What it forgot[31m was not measured." in done.output  # no escape reaches the terminal
    assert "voice@3 is live" in done.output
    assert "90.0 to 100.0" in done.output


SUITES: list[tuple[list[str], list[str]]] = [
    (["--suites", "general,mmlu"], ["general", "mmlu"]),
    (["--suite", "general", "--suite", "mmlu"], ["general", "mmlu"]),
    (["--suite", '["general"]', "--suites", "mmlu, gsm8k"], ["general", "mmlu", "gsm8k"]),
    (["--suites", "none"], []),
    (["--suites", ""], []),
]


@pytest.mark.parametrize(("given", "names"), SUITES)
def test_suites_are_named_alike_wherever_they_are(
    server: Server, hatrack: Hatrack, held_out: str, given: list[str], names: list[str]
) -> None:
    done = hatrack("evaluate", "voice@3", "--held-out", held_out, *given)
    assert done.exit_code == 0, done.output
    assert created(server)["suites"] == names


@pytest.mark.parametrize(
    ("end", "code"),
    [
        ({"status": "succeeded", "verdict": "fail"}, 1),
        ({"status": "succeeded", "verdict": "not_enough_evidence"}, 4),
        ({"status": "succeeded", "verdict": None}, 0),
        ({"status": "failed", "error": {"message": "line 1 is no JSON", "code": "invalid_held_out_file"}}, 1),
        ({"status": "cancelled"}, 1),
    ],
)
def test_the_exit_code_is_the_verdict(
    server: Server, hatrack: Hatrack, held_out: str, end: dict[str, Any], code: int
) -> None:
    server.end = end
    done = hatrack("evaluate", "voice@3", "--held-out", held_out)
    assert done.exit_code == code
    if "error" in end:
        assert "line 1 is no JSON" in done.output
    assert hatrack("evaluate", "voice@3", "--held-out", held_out, "--json").exit_code == code


def test_arms_are_compared(server: Server, hatrack: Hatrack, held_out: str) -> None:
    server.end, server.report = {"status": "succeeded", "verdict": None}, COMPARED
    arms = ("--arm", "old=voice@2", "--arm", "new=big,endpoint=elsewhere")
    done = hatrack("evaluate", *arms, "--held-out", held_out, "--metric", '{"name": "regex", "pattern": "a"}')
    assert done.exit_code == 0, done.output
    body = created(server)
    assert body["arms"] == [
        {"label": "old", "model": "voice@2"},
        {"label": "new", "model": "big", "endpoint": "elsewhere"},
    ]
    assert body["metric"] == {"name": "regex", "pattern": "a"}
    assert "new against old" in done.output
    assert "+12.5" in done.output


def test_without_waiting_it_is_only_made(server: Server, hatrack: Hatrack, held_out: str) -> None:
    server.looks = 99
    done = hatrack("evaluate", "voice@3", "--held-out", held_out, "--no-wait")
    assert done.exit_code == 0
    assert "eval-1" in done.output
    assert not any(path.endswith("/report") for _, path, _ in server.asked)


def test_a_file_that_is_uploaded_already_is_named_by_its_id(server: Server, hatrack: Hatrack) -> None:
    assert hatrack("evaluate", "voice@3", "--held-out", "file-there").exit_code == 0
    assert created(server)["held_out"] == "file-there"
    assert not any(path == "/v1/files" for _, path, _ in server.asked)
    assert hatrack("evaluate", "voice@3", "--held-out", "nowhere.jsonl").exit_code == 2


@pytest.mark.parametrize(
    "arguments",
    [(), ("voice@3", "--arm", "a=b"), ("--arm", "nonsense"), ("voice@3", "--promote", "maybe"), ("v", "--metric", "{")],
)
def test_wrong_usage_sends_nothing(server: Server, hatrack: Hatrack, held_out: str, arguments: tuple[str, ...]) -> None:
    assert hatrack("evaluate", *arguments, "--held-out", held_out).exit_code == 2
    assert not any(path == "/v1/evaluations" for _, path, _ in server.asked)


def test_reports_of_evaluations_and_of_versions(server: Server, hatrack: Hatrack, tmp_path: Path) -> None:
    for target in ("eval-1", "voice@3"):
        assert SENTENCE in hatrack("report", target).output
        page = tmp_path / "r.html"
        assert hatrack("report", target, "--html", str(page)).exit_code == 0
        assert page.read_text() == "<!doctype html>"
        assert json.loads(hatrack("report", target, "--json").output)["metric"] == "exact_match"
    server.verdict = None
    never = hatrack("report", "voice@3")
    assert (never.exit_code, "has no verdict yet" in never.output) == (1, True)
    assert hatrack("report", "voice").exit_code == 2


@pytest.mark.parametrize("is_checked", [True, False])
def test_a_page_that_cannot_be_written_is_an_error_and_no_traceback(
    server: Server, hatrack: Hatrack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_checked: bool
) -> None:
    if not is_checked:
        monkeypatch.setattr("service.cli.evaluate.check_writable", lambda _target: None)
    refused = hatrack("report", "eval-1", "--html", str(tmp_path / "nodir" / "x.html"), "--json")
    assert refused.exit_code == 1
    assert json.loads(refused.stderr)["error"]["code"] == "not_writable"
    assert bool(server.asked) is not is_checked


def test_the_list_names_what_was_judged_and_how_it_ended(server: Server, hatrack: Hatrack) -> None:
    server.looks = 0
    told = hatrack("evaluations").output
    assert "voice@3" in told
    assert "pass" in told
