"""A revalidation's worker: what it compares with, and what it does where there is nothing to compare with."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.unit.trainer.evaluate.evaluations.conftest import MakeFolder
from tests.unit.trainer.evaluate.evaluations.evaluation_gateway import (
    BASE,
    INTENTS,
    EvaluationGateway,
    jsonl,
    right,
    rows,
)
from tests.unit.trainer.evaluate.evaluations.worker_runs import run
from trainer.evaluate.evaluations import spec
from trainer.evaluate.evaluations.spec import EvaluationResult
from trainer.evaluate.report import EvaluationReport
from trainer.evaluate.revalidation import read_scores


def number(asked: str) -> int:
    return int(re.findall(r"\d+", asked)[0])


def first_right(count: int, *wrong: int) -> Any:
    """`voice` answers the first questions right, without some of them; the base answers the same way each time."""

    def say(model: str, asked: str) -> str:
        if model == BASE or number(asked) >= count or number(asked) in wrong:
            return INTENTS[0]
        return right(asked)

    return say


STORED: list[bytes] = []
"""The scores that the first evaluation of this module stored: it is made once, its answers being always the same."""


@pytest.fixture
def judged(gateway: EvaluationGateway, make_folder: MakeFolder) -> dict[str, Any]:
    """The scores of `voice@3` are stored; the context of the revalidation that follows. No suite runs, to be quick."""
    gateway.say = first_right(24)
    if not STORED:
        folder = make_folder(content=jsonl(rows(24)), repeats=1)
        result = run(folder)
        (verdict,) = gateway.verdicts
        assert verdict["files"]["scores"] == "file-kept3"
        assert result.files == ("file-kept1", "file-kept2"), "the result's files are the report's"
        STORED.append(gateway.kept[2]["file"])
        assert read_scores(STORED[0]).candidate.label == "voice@3"
        shutil.rmtree(folder)
    scores = gateway.add("scores", STORED[0]).model_dump()
    return {"earlier": {"id": "verdict-1", "verdict": "pass", "rule": 1, "scores": scores}}


def again(
    make_folder: MakeFolder, context: dict[str, Any] | None, **body: Any
) -> tuple[EvaluationResult, EvaluationReport]:
    request = {"model": "voice@3", "suites": [], "kind": "revalidation"} | body
    folder: Path = make_folder(request, jsonl(rows(24)), context, repeats=1)
    result = run(folder)
    return result, EvaluationReport.model_validate_json((folder / spec.REPORT).read_bytes())


def test_the_same_answers_hold(gateway: EvaluationGateway, make_folder: MakeFolder, judged: dict[str, Any]) -> None:
    result, report = again(make_folder, judged)
    assert (result.status, result.verdict) == ("succeeded", "pass")
    verdict = gateway.verdicts[-1]
    assert (verdict["kind"], verdict["verdict"]) == ("revalidation", "pass")
    assert (verdict["compared_with"], verdict["holds"]) == ("verdict-1", True)
    assert verdict["sentence"] == result.sentence
    assert "scores" in verdict["files"]
    assert report.revalidation is not None
    assert (report.revalidation.holds, report.revalidation.examples) == (True, 24)


def test_a_few_flips_of_a_narrow_pass_fail_nothing(
    gateway: EvaluationGateway, make_folder: MakeFolder, judged: dict[str, Any]
) -> None:
    gateway.say = first_right(24, 1, 2, 4)
    result, report = again(make_folder, judged)
    verdict = gateway.verdicts[-1]
    assert (verdict["verdict"], verdict["compared_with"], verdict["holds"]) == (
        *("not_enough_evidence", "verdict-1"),
        None,
    )
    assert "stays as it was" in str(result.sentence)
    assert report.revalidation is not None


def test_a_harmed_version_fails_though_it_is_still_better_than_the_base(
    gateway: EvaluationGateway, make_folder: MakeFolder, judged: dict[str, Any]
) -> None:
    gateway.say = first_right(24, *(at for at in range(24) if at % 3 == 1))
    result, report = again(make_folder, judged)
    verdict = gateway.verdicts[-1]
    assert (verdict["verdict"], verdict["holds"], result.verdict) == ("fail", False, "fail")
    assert report.verdict is not None
    assert report.verdict.word != "fail"


@pytest.mark.parametrize(
    ("why", "change"),
    [
        ("has its scores stored", None),
        ("are gone", {"id": "gone", "filename": "s.json", "bytes": 1, "sha256": "0"}),
    ],
)
def test_without_the_earlier_scores_it_is_judged_anew_and_says_so(
    gateway: EvaluationGateway, make_folder: MakeFolder, judged: dict[str, Any], why: str, change: Any
) -> None:
    context = None
    if change is not None:
        context = {"earlier": judged["earlier"] | {"scores": change}}
    result, report = again(make_folder, context)
    verdict = gateway.verdicts[-1]
    assert (verdict["verdict"], verdict["kind"]) == ("not_enough_evidence", "revalidation")
    assert "compared_with" not in verdict
    assert "scores" in verdict["files"], "what it finds serves the next revalidation"
    assert "judged anew, without a comparison with the earlier scores" in str(result.note)
    assert why in str(result.note)
    assert report.revalidation is None


def test_another_metric_is_not_compared(
    gateway: EvaluationGateway, make_folder: MakeFolder, judged: dict[str, Any]
) -> None:
    result, _ = again(make_folder, judged, metric="token_f1")
    assert "compared_with" not in gateway.verdicts[-1]
    assert "the earlier verdict's metric is exact_match" in str(result.note)
