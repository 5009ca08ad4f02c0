"""The report of a ladder: as JSON, and as one page that loads nothing else."""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from datetime import UTC, datetime
from importlib.resources import files
from pathlib import Path
from typing import Final, Protocol, TypeVar

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from pydantic import BaseModel

from adapters.costs import Prices, YearCost, amount_text
from adapters.protocol.reports import ArmDifference, ArmMean
from trainer.evaluate.page.render import cut, duration, metric_name
from trainer.evaluate.scored_arms import ArmScores, ScoredArm
from trainer.ladder import spec
from trainer.ladder.advice import Advice, MeasuredRung, advise, difference, measured, whole_interval
from trainer.ladder.costs import OneTimeCost, RequestCost, one_time, pays_from, request_cost, rung_year
from trainer.ladder.curve import LearningCurve, full_fine_tuning, learning_curve
from trainer.ladder.first_token import FirstToken, FirstTokens, first_token
from trainer.ladder.rungs import rows_of
from trainer.ladder.spec import (
    COMPARISONS,
    TRAININGS,
    DataFacts,
    JobOutcome,
    Labels,
    LadderPlan,
    LadderSpec,
    Row,
    RungKey,
    Rungs,
    SkippedRung,
    TrainingKey,
    scores_file,
)
from trainer.ladder.wording import title
from trainer.runs.protocol import Frozen

Model = TypeVar("Model", bound=BaseModel)
FAR_TRAFFIC: Final = 100
"""Times the traffic of which no word is said."""
DAY_S: Final = 86_400
UPDATES: Final[dict[RungKey, str]] = {
    "base": "nothing to update",
    "instructions": "a prompt: at once",
    "examples": "a prompt: at once",
    "retrieved_examples": "an example: seconds, once it is indexed",
    "documents": "a document: seconds, once it is indexed",
    "lora": "a job",
    "lora_examples": "an example: seconds; the weights: a job",
    "lora_documents": "a document: seconds; the weights: a job",
    "distilled": "a job",
}


class Directory(Protocol):
    """Where the parts are: a worker's run directory, or the trainer's view of it."""

    def path(self, name: str) -> Path:
        """The path of a file."""

    def read(self, name: str, model: type[Model]) -> Model | None:
        """A file as a ``model``; None if it is missing."""


class ShownAnswer(Frozen):
    """One held-out example, with a rung's answer and its score."""

    asked: str
    reference: str
    answer: str
    score: float


class ReportedRung(Frozen):
    """Everything about one rung."""

    key: RungKey
    title: str
    model: str
    mean: ArmMean
    control: float
    """The score of its own answers at other questions."""
    against_below: ArmDifference | None
    request: RequestCost
    seconds: float
    """Mean time from a request to its complete answer, in the evaluation's own load."""
    first_token: FirstToken | None = None
    """Time to the first token, one request at a time; None if it was not measured."""
    once: OneTimeCost
    year: YearCost
    update: str
    shown: tuple[ShownAnswer, ...]
    system_prompt: str | None = None
    held_back: str | None = None
    """Why the gateway holds the version back from `live`; None: it does not."""


class LadderReport(Frozen):
    """The whole ladder, the cheapest rung first."""

    format: int = 1
    id: str
    adapter: str
    base: str
    file: str
    created_at: datetime
    seconds: float
    advice: Advice
    rungs: tuple[ReportedRung, ...]
    skipped: tuple[SkippedRung, ...]
    prompts_seconds: float | None = None
    """After how long the rungs without weights were measured; None in a report that an earlier version wrote."""
    curve: LearningCurve | None = None
    """Whether more examples would help; None if no LoRA was trained on a part of them."""
    metric: str
    why_metric: str
    counts: dict[str, int]
    facts: DataFacts
    common_answer: float
    target: float | None
    quick: bool
    prices: Prices
    requests_per_month: int
    labels: Labels | None = None
    """What the teacher made of the prompts; None if none was asked."""
    subsets_kept_days: float | None = None
    """After how many days the versions of the curve that are no rungs are deleted; None: never."""
    notes: tuple[str, ...] = ()


def build(job: LadderSpec, plan: LadderPlan, directory: Directory) -> LadderReport:
    """The report, from what the stages and child runs have left."""
    rungs = directory.read(spec.RUNGS, Rungs) or Rungs()
    stored = (directory.read(scores_file(purpose), ArmScores) for purpose in COMPARISONS)
    scores = [each for each in stored if each is not None]
    read = {key: directory.read(spec.outcome_file(key), JobOutcome) for key in TRAININGS}
    outcomes = {key: outcome for key, outcome in read.items() if outcome is not None}
    labels = directory.read(spec.LABELS, Labels)
    rows = rows_of(rungs, scores)
    advice = advise(
        *(rows, plan.facts),
        target=job.body.target,
        smallest=job.smallest_difference,
        held_back=rungs.held_back,
        quick=job.body.quick,
    )
    gains = {rung.key: rung for rung in measured(rows)}
    shown = shown_examples(rows, advice.rung)
    timed = directory.read(spec.FIRST_TOKENS, FirstTokens)
    reported = [
        _reported(
            *(job, plan, row, rungs, gains[row[0]], outcomes, labels if row[0] == "distilled" else None),
            judging_seconds=_judging_seconds(rows, scores),
            timed=first_token(timed, row[0]),
            shown=shown,
        )
        for row in rows
    ]
    monthly = job.body.requests_per_month
    monthly = job.prices.requests_per_month if monthly is None else monthly
    advice = with_cheaper(advice, rows, reported, monthly, rungs.held_back.keys())
    curve = learning_curve(outcomes, scores, job.smallest_difference)
    advised = next((rung.mean for rung in reported if rung.key == advice.rung), None)
    if full := full_fine_tuning(advice, advised, curve, job.body.target):
        advice = advice.model_copy(update={"would_change": (*advice.would_change, full)})
    return LadderReport(
        id=job.id,
        adapter=job.body.adapter,
        base=job.base_name,
        file=job.context_of_request.training_file.filename,
        created_at=datetime.now(UTC),
        seconds=round(datetime.now(UTC).timestamp() - job.created_at, 1),
        advice=advice,
        rungs=tuple(reported),
        skipped=rungs.skipped,
        prompts_seconds=_seconds_to(directory.path(scores_file("prompts")), job.created_at),
        curve=curve,
        metric=metric_name(plan.metric["name"]),
        why_metric=plan.why_metric,
        counts=plan.counts,
        facts=plan.facts,
        common_answer=plan.common_answer,
        target=job.body.target,
        quick=job.body.quick,
        prices=job.prices,
        requests_per_month=monthly,
        labels=labels,
        subsets_kept_days=None if job.keep_subsets_s is None else job.keep_subsets_s / DAY_S,
        notes=(*plan.notes, *rungs.notes),
    )


def _reported(
    job: LadderSpec,
    plan: LadderPlan,
    row: Row,
    rungs: Rungs,
    gain: MeasuredRung,
    outcomes: Mapping[TrainingKey, JobOutcome],
    labels: Labels | None,
    *,
    judging_seconds: float,
    timed: FirstToken | None,
    shown: Sequence[int],
) -> ReportedRung:
    """One rung of the report: its score, and what it costs.

    Args:
        labels: What it learnt from, if that was a teacher's.
        judging_seconds: Its part of the evaluations' time.
        timed: Its time to the first token.
        shown: The held-out examples whose answers are shown, by their place.
    """
    key, evaluation, arm = row
    rung = next(each for each in rungs.rungs if each.key == key)
    trained = next((outcome for training, outcome in outcomes.items() if training == key), None)
    request = request_cost(evaluation, arm, job.prices)
    return ReportedRung(
        key=key,
        title=rung.title,
        model=rung.model,
        mean=gain.mean,
        control=arm.control,
        against_below=gain.against_below,
        request=request,
        seconds=arm.seconds,
        first_token=timed,
        once=one_time((trained.seconds if trained is not None else 0.0) or rung.push_seconds, job.prices, labels),
        year=rung_year(
            request,
            job.prices,
            training_seconds=trained.training_seconds if trained is not None and trained.seconds else 0.0,
            judging_seconds=judging_seconds,
            examples=plan.counts["training"] if labels is None else labels.answered,
            requests_per_month=job.body.requests_per_month,
        ),
        update=UPDATES[key],
        shown=tuple(_answer(evaluation, arm, index) for index in shown),
        system_prompt=rung.settings.get("system_prompt"),
        held_back=rung.held_back,
    )


def with_cheaper(
    advice: Advice, rows: Sequence[Row], rungs: Sequence[ReportedRung], requests_per_month: int, held_back: Set[RungKey]
) -> Advice:
    """The advice, with the next rung that costs less in a year and is not shown to be worse: rungs are ordered by the
    effort to make them, and traffic can pay for that."""
    at = next((index for index, rung in enumerate(rungs) if rung.key == advice.rung), None)
    if at is None or advice.word == "retrieval":
        return advice
    own, measured_rows = rungs[at], {row[0]: row for row in rows}
    for rung in rungs[at + 1 :]:
        start = pays_from((own.request, own.year), (rung.request, rung.year))
        if start is None or start > FAR_TRAFFIC * max(1, requests_per_month) or rung.key in held_back:
            continue
        if difference(measured_rows[rung.key], measured_rows[own.key], whole_interval()).high < 0:
            continue
        if start <= requests_per_month and _year_text(rung.year) == _year_text(own.year):
            continue
        name = title(rung.key, inside=True)
        if start <= requests_per_month:
            years = f"{_year_text(rung.year)}, against {_year_text(own.year)}"
            cheaper = (
                f"At {requests_per_month:,} requests a month {name} costs less in a year ({years}) and is not shown to "
                "be worse; it takes more to make and to change."
            )
            return advice.model_copy(update={"sentence": f"{advice.sentence} {cheaper}"})
        more = (
            f"From about {float(f'{start:.2g}'):,.0f} requests a month on (here {requests_per_month:,}) {name} costs "
            f"less in a year than {title(own.key, inside=True)}."
        )
        return advice.model_copy(update={"would_change": (*advice.would_change, more)})
    return advice


def _judging_seconds(rows: Sequence[Row], scores: Sequence[ArmScores]) -> float:
    """A rung's part of the evaluations' time. What the learning curve's parts took is no rung's."""
    keys = {key for key, _, _ in rows}
    return sum(each.wall_seconds for each in scores if any(arm.label in keys for arm in each.arms)) / len(rows)


def _seconds_to(written: Path, began: float) -> float | None:
    """From the ladder's start to the writing of a file, which is never written again."""
    return round(written.stat().st_mtime - began, 1) if written.exists() else None


def _year_text(year: YearCost) -> str:
    return f"{year.device_hours:.1f} device hours" if year.total is None else amount_text(year.total)


def shown_examples(rows: Sequence[Row], advised: RungKey | None) -> tuple[int, ...]:
    """The places of the examples that each rung is opened to: where the advised rung loses most against the first,
    gains about the median, and gains most. Without an advised rung, or if it is the first, the one with the
    highest score above it takes its place. Fewer than three if there are fewer examples."""
    first = rows[0][2].scores
    scores = next((arm.scores for key, _, arm in rows if key == advised), first)
    if scores is first:
        scores = max((arm.scores for _, _, arm in rows[1:] or rows), key=sum)
    order = sorted(range(len(first)), key=lambda index: (scores[index] - first[index], index))
    return tuple(dict.fromkeys((order[0], order[len(order) // 2], order[-1])))


def _answer(scores: ArmScores, arm: ScoredArm, index: int) -> ShownAnswer:
    return ShownAnswer(
        asked=scores.asked[index],
        reference=scores.references[index],
        answer=arm.answers[index],
        score=arm.scores[index],
    )


class Point(Frozen):
    """A rung in the drawing: its place in percent of the width and the height, and its interval."""

    key: str
    title: str
    x: float
    y: float
    low: float
    high: float
    chosen: bool


def points(report: LadderReport) -> tuple[Point, ...]:
    """Quality against the cost of a year. Without prices the cost is device hours."""
    costs = [_yearly(report, rung) for rung in report.rungs]
    most = max([*costs, 1e-12])
    return tuple(
        Point(
            key=rung.key,
            title=rung.title,
            x=8 + 84 * cost / most,
            y=100 * (1 - rung.mean.mean),
            low=100 * (1 - rung.mean.low),
            high=100 * (1 - rung.mean.high),
            chosen=rung.key == report.advice.rung,
        )
        for rung, cost in zip(report.rungs, costs, strict=True)
    )


def _yearly(report: LadderReport, rung: ReportedRung) -> float:
    return rung.year.device_hours if rung.year.total is None or not has_prices(report) else rung.year.total


def has_prices(report: LadderReport) -> bool:
    """Whether the operator has set the prices that every rung's year needs; else there are only hours."""
    return all(rung.year.total is not None for rung in report.rungs)


def render(report: LadderReport) -> str:
    """The self-contained page. Everything from data or models is escaped."""
    environment = Environment(
        loader=PackageLoader("trainer.ladder", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(cut=cut, duration=duration, money=_money, sentence=_sentence, latency=_latency)
    style = (files("trainer.evaluate.page") / "page.css").read_text("utf-8")
    own = (files("trainer.ladder") / "page.css").read_text("utf-8")
    return environment.get_template("page.html.jinja").render(
        report=report,
        style=Markup(style + own),  # noqa: S704 - files of this package
        points=points(report),
        priced=has_prices(report),
    )


def _latency(seconds: float) -> str:
    """`85 ms`, `2.1 s`."""
    return f"{1000 * seconds:.0f} ms" if seconds < 1 else f"{seconds:.1f} s"


def _sentence(text: str) -> str:
    """The text with a full stop, unless it ends like a sentence already."""
    return text if text.rstrip().endswith((".", "?", "!", "…")) else f"{text}."


def _money(amount: float) -> str:
    """An amount with as many digits as it needs."""
    return f"{amount:,.0f}" if amount >= 100 else amount_text(amount)
