"""The same version judged again: free only if everything is the same, and not at all without what it lost."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest

from adapters.protocol.runs import FileRef
from tests.unit.trainer.evaluate.evaluations.conftest import MakeFolder
from tests.unit.trainer.evaluate.evaluations.evaluation_gateway import BASE, EvaluationGateway, jsonl, right, rows
from tests.unit.trainer.evaluate.evaluations.worker_runs import run
from tests.unit.trainer.evaluate.worlds import questions
from trainer.evaluate.evaluations.planning import sample
from trainer.evaluate.evaluations.spec import EvaluationJob
from trainer.runs.protocol import SPEC

ROWS = rows(60)


@pytest.fixture
def equal(gateway: EvaluationGateway) -> EvaluationGateway:
    """Candidate and base are right on half of the questions each: on a quarter both, on a quarter one alone."""

    def say(model: str, asked: str) -> str:
        quarter = int(re.findall(r"\d+", asked)[0]) % 4
        return right(asked) if quarter in ((1, 2) if model.startswith("voice") else (0, 2)) else "nothing"

    gateway.say = say
    return gateway


def verdict(gateway: EvaluationGateway) -> dict[str, Any]:
    stored = [json.loads(content) for files in gateway.kept for content in files.values() if b'"look"' in content]
    found: dict[str, Any] = stored[-1]["verdict"]
    return found


def test_leaving_out_what_a_version_lost_makes_it_no_better(equal: EvaluationGateway, make_folder: MakeFolder) -> None:
    first = run(make_folder(content=jsonl(ROWS), id="eval-1"))
    assert first.verdict != "pass"
    chosen = [row for row in ROWS if int(re.findall(r"\d+", row["prompt"])[0]) % 4]
    assert 40 <= len(chosen) < 60
    again = run(make_folder(content=jsonl(chosen), id="eval-2"))
    assert again.verdict == "not_enough_evidence"
    assert "15 examples are missing of those that it was asked then" in str(again.sentence)
    states = {check["name"]: check["state"] for check in verdict(equal)["checks"]}
    assert states["base"] == "open"


def test_a_file_that_has_grown_above_the_limit_leaves_out_nothing(
    equal: EvaluationGateway, make_folder: MakeFolder
) -> None:
    """Or whoever follows the advice to use more examples would be refused a verdict."""
    run(make_folder(content=jsonl(ROWS), id="eval-1", most_examples=60))
    first = equal.asked()
    grown = run(make_folder(content=jsonl(rows(90)), id="eval-2", most_examples=60))
    assert set(first) - set(equal.asked()[len(first) :]), "the new questions have pushed out some"
    assert verdict(equal)["look"] == 2
    assert "missing" not in str(grown.sentence)
    dropped = jsonl([row for row in rows(90) if row["prompt"] != ROWS[0]["prompt"]])
    again = run(make_folder(content=dropped, id="eval-3", most_examples=60))
    assert "an example is missing of those that it was asked then" in str(again.sentence)


def test_what_the_gateway_leaves_out_is_not_missing(equal: EvaluationGateway, make_folder: MakeFolder) -> None:
    """Or no version could be rolled back to once the live one has learnt some of the questions."""
    run(make_folder(content=jsonl(ROWS), id="eval-1"))
    equal.live, equal.lineages = 4, {3: {"files": []}, 4: {"files": ["newer"]}}
    equal.stored["newer"] = jsonl([{**row, "prompt": f"Hi, {row['prompt']}!"} for row in ROWS[:6]])
    again = run(make_folder(content=jsonl(ROWS), id="eval-2"))
    assert (again.examples, verdict(equal)["look"]) == (54, 2)
    assert "6 of 60 held-out examples are left out" in str(again.note)
    assert "missing" not in str(again.sentence)
    dropped = run(make_folder(content=jsonl(ROWS[1:]), id="eval-3"))
    assert "an example is missing of those that it was asked then" in str(dropped.sentence)


def test_what_is_left_out_for_the_candidate_s_own_prompt_is_missing(
    equal: EvaluationGateway, make_folder: MakeFolder
) -> None:
    """Or whoever knows what a version lost could write it into its prompt."""
    run(make_folder(content=jsonl(ROWS), id="eval-1", context={"has_weights": False}))
    shown = [{"user": f"Hi, {row['prompt']}!", "assistant": "Something else."} for row in ROWS[:6]]
    again = run(make_folder(content=jsonl(ROWS), id="eval-2", context={"has_weights": False, "examples": shown}))
    assert again.examples == 54
    assert "6 examples are missing of those that it was asked then" in str(again.sentence)


def test_a_sample_depends_on_nothing_but_the_questions(make_folder: MakeFolder) -> None:
    """Or an empty line would draw another one, until a version passes."""
    job = EvaluationJob.model_validate_json((make_folder(most_examples=40) / SPEC).read_bytes())
    other = job.model_copy(
        update={
            "context": job.context.model_copy(update={"held_out": FileRef(id="f", filename="f", bytes=1, sha256="0")})
        }
    )
    asked = [{question.text for question in sample(job, questions(90))}]
    asked += [{question.text for question in sample(other, questions(count)[::-1])} for count in (90, 95)]
    assert asked[0] == asked[1]
    assert [len(each) for each in asked] == [40, 40, 40]
    assert len(asked[0] & asked[2]) >= 35


def test_an_exact_repetition_is_free_and_everything_else_is_a_look(
    equal: EvaluationGateway, make_folder: MakeFolder
) -> None:
    numbers = []
    for number, (content, body) in enumerate(
        [
            (jsonl(ROWS), {}),
            (jsonl(ROWS[::-1]), {}),
            (jsonl(ROWS), {"metric": "contains"}),
            (jsonl(ROWS), {"metric": {"name": "regex", "pattern": "{reference}"}}),
            (jsonl(ROWS), {"max_tokens": 7}),
            (jsonl(rows(70)), {}),
            (jsonl([{**ROWS[0], "completion": "another"}, *ROWS[1:]]), {}),
            (jsonl(ROWS), {"metric": "contains"}),
        ]
    ):
        run(make_folder(content=content, id=f"eval-{number}", body={"model": "voice@3", "suites": [], **body}))
        numbers.append(verdict(equal)["look"])
    assert numbers == [1, 1, 2, 3, 4, 5, 6, 2]


def test_a_repetition_after_an_edit_of_the_store_is_a_look(equal: EvaluationGateway, make_folder: MakeFolder) -> None:
    """Free is what would give the same answers: those of a grounded version depend on the passages it is shown."""
    grounding = {"vector_store_ids": ["vs_1"]}
    passages = {"text": "Unworn goods are taken back for 30 days."}

    def cites(model: str, asked: str) -> list[dict[str, Any]]:
        even = int(re.findall(r"\d+", asked)[0]) % 2 == 0
        citation = {"id": "file-1-0", "source": "returns.md", "score": 0.8, "used": even, **passages}
        return [citation] if model == "voice@3" and even else []

    equal.cites, numbers = cites, []
    for number, text in enumerate(["30 days.", "30 days.", "14 days.", "14 days.", "30 days."]):
        passages["text"] = text
        context = {"grounding": grounding, "groundings": {"voice@3": grounding}}
        run(make_folder(content=jsonl(ROWS if number % 2 else ROWS[::-1]), id=f"eval-{number}", context=context))
        numbers.append(verdict(equal)["look"])
    assert numbers == [1, 1, 2, 2, 1]


def test_prompts_that_were_compared_on_the_base_are_looks_of_a_version_that_has_the_best(
    equal: EvaluationGateway, make_folder: MakeFolder
) -> None:
    """Or whoever tries twenty on the base could have the best judged as the first one."""
    tried = [{"label": f"p{at}", "model": BASE, "prompt": {"system": f"Prompt {at}"}} for at in range(3)]
    arms = {"arms": [{"label": "base", "model": BASE}, *tried], "suites": []}
    run(make_folder(arms, content=jsonl(ROWS), id="eval-1", context={"candidate": None, "records": False}))
    assert equal.verdicts == []
    run(make_folder(content=jsonl(ROWS), id="eval-2", context={"has_weights": False}))
    assert verdict(equal)["look"] == 4
