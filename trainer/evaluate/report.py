"""The report of an evaluation, as JSON and as a self-contained HTML page (`page`)."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final, Literal

import numpy as np

from adapters.protocol.reports import (
    ArmDifference,
    ArmMean,
    LossPoint,
    ReportCost,
    ReportJudge,
    ReportMeasure,
    ReportSample,
)
from trainer.data.report import Report as DataReport
from trainer.evaluate.compare import ArmResult, Comparison, StoppedArm
from trainer.evaluate.forgetting import Forgetting
from trainer.evaluate.paired_difference import IntervalMethod, arm_difference, mean_of
from trainer.evaluate.revalidation import RevalidationResult
from trainer.evaluate.spec import SuiteResult
from trainer.evaluate.statistics.paired import Array
from trainer.evaluate.verdict import Rules, Verdict
from trainer.evaluate.voice_scores import Voice
from trainer.runs.protocol import Frozen
from trainer.tune.lineage import Lineage

SHOWN_EACH: Final = 3
CURVE_POINTS: Final = 400


class EvaluationReport(Frozen):
    """Everything about one evaluation. ``labels``: the arms in display order, the candidate first."""

    format: int = 1
    adapter: str
    """The candidate as `name@version`, or the comparison's name."""
    created_at: datetime
    verdict: Verdict | None
    """None for a comparison without a candidate."""
    metric: str
    why: str = ""
    """Why that metric."""
    notes: tuple[str, ...] = ()
    """Notes on the comparison, such as what was left out."""
    means: tuple[ArmMean, ...]
    differences: tuple[ArmDifference, ...] = ()
    """Of every other arm against the first, if there is no verdict."""
    held_out: int
    """Number of held-out examples; the verdict counts those that were asked."""
    suites: tuple[SuiteResult, ...] = ()
    judged: ReportJudge | None = None
    revalidation: RevalidationResult | None = None
    """Of a revalidation that was compared with an earlier verdict: whether that one holds. It decides."""
    labels: tuple[str, ...]
    served: dict[str, str]
    """What served each arm: `name@3`, or the requested model."""
    measures: tuple[ReportMeasure, ...]
    voice: Voice | None = None
    """What the measure `voice` gives to answers of which it is known how much they are the author's."""
    samples: tuple[ReportSample, ...]
    loss_curve: tuple[LossPoint, ...] = ()
    data: DataReport | None = None
    lineage: Lineage | None = None
    cost: ReportCost | None = None
    asked_tokens: int = 0
    """Of prompts and answers, over all arms."""
    cut: dict[str, int]
    """Number of each arm's answers that reached `max_tokens`."""

    @property
    def forgetting(self) -> Forgetting | None:
        """The result of the general suite, if it ran."""
        return next((suite.forgetting for suite in self.suites if suite.forgetting is not None), None) or (
            self.verdict.forgetting if self.verdict is not None else None
        )


@dataclass(frozen=True, slots=True)
class TrainingSummary:
    """What a report shows of how the candidate was made, and of what that and the evaluation cost.

    Attributes:
        loss_curve: From `loss_curve`.
        data: The report on the training data.
    """

    loss_curve: tuple[LossPoint, ...] = ()
    data: DataReport | None = None
    lineage: Lineage | None = None
    cost: ReportCost | None = None


NO_TRAINING: Final = TrainingSummary()


def build(
    comparison: Comparison,
    verdict: Verdict | None,
    *,
    adapter: str,
    created_at: datetime,
    suites: Sequence[SuiteResult] = (),
    judged: ReportJudge | None = None,
    voice: Voice | None = None,
    revalidation: RevalidationResult | None = None,
    why: str = "",
    notes: Sequence[str] = (),
    held_out: int | None = None,
    rules: Rules | None = None,
    training: TrainingSummary = NO_TRAINING,
) -> EvaluationReport:
    """Build a report.

    Args:
        comparison: The comparison behind the verdict.
        verdict: The verdict; None for a comparison without a candidate.
        adapter: The subject: `name@version`, or the comparison's name.
        created_at: With a time zone.
        suites, judged, voice, revalidation: The results of the suites, of a judge, of what answers sound like, and of
            the comparison with an earlier verdict.
        why: The reason for the metric.
        notes: Notes on the comparison, one sentence each.
        held_out: Number of held-out examples, if not all were asked.
        rules: How intervals are computed if there is no verdict.
        training: How the candidate was made, as far as that is known.
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
        notes=(*notes, *_stopped_notes(comparison, verdict), *_cut_notes(results), *_voice_notes(voice)),
        means=_means(comparison, results, method),
        differences=_differences(comparison, labels, method) if verdict is None else (),
        held_out=len(comparison.questions) if held_out is None else held_out,
        suites=tuple(suites),
        judged=judged,
        revalidation=revalidation,
        labels=labels,
        served={result.arm.label: result.version or result.arm.model for result in results},
        measures=_measures(comparison, labels),
        voice=voice,
        samples=_samples(comparison, *_sides(verdict, labels), seed=method.seed),
        loss_curve=training.loss_curve,
        data=training.data,
        lineage=training.lineage,
        cost=training.cost,
        asked_tokens=_tokens(comparison, results),
        cut={result.arm.label: result.cut for result in results},
    )


def _means(comparison: Comparison, results: Sequence[ArmResult], method: IntervalMethod) -> tuple[ArmMean, ...]:
    return tuple(mean_of(result, binary=comparison.binary, method=method, units=comparison.units) for result in results)


def _differences(comparison: Comparison, labels: Sequence[str], method: IntervalMethod) -> tuple[ArmDifference, ...]:
    """Of every other arm to the first."""
    return tuple(arm_difference(comparison, label, labels[0], method) for label in labels[1:])


def _tokens(comparison: Comparison, results: Sequence[ArmResult]) -> int:
    """The tokens of all questions and answers, with those of arms that were stopped."""
    arms: tuple[ArmResult | StoppedArm, ...] = (*results, *comparison.stopped)
    return sum(arm.prompt_tokens + arm.completion_tokens for arm in arms)


def _stopped_notes(comparison: Comparison, verdict: Verdict | None) -> list[str]:
    """A note for each arm of the base that was not asked everything: nothing else may show that it was compared."""
    if verdict is None:
        return []
    return [
        f"{stopped.arm.label} was asked {stopped.answered} of {len(comparison.questions)} questions: with all others "
        f"right it would score {100 * stopped.max_mean:.1f}, below {verdict.base}"
        for stopped in comparison.stopped
    ]


def _cut_notes(results: Sequence[ArmResult]) -> list[str]:
    """A note for each arm whose answers were often cut at the limit: it may be better than its score.

    Also where an answer must be the reference: the line that decides may follow an explanation.
    """
    return [
        f"{result.cut} of {len(result.answers)} answers of {result.arm.label} were cut at the length limit; it may "
        "score higher with a larger `max_tokens`"
        for result in results
        if result.often_cut
    ]


def _voice_notes(voice: Voice | None) -> list[str]:
    """What the measure of the voice is worth, if it was taken."""
    return [] if voice is None else [voice.note()]


def _labels(comparison: Comparison, verdict: Verdict | None) -> tuple[str, ...]:
    """The arms' labels, the candidate's first."""
    first = [] if verdict is None else [verdict.candidate]
    return tuple(dict.fromkeys([*first, *(result.arm.label for result in comparison.results)]))


def loss_curve(metrics: Iterable[dict[str, Any]]) -> tuple[LossPoint, ...]:
    """The loss curve of a job's `metrics` events, downsampled to CURVE_POINTS; all held-out losses stay."""
    points = [
        LossPoint(
            step=int(event["step"]),
            training=_finite(event.get("train_loss")),
            held_out=_finite(event.get("full_valid_loss")),
        )
        for event in metrics
        if "step" in event
    ]
    stride = math.ceil(len(points) / CURVE_POINTS)
    return (
        tuple(point for index, point in enumerate(points) if index % stride == 0 or point.held_out is not None)
        if points
        else ()
    )


def _finite(value: Any) -> float | None:
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else None


def _measures(comparison: Comparison, labels: Sequence[str]) -> tuple[ReportMeasure, ...]:
    results = [comparison.result(label) for label in labels]
    names = dict.fromkeys(name for result in results for name in result.secondary)
    measures = [
        ReportMeasure(
            name=name,
            means={
                result.arm.label: float(np.mean(result.secondary[name])) if name in result.secondary else None
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
        measures.append(ReportMeasure(name="perplexity", means=means))
    return tuple(measures)


def _sides(verdict: Verdict | None, labels: Sequence[str]) -> tuple[str, str]:
    """The labels of the two arms shown side by side: before, after."""
    return (labels[0], labels[-1]) if verdict is None else (verdict.base, verdict.candidate)


def _samples(comparison: Comparison, before: str, after: str, *, seed: int) -> tuple[ReportSample, ...]:
    """The largest gains, the largest losses, and a random sample of the others."""
    base, candidate = comparison.result(before), comparison.result(after)
    gains = candidate.scores - base.scores
    kinds: dict[int, Literal["best", "worst", "random"]] = {}
    for index in _first(-gains, gains > 0):
        kinds[index] = "best"
    for index in _first(gains, gains < 0):
        kinds.setdefault(index, "worst")
    random = np.random.default_rng(seed)
    remaining = [index for index in random.permutation(len(gains)).tolist() if index not in kinds]
    for index in remaining[:SHOWN_EACH]:
        kinds[index] = "random"
    return tuple(
        ReportSample(
            kind=kind,
            id=comparison.questions[index].id,
            asked=comparison.questions[index].last_message,
            reference=comparison.questions[index].reference,
            base=base.answers[index],
            candidate=candidate.answers[index],
            base_score=base.runs[0][index],
            candidate_score=candidate.runs[0][index],
        )
        for index, kind in kinds.items()
    )


def _first(values: Array, mask: Any) -> list[int]:
    """Indices of the SHOWN_EACH smallest values where ``mask`` is true, earlier ones first if equal."""
    indices = [int(index) for index in np.argsort(values, kind="stable") if mask[index]]
    return indices[:SHOWN_EACH]
