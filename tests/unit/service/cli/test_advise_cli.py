"""`hatrack advise` with a teacher, against a gateway whose ladder is at each step in turn."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

import pytest
from typer.testing import CliRunner, Result

from service.cli import advise, kb
from service.cli.main import app
from tests.support.http import serving

Hatrack: TypeAlias = Callable[..., Result]
LABELS = {
    "teacher": "voice@2", "outside": False, "prompts": 40, "answered": 12, "refused": 1, "truncated": 0, "file": None,
    "error": None,
}  # fmt: skip
CHILD = {"id": "eval-1", "purpose": "lora"}
MEAN = {"label": "distilled", "mean": 0.9, "low": 0.8, "high": 0.95, "examples": 60}
RUNG = {
    "key": "distilled", "title": "a LoRA on the teacher's answers", "model": "support@5", "mean": MEAN,
    "request": {"prompt_tokens": 40.0, "completion_tokens": 8.0}, "year": {"total": 0.0042, "device_hours": 0.1},
    "first_token": {"median_seconds": 0.0851, "slowest_seconds": 0.2, "requests": 8},
}  # fmt: skip
REPORT = {
    "advice": {
        "word": "fine_tune", "rung": "distilled", "sentence": "Fine-tune: nothing simpler does as well.",
        "reasons": [], "would_change": [],
    },
    "rungs": [RUNG, RUNG | {"key": "base", "model": "tiny", "first_token": None}],
    "skipped": [], "labels": LABELS | {"answered": 38, "refused": 2},
}  # fmt: skip


@dataclass
class Gateway:
    """``steps``: what the ladder is at each look; the last one stays."""

    steps: list[dict[str, Any]] = field(default_factory=list)
    sent: dict[str, Any] = field(default_factory=dict)
    files: list[bytes] = field(default_factory=list)

    def answer(self, method: str, path: str, body: bytes, _key: str) -> tuple[int, bytes, dict[str, str]]:
        return 200, json.dumps(self._answer(method, path, body)).encode(), {}

    def _answer(self, method: str, path: str, body: bytes) -> dict[str, Any]:
        if path == "/v1/files":
            self.files.append(body)
            return {"id": f"file-{len(self.files)}"}
        if method == "POST":
            self.sent = json.loads(body)
            return self.ladder(status="validating_files")
        if path.endswith("/report"):
            return REPORT
        if path.startswith("/v1/evaluations"):
            return {"progress": None}
        return self.steps.pop(0) if len(self.steps) > 1 else self.steps[0]

    def ladder(self, **changes: Any) -> dict[str, Any]:
        return {
            "id": "ladder-1",
            "status": "running",
            "children": [],
            "rungs": [],
            "labels": None,
            "error": None,
        } | changes


@pytest.fixture
def gateway(monkeypatch: pytest.MonkeyPatch) -> Iterator[Gateway]:
    fake = Gateway()
    with serving(fake.answer) as url:
        monkeypatch.setenv("HATRACK_URL", url)
        monkeypatch.setenv("HATRACK_KEY", "hk-test")
        monkeypatch.setattr(advise, "POLL_S", 0.01)
        yield fake


@pytest.fixture
def hatrack(tmp_path: Path) -> Hatrack:
    data, prompts = tmp_path / "data.jsonl", tmp_path / "prompts.jsonl"
    turns = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]
    data.write_text(json.dumps({"messages": turns}) + "\n")
    prompts.write_text('{"prompt": "Where is my parcel?"}\n')
    files = {"DATA": str(data), "PROMPTS": str(prompts)}

    def run(*options: str) -> Result:
        arguments = [files.get(option, option) for option in options]
        return CliRunner().invoke(app, ["advise", files["DATA"], "--name", "support", *arguments])

    return run


def test_a_teacher_and_its_prompts_are_sent_and_what_came_of_it_is_shown(gateway: Gateway, hatrack: Hatrack) -> None:
    labelling, trained = gateway.ladder(labels=LABELS, children=[CHILD]), gateway.ladder(labels=LABELS | {"file": "f"})
    gateway.steps = [labelling, trained | {"children": [CHILD]}, gateway.ladder(status="succeeded")]
    shown = hatrack("--teacher", "voice@2", "--unlabelled", "PROMPTS")
    assert shown.exit_code == 0, shown.output
    assert (gateway.sent["teacher"], gateway.sent["unlabelled_file"]) == ("voice@2", "file-2")
    assert gateway.sent["training_file"] == "file-1"
    assert b"user_data" in gateway.files[1], "a file to fine-tune on would have to have answers"
    assert "voice@2 answered 38 of 40 prompts; 2 refused and 0 cut answers are set aside" in shown.output
    text = " ".join(shown.output.split())
    assert "85 ms 0.0042" in text
    assert "? 0.0042" in text
    assert "hatrack promote support@5" in text


def test_the_bar_says_that_the_teacher_answers(gateway: Gateway) -> None:
    ladder: Any = gateway.ladder(labels=LABELS, children=[CHILD])
    assert advise._progress(None, ladder) == ("voice@2 answers prompts", 13, 40)  # type: ignore[arg-type]


def test_a_page_that_cannot_be_written_is_told_before_anything_is_sent(
    gateway: Gateway, hatrack: Hatrack, tmp_path: Path
) -> None:
    refused = hatrack("--html", str(tmp_path / "nodir" / "x.html"), "--json")
    assert (refused.exit_code, json.loads(refused.stderr)["error"]["code"]) == (1, "not_writable")
    assert gateway.files == []


@pytest.mark.parametrize("options", [("--teacher", "voice@2"), ("--unlabelled", "PROMPTS")])
def test_a_teacher_needs_prompts_and_prompts_a_teacher(
    gateway: Gateway, hatrack: Hatrack, options: tuple[str, ...]
) -> None:
    refused = hatrack(*options)
    assert refused.exit_code == 2
    assert "--teacher and --unlabelled need each other" in " ".join(refused.output.replace("│", " ").split())
    assert gateway.files == []


def test_the_examples_are_no_documents(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data, docs = tmp_path / "support.jsonl", tmp_path / "docs"
    docs.mkdir()
    data.write_text('{"messages": []}\n')
    (docs / "copy.jsonl").write_bytes(data.read_bytes())
    (docs / "other.jsonl").write_bytes(b"x" * len(data.read_bytes()))
    (docs / "policies.md").write_text("# Returns")
    sent: dict[str, Path] = {}

    def upload(_client: Any, documents: dict[str, Path], *, quiet: bool) -> dict[str, str]:
        sent.update(documents)
        return {name: name for name in documents}

    monkeypatch.setattr(kb, "_upload", upload)
    monkeypatch.setattr(kb, "_index", lambda *_, **__: [{"status": "completed"}] * len(sent))
    client: Any = None
    assert kb.add_documents(client, "vs_1", [docs, data], without=[data], quiet=True) == 2
    assert {file.name for file in sent.values()} == {"other.jsonl", "policies.md"}


def test_what_the_rungs_score_so_far_is_printed_once_and_says_that_it_decides_nothing(
    gateway: Gateway, hatrack: Hatrack
) -> None:
    def rungs(questions: int | None, mean: float | None) -> list[dict[str, Any]]:
        score = {"mean": 0.21, "low": 0.1, "high": 0.4, "questions": questions, "of": 48}
        rung = {"key": "base", "title": "the base as it is", "model": "tiny", "vector_store_id": None}
        return [rung | {"mean": mean, "provisional": None if questions is None else score}]

    child = {"id": "eval-1", "purpose": "prompts"}
    gateway.steps = [
        *(gateway.ladder(rungs=rungs(questions, None), children=[child]) for questions in (None, 8, 16)),
        gateway.ladder(rungs=rungs(None, 0.3), children=[child]),
        gateway.ladder(status="succeeded"),
    ]
    shown = hatrack("--quick")
    assert shown.exit_code == 0, shown.output
    assert shown.output.count("So far, on 8 of 48 questions (this decides nothing yet):") == 1
    assert shown.output.count("So far") == 1
    assert shown.output.count("21  (10 to 40)  the base as it is") == 1
    assert "30.0  the base as it is  (tiny)" in shown.output
