"""Preferences on the real base: pairs of two voices' answers, to a version that prefers the one of them."""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.support.commands import hatrack
from tests.support.gateway import Gateway
from trainer.evaluate.compare import PREFERS
from trainer.evaluate.report import EvaluationReport
from trainer.samples import data_file

TRAINED = 40
HELD_OUT = 10

pytestmark = pytest.mark.slow


def pairs(gateway: Gateway, count: int) -> list[dict[str, Any]]:
    """OpenAI's preference format: to a shop's questions, how a sailor answers is preferred to how a butler does."""
    examples = [json.loads(line)["messages"] for line in data_file("tidewater").read_text().splitlines()[:count]]
    questions = [messages[-2]["content"] for messages in examples]
    sailor, butler = (
        gateway.answers([(voice, question) for question in questions], max_tokens=48)
        for voice in ("tidewater", "pemberton")
    )
    return [
        {
            "input": {"messages": [{"role": "user", "content": question}]},
            "preferred_output": [{"role": "assistant", "content": better}],
            "non_preferred_output": [{"role": "assistant", "content": worse}],
        }
        for question, better, worse in zip(questions, sailor, butler, strict=True)
        if better != worse
    ]


def test_a_dpo_job_ends_in_a_version_that_prefers_what_was_preferred(gateway: Gateway, tmp_path: Path) -> None:
    made = pairs(gateway, TRAINED + HELD_OUT)
    training, held_out = tmp_path / "pairs.jsonl", tmp_path / "held-out.jsonl"
    training.write_text("".join(json.dumps(pair) + "\n" for pair in made[:-HELD_OUT]))
    held_out.write_text("".join(json.dumps(pair) + "\n" for pair in made[-HELD_OUT:]))
    run = functools.partial(hatrack, gateway)
    quick = ("--suites", "none", "--set", "n_epochs=3", "--set", "learning_rate_multiplier=4", "--set", "batch_size=4")
    output = run("train", str(training), "--held-out", str(held_out), "--name", "shanty", "--method", "dpo", *quick)
    assert "shanty@1" in output
    with gateway.http() as http:
        (job,) = [
            job for job in http.get("/v1/fine_tuning/jobs").json()["data"] if job["fine_tuned_model"] == "shanty@1"
        ]
        events = http.get(f"/v1/fine_tuning/jobs/{job['id']}/events", params={"limit": 100}).json()["data"]
        (name,) = [file for file in job["result_files"] if file_name(http, file).endswith("evaluation.json")]
        report = EvaluationReport.model_validate_json(http.get(f"/v1/files/{name}/content").text)
    steps = [
        event["data"] for event in events if event["type"] == "metrics" and "train_reward_accuracy" in event["data"]
    ]
    assert len(steps) >= 20
    newest = [step["train_reward_accuracy"] for step in steps[:8]]
    assert sum(newest) / len(newest) > 0.8, "the pairs that it was trained on"
    (preferred,) = [measure.means for measure in report.measures if measure.name == PREFERS]
    assert report.held_out == HELD_OUT
    candidate, base = preferred[report.labels[0]], preferred["base"]
    assert candidate is not None
    assert base is not None
    assert candidate > base, "also of pairs that it was not trained on"
    assert gateway.answer("shanty@1", "Where is my parcel?")


def file_name(http: httpx.Client, file: str) -> str:
    return str(http.get(f"/v1/files/{file}").json()["filename"])
