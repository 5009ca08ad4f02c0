"""`hatrack data label` against a gateway that answers as it is told; one test kills the command."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

import pytest
from typer.testing import CliRunner, Result

from service.cli.main import app
from tests.support.http import serving
from tests.support.system import plain_environment

KEY = "hk-test"
Said: TypeAlias = tuple[int, dict[str, Any], dict[str, str]]
Hatrack: TypeAlias = Callable[..., Result]


def answered(text: str, finish_reason: str = "stop") -> Said:
    message = {"role": "assistant", "content": text}
    usage = {"prompt_tokens": 10, "completion_tokens": 5}
    body = {"choices": [{"message": message, "finish_reason": finish_reason}], "usage": usage, "model": "m"}
    return 200, body, {"x-hatrack-adapter": "support@1"}


def error(status: int, code: str, param: str | None = None, **headers: str) -> Said:
    return status, {"error": {"message": f"it says {code}", "code": code, "param": param}}, headers


@dataclass
class Gateway:
    """``says``: for a question its answers in turn; once there are none left, the question itself is repeated."""

    url: str = ""
    says: dict[str, list[Said]] = field(default_factory=dict)
    asked: list[tuple[str, dict[str, Any]]] = field(default_factory=list)
    teachers: list[dict[str, Any]] = field(default_factory=list)
    hold_after: int | None = None
    """Requests after which no more are answered until `open`."""
    open: threading.Event = field(default_factory=threading.Event)
    held: threading.Event = field(default_factory=threading.Event)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def questions(self) -> Counter[str]:
        return Counter(str(body["messages"][-1]["content"]) for _, body in self.asked)

    def answer(self, method: str, path: str, body: bytes, key: str) -> tuple[int, bytes, dict[str, str]]:
        status, content, headers = self._answer(path, json.loads(body or b"{}"), key)
        return status, json.dumps(content).encode(), headers

    def _answer(self, path: str, body: dict[str, Any], key: str) -> Said:
        if key != KEY:
            return error(401, "invalid_api_key")
        if path == "/v1/models/support":
            return 200, {"id": "support"}, {}
        if path.startswith("/v1/models/"):
            return error(404, "model_not_found", "model")
        if path == "/v1/teachers":
            return 200, {"object": "list", "data": self.teachers, "has_more": False}, {}
        with self.lock:
            self.asked.append((path, body))
            number = len(self.asked)
            said = self.says.get(str(body["messages"][-1]["content"]))
            reply = said.pop(0) if said else answered(f"answer to {body['messages'][-1]['content']}")
        if self.hold_after is not None and number > self.hold_after:
            self.held.set()
            self.open.wait()
        return reply


@pytest.fixture
def gateway(monkeypatch: pytest.MonkeyPatch) -> Iterator[Gateway]:
    fake = Gateway()
    with serving(fake.answer) as fake.url:
        monkeypatch.setenv("HATRACK_URL", fake.url)
        monkeypatch.setenv("HATRACK_KEY", KEY)
        yield fake
        fake.open.set()


@pytest.fixture
def hatrack() -> Hatrack:
    return lambda *arguments: CliRunner().invoke(app, ["data", "label", *map(str, arguments)])


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    path = tmp_path / "prompts.jsonl"
    path.write_text("".join(json.dumps({"prompt": f"q{number}"}) + "\n" for number in range(1, 7)))
    return path


def rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_version_answers_and_its_answers_are_a_training_file(
    gateway: Gateway, hatrack: Hatrack, prompts: Path, tmp_path: Path
) -> None:
    gateway.says = {
        "q2": [error(400, "context_length_exceeded", "messages")],
        "q3": [answered("cut he", "length")],
        "q4": [answered("I'm sorry, but I can't help with that.")],
    }
    result = hatrack(prompts, "--teacher", "support", "--sample", "2")
    assert result.exit_code == 0, result.output
    out = tmp_path / "prompts.labelled.jsonl"
    assert [[m["content"] for m in row["messages"]] for row in rows(out)] == [
        [f"q{number}", f"answer to q{number}"] for number in (1, 5, 6)
    ]
    assert [row["line"] for row in rows(tmp_path / "prompts.labelled.refused.jsonl")] == [2, 4]
    assert [row["line"] for row in rows(tmp_path / "prompts.labelled.truncated.jsonl")] == [3]
    assert "2 of 3 answers" in (tmp_path / "prompts.labelled.sample.html").read_text()
    assert "3 of 6 prompts are answered" in result.stdout
    assert "2 refused, set aside" in result.stdout
    assert "50 tokens of prompts, 25 of answers; no price is known" in " ".join(result.stdout.split())
    assert {path for path, _ in gateway.asked} == {"/v1/chat/completions"}
    assert gateway.asked[0][1]["model"] == "support"
    assert (gateway.asked[0][1]["max_tokens"], "temperature" in gateway.asked[0][1]) == (512, False)
    # again: nothing is asked twice; longer answers only where one was cut
    gateway.asked.clear()
    assert hatrack(prompts, "--teacher", "support").exit_code == 0
    assert gateway.asked == []
    result = hatrack(prompts, "--teacher", "support", "--max-tokens", "1024", "--json")
    assert gateway.questions() == {"q3": 1}
    summary = json.loads(result.stdout)
    assert (summary["answered"], summary["refused"], summary["truncated"], summary["cost"]) == (4, 2, 0, None)
    assert summary["served_by"] == {"support@1": 5}


def test_an_error_in_the_middle_keeps_what_there_is_and_says_how_to_go_on(
    gateway: Gateway, hatrack: Hatrack, prompts: Path, tmp_path: Path
) -> None:
    gateway.says = {"q4": [error(403, "insufficient_scope")]}
    result = hatrack(prompts, "--teacher", "support", "--concurrency", "1")
    assert result.exit_code == 1
    assert "3 of 6 prompts have a reply; run the same command again to go on. [insufficient_scope]" in result.stderr
    assert len(rows(tmp_path / "prompts.labelled.jsonl")) == 3
    result = hatrack(prompts, "--teacher", "support", "--concurrency", "1")
    assert result.exit_code == 0, result.output
    assert gateway.questions() == {"q1": 1, "q2": 1, "q3": 1, "q4": 2, "q5": 1, "q6": 1}
    assert len(rows(tmp_path / "prompts.labelled.jsonl")) == 6


def test_a_busy_teacher_is_asked_again_and_a_spent_quota_ends_it(
    gateway: Gateway, hatrack: Hatrack, prompts: Path
) -> None:
    busy = {"retry-after": "0"}
    gateway.says = {
        "q1": [error(429, "rate_limit_exceeded", **busy), error(503, "overloaded", **busy)],
        "q5": [error(429, "insufficient_quota", **{"retry-after": "3600"})],
    }
    result = hatrack(prompts, "--teacher", "support", "--concurrency", "1")
    assert result.exit_code == 1
    assert "[insufficient_quota]" in result.stderr
    assert gateway.questions() == {"q1": 3, "q2": 1, "q3": 1, "q4": 1, "q5": 1}


def test_killed_and_run_again_it_goes_on(gateway: Gateway, hatrack: Hatrack, tmp_path: Path) -> None:
    path = tmp_path / "p.txt"
    path.write_text("".join(f"q{number}\n" for number in range(1, 21)))
    gateway.hold_after = 9
    command = [sys.executable, "-m", "service.cli", "data", "label", str(path), "--teacher", "support"]
    process = subprocess.Popen(
        [*command, "--concurrency", "3"],
        env=plain_environment() | {"HATRACK_URL": gateway.url, "HATRACK_KEY": KEY},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    assert gateway.held.wait(120)
    busy = hatrack(path, "--teacher", "support")
    assert (busy.exit_code, "[labelling_in_progress]" in busy.stderr) == (1, True)
    os.kill(process.pid, signal.SIGKILL)
    process.wait(60)
    gateway.hold_after = None
    gateway.open.set()
    result = hatrack(path, "--teacher", "support")
    assert result.exit_code == 0, result.output
    asked = gateway.questions()
    assert len(asked) == 20
    # those in flight when it was killed
    assert sum(asked.values()) <= 23
    assert len(rows(tmp_path / "p.labelled.jsonl")) == 20


@pytest.mark.parametrize("ending", ["jsonl", "labels.jsonl", "refused.jsonl", "truncated.jsonl", "sample.html"])
def test_the_file_with_the_prompts_is_none_of_those_that_are_written(
    gateway: Gateway, hatrack: Hatrack, tmp_path: Path, ending: str
) -> None:
    prompts = tmp_path / f"p.{ending}"
    content = json.dumps({"prompt": "q1"})  # no newline at its end: a journal would cut it off
    prompts.write_text(content)
    refused = hatrack(prompts, "--teacher", "support", "--out", tmp_path / "p.jsonl")
    assert refused.exit_code == 2
    assert "holds the prompts" in refused.stderr
    assert prompts.read_text() == content
    assert gateway.asked == []


def test_a_file_that_no_labelling_wrote_is_not_written_over(
    gateway: Gateway, hatrack: Hatrack, prompts: Path, tmp_path: Path
) -> None:
    curated = tmp_path / "curated.jsonl"
    curated.write_text("by hand\n")
    refused = hatrack(prompts, "--teacher", "support", "--out", curated)
    assert refused.exit_code == 2
    assert "curated.labels.jsonl" in refused.stderr
    assert curated.read_text() == "by hand\n"
    assert gateway.asked == []


def test_a_system_prompt_that_names_no_file_is_not_sent_as_the_prompt(
    gateway: Gateway, hatrack: Hatrack, prompts: Path
) -> None:
    refused = hatrack(prompts, "--teacher", "support", "--system-prompt", "voice.md")
    assert refused.exit_code == 2
    assert "there is no file voice.md" in " ".join(refused.stderr.split())
    assert gateway.asked == []


def test_a_file_that_cannot_be_written_is_an_error_and_no_traceback(
    gateway: Gateway, hatrack: Hatrack, prompts: Path, tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    refused = hatrack(prompts, "--teacher", "support", "--out", tmp_path / "file" / "x.jsonl")
    assert (refused.exit_code, "[not_writable]" in refused.stderr) == (1, True)
    assert gateway.questions() == {}


def test_filters_groups_and_the_teachers_prompt(gateway: Gateway, hatrack: Hatrack, tmp_path: Path) -> None:
    path = tmp_path / "p.jsonl"
    path.write_text(json.dumps({"prompt": "q", "group": "t1", "filters": {"customer": "c-1"}}) + "\n")
    (tmp_path / "voice.md").write_text("Speak as the shop.\n")
    options = ("--teacher", "support", "--system-prompt", tmp_path / "voice.md", "--temperature", "0.2")
    assert hatrack(path, *options, "--out", tmp_path / "o.jsonl").exit_code == 0
    ((_, body),) = gateway.asked
    assert body["messages"][0] == {"role": "system", "content": "Speak as the shop."}
    assert body["temperature"] == 0.2
    assert body["grounding"]["filters"]["filters"] == [{"type": "eq", "key": "customer", "value": "c-1"}]
    (row,) = rows(tmp_path / "o.jsonl")
    assert [message["role"] for message in row["messages"]] == ["user", "assistant"]
    assert (row["group"], row["filters"]) == ("t1", {"customer": "c-1"})


def test_an_outside_teacher_has_a_price(gateway: Gateway, hatrack: Hatrack, prompts: Path) -> None:
    gateway.teachers = [
        {"object": "teacher", "id": name, "model": "large", "price_input": 2.0, "price_output": 10.0}
        for name in ("big", "support")
    ]
    summary = json.loads(hatrack(prompts, "--teacher", "big", "--json").stdout)
    assert {path for path, _ in gateway.asked} == {"/v1/teachers/big"}
    assert set(gateway.asked[0][1]) == {"messages", "max_tokens"}
    assert summary["cost"] == pytest.approx((60 * 2 + 30 * 10) / 1e6)
    gateway.asked.clear()
    hatrack(prompts, "--teacher", "support", "--outside")
    assert {path for path, _ in gateway.asked} == {"/v1/teachers/support"}


@pytest.mark.parametrize(
    ("content", "options", "exit_code", "reason"),
    [
        ('{"prompt": "a"}\n{\n', ("--teacher", "support"), 2, "line 2: not JSON"),
        ("", ("--teacher", "support"), 2, "no prompts"),
        ('{"prompt": "a"}\n', ("--teacher", "nobody"), 1, "neither a model of the gateway nor a teacher"),
        ('{"prompt": "a"}\n', (), 2, "--teacher"),
    ],
)
def test_what_cannot_be_labelled_is_said_before_anything_is_asked(
    gateway: Gateway,
    hatrack: Hatrack,
    tmp_path: Path,
    content: str,
    options: tuple[str, ...],
    exit_code: int,
    reason: str,
) -> None:
    path = tmp_path / "p.jsonl"
    path.write_text(content)
    result = hatrack(path, *options)
    assert result.exit_code == exit_code, result.output
    assert reason in " ".join(result.output.replace("│", " ").split())
    assert gateway.asked == []
    same = hatrack(path, "--teacher", "support", "--out", path)
    assert same.exit_code == 2
