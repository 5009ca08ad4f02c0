"""A judge as the metric that decides: scores against the candidate, the controls under it, and when nothing counts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

import pytest
from pydantic import ValidationError

from tests.unit.trainer.evaluate.judges import SHOWN, agreeing
from tests.unit.trainer.evaluate.worlds import QUICK, questions
from trainer.errors import AnswerRefused, EvaluationInvalid, GatewayUnreachable
from trainer.evaluate.answers import Answer
from trainer.evaluate.arms import Arm
from trainer.evaluate.asking import ArmRequest, OnProgress
from trainer.evaluate.compare import OnStage
from trainer.evaluate.endpoints import JudgeSettings
from trainer.evaluate.judge import ModelJudge
from trainer.evaluate.pairs import REVIEWS, JudgeAgreement, ReviewPair
from trainer.evaluate.run import run
from trainer.evaluate.spec import EvaluationSpec, MetricOptions, Outcome, SuiteResult, check_judge_metric, read_metric
from trainer.evaluate.verdict import Rules

SETTINGS = JudgeSettings(endpoint="big", model="large-1", rubric="The better answer has the larger number in it.")
AGREEING = agreeing(SETTINGS)
HELD_OUT = questions(40)
GOODNESS: Final = {"voice@3": 9, "smol": 3, "live": 5}
"""What each model's answers are worth to the judge; an answer is worth nothing to another question."""


class Voices:
    """Every arm says how good its answers are, and to which question; a pair's reply is the larger one."""

    def __init__(self, goodness: dict[str, int], lost: Callable[[str], Exception | None] = lambda _: None) -> None:
        self._goodness, self._lost = goodness, lost
        self.shown: list[str] = []

    async def answer(self, asks: Sequence[ArmRequest], on_progress: OnProgress | None = None) -> list[Answer]:
        return [_answer(ask, f"worth {self._goodness[ask.arm.model]}, {ask.question.id}") for ask in asks]

    async def answer_or_skip(
        self, asks: Sequence[ArmRequest], on_progress: OnProgress | None = None
    ) -> list[Answer | None]:
        return [self._vote(ask) for ask in asks]

    def _vote(self, ask: ArmRequest) -> Answer | None:
        self.shown.append(ask.question.id)
        error = self._lost(ask.question.id)
        if isinstance(error, AnswerRefused) and error.status == 400:
            return None
        if error is not None:
            raise error
        found = SHOWN.search(ask.question.turns[0].content)
        assert found is not None
        own = f", {HELD_OUT[int(ask.question.id.split('/')[0])].id}"
        one, other = (int(text.split()[1].rstrip(",")) if text.endswith(own) else 0 for text in (found[2], found[3]))
        return _answer(ask, f'{{"better": "{"A" if one > other else "B" if other > one else "tie"}"}}')


def _answer(ask: ArmRequest, text: str) -> Answer:
    return Answer(arm=ask.arm.label, example=ask.question.id, repeat=ask.repeat, request="r", text=text)


class Kept:
    name = "mmlu"

    def __init__(self, state: Any = "kept") -> None:
        self._state = state

    async def run(self, before: Arm, after: Arm, on_stage: OnStage | None = None) -> SuiteResult:
        return SuiteResult(name=self.name, kind="budget", state=self._state, sentence="It is so.")


def spec(**changes: Any) -> EvaluationSpec:
    arms = tuple(Arm(label=label, model=model) for label, model in ARMS)
    values: dict[str, Any] = {
        "arms": arms,
        "candidate": "new",
        "bases": ("base",),
        "live": "live",
        "metric": MetricOptions(name="judge"),
        "judge": "strict",
        "rules": Rules(method=QUICK),
        "repeats": 2,
        "scored": 0,
        "suites": ("mmlu",),
    }
    return EvaluationSpec(**(values | changes))


ARMS: Final = (("new", "voice@3"), ("base", "smol"), ("live", "live"))


async def judged(
    folder: Path,
    voices: Voices,
    *,
    standing: JudgeAgreement | None = AGREEING,
    suite: Any = "kept",
    settings: JudgeSettings = SETTINGS,
) -> Outcome:
    judge = ModelJudge("strict", settings, voices, folder, standing=standing, method=QUICK)
    return await run(spec(), HELD_OUT, answerer=voices, suites={"mmlu": Kept(suite)}, judge=judge)


def states(found: Outcome) -> dict[str, str]:
    assert found.verdict is not None
    return {check.name: check.state for check in found.verdict.checks}


async def test_a_candidate_preferred_to_all_passes(tmp_path: Path) -> None:
    voices = Voices(GOODNESS)
    found = await judged(tmp_path, voices)
    assert found.verdict is not None
    assert (found.verdict.word, found.verdict.metric) == ("pass", "judge")
    assert "the judge gave new 100 of 100 against the base at its best, where 50 is even" in found.verdict.sentence
    assert {result.arm.label: result.mean for result in found.comparison.results} == {"new": 0.5, "base": 0, "live": 0}
    assert [control.mean for control in found.verdict.form] == [0, 0, 0]
    assert found.verdict.against_base.estimate == 0.5
    assert found.verdict.against_base.noise is None
    assert "judge" not in states(found), "it is no veto besides"
    pairs = [ReviewPair.model_validate_json(line) for line in (tmp_path / REVIEWS).read_text().splitlines()]
    assert {(pair.candidate, pair.base) for pair in pairs} == {("new", "base")}
    secondary = {name for result in found.comparison.results for name in result.secondary}
    assert {"rouge_l", "length_words"} <= secondary


@pytest.mark.parametrize(
    ("goodness", "broken"),
    [
        ({"voice@3": 3, "smol": 9, "live": 1}, {"base": "broken", "live": "kept", "form": "kept"}),
        ({"voice@3": 5, "smol": 3, "live": 9}, {"base": "kept", "live": "broken", "form": "kept"}),
        ({"voice@3": 0, "smol": 0, "live": 0}, {"base": "open", "live": "open", "form": "open"}),
    ],
)
async def test_a_candidate_that_is_not_preferred_does_not_pass(
    tmp_path: Path, goodness: dict[str, int], broken: dict[str, str]
) -> None:
    found = await judged(tmp_path, Voices(goodness))
    assert {name: state for name, state in states(found).items() if name in broken} == broken
    assert found.verdict is not None
    assert found.verdict.word == ("fail" if "broken" in broken.values() else "not_enough_evidence")


@pytest.mark.parametrize("goodness", [GOODNESS, {"voice@3": 1, "smol": 9, "live": 9}])
async def test_as_long_as_it_does_not_agree_with_people_nothing_is_shown(
    tmp_path: Path, goodness: dict[str, int]
) -> None:
    found = await judged(tmp_path, Voices(goodness), standing=None)
    assert found.verdict is not None
    assert found.verdict.word == "not_enough_evidence"
    assert "people have looked at 0 of its votes" in found.verdict.sentence
    wanted = {"examples": "kept", "base": "open", "live": "open", "form": "open", "suites": "kept", "judge": "open"}
    assert states(found) == wanted
    assert found.verdict.more is None, "no number of examples makes its votes count"
    assert (tmp_path / REVIEWS).read_text() != "", "people can look at it"


async def test_a_preference_that_a_lean_could_explain_shows_nothing(tmp_path: Path) -> None:
    """The judge counts, and prefers the candidate everywhere; but it may lean towards it by nearly as much."""
    lenient = SETTINGS.model_copy(update={"max_lean": 0.5})
    leaning = AGREEING.model_copy(update={"lean": 0.4, "lean_low": 0.3, "lean_high": 0.49})
    found = await judged(tmp_path, Voices(GOODNESS), standing=leaning, settings=lenient)
    assert found.judged is not None
    assert found.verdict is not None
    assert found.judged.counted
    assert {name: states(found)[name] for name in ("base", "form")} == {"base": "open", "form": "open"}
    assert found.verdict.word == "not_enough_evidence"
    assert "judge's possible lean" in found.verdict.against_base.method
    needed = found.verdict.against_base.needed
    assert needed is None or needed > len(HELD_OUT)


async def test_a_candidate_is_not_failed_by_a_preference_that_a_lean_to_the_base_could_explain(tmp_path: Path) -> None:
    worse = {"voice@3": 3, "smol": 9, "live": 1}
    leaning = AGREEING.model_copy(update={"lean": -0.6, "lean_low": -0.7, "lean_high": -0.5})
    found = await judged(tmp_path, Voices(worse), standing=leaning)
    assert found.judged is not None
    assert found.judged.counted
    assert "It leans towards the base" in found.judged.sentence
    assert states(found)["base"] == "open"


async def test_what_was_forgotten_fails_without_a_judge(tmp_path: Path) -> None:
    found = await judged(tmp_path, Voices(GOODNESS), standing=None, suite="broken")
    assert found.verdict is not None
    assert found.verdict.word == "fail"
    assert "It lost more in a suite than is allowed." in found.verdict.sentence


@pytest.mark.parametrize(
    "error", [GatewayUnreachable("http://secret went away"), AnswerRefused(401, "invalid_api_key", "no")]
)
async def test_a_judge_that_is_away_is_asked_once_and_leaves_it_open(tmp_path: Path, error: Exception) -> None:
    voices = Voices(GOODNESS, lambda _: error)
    found = await judged(tmp_path, voices)
    assert found.verdict is not None
    assert found.verdict.word == "not_enough_evidence"
    assert states(found)["judge"] == "open"
    assert "its endpoint" in found.verdict.sentence
    assert "secret" not in found.verdict.sentence
    assert len(voices.shown) == 1


async def test_what_one_arms_pairs_cannot_be_had_of_is_no_ground_for_a_verdict(tmp_path: Path) -> None:
    refused = AnswerRefused(400, "content_filter", "no")
    voices = Voices(GOODNESS, lambda name: refused if "/live/" in name else None)
    found = await judged(tmp_path, voices)
    assert found.verdict is not None
    assert found.judged is not None
    assert (found.verdict.word, found.judged.counted) == ("not_enough_evidence", False)
    assert "for one arm too many votes are missing or unreadable" in found.verdict.sentence
    # a few are ties
    some = Voices(GOODNESS, lambda name: refused if name.startswith(("1/", "2/")) else None)
    found = await judged(tmp_path, some)
    assert found.verdict is not None
    assert found.verdict.word == "pass"
    assert [place for place, score in enumerate(found.comparison.result("base").scores) if score == 0.5] == [1, 2]


def test_where_a_judge_decides_one_is_named_and_there_is_a_candidate() -> None:
    wish = read_metric("judge")
    check_judge_metric(wish, "strict", candidate=True)
    check_judge_metric(read_metric("rouge_l"), None, candidate=False)
    with pytest.raises(EvaluationInvalid, match="needs a judge: send `judge`"):
        check_judge_metric(wish, None, candidate=True)
    with pytest.raises(EvaluationInvalid, match="send `candidate`"):
        check_judge_metric(wish, "strict", candidate=False)
    with pytest.raises(ValidationError, match="needs `judge` and `candidate`"):
        spec(judge=None)
