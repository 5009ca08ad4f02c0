"""`hatrack train jobs job data lineage`, against a gateway in a thread that knows one job."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from http.server import ThreadingHTTPServer
from pathlib import Path
from typing import Any, TypeAlias

import pytest
from typer.testing import CliRunner, Result

from adapters.dataset.held_out import DEFAULT_MIN_EXAMPLES
from service.cli.jobs import draw_curve
from service.cli.main import app
from tests.support.http import QuietHandler
from trainer.config import Settings as TrainerSettings
from trainer.evaluate.verdict import Rules

Hatrack: TypeAlias = Callable[..., Result]
JOB = {
    "id": "ftjob-1",
    "status": "running",
    "created_at": 1767225600,
    "fine_tuned_model": None,
    "trained_tokens": None,
    "error": None,
    "estimated_finish": 1767232800,
    "hatrack": {"adapter": "voice", "cost": 1.5, "seconds": 61.0, "device": "cpu"},
}
FINDING = {"severity": "warning", "message": "twice the same", "code": "near_duplicates", "lines": [3], "count": 1}
REPORT = {
    "file": "f.jsonl", "format": "chat", "examples": 20, "trained_on": 10, "dropped": 0,
    "held_out": {"examples": 10, "source": "split"},
    "lengths": {"shortest": 1, "median": 2, "p95": 3, "longest": 4, "total": 25, "trained": 9},
    "size": "10 examples: expect a hint.",
    "findings": [FINDING],
    "shown": [{"line": 1, "pieces": [{"text": "<q>", "trained": False}, {"text": "an answer", "trained": True}]}],
}  # fmt: skip


def message(number: int, text: str, level: str = "info") -> dict[str, Any]:
    return {"id": f"e{number}", "level": level, "type": "message", "message": text, "data": {}}


def step(number: int) -> dict[str, Any]:
    data = {"step": number, "total_steps": 4, "train_loss": 4.0 - number, "tokens_per_s": 700.0}
    return {"id": f"e{number}", "level": "info", "type": "metrics", "message": f"Step {number}/4", "data": data}


class Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.asked: list[tuple[str, str, str | None, bytes]] = []
        self.streams: list[list[dict[str, Any]]] = [[message(1, "looking"), step(2), step(3), message(4, "done")]]
        self.end = "succeeded"
        self.report = REPORT
        self.verdict: dict[str, Any] | None = None
        self.away: dict[str, int] = {}
        self.drops = False

    def is_away(self, path: str) -> bool:
        """Whether this question meets an outage; the first stream's end begins it."""
        if len(self.streams) != 1 or not self.away.get(path):
            return False
        self.away[path] -= 1
        return True

    def job(self) -> dict[str, Any]:
        ended = not self.streams
        model = "voice@1" if ended and self.end == "succeeded" else None
        error = {"code": "disk_full", "message": "make room"} if ended and self.end == "failed" else None
        found = JOB | {"status": self.end if ended else "running", "fine_tuned_model": model, "error": error}
        return found | {"hatrack": JOB["hatrack"] | {"verdict": self.verdict if ended else None}}


class Handler(QuietHandler):
    server: Server

    def _serve(self) -> None:
        body = self.rfile.read(int(self.headers.get("content-length", 0)))
        self.server.asked.append((self.command, self.path, self.headers.get("last-event-id"), body))
        path = self.path.partition("?")[0]
        if self.server.is_away(path):
            if self.server.drops:
                self.close_connection = True
            else:
                self.send_error(503)
            return
        if path.endswith("/events"):
            self.send_response(200)
            self.send_header("connection", "close")
            self.end_headers()
            for event in self.server.streams.pop(0):
                self.wfile.write(f"id: {event['id']}\ndata: {json.dumps(event)}\n\n".encode())
            self.wfile.write(b"data: [DONE]\n\n" if not self.server.streams else b"")
            return
        answers: dict[str, Any] = {
            "/readyz": {"status": "ready", "base": "tiny-base"},
            "/v1/files": {"id": "file-1"},
            "/v1/vector_stores/vs_1": {"id": "vs_1"},
            "/v1/fine_tuning/data_check": self.server.report,
            "/v1/adapters/voice/versions/1": {"metadata": LINEAGE},
            "/v1/adapters/voice/versions/2": {"metadata": {}},
        }
        found = answers.get(path)
        if found is None:
            found = self.server.job()
            if path == "/v1/fine_tuning/jobs" and self.command == "GET":
                found = {"object": "list", "data": [found], "has_more": False}
        content = json.dumps(found).encode()
        self.send_response(200)
        self.send_header("content-length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    do_GET = do_POST = _serve


LINEAGE = {
    "lineage": {
        "data": [{"name": "f.jsonl", "sha256": "ab" * 32, "examples": 10}], "files": ["file-1"], "job": "ftjob-1",
        "recipe": {"rank": 16}, "base_name": "tiny-base", "base": {"weights": "w1"}, "python": "3.11.9",
        "packages": {"torch": "2.13.0"}, "parent": None, "system_prompt": None,
    },
    "training": {"seconds": 61.0, "cost": None},
}  # fmt: skip


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as found:
        thread = threading.Thread(target=found.serve_forever, args=(0.01,))
        thread.start()
        yield found
        found.shutdown()
        thread.join()


@pytest.fixture
def hatrack(server: Server, monkeypatch: pytest.MonkeyPatch) -> Hatrack:
    monkeypatch.setenv("HATRACK_URL", f"http://127.0.0.1:{server.server_address[1]}")
    monkeypatch.setenv("HATRACK_KEY", "hk-test")
    return lambda *arguments: CliRunner().invoke(app, list(arguments))


@pytest.fixture
def data(tmp_path: Path) -> Path:
    path = tmp_path / "f.jsonl"
    path.write_text('{"prompt": "q", "completion": "a"}\n')
    return path


def test_train_says_how_far_the_judging_is_and_what_came_of_it(hatrack: Hatrack, server: Server, data: Path) -> None:
    asking = message(5, "asking: 40 of 90") | {"data": {"stage": "asking", "done": 40, "total": 90}}
    said = message(6, "Pass: on 40 examples", "info") | {"data": {"verdict": "pass"}}
    server.streams = [[step(2), asking, said, message(7, "voice@1 is live")]]
    server.verdict = {"verdict": "pass", "sentence": "Pass: on 40 examples", "live": True}
    result = hatrack(
        *("train", str(data), "--name", "voice", "--promote", "never", "--metric", "rouge_l", "--suites", "none"),
        *("--judge", "oracle"),
    )
    assert result.exit_code == 0, result.output
    assert "verdict    Pass: on 40 examples" in result.output
    assert "live       yes" in result.output
    assert "voice@1 is live" in result.output
    assert "asking: 40 of 90" not in result.output  # it moves the bar and takes no line
    (body,) = [json.loads(body) for verb, path, _, body in server.asked if verb == "POST" and path.endswith("/jobs")]
    assert body["metadata"] == {
        "adapter": "voice", "promote": "never", "suites": "none", "judge": "oracle"
    }  # fmt: skip
    assert body["method"]["supervised"]["hyperparameters"] == {"metric": "rouge_l"}


@pytest.mark.parametrize("given", [["--suites", "general,mmlu"], ["--suite", "general", "--suite", "mmlu"]])
def test_suites_are_named_as_evaluate_names_them(
    hatrack: Hatrack, server: Server, data: Path, given: list[str]
) -> None:
    assert hatrack("train", str(data), "--name", "voice", "--no-follow", *given).exit_code == 0
    (body,) = [json.loads(body) for verb, path, _, body in server.asked if verb == "POST" and path.endswith("/jobs")]
    assert body["metadata"]["suites"] == "general,mmlu"


def test_what_may_be_long_is_sent_where_there_is_room_for_it(hatrack: Hatrack, server: Server, data: Path) -> None:
    prompt, metric = "Be salty. " * 100, {"name": "json_schema", "schema": {"title": "t" * 600}}
    asked = ("--system-prompt", prompt, "--metric", json.dumps(metric), "--no-follow")
    assert hatrack("train", str(data), "--name", "voice", *asked).exit_code == 0
    (body,) = [json.loads(body) for verb, path, _, body in server.asked if verb == "POST" and path.endswith("/jobs")]
    assert body["metadata"] == {"adapter": "voice"}
    assert body["method"]["supervised"]["hyperparameters"] == {"system_prompt": prompt, "metric": metric}


def test_train_uploads_makes_the_job_and_follows_it_to_its_end(hatrack: Hatrack, server: Server, data: Path) -> None:
    result = hatrack(
        "train", str(data), "--name", "voice", "--set", "n_epochs=2", "--set", "quantization=none", "--strict"
    )
    assert result.exit_code == 0, result.stderr
    assert "ftjob-1 trains voice on f.jsonl" in result.stdout
    assert "result     voice@1" in result.stdout
    assert "looking" in result.stderr
    assert "█" in result.stderr
    (created,) = [json.loads(b) for m, p, _, b in server.asked if (m, p) == ("POST", "/v1/fine_tuning/jobs")]
    assert created == {
        "model": "tiny-base",
        "training_file": "file-1",
        "metadata": {"adapter": "voice", "strict": "true"},
        "method": {"type": "supervised", "supervised": {"hyperparameters": {"n_epochs": 2, "quantization": "none"}}},
    }
    assert any(
        b'name="purpose"' in body and b"fine-tune" in body for _, path, _, body in server.asked if path == "/v1/files"
    )


def test_a_broken_stream_is_taken_up_where_it_was(hatrack: Hatrack, server: Server) -> None:
    server.streams = [[message(1, "first words")], [message(2, "last words")]]
    result = hatrack("job", "ftjob-1", "--follow")
    assert result.exit_code == 0, result.stderr
    asked = [last for _, path, last, _ in server.asked if "/events" in path]
    assert asked == [None, "e1"]
    assert result.stderr.count("words") == 2


class Clock:
    """A clock that only pauses move; `pauses` tells how long each was."""

    def __init__(self) -> None:
        self.pauses: list[float] = []

    def monotonic(self) -> float:
        return sum(self.pauses)

    def sleep(self, seconds: float) -> None:
        self.pauses.append(seconds)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    found = Clock()
    monkeypatch.setattr("service.client.training.time", found)
    return found


@pytest.mark.parametrize("dropped", [True, False])
@pytest.mark.parametrize(
    ("path", "pauses"), [("", [0.5]), ("/events", [0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 20.0, 20.0, 20.0])]
)
def test_a_job_is_followed_over_an_outage(
    hatrack: Hatrack, server: Server, clock: Clock, path: str, pauses: list[float], dropped: bool
) -> None:
    server.streams = [[message(1, "first words")], [message(2, "last words")]]
    server.away, server.drops = {f"/v1/fine_tuning/jobs/ftjob-1{path}": len(pauses) - 1 or 1}, dropped
    result = hatrack("job", "ftjob-1", "--follow")
    assert result.exit_code == 0, result.stderr
    assert result.stderr.count("words") == 2
    assert clock.pauses == pauses


def test_an_outage_that_lasts_ends_the_command(hatrack: Hatrack, server: Server, clock: Clock) -> None:
    server.streams = [[message(1, "first words")], [message(2, "last words")]]
    server.away = {"/v1/fine_tuning/jobs/ftjob-1/events": 10**6}
    result = hatrack("job", "ftjob-1", "--follow")
    assert result.exit_code == 1
    assert 600 <= sum(clock.pauses) < 640


def test_a_failed_job_is_exit_code_one_and_says_why(hatrack: Hatrack, server: Server, data: Path) -> None:
    server.end = "failed"
    result = hatrack("train", str(data), "--name", "voice")
    assert result.exit_code == 1
    assert "make room [disk_full]" in result.stdout


def test_not_followed_it_says_how_to(hatrack: Hatrack, server: Server, data: Path) -> None:
    result = hatrack("train", str(data), "--name", "voice", "--from", "voice@3", "--no-follow")
    assert result.exit_code == 0
    assert "hatrack job ftjob-1 --follow" in result.stdout
    assert not any("/events" in path for _, path, _, _ in server.asked)
    assert b'"model":"voice@3"' in next(b for m, p, _, b in server.asked if p == "/v1/fine_tuning/jobs").replace(
        b" ", b""
    )


def test_jobs_are_listed_and_changed(hatrack: Hatrack, server: Server) -> None:
    assert "ftjob-1  voice" in hatrack("jobs").stdout
    assert json.loads(hatrack("jobs", "--json").stdout)[0]["id"] == "ftjob-1"
    assert hatrack("job", "ftjob-1", "--pause").exit_code == 0
    assert server.asked[-1][:2] == ("POST", "/v1/fine_tuning/jobs/ftjob-1/pause")
    assert "ends about 2026-01-01 02:00Z" in hatrack("job", "ftjob-1").stdout
    both = hatrack("job", "ftjob-1", "--pause", "--cancel")
    assert (both.exit_code, "cannot be combined" in both.stderr) == (2, True)


@pytest.mark.parametrize("wrong", ["n_epochs", "=3"])
def test_a_hyperparameter_without_a_value_is_a_usage_error(hatrack: Hatrack, data: Path, wrong: str) -> None:
    result = hatrack("train", str(data), "--name", "voice", "--set", wrong)
    assert result.exit_code == 2
    assert "FIELD=VALUE" in result.stderr


def test_the_data_check_shows_what_is_trained_and_what_is_wrong(hatrack: Hatrack, server: Server, data: Path) -> None:
    result = hatrack("data", "check", str(data), "--max-length", "64", "--strict")
    assert result.exit_code == 0
    assert "10 for training, 10 held out (split)" in result.stdout
    assert "! twice the same [near_duplicates: lines 3]" in result.stdout
    assert "an answer" in result.stdout
    assert "max_length=64" in server.asked[-1][1]
    assert "strict=true" in server.asked[-1][1]
    server.report = REPORT | {"findings": [FINDING | {"severity": "refused"}]}
    assert hatrack("data", "check", str(data)).exit_code == 1


def test_a_note_and_a_finding_about_the_whole_file_are_shown(hatrack: Hatrack, server: Server, data: Path) -> None:
    note = FINDING | {"severity": "note", "code": "ignored_keys", "message": "the key 'id' is not used"}
    few = FINDING | {"code": "too_few_held_out", "message": "Only 10 examples are held out", "lines": [], "count": 0}
    server.report = REPORT | {"findings": [note, few]}
    result = hatrack("data", "check", str(data))
    assert result.exit_code == 0
    assert "- the key 'id' is not used [ignored_keys: lines 3]" in result.output
    assert "! Only 10 examples are held out [too_few_held_out]" in result.output


def test_a_file_from_which_no_version_can_pass_is_told_before_it_is_sent(
    hatrack: Hatrack, server: Server, data: Path, tmp_path: Path
) -> None:
    asked = ("train", str(data), "--name", "voice", "--no-follow")
    data.write_text('{"prompt": "q", "completion": "a"}\n' * 120)
    few = hatrack(*asked)
    assert (few.exit_code, few.stderr.count("Only 12 examples are held out, but a pass needs 30")) == (0, 1)
    assert "add at least 175 examples, for 295 in all; or set held_out_share to 0.25;" in few.stderr
    assert "HATRACK_TRAINER_MIN_EXAMPLES" in few.stderr
    assert hatrack(*asked, "--held-out-share", "0.25").stderr == ""
    body = json.loads(server.asked[-1][3])
    assert body["method"]["supervised"]["hyperparameters"] == {"held_out_share": 0.25}
    assert "held_out_share" in hatrack(*asked, "--set", "held_out_share=0.2").stderr
    held_out = tmp_path / "held.jsonl"
    held_out.write_text('{"prompt": "q", "completion": "a"}\n' * 29)
    assert "add at least 1 example to the validation file" in hatrack(*asked, "--held-out", str(held_out)).stderr
    both = hatrack(*asked, "--held-out", str(held_out), "--held-out-share", "0.25")
    assert both.exit_code == 2


def test_what_the_cli_and_the_trainer_take_for_enough_is_the_same() -> None:
    assert Rules().min_examples == TrainerSettings().min_examples == DEFAULT_MIN_EXAMPLES


def test_the_lineage_is_shown_or_said_to_be_missing(hatrack: Hatrack) -> None:
    shown = hatrack("lineage", "voice@1").stdout
    assert all(word in shown for word in ("10 examples", "ab" * 32, "recipe: rank", "package: torch", "ftjob-1"))
    assert "without a lineage" in hatrack("lineage", "voice@2").stdout
    assert hatrack("lineage", "voice").exit_code == 2


def test_a_curve_falls_where_its_values_do() -> None:
    lines = draw_curve([float(value) for value in range(100, 0, -1)], width=20, height=4)
    assert len(lines) == 4
    assert lines[0].startswith("  98.000 │█")
    assert lines[-1].startswith("   3.000 │█")
    assert lines[0].endswith(" " * 14)
    assert draw_curve([]) == []
    assert len(draw_curve([1.0, 1.0])) == 6


def test_values_are_read_as_json_where_they_are(hatrack: Hatrack, server: Server, data: Path) -> None:
    values = ("a=3", "b=1e-3", "c=true", "d=nf4", "e=auto")
    options = [option for value in values for option in ("--set", value)]
    assert hatrack("train", str(data), "--name", "voice", "--no-follow", *options).exit_code == 0
    (body,) = [json.loads(body) for verb, path, _, body in server.asked if verb == "POST" and path.endswith("/jobs")]
    assert body["method"]["supervised"]["hyperparameters"] == {
        "a": 3, "b": 1e-3, "c": True, "d": "nf4", "e": "auto",
    }  # fmt: skip


def test_a_job_may_be_followed_in_trackers(hatrack: Hatrack, server: Server, data: Path) -> None:
    tracked = ("--track", "mlflow:support", "--track", "wandb:support:de")
    assert hatrack("train", str(data), "--name", "voice", "--no-follow", *tracked).exit_code == 0
    (body,) = [
        json.loads(body) for method, path, _, body in server.asked if (method, path) == ("POST", "/v1/fine_tuning/jobs")
    ]
    assert body["integrations"] == [
        {"type": "mlflow", "mlflow": {"experiment": "support"}},
        {"type": "wandb", "wandb": {"project": "support:de"}},
    ]
    for wrong in ("comet:support", "mlflow", "mlflow:"):
        refused = hatrack("train", str(data), "--name", "voice", "--track", wrong)
        assert refused.exit_code == 2
        assert "mlflow:EXPERIMENT" in refused.output


def test_a_job_trains_with_examples_as_turns_behind_a_fence(hatrack: Hatrack, server: Server, data: Path) -> None:
    train = ("train", str(data), "--name", "voice", "--no-follow", "--kb-as", "turns", "--required-filter", "customer")
    assert hatrack(*train, "--kb", "vs_1").exit_code == 0
    (body,) = [json.loads(body) for verb, path, _, body in server.asked if verb == "POST" and path.endswith("/jobs")]
    grounding = {"vector_store_ids": ["vs_1"], "insert_as": "turns", "required_filters": ["customer"]}
    assert body["method"]["supervised"]["hyperparameters"] == {"grounding": grounding}
    assert hatrack(*train).exit_code == 2, "without a store there is nothing to show"
