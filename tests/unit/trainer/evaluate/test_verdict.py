from __future__ import annotations

import json
from typing import Any

import pytest

from tests.unit.trainer.evaluate.worlds import QUICK, Runs, comparison, forgetting, form, likelier, row
from trainer.errors import EvaluationInvalid
from trainer.evaluate.compare import Comparison
from trainer.evaluate.forgetting import Forgetting
from trainer.evaluate.verdict import RULE, Rules, Verdict, decide

RULES = Rules(method=QUICK)
GRADED = Rules(method=QUICK, live_margin=0.05)


def judge(tuned: Runs, base: Runs, *, live: Runs | None = None, **changes: Any) -> Verdict:
    arms = {"tuned": tuned, "base": base} | ({"live": live} if live is not None else {})
    values: dict[str, Any] = {
        "candidate": "tuned",
        "bases": ["base"],
        "live": "live" if live is not None else None,
        "form": form(len(tuned[0])),
        "forgetting": forgetting(),
        "rules": RULES,
    }
    return decide(comparison(arms), **(values | changes))


def states(verdict: Verdict) -> dict[str, str]:
    return {check.name: check.state for check in verdict.checks}


def test_a_clear_gain_passes_with_every_number_behind_it() -> None:
    verdict = judge([row(90, 100)], [row(30, 100)], live=[row(88, 100)])
    assert (verdict.word, verdict.passed) == ("pass", True)
    assert set(states(verdict).values()) == {"kept"}
    assert verdict.against_base.estimate == pytest.approx(0.6)
    assert verdict.against_base.low > 0.02
    assert (verdict.against_base.wins, verdict.against_base.losses) == (60, 0)
    assert verdict.against_base.p_value is not None
    assert verdict.against_base.p_value < 1e-9
    assert {mean.label for mean in verdict.means} == {"tuned", "base", "live"}
    assert "90 of 100, the base at its best 30: 60 points better" in verdict.sentence
    assert Verdict.model_validate_json(verdict.model_dump_json()) == verdict


def test_too_few_examples_are_never_enough_however_clear() -> None:
    verdict = judge([row(10, 10)], [row(0, 10)])
    assert verdict.word == "not_enough_evidence"
    assert verdict.more == 20
    assert "too few to judge by" in verdict.sentence
    assert "20 more examples" in verdict.sentence
    worse = judge([row(0, 10)], [row(10, 10)], live=[row(10, 10)])
    assert worse.word == "not_enough_evidence"
    assert {states(worse)[name] for name in ("base", "live", "form")} == {"open"}


@pytest.mark.parametrize("count", [10, 100])
def test_no_number_of_examples_settles_scores_that_do_not_count(count: int) -> None:
    verdict = judge([row(count, count)], [row(0, count)], uncounted="Some are missing.")
    assert (verdict.word, states(verdict)["base"], verdict.more) == ("not_enough_evidence", "open", None)
    assert "more examples" not in verdict.sentence


def test_the_lower_end_has_to_be_above_the_least_that_matters() -> None:
    verdict = judge([row(54, 100)], [row(50, 100)])
    assert (verdict.word, states(verdict)["base"]) == ("not_enough_evidence", "open")
    assert verdict.detectable is not None
    assert verdict.detectable > 0.04
    assert verdict.more is not None
    assert verdict.more > 0
    assert judge([row(54, 100)], [row(50, 100)], rules=Rules(method=QUICK, smallest_difference=0.0)).passed
    strict = judge([row(90, 100)], [row(30, 100)], rules=Rules(method=QUICK, smallest_difference=0.6))
    assert not strict.passed


def test_a_gain_shown_to_be_too_small_is_a_failure() -> None:
    verdict = judge([row(20, 200)], [row(60, 200)])
    assert (verdict.word, states(verdict)["base"]) == ("fail", "broken")
    assert "less than the smallest improvement that matters" in verdict.sentence
    alike = judge([row(200, 400)], [row(200, 400)], form=form(400))
    assert alike.word == "fail"  # so many examples would have shown two points


def test_equal_arms_on_few_examples_are_open_and_say_what_could_have_been_seen() -> None:
    verdict = judge([row(20, 40)], [row(20, 40)])
    assert (verdict.word, states(verdict)["base"]) == ("not_enough_evidence", "open")
    assert verdict.detectable is not None
    assert 0.05 < verdict.detectable < 0.4
    assert "so far the scores show no improvement" in verdict.sentence


def cut(found: Comparison, label: str, count: int) -> Comparison:
    """With the last answers of an arm at the length limit."""
    total = len(found.questions)
    results = [
        result.model_copy(update={"cut_at": tuple(range(total - count, total))})
        if result.arm.label == label
        else result
        for result in found.results
    ]
    return found.model_copy(update={"results": tuple(results)})


@pytest.mark.parametrize(
    ("count", "word"),
    [(0, "pass"), (10, "pass"), (40, "pass"), (58, "not_enough_evidence"), (70, "not_enough_evidence")],
)
def test_a_base_whose_answers_are_cut_is_beaten_only_if_all_of_them_may_have_been_right(count: int, word: str) -> None:
    """It may have been about to say the right answer."""
    arms = cut(comparison({"tuned": [row(90, 100)], "base": [row(30, 100)]}), "base", count)
    verdict = decide(arms, candidate="tuned", bases=["base"], form=form(100), forgetting=forgetting(), rules=RULES)
    assert verdict.word == word
    sentence = verdict.check("base").sentence  # type: ignore[union-attr]
    assert (f"100 answers {count} were cut" in sentence) is (count > 10)
    if word == "pass" and count > 10:
        assert "if all of them were, it would be 20 points better" in sentence
    if word != "pass":
        assert {name for name, state in states(verdict).items() if state == "open"} == {"base"}
        assert "evaluate with a larger `max_tokens`" in verdict.sentence
        assert "The true difference may be" not in verdict.sentence
        assert verdict.more is None


def test_cut_answers_of_a_weaker_base_or_of_the_candidate_leave_nothing_open() -> None:
    arms = comparison({"tuned": [row(90, 100)], "base": [row(10, 100)], "base told the answers": [row(30, 100)]})
    values: dict[str, Any] = {"form": form(100), "forgetting": forgetting(), "rules": RULES}
    bases = ["base", "base told the answers"]
    assert decide(cut(arms, "base", 100), candidate="tuned", bases=bases, **values).passed
    assert decide(cut(arms, "tuned", 100), candidate="tuned", bases=bases, **values).passed
    assert not decide(cut(arms, "base told the answers", 100), candidate="tuned", bases=bases, **values).passed


def test_a_candidate_that_does_not_beat_even_a_cut_base_fails() -> None:
    arms = cut(comparison({"tuned": [row(20, 200)], "base": [row(60, 200)]}), "base", 200)
    verdict = decide(arms, candidate="tuned", bases=["base"], form=form(200), forgetting=forgetting(), rules=RULES)
    assert (verdict.word, states(verdict)["base"]) == ("fail", "broken")


def test_the_strongest_base_is_the_one_to_beat() -> None:
    arms = {"tuned": [row(60, 100)], "base": [row(10, 100)], "base told the answers": [row(58, 100)]}
    verdict = decide(
        comparison(arms),
        candidate="tuned",
        bases=["base", "base told the answers"],
        form=form(100),
        forgetting=forgetting(),
        rules=RULES,
    )
    assert verdict.base == "base told the answers"
    assert verdict.word == "not_enough_evidence"


def test_worse_than_live_by_more_than_the_margin_fails_and_equal_to_live_does_not() -> None:
    worse = judge([row(60, 100)], [row(10, 100)], live=[row(90, 100)])
    assert (worse.word, states(worse)["live"]) == ("fail", "broken")
    assert "worse than the live version by more than the margin" in worse.sentence
    equal = judge([row(60, 100)], [row(10, 100)], live=[row(60, 100)])
    assert equal.word == "pass"
    assert "it may be at most 5 points worse, and the whole interval is above that" in equal.checks[2].sentence


def test_that_it_is_not_worse_than_live_has_to_be_shown() -> None:
    """Two points worse in 100 examples may be ten: it is not enough that the interval reaches zero."""
    verdict = judge([row(60, 100)], [row(10, 100)], live=[row(62, 100)])
    assert verdict.against_live is not None
    assert verdict.against_live.low < -0.05 < verdict.against_live.high
    assert (verdict.word, states(verdict)["live"]) == ("not_enough_evidence", "open")
    assert "It is not shown whether it is worse than the live version." in verdict.sentence
    assert verdict.more == (verdict.against_live.needed or 0) - 100
    assert f"About {verdict.more} more examples would settle this" in verdict.sentence
    wide = Rules(method=QUICK, live_margin=0.1)
    assert judge([row(60, 100)], [row(10, 100)], live=[row(62, 100)], rules=wide).word == "pass"
    better = Rules(method=QUICK, live_margin=0.0)
    assert judge([row(60, 100)], [row(10, 100)], live=[row(60, 100)], rules=better).word == "not_enough_evidence"


def test_the_margin_against_live_is_smaller_where_words_in_common_count() -> None:
    assert (Rules().margin("exact_match"), Rules().margin("rouge_l"), Rules().margin("judge")) == (0.05, 0.02, 0.05)
    assert {Rules(live_margin=0.1).margin(metric) for metric in ("exact_match", "rouge_l")} == {0.1}
    found = graded(100, rules=Rules(method=QUICK))
    assert found.against_live is not None
    assert found.against_live.bound == -0.02
    assert "it may be at most 2 points worse" in found.check("live").sentence  # type: ignore[union-attr]


def graded(count: int, differing: int = 0, rules: Rules | None = None) -> Verdict:
    """ROUGE-L: 10 points worse than `live` on some examples, the same on all others, and far above the base."""
    live = [0.7 + at % 7 / 50 for at in range(count)]
    tuned = [score - 0.1 if at < differing else score for at, score in enumerate(live)]
    base = [0.2 + at % 5 / 50 for at in range(count)]
    scores = likelier(comparison({"tuned": [tuned], "base": [base], "live": [live]}, binary=False))
    form_scores, kept = form(count, 0.1), forgetting()
    return decide(
        scores, candidate="tuned", bases=["base"], live="live", form=form_scores, forgetting=kept, rules=rules or GRADED
    )


@pytest.mark.parametrize("count", range(30, 76, 5))
@pytest.mark.parametrize("differing", [0, 1, 2])
def test_an_open_check_calls_for_more_examples(count: int, differing: int) -> None:
    found = graded(count, differing)
    if found.word == "pass":
        assert (found.more, count >= 70) == (0, True)
        return
    assert states(found)["live"] == "open"
    assert found.more is not None
    assert found.more > 0
    assert f"About {found.more} more examples would settle this" in found.sentence
    if not differing:
        assert graded(count + found.more - 1).word == "not_enough_evidence"
        assert graded(count + found.more).word == "pass"


def test_where_examples_settle_nothing_that_is_open_no_number_is_given() -> None:
    open_elsewhere = judge([row(90, 100)], [row(30, 100)], forgetting=None)
    assert (open_elsewhere.word, open_elsewhere.more) == ("not_enough_evidence", None)
    assert judge([row(90, 100)], [row(30, 100)]).more == 0


def test_a_verdict_names_its_rule_and_one_without_is_of_the_first() -> None:
    found = judge([row(90, 100)], [row(30, 100)])
    assert found.rule == RULE > 1
    older = json.loads(found.model_dump_json())
    del older["rule"]
    assert Verdict.model_validate(older).rule == 1


def test_a_small_loss_that_is_within_the_margin_for_sure_passes() -> None:
    verdict = judge([row(595, 1000)], [row(10, 1000)], live=[row(600, 1000)], form=form(1000))
    assert verdict.against_live is not None
    assert verdict.against_live.high < 0, "it is shown to be worse, and by less than the margin"
    assert verdict.word == "pass"


def test_both_controls_have_to_be_beaten() -> None:
    level = judge([row(60, 100)], [row(10, 100)], form=form(100, 0.59))
    assert (level.word, states(level)["form"]) == ("not_enough_evidence", "open")
    beaten = judge([row(60, 100)], [row(10, 100)], form=form(100, 1.0))
    assert (beaten.word, states(beaten)["form"]) == ("fail", "broken")
    assert "no better than answers that ignore the question" in beaten.sentence
    one_of_two = (form(100)[0], form(100, 1.0)[1])
    assert judge([row(60, 100)], [row(10, 100)], form=one_of_two).word == "fail"


@pytest.mark.parametrize(
    ("lost", "word"),
    [
        (forgetting("broken"), "fail"),
        (forgetting("kept", "broken"), "fail"),
        (forgetting(chat="broken"), "fail"),
        (forgetting(chat="open"), "not_enough_evidence"),
        (forgetting("open"), "not_enough_evidence"),
        (forgetting("silent"), "pass"),
        (forgetting("silent", "open"), "not_enough_evidence"),
        (None, "not_enough_evidence"),
    ],
)
def test_what_was_forgotten_decides_too(lost: Forgetting | None, word: str) -> None:
    verdict = judge([row(90, 100)], [row(30, 100)], forgetting=lost)
    assert verdict.word == word
    if word == "fail":
        assert "It forgot more" in verdict.sentence
    if lost is not None and lost.accuracy.state == "silent":
        assert "cannot show a loss" in verdict.checks[-1].sentence


def test_forgetting_that_is_shown_fails_also_on_few_examples() -> None:
    assert judge([row(10, 10)], [row(0, 10)], forgetting=forgetting("broken")).word == "fail"


def test_noise_between_runs_widens_the_interval() -> None:
    steady = judge([row(62, 100), row(62, 100)], [row(50, 100), row(50, 100)])
    shaky = judge([row(62, 100), row(40, 100)], [row(50, 100), row(50, 100)])
    assert (steady.word, shaky.word) == ("pass", "not_enough_evidence")
    assert steady.against_base.noise == 0
    assert shaky.against_base.noise is not None
    assert shaky.against_base.noise > 0.1
    assert shaky.against_base.low < steady.against_base.low
    assert judge([row(62, 100)], [row(50, 100)]).against_base.noise is None


def test_scores_between_are_judged_by_the_bootstrap() -> None:
    tuned, base = [0.6 + at % 7 / 50 for at in range(60)], [0.3 + at % 5 / 50 for at in range(60)]
    verdict = decide(
        likelier(comparison({"tuned": [tuned], "base": [base]}, binary=False)),
        candidate="tuned",
        bases=["base"],
        form=form(60, 0.2),
        forgetting=forgetting(),
        rules=RULES,
    )
    assert verdict.word == "pass"
    assert "bootstrap" in verdict.against_base.method
    assert verdict.against_base.p_value is None


@pytest.mark.parametrize("changes", [{"bases": []}, {"form": ()}, {"form": form(9)}, {"candidate": "nobody"}])
def test_what_cannot_be_judged_is_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(EvaluationInvalid):
        judge([row(9, 10)], [row(3, 10)], **changes)
