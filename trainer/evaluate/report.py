"""The report of an evaluation: all that was found, as JSON, and as one page that needs nothing else (`page`)."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import Any, Final, Literal

import numpy as np

from trainer.data.report import Report as DataReport
from trainer.evaluate.arms import Frozen
from trainer.evaluate.compare import Comparison
from trainer.evaluate.forgetting import Forgetting
from trainer.evaluate.paired_difference import Difference, Mean, arm_difference, mean_of
from trainer.evaluate.spec import JudgeResult, SuiteResult
from trainer.evaluate.statistics.paired import Array
from trainer.evaluate.verdict import Rules, Verdict
from trainer.tune.lineage import Lineage

SHOWN_EACH: Final = 3
CURVE_POINTS: Final = 400


class LossPoint(Frozen):
    """Losses after a step, in nats per trained token; `held_out` at an epoch's end alone."""

    step: int
    training: float | None = None
    held_out: float | None = None


class Cost(Frozen):
    """What it took. ``price`` is in the operator's currency: of the training; times in seconds."""

    training_s: float = 0.0
    trained_tokens: int = 0
    device: str = ""
    price: float = 0.0
    evaluation_s: float = 0.0
    """From the first question to the verdict."""


class Sample(Frozen):
    """One example, answered by both: the strongest base and the candidate, or the first arm and the last."""

    kind: Literal["best", "worst", "random"]
    id: str
    asked: str
    reference: str
    base: str
    candidate: str
    base_score: float
    candidate_score: float


class Measure(Frozen):
    """A metric beside the primary one: each arm's mean, by label; None where the arm has none."""

    name: str
    means: dict[str, float | None]


class EvaluationReport(Frozen):
    """Everything about one evaluation. ``labels``: the arms in the order that they are shown in, a candidate first."""

    format: int = 1
    adapter: str
    """`name@version`, as the candidate is known to callers."""
    created_at: datetime
    verdict: Verdict | None
    """None for a comparison without a candidate."""
    metric: str
    why: str = ""
    """Why that metric."""
    notes: tuple[str, ...] = ()
    """What one has to know of the comparison: what was left out of it, and what was done to all arms alike."""
    means: tuple[Mean, ...]
    differences: tuple[Difference, ...] = ()
    """Of every other arm against the first, where there is no verdict."""
    held_out: int
    """Examples that there were; the verdict's are those that were asked."""
    suites: tuple[SuiteResult, ...] = ()
    judged: JudgeResult | None = None
    labels: tuple[str, ...]
    served: dict[str, str]
    """What each arm was served by: `name@3`, or the model it asked for."""
    measures: tuple[Measure, ...]
    samples: tuple[Sample, ...]
    loss_curve: tuple[LossPoint, ...] = ()
    data: DataReport | None = None
    lineage: Lineage | None = None
    cost: Cost | None = None
    asked_tokens: int = 0
    """Of prompts and answers, over all arms."""
    cut: dict[str, int]
    """Answers of each arm that reached the longest length."""

    @property
    def forgetting(self) -> Forgetting | None:
        """What the general suite found, where it was put."""
        return next((suite.forgetting for suite in self.suites if suite.forgetting is not None), None) or (
            self.verdict.forgetting if self.verdict is not None else None
        )


def build(
    comparison: Comparison,
    verdict: Verdict | None,
    *,
    adapter: str,
    created_at: datetime,
    suites: Sequence[SuiteResult] = (),
    judged: JudgeResult | None = None,
    why: str = "",
    notes: Sequence[str] = (),
    held_out: int | None = None,
    rules: Rules | None = None,
    loss_curve: Sequence[LossPoint] = (),
    data: DataReport | None = None,
    lineage: Lineage | None = None,
    cost: Cost | None = None,
) -> EvaluationReport:
    """Put a report together.

    Args:
        comparison: What the verdict was reached over.
        verdict: The verdict; None for a comparison without a candidate.
        adapter: What the report is on: `name@version`, or the comparison's name.
        created_at: With its time zone.
        suites, judged: What the suites found, and a judge.
        why: Why the metric is what it is.
        notes: What one has to know of the comparison, a sentence each.
        held_out: Examples that there were, where not all of them were asked.
        rules: How intervals are made where there is no verdict that says it.
        loss_curve: As `loss_curve` makes it from a job's events.
        data, lineage, cost: The training data's quality report, where the adapter comes from, and what it took.
    """
    labels = _labels(comparison, verdict)
    results = [comparison.result(label) for label in labels]
    method = (rules or Rules()).method if verdict is None else verdict.rules.method
    return EvaluationReport(
        adapter=adapter,
        created_at=created_at,
        verdict=verdict,
        metric=comparison.metric,
        why=why,
        notes=tuple(notes),
        means=tuple(mean_of(result, binary=comparison.binary, method=method) for result in results),
        differences=tuple(
            arm_difference(comparison, label, labels[0], method) for label in labels[1:] if verdict is None
        ),
        held_out=len(comparison.questions) if held_out is None else held_out,
        suites=tuple(suites),
        judged=judged,
        labels=labels,
        served={result.arm.label: result.version or result.arm.model for result in results},
        measures=_measures(comparison, labels),
        samples=_samples(comparison, *_sides(verdict, labels), seed=method.seed),
        loss_curve=tuple(loss_curve),
        data=data,
        lineage=lineage,
        cost=cost,
        asked_tokens=sum(result.prompt_tokens + result.completion_tokens for result in results),
        cut={result.arm.label: result.cut for result in results},
    )


def _labels(comparison: Comparison, verdict: Verdict | None) -> tuple[str, ...]:
    """The arms' labels, a candidate's first."""
    first = [] if verdict is None else [verdict.candidate]
    return tuple(dict.fromkeys([*first, *(result.arm.label for result in comparison.results)]))


def loss_curve(metrics: Iterable[dict[str, Any]]) -> tuple[LossPoint, ...]:
    """A curve from the data of a job's `metrics` events, thinned to CURVE_POINTS; held-out losses all stay."""
    points = [
        LossPoint(
            step=int(each["step"]),
            training=_finite(each.get("train_loss")),
            held_out=_finite(each.get("full_valid_loss")),
        )
        for each in metrics
        if "step" in each
    ]
    every = math.ceil(len(points) / CURVE_POINTS)
    return (
        tuple(point for index, point in enumerate(points) if index % every == 0 or point.held_out is not None)
        if points
        else ()
    )


def _finite(value: Any) -> float | None:
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else None


def _measures(comparison: Comparison, labels: Sequence[str]) -> tuple[Measure, ...]:
    results = [comparison.result(label) for label in labels]
    names = dict.fromkeys(name for result in results for name in result.beside)
    measures = [
        Measure(
            name=name,
            means={
                result.arm.label: float(np.mean(result.beside[name])) if name in result.beside else None
                for result in results
            },
        )
        for name in names
    ]
    if any(result.nats is not None for result in results):
        means = {
            result.arm.label: math.exp(min(float(np.mean(result.nats)), 100.0)) if result.nats is not None else None
            for result in results
        }
        measures.append(Measure(name="perplexity", means=means))
    return tuple(measures)


def _sides(verdict: Verdict | None, labels: Sequence[str]) -> tuple[str, str]:
    """The two arms whose answers stand side by side: before, after."""
    return (labels[0], labels[-1]) if verdict is None else (verdict.base, verdict.candidate)


def _samples(comparison: Comparison, before: str, after: str, *, seed: int) -> tuple[Sample, ...]:
    """The largest gains, the largest losses, and some drawn at random; none stands twice."""
    base, candidate = comparison.result(before), comparison.result(after)
    gains = candidate.scores - base.scores
    kinds: dict[int, Literal["best", "worst", "random"]] = {}
    for place in _first(-gains, gains > 0):
        kinds[place] = "best"
    for place in _first(gains, gains < 0):
        kinds.setdefault(place, "worst")
    random = np.random.default_rng(seed)
    left = [place for place in random.permutation(len(gains)).tolist() if place not in kinds]
    for place in left[:SHOWN_EACH]:
        kinds[place] = "random"
    return tuple(
        Sample(
            kind=kind,
            id=comparison.questions[place].id,
            asked=comparison.questions[place].asked,
            reference=comparison.questions[place].reference,
            base=base.answers[place],
            candidate=candidate.answers[place],
            base_score=base.runs[0][place],
            candidate_score=candidate.runs[0][place],
        )
        for place, kind in kinds.items()
    )


def _first(order: Array, among: Any) -> list[int]:
    """Places of the smallest values among some, earlier ones first where values are equal."""
    places = [int(place) for place in np.argsort(order, kind="stable") if among[place]]
    return places[:SHOWN_EACH]
