"""The specification of an evaluation as plain data, and the protocols of suites and judges.

The end of a job, `POST /v1/evaluations` and a revalidation are each an `EvaluationSpec` for `trainer.evaluate.run`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, Final, Literal, Protocol, Self

from pydantic import ConfigDict, Field, ValidationError, model_validator

from adapters.protocol.reports import ReportJudge
from adapters.validation import faults, message, path
from trainer.errors import EvaluationInvalid
from trainer.evaluate.arms import MAX_LABEL_CHARS, Arm, Question
from trainer.evaluate.compare import Comparison, OnStage
from trainer.evaluate.forgetting import Forgetting, SuiteState
from trainer.evaluate.metrics.base import Metric
from trainer.evaluate.metrics.choose import JUDGE, metric_by_name, primary_metric_by_name, secondary_metrics
from trainer.evaluate.verdict import Rules, Verdict
from trainer.evaluate.voice_scores import Voice
from trainer.runs.protocol import Frozen

# The files in an evaluation's folder.
QUESTIONS: Final = "held_out_questions.jsonl"
ANSWERS: Final = "answers.jsonl"
SCORES: Final = "scores.jsonl"
REPORT: Final = "evaluation.json"
PAGE: Final = "evaluation.html"

MAX_ARMS: Final = 13
MAX_TRAINED_ANSWERS: Final = 50
MAX_SUITES: Final = 8
GENERAL: Final = "general"
SUITES: Final = (GENERAL, "mmlu", "gsm8k", "humaneval")


class MetricOptions(Frozen):
    """The primary metric by name, with its options; never `auto`, which is resolved before anything is asked.

    ``schema`` is a JSON Schema (`schema_` in code, since pydantic reserves the name).
    """

    model_config: ClassVar[ConfigDict] = ConfigDict(populate_by_name=True, serialize_by_alias=True)

    name: str = Field(min_length=1, max_length=40)
    pattern: str | None = Field(None, max_length=1_000)
    schema_: dict[str, Any] | None = Field(None, alias="schema")

    def primary(self) -> Metric:
        """The metric that decides. Raises EvaluationInvalid if it is unknown or may not decide."""
        return primary_metric_by_name(self.name, pattern=self.pattern, schema=self.schema_)

    def named(self, name: str) -> Metric:
        """The metric of that name, with the same pattern and schema. Raises EvaluationInvalid if it is unknown."""
        return metric_by_name(name, pattern=self.pattern, schema=self.schema_)

    def usually_beside(self) -> tuple[str, ...]:
        """Names of the secondary metrics to report by default."""
        return secondary_metrics(self.name, schema=self.schema_ is not None)


def read_metric(value: object) -> MetricOptions | None:
    """Parse a request's `metric`: `auto`, a name, or an object with `name` and `pattern` or `schema`.

    Returns:
        None for `auto`: the metric is then chosen from the data.

    Raises:
        EvaluationInvalid: The metric is unknown, may not decide, or is missing an option.
    """
    if value in (None, "auto"):
        return None
    try:
        options = MetricOptions.model_validate({"name": value} if isinstance(value, str) else value)
    except ValidationError as error:
        fault = faults(error)[0]
        where = ".".join(path(fault, value))
        raise EvaluationInvalid(f"`{where}`: {message(fault)}" if where else message(fault)) from error
    options.primary()
    return options


def check_judge_metric(metric: MetricOptions | None, judge: str | None, *, candidate: bool) -> None:
    """Raises EvaluationInvalid if the judge metric is used without a judge or without a candidate."""
    if metric is None or metric.name != JUDGE:
        return
    if judge is None:
        raise EvaluationInvalid(f"{JUDGE!r} needs a judge: send `judge`, the name of a judge in the trainer's settings")
    if not candidate:
        raise EvaluationInvalid(f"{JUDGE!r} compares every arm with the candidate: send `candidate`")


def check_suites(names: Sequence[str]) -> None:
    """Raises EvaluationInvalid if a name is not a suite's."""
    for name in names:
        if name not in SUITES:
            raise EvaluationInvalid(f"no suite named {name[:40]!r}; known: {', '.join(SUITES)}")


class EvaluationSpec(Frozen):
    """One evaluation.

    Args:
        arms: The arms to compare, with unique labels.
        candidate: Label of the arm to judge; None for a comparison without a verdict.
        bases: Labels of the base's arms; the verdict is against the strongest. The first is the base with a plain
            prompt: suites measure forgetting against it.
        live: Label of the arm that is live now.
        metric: The primary metric, fixed before anything is asked.
        beside: Names of the secondary metrics to report; empty for the default ones.
        suites: Names of the suites to run on the first base and the candidate.
        taught: The most frequent answers of the training examples, for the constant control.
        rules: When it is a pass.
        repeats: How often each question is asked; with 2 or more the noise between runs is measured.
        repeated: Number of examples, from the first, in the later runs; None for all.
        scored: Number of references, from the first, whose likelihood is measured; 0 for none.
        max_tokens: Longest answer, in tokens.
        template_switches: `chat_template_kwargs` of all requests to the gateway: thinking is off for every arm alike.
        judge: Name of a judge in the operator's settings.
        required_filters: Attributes of which the candidate demands a value (its grounding's `required_filters`).
        groundings: The grounding of each arm's version that has one, by its name.
        prompted: Labels of the gateway's arms with a prompt or a grounding that a client chose: each is a look, also
            on the base (`trainer.evaluate.looks`).
    """

    arms: tuple[Arm, ...] = Field(min_length=1, max_length=MAX_ARMS)
    candidate: str | None = Field(None, max_length=MAX_LABEL_CHARS)
    bases: tuple[str, ...] = ()
    live: str | None = Field(None, max_length=MAX_LABEL_CHARS)
    metric: MetricOptions
    beside: tuple[str, ...] = ()
    suites: tuple[str, ...] = Field((GENERAL,), max_length=MAX_SUITES)
    taught: tuple[str, ...] = Field((), max_length=MAX_TRAINED_ANSWERS)
    rules: Rules = Rules()
    repeats: int = Field(2, ge=1, le=5)
    repeated: int | None = Field(30, ge=1)
    scored: int = Field(100, ge=0)
    max_tokens: int = Field(256, ge=1, le=8_192)
    template_switches: dict[str, bool] = Field(default_factory=dict)
    judge: str | None = Field(None, min_length=1, max_length=64)
    required_filters: tuple[str, ...] = ()
    groundings: dict[str, dict[str, Any]] = Field(default_factory=dict)
    prompted: tuple[str, ...] = ()

    @model_validator(mode="after")
    def _complete(self) -> Self:
        labels = [arm.label for arm in self.arms]
        if len(set(labels)) != len(labels):
            raise ValueError(f"arm labels must be unique; got: {', '.join(labels)}")
        named = [*self.bases, *(label for label in (self.candidate, self.live) if label is not None)]
        unknown = [label for label in named if label not in labels]
        if unknown:
            raise ValueError(f"no arm named {unknown[0]!r}; known: {', '.join(labels)}")
        if self.candidate is not None and (not self.bases or self.candidate in self.bases):
            raise ValueError("a candidate needs a base to compare with: `bases` must name at least one other arm")
        if self.metric.name == JUDGE and (self.judge is None or self.candidate is None):
            raise ValueError(f"the metric {JUDGE!r} needs `judge` and `candidate`")
        return self

    def arm(self, label: str) -> Arm:
        """The arm with this label. Raises EvaluationInvalid if there is none."""
        for arm in self.arms:
            if arm.label == label:
                return arm
        raise EvaluationInvalid(f"no arm named {label!r}; known: {', '.join(arm.label for arm in self.arms)}")


class SuiteResult(Frozen):
    """The result of a suite.

    Attributes:
        kind: `budget`: its ``state`` (kept, broken, open) counts in the verdict; `report`: it is only shown.
        silent: The base is at chance, so the suite cannot show a loss.
        numbers: Plain JSON for the report.
        forgetting: The details of the general suite, for the report's page.
    """

    name: str
    kind: Literal["budget", "report"]
    state: SuiteState = "kept"
    silent: bool = False
    sentence: str
    numbers: dict[str, Any] = Field(default_factory=dict)
    forgetting: Forgetting | None = None


class Suite(Protocol):
    """Measures an arm's abilities outside its task, before and after training."""

    @property
    def name(self) -> str:
        """Its name in requests and reports."""

    async def run(self, before: Arm, after: Arm, on_stage: OnStage | None = None) -> SuiteResult:
        """Run the suite on both arms.

        Args:
            before: The base.
            after: The candidate.
            on_stage: Called with the progress; may raise to stop.

        Raises:
            EvaluationError, GatewayUnreachable: As an `Answerer`.
        """
        ...


class Preference(Frozen):
    """A judge's preference between an arm and the candidate: scores as in `ReportJudge`, one for every example.

    A missing vote counts as a tie; ``enough``: few votes are missing.
    """

    scores: tuple[float, ...]
    enough: bool


class Judge(Protocol):
    """Prefers one of two answers, or sees a tie."""

    @property
    def name(self) -> str:
        """Its name in the operator's settings."""

    async def judge(
        self, comparison: Comparison, candidate: str, base: str, on_stage: OnStage | None = None
    ) -> ReportJudge:
        """Compare two arms' answers of the first run to every question.

        A judge that is unreachable or refuses is not an error: the result says so.

        Args:
            comparison: With both arms.
            candidate: Label of the arm to judge.
            base: Label of the arm to compare it with: the strongest base.
            on_stage: Called with the progress; may raise to stop.
        """
        ...

    async def prefer(
        self,
        questions: Sequence[Question],
        candidate: Sequence[str],
        answers: Sequence[str],
        name: str,
        on_stage: OnStage | None = None,
    ) -> Preference:
        """As `judge`, between the candidate's answers and these ``answers``; ``name`` says whose they are."""
        ...


class Outcome(Frozen):
    """The outcome of an evaluation. ``verdict`` is None if there is no candidate, ``voice`` if it does not apply."""

    comparison: Comparison
    verdict: Verdict | None = None
    suites: tuple[SuiteResult, ...] = ()
    judged: ReportJudge | None = None
    voice: Voice | None = None


def most_frequent_answers(answers: Sequence[str]) -> tuple[str, ...]:
    """The most frequent answers in descending order, at most MAX_TRAINED_ANSWERS: for `EvaluationSpec.taught`."""
    counts: dict[str, int] = {}
    for answer in answers:
        counts[answer] = counts.get(answer, 0) + 1
    return tuple(sorted(counts, key=lambda answer: -counts[answer])[:MAX_TRAINED_ANSWERS])
