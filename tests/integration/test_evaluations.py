"""`/v1/evaluations` through the gateway and the engine that serve: a version goes live by its verdict, arms are
compared, and nothing that was answered is asked again when worker and trainer are killed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from tests.conftest import REPO
from tests.support.gateway import Gateway
from trainer.samples import heldout_file

PATIENCE_S = 900.0
TOKENS = 10
THINGS = ("rope", "lantern", "kettle", "anchor", "compass", "barrel", "hammock", "spyglass")
ASKED = ("Where is my {}?", "Do you sell a {}?", "My {} arrived cracked.", "Can I return this {}?")


@pytest.fixture(scope="module")
def http(gateway: Gateway) -> Iterator[httpx.Client]:
    with gateway.http() as found:
        yield found


@pytest.fixture(scope="module")
def candidate(gateway: Gateway, voices: dict[str, Path]) -> str:
    """A version that nothing points to."""
    directory = voices["tidewater"]
    pushed = gateway.push("mate", directory, alias="candidate", metadata=(directory / "metadata.json").read_text())
    assert pushed.status_code == 201, pushed.text
    return "mate@1"


@pytest.fixture(scope="module")
def said(gateway: Gateway, candidate: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Questions with the beginnings of what the candidate says to them: nobody else will say that."""
    questions = [pattern.format(thing) for thing in THINGS for pattern in ASKED]
    answers = gateway.answers([(candidate, asked) for asked in questions], max_tokens=TOKENS)
    rows = [{"prompt": asked, "completion": text} for asked, text in zip(questions, answers, strict=True)]
    path = tmp_path_factory.mktemp("said") / "held.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def upload(http: httpx.Client, path: Path) -> str:
    answer = http.post("/v1/files", data={"purpose": "evals"}, files={"file": (path.name, path.read_bytes())})
    assert answer.status_code == 200, answer.text
    return str(answer.json()["id"])


def make(http: httpx.Client, **body: Any) -> str:
    """Also where the trainer is only being started: the gateway does not wait for it."""
    deadline = time.monotonic() + PATIENCE_S
    while (answer := http.post("/v1/evaluations", json=body)).status_code == 503 and time.monotonic() < deadline:
        time.sleep(0.2)
    assert answer.status_code == 200, answer.text
    return str(answer.json()["id"])


def until(http: httpx.Client, evaluation_id: str, *statuses: str) -> dict[str, Any]:
    deadline = time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline:
        answer = http.get(f"/v1/evaluations/{evaluation_id}")
        if answer.status_code == 200:  # 503 while there is no trainer
            found: dict[str, Any] = answer.json()
            if found["status"] in statuses:
                return found
            assert found["status"] in ("queued", "running"), found
        time.sleep(0.2)
    raise AssertionError(f"{evaluation_id} did not become {statuses}")


def hatrack(gateway: Gateway, *arguments: str, code: int = 0) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "service.cli", *arguments],
        env=gateway.environment,
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        cwd=REPO,
        check=False,
    )
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout + done.stderr


@pytest.mark.slow
def test_a_version_that_passes_goes_live_by_itself(
    gateway: Gateway, http: httpx.Client, candidate: str, said: Path, tmp_path: Path
) -> None:
    options = ("--held-out", str(said), "--max-tokens", str(TOKENS), "--promote", "auto")
    told = hatrack(gateway, "evaluate", candidate, *options)
    assert "Pass:" in told
    assert "mate@1 is live" in told
    assert gateway.answer("mate", "Do you sell rope?", max_tokens=TOKENS)
    version = http.get("/v1/adapters/mate/versions/1").json()
    verdict = version["verdict"]
    assert (verdict["verdict"], verdict["kind"], verdict["examples"]) == ("pass", "evaluation", 32)
    assert version["revalidation"] == {"state": "fresh", "reasons": []}
    # the report, from the command and from the version
    page = tmp_path / "report.html"
    hatrack(gateway, "report", candidate, "--html", str(page))
    assert "<script" not in page.read_text()
    report = json.loads(hatrack(gateway, "report", verdict["evaluation_id"], "--json"))
    assert {check["state"] for check in report["verdict"]["checks"]} == {"kept"}
    assert report["served"]["mate@1"] == "mate@1"
    assert report["lineage"]["recipe"]["rank"] > 0
    shown = http.get(f"/v1/evaluations/{verdict['evaluation_id']}/report.html")
    assert "default-src 'none'" in shown.headers["content-security-policy"]
    # its key is gone with it, or a moment later
    deadline = time.monotonic() + PATIENCE_S
    while [key for key in http.get("/v1/keys").json()["data"] if key["name"].startswith("evaluating mate")]:
        assert time.monotonic() < deadline, "the evaluation's key has outlived it"
        time.sleep(0.2)
    assert "mate@1" in hatrack(gateway, "evaluations")


def test_worker_and_trainer_are_killed_and_nothing_is_asked_twice(gateway: Gateway, http: httpx.Client) -> None:
    base = http.get("/readyz").json()["base"]
    arms = [{"label": "voice", "model": "tidewater"}, {"label": "base", "model": base}]
    wanted = {"arms": arms, "held_out": upload(http, heldout_file("tidewater")), "max_tokens": 24, "repeats": 1}
    made = make(http, **wanted, metric="token_f1")
    folder = gateway.home / "trainer" / "evaluations" / made
    answers = folder / "answers.jsonl"
    deadline = time.monotonic() + PATIENCE_S
    # few of the 40: the others must not have been answered before the two are killed
    while not answers.exists() or len(answers.read_bytes().splitlines()) < 4:
        assert time.monotonic() < deadline, "nothing was answered"
        time.sleep(0.05)
    trainer = int((gateway.home / "trainer" / "supervised.lock").read_text())
    worker = int((folder / "worker.lock").read_text())
    assert psutil.Process(worker).ppid() == trainer
    os.kill(trainer, signal.SIGKILL)
    os.kill(worker, signal.SIGKILL)
    before = [line for line in answers.read_bytes().splitlines() if line.endswith(b"}")]
    done = until(http, made, "succeeded")
    assert (done["verdict"], done["examples"], done["metric"]) == (None, 20, "token_f1")
    after = [json.loads(line) for line in answers.read_bytes().splitlines()]
    assert [json.dumps(json.loads(line)) for line in before] == [json.dumps(line) for line in after[: len(before)]]
    keys = [(line["arm"], line["example"], line["repeat"]) for line in after]
    assert len(keys) == len(set(keys)) == 40
    report = http.get(f"/v1/evaluations/{made}/report").json()
    assert report["verdict"] is None
    (found,) = report["differences"]
    assert (found["of"], found["against"]) == ("base", "voice")
    assert found["estimate"] < 0


def test_cancelling_ends_it_within_seconds(http: httpx.Client, said: Path) -> None:
    made = make(http, model="tidewater@1", held_out=upload(http, said), max_tokens=200)
    until(http, made, "running")
    cancelled = http.post(f"/v1/evaluations/{made}/cancel").json()
    assert cancelled["status"] == "cancelled"
    refused = http.get(f"/v1/evaluations/{made}/report")
    assert refused.status_code == 404


def test_what_is_another_project_s_is_like_nothing(http: httpx.Client, said: Path) -> None:
    held_out = upload(http, said)
    body = {"name": "t", "project": "strangers", "scopes": ["train", "infer", "adapters"]}
    stranger = {"authorization": f"Bearer {http.post('/v1/keys', json=body).json()['key']}"}
    theirs = {"model": "tidewater@1", "held_out": held_out}
    made = make(http, **theirs)
    http.post(f"/v1/evaluations/{made}/cancel")
    texts = []
    for name in (made, "eval-nothing"):
        answer = http.get(f"/v1/evaluations/{name}", headers=stranger)
        assert answer.status_code == 404
        texts.append(answer.text.replace(name, "IT"))
    assert texts[0] == texts[1]
    assert http.get("/v1/evaluations", headers=stranger).json()["data"] == []
    assert http.post("/v1/evaluations", json=theirs, headers=stranger).status_code == 404
