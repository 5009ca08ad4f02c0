"""`/v1/evaluations` through gateway and engine: a version goes live by its verdict, arms are compared, and after worker
and trainer are killed no answered request is repeated."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from tests.support.commands import hatrack, run_hatrack
from tests.support.gateway import TIMEOUT, Gateway, upload_evaluation_file
from tests.support.waiting import wait_until
from trainer.samples import heldout_file

PATIENCE_S = 900.0
TOKENS = 10
THINGS = ("rope", "lantern", "kettle", "anchor", "compass", "barrel", "hammock", "spyglass")
ASKED = ("Where is my {}?", "Do you sell a {}?", "My {} arrived cracked.", "Can I return this {}?")


@pytest.fixture(scope="module")
def http(gateway: Gateway) -> Iterator[httpx.Client]:
    with gateway.http() as client:
        yield client


@pytest.fixture(scope="module")
def candidate(gateway: Gateway, voices: dict[str, Path]) -> str:
    """A version that nothing points to."""
    directory = voices["tidewater"]
    pushed = gateway.push("mate", directory, alias="candidate", metadata=(directory / "metadata.json").read_text())
    assert pushed.status_code == 201, pushed.text
    return "mate@1"


@pytest.fixture(scope="module")
def held_out_file(gateway: Gateway, candidate: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Questions with the beginnings of the candidate's own answers, which no other model gives."""
    questions = [pattern.format(thing) for thing in THINGS for pattern in ASKED]
    answers = gateway.answers([(candidate, asked) for asked in questions], max_tokens=TOKENS)
    rows = [{"prompt": asked, "completion": text} for asked, text in zip(questions, answers, strict=True)]
    path = tmp_path_factory.mktemp("held-out") / "held.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def create(http: httpx.Client, **body: Any) -> str:
    """The id of a new evaluation. Asks again while the trainer starts, for which the gateway does not wait."""
    deadline = time.monotonic() + PATIENCE_S
    while (answer := http.post("/v1/evaluations", json=body)).status_code == 503 and time.monotonic() < deadline:
        time.sleep(0.2)
    assert answer.status_code == 200, answer.text
    return str(answer.json()["id"])


def wait_for_status(http: httpx.Client, evaluation_id: str, *statuses: str) -> dict[str, Any]:
    deadline = time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline:
        answer = http.get(f"/v1/evaluations/{evaluation_id}")
        if answer.status_code == 200:  # 503 while there is no trainer
            evaluation: dict[str, Any] = answer.json()
            if evaluation["status"] in statuses:
                return evaluation
            assert evaluation["status"] in ("queued", "running"), evaluation
        time.sleep(0.2)
    raise AssertionError(f"{evaluation_id} did not become {statuses}")


@pytest.mark.slow
def test_a_version_that_passes_goes_live_by_itself(
    gateway: Gateway, http: httpx.Client, candidate: str, held_out_file: Path, tmp_path: Path
) -> None:
    options = ("--held-out", str(held_out_file), "--max-tokens", str(TOKENS), "--promote", "auto")
    output = hatrack(gateway, "evaluate", candidate, *options)
    assert "Pass:" in output
    assert "mate@1 is live" in output
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
    wait_until(
        lambda: not [key for key in http.get("/v1/keys").json()["data"] if key["name"].startswith("evaluating mate")],
        "the evaluation's key has outlived it",
        timeout_s=PATIENCE_S,
    )
    assert "mate@1" in hatrack(gateway, "evaluations")
    _review_without_a_judge(gateway, http, verdict["evaluation_id"])


def _review_without_a_judge(gateway: Gateway, http: httpx.Client, evaluation: str) -> None:
    """People compare its answers in the terminal, after the fact; the report then says what they prefer."""
    before = http.get(f"/v1/evaluations/{evaluation}/report").json()
    stranger = http.post("/v1/keys", json={"name": "r", "project": "elsewhere", "scopes": ["train"]}).json()
    headers = {"authorization": f"Bearer {stranger['key']}"}
    refused = httpx.post(f"{gateway.url}/v1/reviews", json={"evaluation": evaluation}, headers=headers, timeout=TIMEOUT)
    assert (refused.status_code, refused.json()["error"]["code"]) == (404, "not_found")
    assert http.post("/v1/reviews", json={"evaluation": evaluation, "pairs": 4}).json()["pairs"] == 4
    shown = http.get("/v1/reviews/next", params={"evaluation": evaluation}).json()["review"]
    assert shown["first"] != shown["second"]
    assert "mate" not in json.dumps(shown)
    done = run_hatrack(gateway, "review", evaluation, stdin="1\n2\nt\n1\n")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "4 reviewed." in done.stdout
    assert "It decides nothing in the verdict." in done.stdout
    report = http.get(f"/v1/evaluations/{evaluation}/report").json()
    people = report.pop("people")
    assert (people["of"], people["pairs"], people["tie"], people["candidate"] + people["base"]) == ("mate@1", 4, 1, 3)
    assert report == before
    assert "What people prefer" in http.get(f"/v1/evaluations/{evaluation}/report.html").text


@pytest.mark.slow
def test_after_worker_and_trainer_are_killed_no_answered_request_is_repeated(
    gateway: Gateway, http: httpx.Client
) -> None:
    base, held_out = http.get("/readyz").json()["base"], heldout_file("tidewater")
    arms = [{"label": "voice", "model": "tidewater"}, {"label": "base", "model": base}]
    body = {
        "arms": arms,
        "held_out": upload_evaluation_file(http, held_out.name, held_out.read_bytes()),
        "max_tokens": 24,
        "repeats": 1,
    }
    made = create(http, **body, metric="token_f1")
    folder = gateway.home / "trainer" / "evaluations" / made
    answers = folder / "answers.jsonl"
    # few of the 40: the others must not have been answered before the two are killed
    wait_until(
        lambda: answers.exists() and len(answers.read_bytes().splitlines()) >= 4,
        "nothing was answered",
        timeout_s=PATIENCE_S,
    )
    trainer = int((gateway.home / "trainer" / "supervised.lock").read_text())
    worker = int((folder / "worker.lock").read_text())
    assert psutil.Process(worker).ppid() == trainer
    os.kill(trainer, signal.SIGKILL)
    os.kill(worker, signal.SIGKILL)
    before = [line for line in answers.read_bytes().splitlines() if line.endswith(b"}")]
    done = wait_for_status(http, made, "succeeded")
    assert (done["verdict"], done["examples"], done["metric"]) == (None, 20, "token_f1")
    after = [json.loads(line) for line in answers.read_bytes().splitlines()]
    assert [json.dumps(json.loads(line)) for line in before] == [json.dumps(line) for line in after[: len(before)]]
    keys = [(line["arm"], line["example"], line["repeat"]) for line in after]
    assert len(keys) == len(set(keys)) == 40
    report = http.get(f"/v1/evaluations/{made}/report").json()
    assert report["verdict"] is None
    (difference,) = report["differences"]
    assert (difference["of"], difference["against"]) == ("base", "voice")
    assert difference["estimate"] < 0


@pytest.mark.slow
def test_a_running_evaluation_is_cancelled_and_has_no_report(http: httpx.Client, held_out_file: Path) -> None:
    made = create(
        http,
        model="tidewater@1",
        held_out=upload_evaluation_file(http, held_out_file.name, held_out_file.read_bytes()),
        max_tokens=200,
    )
    wait_for_status(http, made, "running")
    cancelled = http.post(f"/v1/evaluations/{made}/cancel").json()
    assert cancelled["status"] == "cancelled"
    refused = http.get(f"/v1/evaluations/{made}/report")
    assert refused.status_code == 404


def test_another_projects_evaluation_answers_like_one_that_does_not_exist(
    http: httpx.Client, held_out_file: Path
) -> None:
    held_out = upload_evaluation_file(http, held_out_file.name, held_out_file.read_bytes())
    body = {"name": "t", "project": "strangers", "scopes": ["train", "infer", "adapters"]}
    stranger = {"authorization": f"Bearer {http.post('/v1/keys', json=body).json()['key']}"}
    theirs = {"model": "tidewater@1", "held_out": held_out}
    made = create(http, **theirs)
    http.post(f"/v1/evaluations/{made}/cancel")
    texts = []
    for name in (made, "eval-nothing"):
        answer = http.get(f"/v1/evaluations/{name}", headers=stranger)
        assert answer.status_code == 404
        texts.append(answer.text.replace(name, "IT"))
    assert texts[0] == texts[1]
    assert http.get("/v1/evaluations", headers=stranger).json()["data"] == []
    assert http.post("/v1/evaluations", json=theirs, headers=stranger).status_code == 404
