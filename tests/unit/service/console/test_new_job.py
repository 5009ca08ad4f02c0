"""From a file to a job: what the form shows before it is started, and mended files. On answers written here."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from adapters.dataset.lines import Problem, describe_problems
from adapters.protocol.reports import QualityReport
from service.costs.schemas import JobEstimate
from service.training.job_schemas import JobPlan
from tests.support.browser import Browser
from tests.unit.service.console.conftest import NONE, Answers, listed, models, show

CHECK, ESTIMATE = "POST /v1/fine_tuning/data_check", "POST /v1/fine_tuning/jobs/estimate"
GOOD = json.dumps({"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Aye"}]})
VALUES = "[...document.querySelectorAll('.notice tbody tr')].map((row) => [...row.cells].map((cell) => cell.innerText))"


def report() -> dict[str, Any]:
    """A report in which nothing stood out."""
    made: dict[str, Any] = dict.fromkeys(QualityReport.model_fields)
    made |= {"sha256": "0", "format": "chat", "examples": 40, "trained_on": 30, "dropped": 0, "shortened": 0}
    made |= {"held_out": {"examples": 10, "source": "split"}, "findings": [], "answers": [], "shown": []}
    return made | {"distinct_answers": 40, "size": "Enough for a style.", "max_length": 512}


def refusal(*problems: Problem) -> tuple[int, dict[str, Any]]:
    """The answer to a file that has problems in these lines."""
    message = describe_problems(list(problems))
    error = {"message": message, "type": "invalid_request_error", "param": "file", "code": "invalid_training_file"}
    return 400, {"error": error}


def estimate() -> dict[str, Any]:
    """An estimate of a job whose rate was requested."""
    made: dict[str, Any] = dict.fromkeys(JobEstimate.model_fields)
    made |= {"device": "cpu", "examples": 30, "epochs": 4, "tokens": 900, "speed": {"tokens_per_second": 100.0}}
    made["seconds"] = {"starting": 1.0, "training": 9.0, "judging": 2.0, "total": 12.0}
    made["hyperparameters"] = {"n_epochs": 4, "learning_rate": 0.001, "lora_rank": 16}
    chosen = {"n_epochs": "4: small data sets are repeated more often", "lora_rank": "16: enough: a style"}
    primary = {"name": "similarity", "why": "the answers are free text"}
    made["plan"] = dict.fromkeys(JobPlan.model_fields) | {"chosen": chosen, "primary": primary}
    return made


def test_an_estimate_shows_what_auto_would_take_and_a_change_takes_it_back(
    page: Browser, answers: Answers, tmp_path: Path
) -> None:
    (tmp_path / "voice.jsonl").write_text(GOOD)
    answers.told = {
        CHECK: [report()],
        ESTIMATE: [estimate()],
        "GET /v1/datasets": [NONE],
        "GET /v1/models": [models("small")],
        "POST /v1/files": [{"id": "file-1"}],
    }
    show(page, "new_job.js", "NewJob", aim="train")
    page.wait("document.querySelector('.drop input')")
    page.attach(".drop input", tmp_path / "voice.jsonl")
    page.wait_for_text("How long will it take?")
    page.fill_labelled("Adapter", "voice")
    page.run("document.querySelector('.job-form details').open = true")
    page.fill_labelled("learning_rate", "0.001")
    page.click("How long will it take?")
    page.wait_for_text("About 12 s")
    assert json.loads(answers.bodies[ESTIMATE])["hyperparameters"]["learning_rate"] == 0.001
    assert page.run(VALUES) == [
        ["n_epochs", "4", "small data sets are repeated more often"],
        ["learning_rate", "0.001", "as you set it"],
        ["lora_rank", "16", "enough: a style"],
        ["metric", "similarity", "the answers are free text"],
    ]
    placeholders = "[...document.querySelectorAll('.job-form details input')].map((each) => each.placeholder)"
    shown = page.run(placeholders)
    assert (shown[0], shown[2], shown[3], shown[5]) == ("auto: 4", "auto: 16", "auto", "auto: similarity")
    page.fill_labelled("lora_rank", "8")
    page.wait("!document.querySelector('.job-form .notice')")
    assert page.run(placeholders)[0] == "auto"
    assert page.problems == []


@pytest.mark.parametrize("name", ["voice.csv", "voice.json", "voice.parquet"])
def test_a_file_that_is_not_jsonl_says_where_its_rows_are_mended(
    page: Browser, answers: Answers, tmp_path: Path, name: str
) -> None:
    (tmp_path / name).write_text("prompt,completion\n")
    answers.told = {CHECK: [refusal(Problem(2, "no completion"))], "GET /v1/datasets": [NONE]}
    show(page, "new_job.js", "NewJob", aim="train")
    page.wait("document.querySelector('.drop input')")
    page.attach(".drop input", tmp_path / name)
    page.wait_for_text(f"Correct the rows in {name} where it comes from and drop it again")
    assert "Mend 1 line here" not in page.text


def test_a_mended_dataset_keeps_its_name_and_is_stored_as_a_file_of_its_own(page: Browser, answers: Answers) -> None:
    version = {"dataset": "support", "version": 2, "rows": 2, "note": None, "file": "file-2"}
    answers.told = {
        CHECK: [refusal(Problem(2, "no messages")), report()],
        ESTIMATE: [estimate()],
        "GET /v1/datasets": [listed({"name": "support", "versions": [version]})],
        "GET /v1/files/file-2/content": [f'{GOOD}\n{{"messages": []}}\n'],
        "GET /v1/models": [models("small")],
        "POST /v1/files": [{"id": "file-3"}],
    }
    show(page, "new_job.js", "NewJob", aim="train")
    page.wait("document.querySelector('select option[value=\"support@2\"]')")
    page.run(
        "(() => { const field = document.querySelector('select'); field.value = 'support@2';"
        " field.dispatchEvent(new Event('change', { bubbles: true })); })()"
    )
    page.click("Mend 1 line here …")
    page.wait("document.querySelector('.mend-line button')")
    page.click("leave it out")
    page.click("Check again with 1 change")
    page.wait_for_text("support@2, mended")
    page.fill_labelled("Adapter", "voice")
    page.click("How long will it take?")
    page.wait_for_text("About 12 s")
    assert json.loads(answers.bodies[ESTIMATE])["training_file"] == "file-3", "the dataset has the line still"
