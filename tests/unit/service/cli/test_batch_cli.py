"""`hatrack batch` and `hatrack batches`: a file goes in, the answers come out beside it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from typer.testing import CliRunner, Result

from service.cli.main import app
from service.client import HatrackClient

LINE = json.dumps({"custom_id": "a", "method": "POST", "url": "/v1/chat/completions", "body": {}})
ANSWERS, FAULTS = b'{"custom_id":"a"}\n', b'{"custom_id":"b"}\n'
USAGE = {
    "input_tokens": 1200, "input_tokens_details": {"cached_tokens": 0}, "output_tokens": 340,
    "output_tokens_details": {"reasoning_tokens": 0}, "total_tokens": 1540,
}  # fmt: skip
BATCH: dict[str, Any] = {
    "object": "batch", "id": "batch_1", "endpoint": "/v1/chat/completions", "model": "voice", "errors": None,
    "input_file_id": "file-in", "completion_window": "24h", "status": "validating", "output_file_id": None,
    "error_file_id": None, "created_at": 1_790_000_000, "expires_at": 1_790_086_400,
    "request_counts": {"total": 0, "completed": 0, "failed": 0}, "usage": USAGE | {"total_tokens": 0},
    "metadata": None, "waiting": None,
}  # fmt: skip
WAITING = {"code": "engine_unavailable", "message": "the engine is not ready: it starts", "until": None}
RUNNING = {"status": "in_progress", "request_counts": {"total": 3, "completed": 1, "failed": 0}, "waiting": WAITING}
DONE = {
    "status": "completed", "request_counts": {"total": 3, "completed": 3, "failed": 0}, "usage": USAGE,
    "output_file_id": "file-out", "error_file_id": None,
}  # fmt: skip
Hatrack = Callable[..., Result]


class Gateway:
    """Answers as the gateway does; each look at the batch shows the next of ``states``."""

    def __init__(self) -> None:
        self.states: list[dict[str, Any]] = [RUNNING, DONE]
        self.asked: list[httpx.Request] = []

    def answer(self, request: httpx.Request) -> httpx.Response:
        request.read()
        self.asked.append(request)
        path = request.url.path
        if path == "/v1/files":
            return httpx.Response(200, json={"id": "file-in"})
        if path.endswith("/content"):
            return httpx.Response(200, content=ANSWERS if "file-out" in path else FAULTS)
        if path == "/v1/batches" and request.method == "GET":
            return httpx.Response(200, json={"object": "list", "data": [BATCH | DONE, BATCH], "has_more": False})
        if path == "/v1/batches":
            return httpx.Response(200, json=BATCH)
        state = {"status": "cancelling"} if path.endswith("/cancel") else self.states.pop(0)
        return httpx.Response(200, json=BATCH | state)


@pytest.fixture
def gateway() -> Gateway:
    return Gateway()


@pytest.fixture
def hatrack(gateway: Gateway, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Hatrack:
    monkeypatch.setattr(
        "service.cli.batch.HatrackClient",
        lambda: HatrackClient("http://x", "key", transport=httpx.MockTransport(gateway.answer)),
    )
    monkeypatch.setattr("service.client.batches.POLL_S", 0)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "requests.jsonl").write_text(f"\n{LINE}\n")
    return lambda *arguments: CliRunner().invoke(app, list(arguments))


def test_a_file_is_uploaded_and_its_answers_are_written(hatrack: Hatrack, gateway: Gateway, tmp_path: Path) -> None:
    result = hatrack("batch", "requests.jsonl", "--wait")
    assert result.exit_code == 0, result.output
    assert (tmp_path / "requests.answers.jsonl").read_bytes() == ANSWERS
    assert not (tmp_path / "requests.answers.errors.jsonl").exists()
    assert "batch_1  completed\nrequests   3 of 3 answered, 0 failed\ntokens     1,200 in, 340 out" in result.stdout
    assert "written    requests.answers.jsonl" in result.stdout
    upload, create = gateway.asked[:2]
    assert b'name="purpose"\r\n\r\nbatch\r\n' in upload.content
    body = {"input_file_id": "file-in", "endpoint": "/v1/chat/completions", "completion_window": "24h"}
    assert json.loads(create.content) == body


def test_without_waiting_it_says_how_to_get_the_answers(hatrack: Hatrack, gateway: Gateway) -> None:
    result = hatrack("batch", "requests.jsonl")
    assert (result.exit_code, len(gateway.asked)) == (0, 2)
    assert "get the answers with `hatrack batch batch_1 --wait`" in result.stdout


def test_a_batch_is_shown_by_its_id_with_what_it_waits_for(hatrack: Hatrack) -> None:
    result = hatrack("batch", "batch_1")
    assert "requests   1 of 3 answered, 0 failed" in result.stdout
    assert "waiting    the engine is not ready: it starts" in result.stdout


def test_requests_that_failed_are_written_beside_the_answers(
    hatrack: Hatrack, gateway: Gateway, tmp_path: Path
) -> None:
    counts = {"total": 3, "completed": 2, "failed": 1}
    gateway.states = [DONE | {"request_counts": counts, "error_file_id": "file-err"}] * 2
    result = hatrack("batch", "batch_1", "--wait", "--out", "night.jsonl")
    assert result.exit_code == 1
    assert (tmp_path / "night.jsonl").read_bytes() == ANSWERS
    assert (tmp_path / "night.errors.jsonl").read_bytes() == FAULTS


def test_a_file_that_cannot_be_written_is_told_before_the_wait(
    hatrack: Hatrack, gateway: Gateway, tmp_path: Path
) -> None:
    for target in ("requests.jsonl", "batch_1"):
        refused = hatrack("batch", target, "--wait", "--out", "nodir/x.jsonl", "--json")
        assert refused.exit_code == 1
        error = json.loads(refused.stderr)["error"]
        assert error["code"] == "not_writable"
        assert f"{tmp_path / 'nodir'} is not a directory" in error["message"]
    assert gateway.asked == [], "nothing is uploaded, and nobody waits for hours"


def test_a_file_that_can_no_longer_be_written_after_the_wait_is_told(
    hatrack: Hatrack, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("service.cli.batch.check_writable", lambda _target, **_: None)
    refused = hatrack("batch", "batch_1", "--wait", "--out", "nodir/x.jsonl")
    assert refused.exit_code == 1
    assert "hatrack: nodir/x.jsonl cannot be written: No such file or directory. [not_writable]\n" in refused.stderr


def test_what_is_wrong_with_a_file_is_said_by_line(hatrack: Hatrack, gateway: Gateway) -> None:
    errors = [{"code": "invalid_value", "message": f"it is wrong {n}", "param": None, "line": n} for n in range(1, 26)]
    gateway.states = [{"status": "failed", "errors": {"object": "list", "data": errors}}]
    result = hatrack("batch", "requests.jsonl", "--wait")
    assert result.exit_code == 1
    assert "error      line 3: it is wrong 3 [invalid_value]" in result.stdout
    assert "and 5 more; --json shows them" in result.stdout


def test_json_is_the_batch(hatrack: Hatrack) -> None:
    result = hatrack("batch", "requests.jsonl", "--wait", "--json")
    assert json.loads(result.stdout)["status"] == "completed"


def test_a_batch_is_cancelled(hatrack: Hatrack, gateway: Gateway) -> None:
    result = hatrack("batch", "batch_1", "--cancel")
    assert "batch_1  cancelling" in result.stdout
    assert gateway.asked[-1].url.path == "/v1/batches/batch_1/cancel"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("nothing.jsonl",), "neither a file nor the id of a batch"),
        (("requests.jsonl", "--cancel"), "--cancel needs the id"),
        (("batch_1", "--endpoint", "/v1/responses"), "--endpoint needs a file"),
    ],
)
def test_wrong_usage(hatrack: Hatrack, gateway: Gateway, arguments: tuple[str, ...], words: str) -> None:
    result = hatrack("batch", *arguments)
    assert result.exit_code == 2
    assert words in " ".join(result.stderr.replace("│", " ").split())
    assert gateway.asked == []


def test_a_file_that_is_no_batch_is_not_sent(hatrack: Hatrack, gateway: Gateway, tmp_path: Path) -> None:
    (tmp_path / "requests.jsonl").write_text('{"prompt": "a"}\n')
    result = hatrack("batch", "requests.jsonl")
    assert (result.exit_code, gateway.asked) == (1, [])
    assert "[not_a_batch_file]" in result.stderr


def test_the_list(hatrack: Hatrack) -> None:
    result = hatrack("batches")
    assert [line.split()[:5] for line in result.stdout.splitlines()] == [
        ["BATCH", "STATUS", "ANSWERED", "FAILED", "TOTAL"],
        ["batch_1", "completed", "3", "0", "3"],
        ["batch_1", "validating", "0", "0", "0"],
    ]
