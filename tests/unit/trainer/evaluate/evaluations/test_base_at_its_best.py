"""Candidates that beat a base only because the base is badly prompted or badly read: none of them passes."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.unit.trainer.evaluate.evaluations.conftest import MakeFolder
from tests.unit.trainer.evaluate.evaluations.evaluation_gateway import BASE, EvaluationGateway
from tests.unit.trainer.evaluate.evaluations.worker_runs import plan_of, run
from tests.unit.trainer.evaluate.worlds import subject
from trainer.data.similar import SIMILAR, groups, normalise
from trainer.evaluate.base_prompts import NO_TRAINING_DATA
from trainer.evaluate.evaluations import spec
from trainer.evaluate.evaluations.contamination import unchecked_note
from trainer.evaluate.evaluations.held_out import NO_FILE_NAMED, read_held_out
from trainer.evaluate.evaluations.spec import REPORT
from trainer.evaluate.report import EvaluationReport

UNCHECKED = unchecked_note("voice@3", NO_FILE_NAMED)
DESK = {"kettle": "desk amber", "jacket": "desk cobalt", "shovel": "desk olive"}
WORDS = ("blue", "late", "lost", "small", "heavy", "wrong", "new", "old", "cheap", "loud", "soft", "flat")
SHRUG = "I am a helpful assistant"
Row = dict[str, Any]


def rows(start: int, count: int, answer: Callable[[str, int], str] = lambda thing, _: DESK[thing]) -> list[Row]:
    """Questions about a thing that decides the answer; no two are near-duplicates."""
    found = []
    for number in range(start, start + count):
        thing = tuple(DESK)[number % 3]
        words = " ".join(WORDS[number * factor % len(WORDS)] for factor in (1, 5, 7))
        found.append(
            {"prompt": f"{thing} {thing} {thing} {words} {subject(number)}", "completion": answer(thing, number)}
        )
    return found


def jsonl(found: list[Row]) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in found).encode()


HELD_OUT, TRAINED = rows(0, 36), rows(36, 60)


def as_json(thing: str, number: int) -> str:
    return json.dumps({"desk": DESK[thing], "number": number})


def learns_in_context(messages: list[dict[str, str]]) -> str:
    """A base that answers as the example right before the question, and otherwise shrugs."""
    return messages[-2]["content"] if len(messages) > 2 and messages[-2]["role"] == "assistant" else SHRUG


@pytest.fixture
def judged(
    gateway: EvaluationGateway, make_folder: MakeFolder, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., tuple[Path, EvaluationReport]]:
    """Evaluates a version that is always right against a base that answers as the function says."""

    def judge(
        base: Callable[[list[dict[str, str]]], str],
        body: Row | None = None,
        held_out: list[Row] | None = None,
        trained: list[Row] | None = TRAINED,
        **more: Any,
    ) -> tuple[Path, EvaluationReport]:
        asked = HELD_OUT if held_out is None else held_out
        right = {row["prompt"]: row["completion"] for row in asked}

        scored = gateway._answered

        def answered(path: str, sent: Row) -> tuple[Row, dict[str, str]]:
            if path != "/v1/chat/completions" or sent.get("continue_final_message"):
                return scored(path, sent)
            messages = sent["messages"]
            text = right[messages[-1]["content"]] if sent["model"].startswith("voice") else base(messages)
            choice = {"message": {"content": text}, "finish_reason": "length" if len(text) > 100 else "stop"}
            return {"choices": [choice], "usage": {}}, {}

        monkeypatch.setattr(gateway, "_answered", answered)
        files = [] if trained is None else [gateway.add("train", jsonl(trained))]
        options = {"model": "voice@3"} if body is None else body
        folder = make_folder(
            {"suites": [], "repeats": 1} | options,
            more.pop("content", jsonl(asked)),
            {"training_files": files} | more.pop("context", {}),
            **more,
        )
        run(folder)
        return folder, EvaluationReport.model_validate_json((folder / REPORT).read_bytes())

    return judge


def base_check(report: EvaluationReport) -> str:
    assert report.verdict is not None
    check = report.verdict.check("base")
    assert check is not None
    return check.state


def test_a_candidate_that_knows_no_more_than_the_examples_show_does_not_beat_the_base(judged: Any) -> None:
    folder, report = judged(learns_in_context)
    assert report.verdict.base == "base shown examples"
    assert base_check(report) != "kept"
    means = {mean.label: mean.mean for mean in report.means}
    assert means["voice@3"] - means["base shown examples"] < 0.1
    assert set(means) == {"voice@3", "base shown examples"}, "the other two could not be the strongest any more"
    stopped = [note for note in report.notes if "was asked 32 of 36 questions" in note]
    assert [note.split(" was")[0] for note in stopped] == ["base", "base told the answers"]
    assert [arm.prompt.examples for arm in plan_of(folder).arms] == [0, 0, 0, 8]


@pytest.mark.parametrize(
    "form",
    [
        "<think>It is {0}.</think>\n\n{1}",
        "[THINK]It is {0}.[/THINK]{1}",
        "```text\n{1}\n```",
        "It is clear.\nAnswer: {1}",
        "The answer is {1} because it is {0}.",
        "### Answer\n{1}",
    ],
)
def test_a_base_that_is_right_does_not_lose_by_the_form_of_its_answer(judged: Any, form: str) -> None:
    right = {row["prompt"]: row["completion"] for row in HELD_OUT}
    _, report = judged(lambda messages: form.format("something", right[messages[-1]["content"]]))
    assert {mean.mean for mean in report.means} == {1.0}
    assert base_check(report) != "kept"


def test_a_base_that_lists_every_answer_is_still_wrong(judged: Any) -> None:
    _, report = judged(lambda _: "Answer: " + ", ".join(DESK.values()))
    assert (base_check(report), report.means[1].mean) == ("kept", 0)


@pytest.mark.parametrize("when", ["told", "shown"])
def test_for_json_the_base_is_told_the_schema_and_read_out_of_its_fence(judged: Any, when: str) -> None:
    held_out, trained = rows(0, 36, as_json), rows(36, 60, as_json)
    right = {row["prompt"]: row["completion"] for row in held_out}

    def base(messages: list[dict[str, str]]) -> str:
        system = messages[0]["content"] if messages[0]["role"] == "system" else ""
        told = '"enum":["desk amber","desk cobalt","desk olive"]' in system and '"required":["desk","number"]' in system
        knows = told if when == "told" else len(messages) == 8
        return f"```json\n{right[messages[-1]['content']]}\n```" if knows else "Desk amber, I think."

    folder, report = judged(base, held_out=held_out, trained=trained)
    assert report.metric == "json_exact"
    assert report.verdict.base == ("base told the schema" if when == "told" else "base shown examples")
    assert base_check(report) != "kept"
    assert [arm.label for arm in plan_of(folder).arms][1:] == ["base", "base told the schema", "base shown examples"]


def chats(gateway: EvaluationGateway) -> list[Row]:
    """The requests for answers."""
    chats = [body for path, body in gateway.requests if path.endswith("/chat/completions")]
    return [body for body in chats if "prompt_logprobs" not in body]


def test_nothing_that_is_held_out_and_nothing_like_it_is_shown(judged: Any, gateway: EvaluationGateway) -> None:
    """Of the held-out examples only half are asked; the training file has near-duplicates of some."""
    near = [{"prompt": f"{row['prompt']} ok", "completion": "leaked"} for row in HELD_OUT[:5]]
    judged(lambda _: SHRUG, trained=[*near, *TRAINED], most_examples=18)
    shown = {message["content"] for body in chats(gateway) for message in body["messages"][:-1]}
    assert {row["prompt"] for row in TRAINED} & shown
    assert "leaked" not in shown
    texts = [normalise(text) for text in (*(row["prompt"] for row in HELD_OUT), *sorted(shown))]
    assert all(group[0] >= len(HELD_OUT) or group[-1] < len(HELD_OUT) for group in groups(texts, SIMILAR))


def sent_to_base(gateway: EvaluationGateway) -> list[str]:
    sent = sorted(json.dumps(body["messages"]) for body in chats(gateway) if body["model"] == BASE)
    gateway.requests.clear()
    return sent


def test_the_recorded_evaluation_asks_the_same_again(judged: Any, gateway: EvaluationGateway, tmp_path: Path) -> None:
    arms = [{"label": "mine", "model": "voice@3"}, {"label": "poor", "model": BASE, "prompt": {"system": "Hm."}}]
    body = {"arms": arms, "candidate": "mine", "bases": ["poor"]}
    context = {"models": {"mine": "voice@3", "poor": BASE}}
    folder, _ = judged(learns_in_context, body, context=context)
    first = sent_to_base(gateway)
    again = {name: value for name, value in gateway.verdicts[0]["evaluation"].items() if value is not None}
    assert [arm["prompt"]["examples"] for arm in again["arms"]] == [0, 0, 0, 0, 8]
    assert len(json.dumps(again)) < 2_000
    questions = (folder / spec.QUESTIONS).read_bytes()
    assert all(len(question.examples) == 8 for question in read_held_out("q", questions))
    folder.rename(tmp_path / "first")
    models = {arm["label"]: arm["model"] for arm in again["arms"]}
    revalidation = again | {"kind": "revalidation"}
    second, _ = judged(learns_in_context, revalidation, context={"models": models})
    assert sent_to_base(gateway) == first
    # a job's file of questions brings the examples along, so the training data may be gone
    second.rename(tmp_path / "second")
    _, report = judged(learns_in_context, revalidation, trained=None, content=questions, context={"models": models})
    assert sent_to_base(gateway) == first
    stopped = ("poor", "base", "base told the answers")
    notes = [note for note in report.notes if note != UNCHECKED]
    assert [note.split(" was asked")[0] for note in notes] == list(stopped), "nothing is missing"


def test_without_the_training_data_the_report_says_that_no_examples_are_shown(judged: Any) -> None:
    folder, report = judged(lambda _: SHRUG, trained=None)
    assert report.notes == (UNCHECKED, NO_TRAINING_DATA)
    assert [arm.prompt.examples for arm in plan_of(folder).arms] == [0, 0, 0]


@pytest.mark.parametrize("metric", ["contains", "exact_match"])
def test_answers_that_are_often_cut_are_told_of(judged: Any, metric: str) -> None:
    right = {row["prompt"]: row["completion"] for row in HELD_OUT}

    def base(messages: list[dict[str, str]]) -> str:
        return "so " * 60 if messages[-1]["content"] in list(right)[:8] else "desk amber"

    _, report = judged(base, {"model": "voice@3", "metric": {"name": metric}})
    assert report.cut == {"voice@3": 0, "base": 8, "base told the answers": 8, "base shown examples": 8}
    told = [note.partition(" were")[0] for note in report.notes if "cut at the length limit" in note]
    labels = ("base", "base told the answers", "base shown examples")
    assert told == [f"8 of 36 answers of {label}" for label in labels]


def test_thinking_is_off_in_every_chat_where_the_template_has_the_switch(
    judged: Any, gateway: EvaluationGateway
) -> None:
    asked = {"model": "voice@3", "suites": ["general"], "metric": "rouge_l"}
    judged(lambda _: SHRUG, asked, template_switches={"enable_thinking": False})
    sent = [(path, body) for path, body in gateway.requests if "messages" in body]
    assert {body["model"] for _, body in sent} == {BASE, "voice@3"}
    # answers, replies of the suite and references, and the prompts of references
    kinds = {(path, "prompt_logprobs" in body) for path, body in sent}
    assert kinds == {("/v1/chat/completions", False), ("/v1/chat/completions", True), ("/v1/tokenize", False)}
    assert [body for _, body in sent if body.get("chat_template_kwargs") != {"enable_thinking": False}] == []
