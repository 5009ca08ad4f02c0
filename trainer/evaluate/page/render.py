"""Renders a report as an HTML page: the data of each chart, and the template."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.resources import files
from typing import Any, Final

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from adapters.protocol.reports import ArmDifference, ArmMean
from trainer.evaluate import verdict_text
from trainer.evaluate.control_arms import ControlArm
from trainer.evaluate.forgetting import Forgetting, SuitePart
from trainer.evaluate.page import charts
from trainer.evaluate.page.charts import Bar, Scale, Tone
from trainer.evaluate.report import EvaluationReport

SHOWN_CHARS: Final = 1200
SHOWN_FINDINGS: Final = 12
CONTROLS: Final = {
    "constant": "one answer to everything",
    "permuted": "answers mixed up",
    "reassigned": "its own answers mixed up",
    "reassigned_beyond_question": "its own answers mixed up, without the questions' words",
    "question": "the question repeated",
    "nearest": "the answer of the most similar training question",
}
CHECKS: Final = {
    "examples": "Enough examples",
    "base": "Better than the base at its best",
    "live": "Not worse than the live version",
    "form": "Its answers depend on the question",
    "length": "Answers as long as the author's",
    "second_measure": "A second measure agrees",
    "forgetting": "Forgot no more than allowed",
    "suites": "Lost no more in other suites than allowed",
    "judge": "The judge does not prefer the base",
}
REVALIDATION_CHECKS: Final = {
    "score": "As good as then on the same questions",
    "advantage": "Still better than the base",
    "forgetting": "Lost no more of the general suite than then",
}
METRICS: Final = {
    "exact_match": "exactly right, %",
    "contains": "contains the right answer, %",
    "regex": "matches the pattern, %",
    "json_valid": "valid JSON, %",
    "json_schema": "satisfies the schema, %",
    "json_exact": "JSON exactly right, %",
    "json_fields": "JSON fields right (F1), %",
    "token_f1": "words in common (F1), %",
    "similarity": "similar in meaning, %",
    "rouge_l": "words in order (ROUGE-L), %",
    "edit_similarity": "edit similarity, %",
    "judge": "preferred by the judge to the candidate (50: even), %",
    "refusal": "refusals, %",
    "voice": "sounds like the author, %",
    "length_words": "words per answer",
    "perplexity": "perplexity of the reference (lower is better)",
}
COUNTED: Final = frozenset({"length_words", "perplexity"})


def render(report: EvaluationReport) -> str:
    """The self-contained page. Everything from data or models is escaped."""
    environment = Environment(
        loader=PackageLoader("trainer.evaluate", "page"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(
        points=verdict_text.points,
        percent=verdict_text.percent,
        cut=cut,
        duration=duration,
        number=number,
        without_word=verdict_text.without_word,
    )
    style = (files("trainer.evaluate.page") / "page.css").read_text("utf-8")
    verdict = report.verdict
    decided = report.revalidation or verdict
    return environment.get_template(
        "page.html.jinja"
    ).render(
        report=report,
        verdict=verdict,
        decided=decided,
        style=Markup(style),  # noqa: S704 - a file of this package
        word="Comparison" if decided is None else verdict_text.VERDICT_WORDS[decided.word],
        checks=CHECKS,
        revalidation_checks=REVALIDATION_CHECKS,
        metric=metric_name(report.metric),
        sides=_sides(report),
        examples=report.means[0].examples,
        scores=_scores(report),
        gaps=_gaps(report),
        forgotten=_forgotten(report.forgetting),
        curve=_curve(report),
        measures=_measures(report),
        findings=report.data.findings[:SHOWN_FINDINGS] if report.data is not None else (),
    )


def _sides(report: EvaluationReport) -> tuple[str, str]:
    """The labels of the two arms shown side by side, as chosen by `report.build`."""
    if report.verdict is None:
        return report.labels[0], report.labels[-1]
    return report.verdict.base, report.verdict.candidate


def metric_name(name: str) -> str:
    """A metric's display name."""
    return METRICS.get(name, name)


def cut(text: str) -> str:
    """The text, truncated to SHOWN_CHARS."""
    return text if len(text) <= SHOWN_CHARS else f"{text[:SHOWN_CHARS]} … ({len(text) - SHOWN_CHARS} characters more)"


def duration(seconds: float) -> str:
    """`45 s`, `3 min 20 s`, `2 h 5 min`."""
    whole = round(seconds)
    hours, minutes = divmod(whole // 60, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {whole % 60} s" if minutes else f"{seconds:.1f} s" if seconds < 10 else f"{whole} s"


def number(value: int) -> str:
    """Digits grouped by thousands."""
    return f"{value:,}".replace(",", "\u202f")


def _scores(report: EvaluationReport) -> Markup:
    """Each arm's mean, and the controls'."""
    rows = [_bar(mean, _tone(mean.label, report)) for mean in report.means]
    rows += [_control(control) for control in (report.verdict.form if report.verdict is not None else ())]
    maximum = _ceiling([row.high if row.high is not None else row.value for row in rows])
    return charts.bars(rows, Scale(0, maximum), title="Mean score of each arm, of 100")


def _bar(mean: ArmMean, tone: Tone) -> Bar:
    shown = f"{verdict_text.points(mean.mean)} ({verdict_text.points(mean.low)} to {verdict_text.points(mean.high)})"
    return Bar(mean.label, 100 * mean.mean, 100 * mean.low, 100 * mean.high, shown, tone)


def _control(control: ControlArm) -> Bar:
    name = f"control: {CONTROLS[control.kind]}"
    return Bar(name, 100 * control.mean, None, None, verdict_text.points(control.mean), "control")


def _tone(label: str, report: EvaluationReport) -> Tone:
    verdict = report.verdict
    if verdict is None:
        return "base" if label == report.labels[0] else "candidate"
    return "candidate" if label == verdict.candidate else "live" if label == verdict.live else "base"


def _gaps(report: EvaluationReport) -> Markup | None:
    """The candidate's differences with intervals; without a candidate, every other arm's difference from the first."""
    verdict = report.verdict
    if verdict is None:
        rows = [
            _gap(difference, "candidate", f"{difference.of} against {difference.against}")
            for difference in report.differences
        ]
    else:
        difference = verdict.against_base
        rows = [_gap(difference, _tone(difference.against, report), f"against {difference.against}")]
        if verdict.against_live is not None:
            rows.append(_gap(verdict.against_live, "live", f"against {verdict.against_live.against}"))
        rows += [
            _gap(control, "control", f"against control: {CONTROLS[control.against]}")
            for control in verdict.against_form
        ]
    if not rows:
        return None
    return charts.differences(
        rows,
        _scale([end for row in rows for end in (row.low, row.high) if end is not None]),
        bound=100 * verdict.rules.smallest_difference if verdict is not None else 0,
        title="Differences in points of 100, with their intervals",
    )


def _gap(difference: ArmDifference, tone: Tone, label: str) -> Bar:
    return Bar(
        label,
        100 * difference.estimate,
        100 * difference.low,
        100 * difference.high,
        f"{_signed(difference.estimate)} ({_signed(difference.low)} to {_signed(difference.high)})",
        tone,
    )


def _forgotten(forgetting: Forgetting | None) -> list[Markup]:
    if forgetting is None:
        return []
    parts = (
        ("right answers lost, points", forgetting.accuracy),
        ("right answers lost in a chat, points", forgetting.chat),
        ("rise of perplexity, %", forgetting.perplexity),
    )
    return [_loss(label, part) for label, part in parts if part is not None and part.state != "silent"]


def _loss(label: str, part: SuitePart) -> Markup:
    row = Bar(
        label,
        100 * part.loss,
        100 * part.low,
        100 * part.high,
        f"{_signed(part.loss)} ({_signed(part.low)} to {_signed(part.high)})",
        "candidate" if part.state == "kept" else "live",
    )
    # clamped, so that a model that lost everything does not shrink the budget to nothing
    ends = [min(max(end, -1.0), max(1.0, 4 * part.budget)) for end in (part.low, part.high, part.budget, part.loss)]
    scale = _scale([100 * end for end in ends])
    return charts.differences([row], scale, bound=100 * part.budget, title=f"{label}; the dashed line is the budget")


def _curve(report: EvaluationReport) -> Markup | None:
    training = [(float(point.step), point.training) for point in report.loss_curve if point.training is not None]
    held_out = [(float(point.step), point.held_out) for point in report.loss_curve if point.held_out is not None]
    if len(training) + len(held_out) < 2:
        return None
    return charts.curve(training, held_out, title="Loss over the training's steps")


def _measures(report: EvaluationReport) -> list[dict[str, Any]]:
    rows = []
    for measure in report.measures:
        scale = 1 if measure.name in COUNTED else 100
        cells = []
        for label in report.labels:
            mean = measure.means.get(label)
            cells.append("–" if mean is None else f"{scale * mean:.1f}")
        rows.append({"name": metric_name(measure.name), "cells": cells})
    return rows


def _signed(share: float) -> str:
    text = verdict_text.points(share)
    return text if text == "0" or text.startswith("−") else f"+{text}"


def _ceiling(values: Sequence[float]) -> float:
    return min(100.0, max(charts.nice_ceiling(max(values)), 5.0))


def _scale(ends: Sequence[float]) -> Scale:
    """A scale that includes zero and all ends, with a margin."""
    minimum, maximum = min(0.0, *ends), max(0.0, *ends)
    room = max(0.06 * (maximum - minimum), 1.0)
    return Scale(minimum - room, maximum + room)
