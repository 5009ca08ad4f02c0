"""Suites, a judge and human reviews, end to end: over the real gateway and engine, in this machine's sandbox."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from pydantic import SecretStr

from tests.support.commands import run_hatrack
from tests.support.gateway import TIMEOUT, Gateway, upload_evaluation_file
from tests.support.judge import MODEL, NAME, ScriptedJudge
from tests.support.runs import wait_for_run
from trainer.errors import SandboxUnavailable
from trainer.evaluate.arms import Arm
from trainer.evaluate.asking import HttpAnswerer
from trainer.evaluate.endpoint_client import Endpoint
from trainer.evaluate.likelihood import HttpScorer
from trainer.evaluate.suites.data import DataSources
from trainer.evaluate.suites.humaneval import HumanEval
from trainer.evaluate.suites.measured import SuiteContext, gsm8k
from trainer.evaluate.verdict import Rules
from trainer.samples import heldout_file


@pytest.fixture(scope="module")
def http(gateway: Gateway) -> Iterator[httpx.Client]:
    with gateway.http() as client:
        yield client


@pytest.fixture(scope="module")
def base(http: httpx.Client) -> str:
    return str(http.get("/readyz").json()["base"])


@pytest.fixture(scope="module")
def evaluated(http: httpx.Client, base: str, judge: ScriptedJudge) -> dict[str, Any]:
    """An evaluation of a voice with MMLU's packaged questions and a judge, and how often that was asked for it."""
    before = len(judge.asked)  # it is shared: other tests may have asked it
    lines = heldout_file("tidewater").read_bytes().splitlines(keepends=True)[:6]
    body = {
        "arms": [{"label": "voice", "model": "tidewater"}, {"label": "base", "model": base}],
        "candidate": "voice",
        "bases": ["base"],
        "held_out": upload_evaluation_file(http, "held.jsonl", b"".join(lines)),
        "metric": "rouge_l",
        "suites": ["mmlu"],
        "judge": NAME,
        "max_tokens": 24,
        "repeats": 1,
    }
    answer = http.post("/v1/evaluations", json=body)
    assert answer.status_code == 200, answer.text
    evaluation = wait_for_run(http, answer.json()["id"])
    assert evaluation["status"] == "succeeded", evaluation
    report = http.get(f"/v1/evaluations/{evaluation['id']}/report").json()
    return {"id": evaluation["id"], "report": report, "judge_asked": len(judge.asked) - before}


@pytest.mark.slow
def test_the_report_shows_mmlu_before_and_after(evaluated: dict[str, Any]) -> None:
    (suite,) = [each for each in evaluated["report"]["suites"] if each["name"] == "mmlu"]
    numbers = suite["numbers"]
    assert numbers["questions"] == 20
    assert all(0 <= numbers["accuracy"][side] <= 1 for side in ("before", "after"))
    assert numbers["loss"]["low"] <= numbers["loss"]["estimate"] <= numbers["loss"]["high"]
    assert "20 of 281 development questions" in suite["sentence"]


@pytest.mark.slow
def test_an_unreviewed_judge_is_reported_but_not_counted(evaluated: dict[str, Any], judge: ScriptedJudge) -> None:
    judged = evaluated["report"]["judged"]
    assert (judged["judge"], judged["counted"]) == (NAME, False)
    # other tests' reviews of its votes count, too
    assert re.search(r"people have looked at \d+ of its votes, and 100 are needed", judged["sentence"])
    assert sum(judged["numbers"]["votes"].values()) == 6
    assert "judge" not in {check["name"] for check in evaluated["report"]["verdict"]["checks"]}
    assert evaluated["judge_asked"] == 2 * (6 - judged["numbers"]["alike"])
    assert {body["model"] for body in judge.asked} == {MODEL}


@pytest.mark.slow
def test_people_review_the_judges_pairs_in_the_terminal(
    gateway: Gateway, http: httpx.Client, evaluated: dict[str, Any]
) -> None:
    queued = evaluated["report"]["judged"]["numbers"]["for_review"]
    pending = http.get("/v1/reviews/next", params={"evaluation": evaluated["id"]}).json()
    assert pending["total"] == queued > 0
    assert "tidewater" not in json.dumps(pending)
    assert "first_is" not in pending["review"]
    done = run_hatrack(gateway, "review", evaluated["id"], stdin="1\n" * queued)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{queued} reviewed." in done.stdout
    (row,) = [each for each in http.get("/v1/reviews").json()["data"] if each["id"] == evaluated["id"]]
    assert (row["reviewed"], row["final"], row["counted"]) == (queued, True, False)
    assert row["agreement"]["pairs"] == queued


@pytest.mark.slow
def test_reviews_need_the_train_scope_and_belong_to_one_project(
    gateway: Gateway, http: httpx.Client, evaluated: dict[str, Any]
) -> None:
    for project, scopes, status in (("default", ["infer"], 403), ("elsewhere", ["train"], 404)):
        made = http.post("/v1/keys", json={"name": "reviews", "project": project, "scopes": scopes}).json()
        headers = {"authorization": f"Bearer {made['key']}"}
        params = {"evaluation": evaluated["id"]}
        answer = httpx.get(f"{gateway.url}/v1/reviews/next", params=params, headers=headers, timeout=TIMEOUT)
        assert answer.status_code == status, answer.text


@pytest.mark.parametrize(
    ("changed", "param", "message"),
    [
        ({"suites": ["gsm8k"]}, "suites", "HATRACK_TRAINER_SUITES_DIR"),
        ({"suites": ["humaneval"]}, "suites", "HATRACK_TRAINER_SANDBOX=on"),
        ({"suites": ["mmlu_anatomy"]}, "suites", "known: general, mmlu, gsm8k, humaneval"),
        ({"judge": "strict"}, "judge", f"known: {NAME}"),
    ],
)
def test_unavailable_suites_and_judges_are_refused_at_creation(
    http: httpx.Client, base: str, changed: dict[str, Any], param: str, message: str
) -> None:
    body: dict[str, Any] = {
        "arms": [{"label": "voice", "model": "tidewater"}, {"label": "base", "model": base}],
        "held_out": upload_evaluation_file(http, "held.jsonl", heldout_file("tidewater").read_bytes()),
    }
    answer = http.post("/v1/evaluations", json=body | changed)
    assert answer.status_code == 400, answer.text
    assert answer.json()["error"]["param"] == param
    assert message in answer.json()["error"]["message"]


@pytest.mark.slow
async def test_gsm8k_asks_the_gateway_and_humaneval_runs_the_answers_in_the_sandbox(
    gateway: Gateway, base: str, tmp_path: Path
) -> None:
    endpoint = Endpoint(gateway.url, SecretStr(gateway.key))
    (tmp_path / "gsm8k").mkdir()
    problems = [
        {"question": f"Ann has {at} pens and buys 2. How many has she?", "answer": f"#### {at + 2}"} for at in (3, 7)
    ]
    (tmp_path / "gsm8k" / "test.jsonl").write_text("".join(json.dumps(each) + "\n" for each in problems))
    context = SuiteContext(
        scorer=HttpScorer(endpoint, tmp_path / "scores.jsonl"),
        answerer=HttpAnswerer(endpoint, tmp_path / "answers.jsonl", max_tokens=48),
        sources=DataSources(tmp_path, None),
        limit=2,
        rules=Rules(),
    )
    before, after = Arm(label="base", model=base), Arm(label="voice", model="tidewater")
    assert (await gsm8k(context).run(before, after)).numbers["questions"] == 2
    asked = len((tmp_path / "answers.jsonl").read_bytes().splitlines())
    try:
        result = await HumanEval(context, allowed=True).run(before, after)
    except SandboxUnavailable:
        # where this machine gives no sandbox, nothing was asked for it either
        assert len((tmp_path / "answers.jsonl").read_bytes().splitlines()) == asked
        return
    assert result.numbers["questions"] == 2
    assert result.numbers["accuracy"]["before"] in (0, 0.5, 1)
