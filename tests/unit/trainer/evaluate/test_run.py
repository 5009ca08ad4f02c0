"""One evaluation from its spec to its verdict, over a gateway of words."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr, ValidationError

from adapters.protocol.reports import ReportJudge
from tests.unit.trainer.evaluate.conftest import KEY, Gateway
from tests.unit.trainer.evaluate.worlds import QUICK, questions
from trainer.errors import EvaluationInvalid
from trainer.evaluate.arms import Arm, base_at_its_best
from trainer.evaluate.asking import HttpAnswerer
from trainer.evaluate.compare import Comparison, OnStage
from trainer.evaluate.endpoint_client import Endpoint
from trainer.evaluate.forgetting import Budget
from trainer.evaluate.likelihood import HttpScorer
from trainer.evaluate.run import run, suite_arms
from trainer.evaluate.spec import (
    EvaluationSpec,
    MetricOptions,
    Outcome,
    SuiteResult,
    check_suites,
    most_frequent_answers,
    read_metric,
)
from trainer.evaluate.suites.general import general_suite
from trainer.evaluate.verdict import Rules

HELD_OUT = questions(30)
BASES = base_at_its_best("smol", system=None, answers=("answer 1", "answer 2"))
ARMS = (Arm(label="voice@3", model="voice@3"), *BASES)


def spec(**changes: Any) -> EvaluationSpec:
    values: dict[str, Any] = {
        "arms": ARMS,
        "candidate": "voice@3",
        "bases": tuple(arm.label for arm in BASES),
        "metric": MetricOptions(name="exact_match"),
        # budgets that so few items can show to be kept
        "rules": Rules(method=QUICK, forget_items=40, budget=Budget(accuracy=0.15, chat=0.4)),
        "repeats": 1,
        "scored": 2,
        "suites": (),
    }
    return EvaluationSpec(**(values | changes))


class Fixed:
    """A suite that finds what it is told to."""

    def __init__(self, result: SuiteResult) -> None:
        self.name = result.name
        self._result = result
        self.asked: list[tuple[str, str]] = []

    async def run(self, before: Arm, after: Arm, on_stage: OnStage | None = None) -> SuiteResult:
        self.asked.append((before.label, after.label))
        return self._result


class Judging:
    """A judge that prefers one side in all questions."""

    name = "oracle"

    def __init__(
        self,
        score: float,
        counted: bool,
        missed: bool = False,
        lean: tuple[float, float] | None = None,
        refused: tuple[int, ...] = (),
    ) -> None:
        self._score, self._counted, self._missed, self._refused = score, counted, missed, refused
        self._lean_low, self._lean_high = lean or (None, None)

    async def judge(
        self, comparison: Comparison, candidate: str, base: str, on_stage: OnStage | None = None
    ) -> ReportJudge:
        said = f"{candidate} or {base}."
        if self._missed:
            return ReportJudge(judge=self.name, scores=(), counted=False, missed=True, sentence=said)
        scores = (self._score,) * (len(comparison.questions) - len(self._refused))
        return ReportJudge(
            judge=self.name,
            scores=scores,
            refused=self._refused,
            counted=self._counted,
            lean_low=self._lean_low,
            lean_high=self._lean_high,
            sentence=said,
        )


@pytest.fixture
def ask(gateway: Gateway, tmp_path: Path) -> Any:
    """Runs an evaluation: the version knows the answers, the base does not."""
    gateway.say = lambda model, asked: f"answer {asked.split()[1].rstrip('?')}" if model == "voice@3" else "who knows"
    endpoint = Endpoint(gateway.url, SecretStr(KEY))

    async def evaluate(wanted: EvaluationSpec, **more: Any) -> Outcome:
        answerer = HttpAnswerer(endpoint, tmp_path / "answers.jsonl", max_tokens=wanted.max_tokens)
        more.setdefault("scorer", HttpScorer(endpoint, tmp_path / "scores.jsonl"))
        return await run(wanted, more.pop("held_out", HELD_OUT), answerer=answerer, **more)

    return evaluate


def budget(name: str, state: Any, **more: Any) -> Fixed:
    return Fixed(SuiteResult(name=name, kind="budget", state=state, sentence=f"It is {state}.", **more))


ALL_KEPT = {"mmlu": budget("mmlu", "kept")}


def know_the_general_suite(gateway: Gateway) -> None:
    """Both models find the words of the right answers and of the texts likely."""
    whole = general_suite()
    right = {item.choices[item.answer] for item in whole.multiple_choice} | {item.text for item in whole.texts}
    words = {word for text in right for word in text.split()}
    gateway.likely = {"voice@3": words, "smol": words}


async def test_it_passes_where_every_check_is_kept(ask: Any, gateway: Gateway) -> None:
    know_the_general_suite(gateway)
    stages: set[str] = set()
    found = await ask(spec(suites=("general",)), on_stage=lambda stage, *_: stages.add(stage))
    assert found.verdict.word == "pass"
    assert {check.name: check.state for check in found.verdict.checks}["forgetting"] == "kept"
    assert found.verdict.base == "base"
    (suite,) = found.suites
    assert (suite.name, suite.kind, suite.forgetting) == ("general", "budget", found.verdict.forgetting)
    assert stages == {"asking", "general suite, base", "general suite, voice@3"}, "likelihoods decide nothing of labels"
    assert Outcome.model_validate_json(found.model_dump_json(by_alias=True)) == found


async def test_references_are_scored_as_far_as_is_asked_and_not_under_an_arm_that_is_told_them(ask: Any) -> None:
    found = (await ask(spec(metric=MetricOptions(name="rouge_l")))).comparison
    nats = {result.arm.label: result.nats for result in found.results}
    assert [len(nats[label] or ()) for label in ("voice@3", "base", "base told the answers")] == [2, 2, 0]
    assert all(result.nats is None for result in (await ask(spec(scored=0))).comparison.results)


async def test_other_suites_count_by_their_state_beside_the_general_one(ask: Any) -> None:
    kept, broken = budget("mmlu", "kept"), budget("gsm8k", "broken")
    found = await ask(spec(suites=("mmlu", "gsm8k")), suites={"mmlu": kept, "gsm8k": broken})
    assert found.verdict.word == "fail"
    check = found.verdict.check("suites")
    assert (check.state, check.sentence) == ("broken", "mmlu: It is kept. gsm8k: It is broken.")
    assert found.verdict.check("forgetting") is None
    assert kept.asked == [("base", "voice@3")]
    assert "It lost more in a suite than is allowed." in found.verdict.sentence
    passed = await ask(spec(suites=("mmlu",)), suites={"mmlu": kept})
    assert passed.verdict.word == "pass"


async def test_a_base_that_finds_everything_equally_likely_leaves_forgetting_open(ask: Any) -> None:
    nothing = await ask(spec(suites=("general",)))
    assert (nothing.verdict.word, nothing.verdict.check("forgetting").state) == ("not_enough_evidence", "open")


async def test_suites_that_can_show_no_loss_show_nothing_kept(ask: Any, gateway: Gateway) -> None:
    know_the_general_suite(gateway)
    silent, kept = budget("gsm8k", "kept", silent=True), budget("mmlu", "kept")
    found = await ask(spec(suites=("gsm8k",)), suites={"gsm8k": silent})
    assert (found.verdict.word, found.verdict.check("suites").state) == ("not_enough_evidence", "open")
    assert "It is undecided how much it forgot." in found.verdict.sentence
    for names in (("gsm8k", "mmlu"), ("gsm8k", "general")):
        passed = await ask(spec(suites=names), suites={"gsm8k": silent, "mmlu": kept})
        assert (passed.verdict.word, passed.verdict.check("suites").state) == ("pass", "kept")


async def test_suites_are_put_to_the_gateway_s_own_and_that_is_known_before_anything_is_asked(
    ask: Any, gateway: Gateway
) -> None:
    kept, outside = budget("mmlu", "kept"), Arm(label="gpt", model="large", endpoint="big")
    labels = {"bases": ("gpt", *(arm.label for arm in BASES))}
    assert suite_arms(spec(arms=(*ARMS, outside), suites=("mmlu",), **labels), suites=True) == (BASES[0], ARMS[0])
    away = spec(arms=(ARMS[0], outside), bases=("gpt",), suites=("mmlu",))
    with pytest.raises(EvaluationInvalid, match="outside endpoint"):
        await ask(away, suites={"mmlu": kept})
    with pytest.raises(EvaluationInvalid, match="outside endpoint"):
        await ask(spec(arms=(*ARMS, outside), candidate="gpt", suites=("mmlu",)), suites={"mmlu": kept})
    assert gateway.requests == []


async def test_a_suite_that_is_only_shown_decides_nothing(ask: Any) -> None:
    shown = Fixed(SuiteResult(name="humaneval", kind="report", state="broken", sentence="x"))
    found = await ask(spec(suites=("humaneval",)), suites={"humaneval": shown})
    # and what was forgotten is then not measured, so that nothing passes
    assert found.verdict.word == "not_enough_evidence"
    assert found.verdict.check("suites") is None
    assert found.verdict.check("forgetting").state == "open"


@pytest.mark.parametrize(
    ("score", "counted", "word"), [(0.0, True, "fail"), (0.0, False, "pass"), (0.5, True, "pass"), (1.0, True, "pass")]
)
async def test_a_judge_that_counts_has_a_veto(ask: Any, score: float, counted: bool, word: str) -> None:
    wanted = spec(suites=("mmlu",), judge="oracle")
    found = await ask(wanted, suites={"mmlu": budget("mmlu", "kept")}, judge=Judging(score, counted))
    assert found.verdict.word == word
    assert (found.verdict.check("judge") is not None) is counted
    assert found.judged.judge == "oracle"


@pytest.mark.parametrize(
    ("score", "lean", "state"),
    [
        (0.2, (-0.05, 0.05), "broken"),
        (0.2, (-0.30, -0.10), "open"),
        (0.2, (0.02, 0.08), "broken"),
        (0.5, (-0.30, -0.10), "kept"),
    ],
)
async def test_a_veto_that_a_lean_towards_the_base_could_explain_is_open(
    ask: Any, score: float, lean: tuple[float, float], state: str
) -> None:
    wanted = spec(suites=("mmlu",), judge="oracle")
    found = await ask(wanted, suites={"mmlu": budget("mmlu", "kept")}, judge=Judging(score, True, lean=lean))
    check = found.verdict.check("judge")
    assert check.state == state
    assert ("no more than its possible lean" in check.sentence) is (state == "open")


@pytest.mark.parametrize("refused", [(), (0,), (0, 1, 2)])
async def test_a_veto_counts_groups_of_questions_once_even_if_the_judge_refused_some(
    ask: Any, refused: tuple[int, ...]
) -> None:
    grouped = [question.model_copy(update={"group": str(int(question.id) // 3)}) for question in questions(60)]
    judge = Judging(0.0, counted=True, refused=refused)
    found = await ask(spec(suites=("mmlu",), judge="oracle"), suites=ALL_KEPT, judge=judge, held_out=grouped)
    assert found.comparison.independent == 20
    assert found.verdict.check("judge").state == "open", "20 groups are too few for a veto, which needs 30 examples"


async def test_a_judge_whose_veto_could_not_be_heard_leaves_no_pass(ask: Any) -> None:
    wanted = spec(suites=("mmlu",), judge="oracle")
    found = await ask(wanted, suites={"mmlu": budget("mmlu", "kept")}, judge=Judging(1.0, counted=False, missed=True))
    assert found.verdict.word == "not_enough_evidence"
    assert found.verdict.check("judge").state == "open"
    assert "It is undecided which side the judge prefers." in found.verdict.sentence


async def test_without_a_candidate_there_is_a_comparison_and_no_verdict(ask: Any) -> None:
    found = await ask(spec(candidate=None, bases=()))
    assert (found.verdict, found.suites) == (None, ())
    assert len(found.comparison.results) == 3


async def test_what_is_not_to_be_had_is_refused_before_anything_is_asked(ask: Any, gateway: Gateway) -> None:
    with pytest.raises(EvaluationInvalid, match="no suite named 'mmlu' is available"):
        await ask(spec(suites=("mmlu",)))
    with pytest.raises(EvaluationInvalid, match="no suite named 'general' is available"):
        await ask(spec(suites=("general",)), scorer=None)
    with pytest.raises(EvaluationInvalid, match="no judge named 'oracle' is available"):
        await ask(spec(judge="oracle"))
    with pytest.raises(EvaluationInvalid, match="cannot be the primary"):
        await ask(spec(metric=MetricOptions(name="refusal")))
    assert gateway.requests == []


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"candidate": "voice@4"}, "no arm named 'voice@4'"),
        ({"bases": ()}, "needs a base"),
        ({"bases": ("voice@3",)}, "needs a base"),
        ({"live": "live"}, "no arm named 'live'"),
        ({"arms": (*ARMS, ARMS[0])}, "arm labels must be unique"),
        ({"arms": ()}, "at least 1"),
    ],
)
def test_an_inconsistent_spec_is_refused(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        spec(**changes)


def test_a_spec_is_json_and_comes_back_as_it_was() -> None:
    wanted = spec(metric=MetricOptions(name="json_schema", schema={"type": "object"}))
    text = wanted.model_dump_json(by_alias=True)
    assert '"schema":{"type":"object"}' in text
    assert EvaluationSpec.model_validate_json(text) == wanted


def test_a_metric_is_read_as_a_request_names_it() -> None:
    assert read_metric("auto") is None
    assert read_metric(None) is None
    assert read_metric("rouge_l") == MetricOptions(name="rouge_l")
    assert read_metric({"name": "regex", "pattern": "^a"}) == MetricOptions(name="regex", pattern="^a")
    for wrong in ("bleu", {"name": "regex"}, {"name": "rouge_l", "more": 1}, 3, {"pattern": "a"}, "perplexity"):
        with pytest.raises(EvaluationInvalid):
            read_metric(wrong)


def test_suites_are_known_by_name() -> None:
    check_suites(["general", "mmlu", "gsm8k", "humaneval"])
    with pytest.raises(EvaluationInvalid, match="'trivia'"):
        check_suites(["trivia"])


def test_the_most_frequent_answers_come_first() -> None:
    assert most_frequent_answers(["b", "a", "a", "c"]) == ("a", "b", "c")
    assert len(most_frequent_answers([str(at) for at in range(80)])) == 50


@pytest.mark.parametrize(
    ("name", "beside"),
    [
        ("exact_match", ("contains", "length_words", "refusal")),
        ("rouge_l", ("token_f1", "edit_similarity", "length_words", "refusal")),
        ("json_exact", ("json_valid", "json_fields", "length_words", "refusal")),
        ("regex", ("exact_match", "contains", "length_words", "refusal")),
    ],
)
def test_default_secondary_metrics(name: str, beside: tuple[str, ...]) -> None:
    assert MetricOptions(name=name).usually_beside() == beside
