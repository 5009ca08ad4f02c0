"""From a report to the page: what each chart shows, and the template around them."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.resources import files
from typing import Any, Final

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from trainer.evaluate import wording
from trainer.evaluate.contrast import Difference, Mean
from trainer.evaluate.controls import Control
from trainer.evaluate.forgetting import Part
from trainer.evaluate.page import charts
from trainer.evaluate.page.charts import Bar, Scale, Tone
from trainer.evaluate.report import EvaluationReport
from trainer.evaluate.verdict import Verdict

SHOWN_CHARS: Final = 1200
SHOWN_FINDINGS: Final = 12
CONTROLS: Final = {
    "constant": "one answer to everything",
    "permuted": "answers mixed up",
}
CHECKS: Final = {
    "examples": "Enough examples",
    "base": "Better than the base at its best",
    "live": "Not worse than what serves now",
    "form": "More than form",
    "forgetting": "Forgot no more than allowed",
}
METRICS: Final = {
    "exact_match": "exactly right, %",
    "contains": "holds the right answer, %",
    "regex": "matches the pattern, %",
    "json_valid": "valid JSON, %",
    "json_schema": "fits the schema, %",
    "json_exact": "JSON exactly right, %",
    "json_fields": "JSON fields right (F1), %",
    "token_f1": "words in common (F1), %",
    "rouge_l": "words in order (ROUGE-L), %",
    "edit_similarity": "letters alike, %",
    "refusal": "refusals, %",
    "length_words": "words an answer",
    "perplexity": "perplexity of the reference (lower is better)",
}
COUNTED: Final = frozenset({"length_words", "perplexity"})


def render(report: EvaluationReport) -> str:
    """The page, complete in itself. Everything that comes from data or models is escaped."""
    environment = Environment(
        loader=PackageLoader("trainer.evaluate", "page"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(
        points=wording.points, cut=cut, duration=duration, number=number, without_word=wording.without_word
    )
    style = (files("trainer.evaluate.page") / "page.css").read_text("utf-8")
    return environment.get_template(
        "page.html.jinja"
    ).render(
        report=report,
        verdict=report.verdict,
        style=Markup(style),  # noqa: S704 - a file of this package
        word=wording.WORDS[report.verdict.word],
        checks=CHECKS,
        metric=metric_name(report.verdict.metric),
        scores=_scores(report.verdict),
        gaps=_gaps(report.verdict),
        forgotten=_forgotten(report.verdict),
        curve=_curve(report),
        measures=_measures(report),
        findings=report.data.findings[:SHOWN_FINDINGS] if report.data is not None else (),
    )


def metric_name(name: str) -> str:
    """A metric's name in words."""
    return METRICS.get(name, name)


def cut(text: str) -> str:
    """A text that is not too long for a page."""
    return text if len(text) <= SHOWN_CHARS else f"{text[:SHOWN_CHARS]} … ({len(text) - SHOWN_CHARS} characters more)"


def duration(seconds: float) -> str:
    """`45 s`, `3 min 20 s`, `2 h 5 min`."""
    whole = round(seconds)
    hours, minutes = divmod(whole // 60, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {whole % 60} s" if minutes else f"{seconds:.1f} s" if seconds < 10 else f"{whole} s"


def number(value: int) -> str:
    """Digits by thousands."""
    return f"{value:,}".replace(",", "\u202f")


def _scores(verdict: Verdict) -> Markup:
    """Each arm's mean, and what a learner of form would reach."""
    rows = [_bar(mean, _tone(mean.label, verdict)) for mean in verdict.means]
    rows += [_control(control) for control in verdict.form]
    most = _ceiling([row.high if row.high is not None else row.value for row in rows])
    return charts.bars(rows, Scale(0, most), title="Mean score of each arm, of 100")


def _bar(mean: Mean, tone: Tone) -> Bar:
    shown = f"{wording.points(mean.mean)} ({wording.points(mean.low)} to {wording.points(mean.high)})"
    return Bar(mean.label, 100 * mean.mean, 100 * mean.low, 100 * mean.high, shown, tone)


def _control(control: Control) -> Bar:
    name = f"control: {CONTROLS[control.kind]}"
    return Bar(name, 100 * control.mean, None, None, wording.points(control.mean), "control")


def _tone(label: str, verdict: Verdict) -> Tone:
    return "candidate" if label == verdict.candidate else "live" if label == verdict.live else "base"


def _gaps(verdict: Verdict) -> Markup:
    """The candidate's differences, each with its interval."""
    found = [verdict.against_base, *([] if verdict.against_live is None else [verdict.against_live])]
    found += verdict.against_form
    rows = [_gap(each, verdict) for each in found]
    return charts.differences(
        rows,
        _scale([end for row in rows for end in (row.low, row.high) if end is not None]),
        bound=100 * verdict.rules.smallest_difference,
        title=f"Differences of {verdict.candidate}, in points of 100, with their intervals",
    )


def _gap(found: Difference, verdict: Verdict) -> Bar:
    control = CONTROLS.get(found.against) if found in verdict.against_form else None
    label = f"against {found.against}" if control is None else f"against control: {control}"
    tone: Tone = "control" if control is not None else _tone(found.against, verdict)
    return Bar(
        label,
        100 * found.estimate,
        100 * found.low,
        100 * found.high,
        f"{_signed(found.estimate)} ({_signed(found.low)} to {_signed(found.high)})",
        tone,
    )


def _forgotten(verdict: Verdict) -> list[Markup]:
    if verdict.forgetting is None:
        return []
    accuracy, perplexity = verdict.forgetting.accuracy, verdict.forgetting.perplexity
    shown = [] if accuracy.state == "silent" else [_loss("right answers lost, points", accuracy)]
    return [*shown, _loss("rise of perplexity, %", perplexity)]


def _loss(label: str, part: Part) -> Markup:
    row = Bar(
        label,
        100 * part.loss,
        100 * part.low,
        100 * part.high,
        f"{_signed(part.loss)} ({_signed(part.low)} to {_signed(part.high)})",
        "candidate" if part.state == "kept" else "live",
    )
    # a model that has lost everything must not squeeze the budget to nothing
    ends = [min(max(end, -1.0), max(1.0, 4 * part.budget)) for end in (part.low, part.high, part.budget, part.loss)]
    scale = _scale([100 * end for end in ends])
    return charts.differences([row], scale, bound=100 * part.budget, title=f"{label}; the dashed line is the budget")


def _curve(report: EvaluationReport) -> Markup | None:
    training = [(float(point.step), point.training) for point in report.loss_curve if point.training is not None]
    held_out = [(float(point.step), point.held_out) for point in report.loss_curve if point.held_out is not None]
    if len(training) + len(held_out) < 2:
        return None
    return charts.curve(training, held_out, title="Loss over the training's steps, nats a token")


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
    text = wording.points(share)
    return text if text == "0" or text.startswith("−") else f"+{text}"


def _ceiling(values: Sequence[float]) -> float:
    return min(100.0, max(charts.nice_ceiling(max(values)), 5.0))


def _scale(ends: Sequence[float]) -> Scale:
    """A scale that holds zero and all ends, with some room."""
    least, most = min(0.0, *ends), max(0.0, *ends)
    room = max(0.06 * (most - least), 1.0)
    return Scale(least - room, most + room)
