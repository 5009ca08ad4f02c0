from __future__ import annotations

import json

import pytest

from tests.unit.trainer.evaluate import pages
from tests.unit.trainer.evaluate.worlds import QUICK, comparison, forgetting, form, row
from trainer.evaluate.control_arms import constant_and_permuted
from trainer.evaluate.metrics.match import ExactMatch
from trainer.evaluate.metrics.overlap import RougeL
from trainer.evaluate.page import render
from trainer.evaluate.report import CURVE_POINTS, EvaluationReport, build, loss_curve
from trainer.evaluate.verdict import Rules, decide
from trainer.evaluate.voice_scores import Voice, VoiceScores


def test_the_report_is_json_and_comes_back_as_it_was() -> None:
    found = pages.report()
    text = found.model_dump_json()
    assert EvaluationReport.model_validate_json(text) == found
    assert json.loads(text)["verdict"]["word"] == "pass"
    assert found.labels[0] == "voice@3"
    assert found.asked_tokens == 3000


def test_measures_are_means_and_perplexity_is_among_them() -> None:
    measures = {measure.name: measure.means for measure in pages.report().measures}
    assert measures["contains"]["base"] == 0.2
    assert measures["length_words"]["voice@3"] == 3
    assert measures["perplexity"]["base"] == pytest.approx(4.4817, abs=1e-3)


def test_the_voice_is_a_measure_and_a_note_that_says_what_it_gives_to_known_answers() -> None:
    found = comparison({"voice@3": [row(6, 8)], "base": [row(1, 8)]}, binary=False)
    voice = Voice(author=0.86, base=0.04, phrases=0.06, shuffled=0.32, told_apart=0.97, examples=8)
    scored = VoiceScores(voice, {"voice@3": (0.5,) * 8, "base": (0.25,) * 8}).added_to(found)
    report = build(scored, None, adapter="voice@3", created_at=pages.report().created_at, voice=voice)
    assert EvaluationReport.model_validate_json(report.model_dump_json()).voice == voice
    [means] = [measure.means for measure in report.measures if measure.name == "voice"]
    assert means == {"voice@3": 0.5, "base": 0.25}
    page = render(report)
    assert "sounds like the author, %" in page
    assert "decides nothing: the author&#39;s own answers have 86, the base&#39;s 4" in page


def test_examples_are_the_largest_gains_the_largest_losses_and_some_by_chance() -> None:
    tuned = [0.5, 0.9, 0.2, 0.5, 0.6, 0.8] + [0.5] * 34
    base = [0.5, 0.1, 0.9, 0.5, 0.5, 0.2] + [0.5] * 34
    found = comparison({"tuned": [tuned], "base": [base]}, binary=False)
    verdict = decide(found, candidate="tuned", bases=["base"], form=form(40), forgetting=forgetting(), rules=Rules())
    samples = build(found, verdict, adapter="voice@3", created_at=pages.report().created_at).samples
    by_kind = {kind: [each.id for each in samples if each.kind == kind] for kind in ("best", "worst", "random")}
    assert (by_kind["best"], by_kind["worst"]) == (["1", "5", "4"], ["2"])
    assert len(by_kind["random"]) == 3
    assert len({each.id for each in samples}) == len(samples)
    best = samples[0]
    assert (best.base, best.candidate, best.reference) == ("base on 1", "tuned on 1", "answer 1")
    assert best.candidate_score - best.base_score == pytest.approx(0.8)


def test_where_nothing_got_worse_nothing_is_shown_as_worse() -> None:
    found = comparison({"tuned": [row(40, 40)], "base": [row(0, 40)]})
    verdict = decide(
        found, candidate="tuned", bases=["base"], form=form(40), forgetting=forgetting(), rules=Rules(method=QUICK)
    )
    samples = build(found, verdict, adapter="v@1", created_at=pages.report().created_at).samples
    assert {each.kind for each in samples} == {"best", "random"}


def test_a_loss_curve_is_downsampled_except_held_out_losses() -> None:
    events = [
        {"step": at, "train_loss": 1 / at} | ({"full_valid_loss": 2 / at} if at % 501 == 0 else {})
        for at in range(1, 2005)
    ]
    points = loss_curve(events)
    assert len(points) <= CURVE_POINTS + 4
    assert [point.step for point in points if point.held_out is not None] == [501, 1002, 1503, 2004]
    assert loss_curve([]) == ()
    assert loss_curve([{"message": "no step"}]) == ()
    assert loss_curve([{"step": 1, "train_loss": float("nan")}])[0].training is None


def test_a_comparison_without_a_candidate_is_reported_against_its_first_arm() -> None:
    found = comparison({"one": [row(10, 40)], "two": [row(30, 40)]})
    report = build(found, None, adapter="one against two", created_at=pages.report().created_at, why="so", held_out=90)
    assert (report.verdict, report.labels, report.held_out, report.why) == (None, ("one", "two"), 90, "so")
    (gap,) = report.differences
    assert (gap.of, gap.against, gap.estimate) == ("two", "one", 0.5)
    assert [mean.mean for mean in report.means] == [0.25, 0.75]
    assert report.samples[0].candidate_score == 1
    assert EvaluationReport.model_validate_json(report.model_dump_json()) == report


@pytest.mark.parametrize("count", [1, 2, 3])
@pytest.mark.parametrize("binary", [True, False])
@pytest.mark.parametrize("runs", [1, 2])
def test_a_handful_of_examples_still_makes_a_report(count: int, binary: bool, runs: int) -> None:
    tuned = [1.0] * count if binary else [0.5 + at / 10 for at in range(count)]
    found = comparison({"tuned": [tuned] * runs, "base": [[0.0] * count] * runs}, binary=binary)
    form_of_them = constant_and_permuted(
        [each.reference for each in found.questions], ExactMatch() if binary else RougeL()
    )
    verdict = decide(found, candidate="tuned", bases=["base"], form=form_of_them, forgetting=forgetting())
    assert verdict.word == "not_enough_evidence"
    page = render(build(found, verdict, adapter="v@1", created_at=pages.report().created_at))
    assert "too few to judge by" in page
