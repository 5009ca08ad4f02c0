"""Trainings and their verdicts on the real engine: which adapters go live by themselves, which do not, and why.

That ten held-out examples are too few is in test_training.py, whose first job has no more.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import httpx
import openai
import pytest

from tests.support.classification import THINGS_BY_LABEL, Row, jsonl, rows, shuffled
from tests.support.gateway import TIMEOUT, Gateway
from tests.support.runs import wait_for_run
from trainer.evaluate.report import EvaluationReport

pytestmark = pytest.mark.slow

DATA = rows()
TAUGHT, UNSEEN = DATA[:160], DATA[160:192]
GENTLE, HARSH = 5e-4, {"learning_rate": 4e-3, "n_epochs": 4}
"""A learning rate that leaves what the base knows, and a training that does not: in float32 it makes neutral texts 50
times as perplexing, where 7 times is allowed. After half as many epochs it would be 6 times."""


@dataclass(frozen=True)
class FinishedJob:
    """A job that has ended, its report, and the version's adapter."""

    job: Any
    report: EvaluationReport
    adapter: dict[str, Any]
    files: dict[str, str]
    """Names of the result files by their ids."""
    messages: tuple[str, ...]

    @property
    def verdict(self) -> str:
        return str(self.job.metadata["hatrack_verdict"])

    @property
    def states(self) -> dict[str, str]:
        """The state of each check by its name."""
        assert self.report.verdict is not None
        return {check.name: check.state for check in self.report.verdict.checks}


class Trainings:
    """Jobs on the gateway, through the official client."""

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway
        self._base = str(httpx.get(f"{gateway.url}/readyz", timeout=TIMEOUT).json()["base"])
        self.client = openai.OpenAI(base_url=f"{gateway.url}/v1", api_key=gateway.key, max_retries=0)

    def train(self, name: str, taught: list[Row], unseen: list[Row], **hyperparameters: Any) -> FinishedJob:
        """Train on some messages, hold others out, and wait for the end."""
        files = self.client.files
        chosen: Any = {"n_epochs": 2, "batch_size": 4, "lora_rank": 8, "learning_rate": GENTLE} | hyperparameters
        job: Any = self.client.fine_tuning.jobs.create(
            model=self._base,
            training_file=files.create(file=("taught.jsonl", jsonl(taught)), purpose="fine-tune").id,
            validation_file=files.create(file=("unseen.jsonl", jsonl(unseen)), purpose="fine-tune").id,
            suffix=name,
            seed=1,
            method={"type": "supervised", "supervised": {"hyperparameters": chosen}},
        )
        with self._gateway.http() as http:
            wait_for_run(http, job.id)
        job = self.client.fine_tuning.jobs.retrieve(job.id)
        # newest first, over all pages
        messages = [event.message for event in self.client.fine_tuning.jobs.list_events(job.id, limit=100)][::-1]
        assert job.status == "succeeded", (job.error, messages)
        kept = {file: files.retrieve(file).filename for file in job.result_files}
        report = next(file for file, called in kept.items() if called.endswith("evaluation.json"))
        with self._gateway.http() as http:
            adapter = http.get(f"/v1/adapters/{name}").json()
        return FinishedJob(
            job=job,
            report=EvaluationReport.model_validate_json(files.content(report).text),
            adapter=adapter,
            files=kept,
            messages=tuple(messages),
        )

    def answer(self, model: str, row: Row) -> str:
        """A model's answer to a message."""
        text = row["messages"][0]["content"]
        return self._gateway.answer(model, text, max_tokens=12)


@pytest.fixture(scope="module")
def trainings(gateway: Gateway) -> Iterator[Trainings]:
    ready = Trainings(gateway)
    yield ready
    ready.client.close()


@pytest.fixture(scope="module")
def passed_job(trainings: Trainings) -> FinishedJob:
    return trainings.train("desks", TAUGHT, UNSEEN)


def test_an_adapter_better_than_the_base_passes_and_goes_live_by_itself(
    trainings: Trainings, passed_job: FinishedJob
) -> None:
    assert passed_job.verdict == "pass", (passed_job.messages, passed_job.report.verdict)
    assert passed_job.job.fine_tuned_model == "desks@1"
    assert passed_job.adapter["aliases"]["live"] == 1
    right = [trainings.answer("desks", row) == row["messages"][1]["content"] for row in UNSEEN[:10]]
    assert sum(right) >= 6
    assert passed_job.messages[-1] == "desks@1 is live"


def test_the_version_has_the_verdict_and_its_files(gateway: Gateway, passed_job: FinishedJob) -> None:
    version = passed_job.adapter["versions"][0]
    verdict = passed_job.report.verdict
    assert verdict is not None
    assert (version["verdict"]["verdict"], version["verdict"]["sentence"]) == ("pass", verdict.sentence)
    assert (version["verdict"]["kind"], version["verdict"]["examples"]) == ("training", verdict.examples)
    assert 30 <= verdict.examples <= len(UNSEEN), "near-duplicates count once"
    assert version["revalidation"]["state"] == "fresh"
    assert verdict.sentence in passed_job.messages
    names = [name.partition("-")[2].partition("-")[2] for name in passed_job.files.values()]
    assert names == [
        "step_metrics.csv",
        "report.json",
        "evaluation.json",
        "evaluation.html",
        "held_out_questions.jsonl",
    ]
    files = version["verdict"]["files"]
    assert files.keys() == {"report", "page", "held_out", "scores"}
    assert set(files.values()) - {files["scores"]} <= set(passed_job.files)
    page = next(file for file, name in passed_job.files.items() if name.endswith(".html"))
    with gateway.http() as http:
        assert "desks@1: Pass" in http.get(f"/v1/files/{page}/content").text
        (record,) = http.get("/v1/adapters/desks/versions/1/verdicts").json()["data"]
    again = record["evaluation"]
    assert again["held_out"] == version["verdict"]["files"]["held_out"]
    labels = ["desks@1", "base", "base told the answers", "base shown examples"]
    assert [arm["label"] for arm in again["arms"]] == labels


def test_the_metric_is_fixed_before_training_and_the_base_is_told_the_answers(passed_job: FinishedJob) -> None:
    fixed = [
        at
        for at, message in enumerate(passed_job.messages)
        if message.startswith("the adapter will be judged by exact_match")
    ]
    assert fixed
    assert fixed[0] < passed_job.messages.index("training")
    assert passed_job.job.hatrack["metric"] == passed_job.report.metric == "exact_match"
    told = "base told the answers"  # it may have been stopped: then a note says so
    assert told in passed_job.report.labels or any(note.startswith(told) for note in passed_job.report.notes)
    assert passed_job.report.verdict is not None
    assert passed_job.report.served[passed_job.report.verdict.base] != "desks@1"
    assert passed_job.states == dict.fromkeys(("examples", "base", "form", "forgetting"), "kept")
    # through the gateway, with the version's own name and digest
    assert passed_job.report.served["desks@1"] == "desks@1"


def test_an_adapter_trained_on_shuffled_answers_never_goes_live(trainings: Trainings) -> None:
    ended = trainings.train("mixed-up", shuffled(TAUGHT[:64]), UNSEEN, n_epochs=1)
    assert ended.verdict in ("fail", "not_enough_evidence"), ended.report.verdict
    assert ended.states["form"] != "kept"
    assert "live" not in ended.adapter["aliases"]
    with pytest.raises(openai.NotFoundError):
        trainings.client.chat.completions.create(model="mixed-up", messages=[{"role": "user", "content": "hi"}])
    assert "`hatrack promote mixed-up@1` makes it live" in ended.messages[-1]


def test_an_adapter_that_forgot_what_the_base_could_do_fails(trainings: Trainings) -> None:
    ended = trainings.train("forgetful", TAUGHT[:80], UNSEEN, **HARSH)
    assert ended.verdict == "fail", ended.report.verdict
    assert "live" not in ended.adapter["aliases"]
    # it does what it was taught, and that does not help it
    assert ended.states["base"] == "kept"
    assert ended.states["forgetting"] == "broken"
    assert "It forgot more of what the base could do than is allowed." in ended.messages[-2]
    assert sum(trainings.answer("forgetful@1", row) in THINGS_BY_LABEL for row in UNSEEN[:10]) >= 6
