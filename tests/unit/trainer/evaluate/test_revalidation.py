"""Revalidation: what an earlier verdict's scores and today's show together, and what they must not."""

from __future__ import annotations

import json
from typing import Any

import pytest

from adapters.protocol.runs import EarlierVerdict, FileRef
from tests.unit.trainer.evaluate.pages import report
from tests.unit.trainer.evaluate.worlds import QUICK, comparison, forgetting, form, row
from trainer.evaluate.forgetting import Forgetting
from trainer.evaluate.page.render import render
from trainer.evaluate.revalidation import (
    Incomparable,
    RevalidationResult,
    VerdictScores,
    read_scores,
    revalidate,
    scores_of,
)
from trainer.evaluate.spec import MetricOptions, Outcome
from trainer.evaluate.suites.general import general_suite
from trainer.evaluate.verdict import RULE, Rules, Verdict, decide

COUNT = 100
EARLIER = EarlierVerdict(
    id="verdict-1", verdict="pass", rule=1, scores=FileRef(id="file-1", filename="s.json", bytes=1, sha256="0")
)
EXACT = MetricOptions(name="exact_match")
RULES = Rules(method=QUICK)


def flipped(scores: list[float], *indices: int) -> list[float]:
    """The scores, other ones on these examples."""
    return [1.0 - score if index in indices else score for index, score in enumerate(scores)]


def evaluate(
    tuned: list[float], base: list[float], lost: Forgetting | None = None, *, metric: str = "exact_match"
) -> tuple[VerdictScores, Verdict]:
    """The scores and the verdict of an evaluation; an answer is as its score, so that another score is another one."""
    found = comparison({"tuned": [tuned], "base": [base]}, binary=metric == "exact_match")
    results = [
        result.model_copy(update={"answers": tuple(f"{score:.3f}" for score in result.runs[0])})
        for result in found.results
    ]
    found = found.model_copy(update={"results": tuple(results)})
    verdict = decide(found, candidate="tuned", bases=["base"], form=form(len(tuned)), forgetting=lost, rules=RULES)
    scores = scores_of(Outcome(comparison=found, verdict=verdict), MetricOptions(name=metric))
    assert scores is not None
    return scores, verdict


def then_and_now(
    then: tuple[list[float], list[float]],
    now: tuple[list[float], list[float]],
    *,
    earlier: EarlierVerdict = EARLIER,
    lost: tuple[Forgetting | None, Forgetting | None] = (None, None),
    **options: Any,
) -> tuple[RevalidationResult, Verdict]:
    """Each evaluation as the scores of the version and of the base."""
    old, _ = evaluate(*then, lost[0], **options)
    new, verdict = evaluate(*now, lost[1], **options)
    return revalidate(earlier, old, new, verdict, RULES), verdict


def states(result: RevalidationResult) -> dict[str, str]:
    return {check.name: check.state for check in result.checks}


def test_an_unharmed_version_near_the_threshold_holds_though_it_would_not_pass_again() -> None:
    """What demoted unharmed versions: the pass was narrow, and a few answers flip."""
    base, tuned = row(40, 200), row(52, 200)
    result, alone = then_and_now((tuned, base), (flipped(tuned, 10, 11, 150), flipped(base, 41, 42)))
    assert {check.name: check.state for check in alone.checks}["base"] == "open"
    assert (result.word, result.holds, result.compared_with, result.changed) == ("pass", True, "verdict-1", 3)
    assert states(result) == {"score": "kept", "advantage": "kept"}
    assert "the earlier verdict holds" in result.sentence
    assert "answers changed: 3" in result.sentence
    assert (result.rule, alone.rule) == (1, RULE), "the verdict that stands is by its own rule"


@pytest.mark.parametrize("count", [6, 30])
def test_the_same_answers_are_the_same_verdict_however_few_they_are(count: int) -> None:
    scores = (row(count - 2, count), row(1, count))
    result, _ = then_and_now(scores, scores)
    assert (result.holds, result.changed) == (True, 0)
    assert result.then_now.low < result.then_now.bound, "by the interval alone it would not be shown"


def test_a_version_that_a_person_promoted_does_not_get_a_pass_by_staying_as_it_is() -> None:
    scores = (row(45, COUNT), row(44, COUNT))
    result, _ = then_and_now(scores, scores, earlier=EARLIER.model_copy(update={"verdict": "not_enough_evidence"}))
    assert (result.word, result.holds) == ("not_enough_evidence", True)


@pytest.mark.parametrize("count", [50, 100, 400])
def test_a_version_that_lost_twenty_points_fails(count: int) -> None:
    base, tuned = row(count // 5, count), row(count * 4 // 5, count)
    harmed = flipped(tuned, *range(count // 5))
    result, _ = then_and_now((tuned, base), (harmed, base))
    assert (result.word, result.holds) == ("fail", False)
    assert states(result)["score"] == "broken"
    assert result.then_now.estimate == pytest.approx(-0.2)
    assert "does not hold any more" in result.sentence
    assert "20 points worse than then" in result.sentence


def test_what_is_not_shown_either_way_is_said_and_fails_nothing() -> None:
    base, tuned = row(20, COUNT), row(80, COUNT)
    result, _ = then_and_now((tuned, base), (flipped(tuned, 1, 2, 3, 4), base))
    assert (result.word, result.holds) == ("not_enough_evidence", None)
    assert states(result)["score"] == "open"
    assert "stays as it was" in result.sentence


def test_losses_within_the_margin_are_no_failure_however_certain() -> None:
    base, tuned = row(400, 2000), row(1600, 2000)
    result, _ = then_and_now((tuned, base), (flipped(tuned, *range(40)), base))
    assert result.then_now.high < 0
    assert result.holds is True


def test_a_lead_that_is_gone_because_the_base_became_better_fails() -> None:
    """Another template: the version answers as ever, and so does the base now."""
    base, tuned = row(80, 400), row(320, 400)
    result, _ = then_and_now((tuned, base), (tuned, row(320, 400)))
    assert states(result) == {"score": "kept", "advantage": "broken"}
    assert result.holds is False
    assert "0 points, and was 60 then" in result.sentence
    smaller, _ = then_and_now((tuned, base), (tuned, row(200, 400)))
    assert (smaller.holds, states(smaller)["advantage"]) == (True, "kept")
    doubtful, _ = then_and_now((tuned, base), (tuned, row(312, 400)))
    assert (doubtful.holds, states(doubtful)["advantage"]) == (None, "open")


def test_forgetting_counts_only_where_more_is_lost_than_then() -> None:
    scores = (row(80, COUNT), row(20, COUNT))
    items = tuple(f"item-{at}" for at in range(12))

    def suite(lost: int, state: Any) -> Forgetting:
        return forgetting(state).model_copy(update={"lost": items[:lost]})

    for then, now, wanted in (
        (suite(6, "broken"), suite(6, "broken"), "kept"),
        (suite(5, "kept"), suite(6, "open"), "open"),
        (suite(5, "kept"), suite(6, "broken"), "open"),
        (suite(0, "kept"), suite(12, "broken"), "broken"),
        (suite(6, "open"), suite(2, "kept"), "kept"),
    ):
        result, _ = then_and_now(scores, scores, lost=(then, now))
        assert states(result)["forgetting"] == wanted, (then.lost, now.lost)
    worse = forgetting(perplexity="broken")
    result, _ = then_and_now(scores, scores, lost=(forgetting(), worse))
    assert (result.holds, states(result)["forgetting"]) == (False, "broken")
    assert then_and_now(scores, scores, lost=(worse, worse))[0].holds is True


CHATS = tuple(item.id for item in general_suite().chats)


@pytest.mark.parametrize(
    ("then", "now", "expected"),
    [
        # in plain text, in a chat: states, and how many are lost
        ((("kept", 0), ("kept", 0)), (("kept", 0), ("broken", 20)), "broken"),
        ((("kept", 0), ("kept", 8)), (("kept", 0), ("broken", 10)), "open"),
        ((("kept", 0), ("kept", 4)), (("kept", 0), ("open", 10)), "open"),
        ((("kept", 0), ("broken", 20)), (("kept", 0), ("broken", 20)), "kept"),
        ((("kept", 0), ("kept", 0)), (("kept", 0), ("kept", 8)), "kept"),
        # what is lost in the one is not made good by what is won back in the other, nor added to it
        ((("kept", 0), ("kept", 12)), (("broken", 12), ("kept", 0)), "broken"),
        ((("kept", 5), ("kept", 0)), (("broken", 6), ("kept", 8)), "open"),
        ((("kept", 12), ("kept", 0)), (("kept", 0), ("broken", 12)), "broken"),
    ],
)
def test_forgetting_in_a_chat_is_compared_by_itself(then: Any, now: Any, expected: str) -> None:
    def suite(plain: tuple[Any, int], chat: tuple[Any, int]) -> Forgetting:
        lost = (*(f"item-{at}" for at in range(plain[1])), *CHATS[: chat[1]])
        return forgetting(plain[0], chat=chat[0]).model_copy(update={"lost": lost})

    scores, lost = (row(80, COUNT), row(20, COUNT)), (suite(*then), suite(*now))
    result, _ = then_and_now(scores, scores, lost=lost)
    assert states(result)["forgetting"] == expected
    assert ("General questions in a chat" in result.sentence) == (expected != "kept")


def test_a_record_of_before_chats_had_a_state_has_their_items() -> None:
    scores = (row(80, COUNT), row(20, COUNT))
    old, _ = evaluate(*scores, forgetting(chat="broken").model_copy(update={"lost": CHATS[:20]}))
    stored = old.model_dump(by_alias=True)
    del stored["suite"]["chat"], stored["suite"]["chat_items"]
    then = read_scores(json.dumps(stored).encode())
    for count, expected in ((20, "kept"), (22, "open"), (40, "broken")):
        new, verdict = evaluate(*scores, forgetting(chat="broken").model_copy(update={"lost": CHATS[:count]}))
        assert states(revalidate(EARLIER, then, new, verdict, RULES))["forgetting"] == expected, count


def test_graded_scores_are_held_to_their_own_margin() -> None:
    tuned = [0.3 + 0.4 * (at % 10) / 10 for at in range(200)]
    base = [score - 0.2 for score in tuned]
    slightly = [score - 0.005 if at % 2 else score for at, score in enumerate(tuned)]
    assert then_and_now((tuned, base), (slightly, base), metric="rouge_l")[0].holds is True
    worse = [score - 0.1 * (at % 3) / 2 for at, score in enumerate(tuned)]
    result, _ = then_and_now((tuned, base), (worse, base), metric="rouge_l")
    assert (result.holds, result.then_now.bound) == (False, -0.02)


def test_what_is_measured_otherwise_than_then_is_not_compared() -> None:
    old, _ = evaluate(row(80, COUNT), row(20, COUNT))
    new, verdict = evaluate(row(80, COUNT), row(20, COUNT))
    changes: tuple[tuple[dict[str, Any], str], ...] = (
        ({"metric": MetricOptions(name="contains")}, "other options or another one"),
        ({"questions": tuple(f"{key}x" for key in old.questions)}, "on other questions"),
        ({"candidate": old.candidate.model_copy(update={"scores": tuple(row(79, COUNT))})}, "scores the same answer"),
        ({"counted": False}, "did not count then"),
    )
    for change, why in changes:
        with pytest.raises(Incomparable, match=why):
            revalidate(EARLIER, old.model_copy(update=change), new, verdict, RULES)
    with pytest.raises(Incomparable, match="cannot be read"):
        read_scores(b'{"format": 1}')
    assert read_scores(old.model_dump_json(by_alias=True).encode()) == old


def test_last_digits_that_depend_on_a_batch_are_no_other_metric() -> None:
    graded = [0.4 + 0.001 * at for at in range(COUNT)]
    new, verdict = evaluate(graded, row(20, COUNT), metric="similarity")

    def earlier(shift: float) -> VerdictScores:
        scores = tuple(score + shift for score in graded)
        return new.model_copy(update={"candidate": new.candidate.model_copy(update={"scores": scores})})

    revalidate(EARLIER, earlier(5e-7), new, verdict, RULES)
    with pytest.raises(Incomparable, match="scores the same answer"):
        revalidate(EARLIER, earlier(0.001), new, verdict, RULES)


def test_with_a_judge_as_the_metric_then_and_now_are_its_preference_over_the_base() -> None:
    """The version's own score is one half each time, whatever has become of it."""
    even = [0.5] * COUNT
    old, _ = evaluate(even, row(10, COUNT), metric="judge")
    new, verdict = evaluate(even, row(60, COUNT), metric="judge")
    then, now = (scores.model_copy(update={"counted": True}) for scores in (old, new))
    result = revalidate(EARLIER, then, now, verdict, RULES)
    assert (result.holds, states(result)["score"]) == (False, "broken")
    assert result.then_now.estimate == pytest.approx(-0.5)
    assert revalidate(EARLIER, then, then, verdict, RULES).holds is True
    with pytest.raises(Incomparable, match="does not count now"):
        revalidate(EARLIER, then, new, verdict, RULES)


def test_questions_are_paired_by_their_content_and_not_by_their_place() -> None:
    old, _ = evaluate(row(80, COUNT), row(20, COUNT))
    new, verdict = evaluate(row(80, COUNT), row(20, COUNT))
    backwards = {"questions": old.questions[::-1]}
    for arm in ("candidate", "base"):
        scores = getattr(old, arm)
        backwards[arm] = scores.model_copy(update={"scores": scores.scores[::-1], "answers": scores.answers[::-1]})
    result = revalidate(EARLIER, old.model_copy(update=backwards), new, verdict, RULES)
    assert (result.changed, result.then_now.estimate) == (0, 0)
    half = old.model_copy(update={"questions": (*old.questions[:60], *(f"gone-{at}" for at in range(40)))})
    result = revalidate(EARLIER, half, new, verdict, RULES)
    assert result.examples == 60
    assert "40 questions were not asked then" in result.sentence


def test_the_page_shows_what_decided_and_what_the_evaluation_shows_by_itself() -> None:
    tuned = row(80, COUNT)
    result, _ = then_and_now((tuned, row(20, COUNT)), (flipped(tuned, 1, 2, 3, 4), row(20, COUNT)))
    whole = report()
    page = render(whole.model_copy(update={"revalidation": result}))
    assert "Revalidation of" in page
    assert "then against now" in page
    assert "As good as then on the same questions" in page
    assert whole.verdict is not None
    assert "Without the earlier scores it would be" in page
    assert "then against now" not in render(whole)


def test_variants_of_one_question_that_flip_together_are_one_question() -> None:
    """A customer's ten questions fail at once: that is one observation, and no version is failed by it."""
    base, tuned = row(0, COUNT), row(80, COUNT)
    harmed = flipped(tuned, *range(10), 12)
    old, _ = evaluate(tuned, base)
    new, verdict = evaluate(harmed, base)
    assert revalidate(EARLIER, old, new, verdict, RULES).holds is False
    units = tuple(index // 10 for index in range(COUNT))
    result = revalidate(EARLIER, old, new.model_copy(update={"units": units}), verdict, RULES)
    assert result.holds is None
    assert (result.examples, result.then_now.examples, result.changed) == (10, 10, 11)


def test_a_late_look_widens_no_interval_of_a_revalidation() -> None:
    """It is the same version: how many others were judged on the questions does not matter."""
    base, tuned = row(20, COUNT), row(80, COUNT)
    old, _ = evaluate(tuned, base)
    new, verdict = evaluate(flipped(tuned, *range(20)), base)
    late = verdict.model_copy(update={"rules": RULES.at_look(20), "look": 20})
    assert revalidate(EARLIER, old, new, late, RULES) == revalidate(EARLIER, old, new, verdict, RULES)
