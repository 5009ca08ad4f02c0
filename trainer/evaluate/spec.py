"""What an evaluation is asked to do, as plain data, and the seams that suites and judges plug into.

A job's end, `POST /v1/evaluations` and a revalidation are each an `EvaluationSpec` that `trainer.evaluate.run` runs.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, Final, Literal, Protocol, Self

from pydantic import ConfigDict, Field, ValidationError, model_validator

from adapters.validation import faults, message, path
from trainer.errors import EvaluationInvalid
from trainer.evaluate.arms import MAX_LABEL_CHARS, Arm, Frozen, Question
from trainer.evaluate.compare import Comparison, OnStage
from trainer.evaluate.forgetting import Forgetting, SuiteState
from trainer.evaluate.metrics.base import Metric
from trainer.evaluate.metrics.choose import JUDGE, metric_by_name, primary_metric_by_name, secondary_metrics
from trainer.evaluate.verdict import Rules, Verdict

# The files of an evaluation's folder.
QUESTIONS: Final = "held_out_questions.jsonl"
ANSWERS: Final = "answers.jsonl"
SCORES: Final = "scores.jsonl"
REPORT: Final = "evaluation.json"
PAGE: Final = "evaluation.html"

MAX_ARMS: Final = 12
MAX_TRAINED_ANSWERS: Final = 50
MAX_SUITES: Final = 8
GENERAL: Final = "general"
SUITES: Final = (GENERAL, "mmlu", "gsm8k", "humaneval")


class MetricOptions(Frozen):
    """A primary metric by name, with what it needs; never `auto`: that is resolved before anything is asked.

    ``schema`` (`schema_` in the code: pydantic keeps the other name for itself) is a JSON Schema.
    """

    model_config: ClassVar[ConfigDict] = ConfigDict(populate_by_name=True, serialize_by_alias=True)

    name: str = Field(min_length=1, max_length=40)
    pattern: str | None = Field(None, max_length=1_000)
    schema_: dict[str, Any] | None = Field(None, alias="schema")

    def primary(self) -> Metric:
        """The metric that decides. Raises EvaluationInvalid: there is none of that name, or it may not decide."""
        return primary_metric_by_name(self.name, pattern=self.pattern, schema=self.schema_)

    def named(self, name: str) -> Metric:
        """Another metric with the same pattern and schema. Raises EvaluationInvalid."""
        return metric_by_name(name, pattern=self.pattern, schema=self.schema_)

    def usually_beside(self) -> tuple[str, ...]:
        """Names of the metrics that are reported beside this one where nobody asked for others."""
        return secondary_metrics(self.name, schema=self.schema_ is not None)


def read_metric(value: object) -> MetricOptions | None:
    """A metric as a request names it: `auto`, a name, or an object with `name` and `pattern` or `schema`.

    Returns:
        None for `auto`: the data choose it.

    Raises:
        EvaluationInvalid: There is none of that name, it may not decide, or it lacks what it needs.
    """
    if value in (None, "auto"):
        return None
    try:
        wish = MetricOptions.model_validate({"name": value} if isinstance(value, str) else value)
    except ValidationError as error:
        fault = faults(error)[0]
        where = ".".join(path(fault, value))
        raise EvaluationInvalid(f"`{where}`: {message(fault)}" if where else message(fault)) from error
    wish.primary()
    return wish


def check_judge_metric(metric: MetricOptions | None, judge: str | None, *, candidate: bool) -> None:
    """Raises EvaluationInvalid where a judge is to decide and none is named, or there is nobody to decide on."""
    if metric is None or metric.name != JUDGE:
        return
    if judge is None:
        raise EvaluationInvalid(f"it is {JUDGE!r}, and no judge is named: send `judge`, one that the settings name")
    if not candidate:
        raise EvaluationInvalid(f"it is {JUDGE!r}, which compares all with the candidate: name one in `candidate`")


def check_suites(names: Sequence[str]) -> None:
    """Raises EvaluationInvalid where one of the names is no suite's."""
    for name in names:
        if name not in SUITES:
            raise EvaluationInvalid(f"there is no suite {name[:40]!r}; there are: {', '.join(SUITES)}")


class EvaluationSpec(Frozen):
    """One evaluation.

    Args:
        arms: Who answers, each with a label of its own.
        candidate: Label of the arm that a verdict is wanted on; None: a comparison without one.
        bases: Labels of the base's arms; the verdict is against the strongest. The first is the base as it is asked
            by anybody: suites measure what was lost against it.
        live: Label of the arm that serves now.
        metric: The primary one, fixed before anything is asked.
        beside: Names of other metrics to report.
        suites: Names of suites that are put to the first base and the candidate.
        taught: The most frequent answers of the training examples, for the control that says one of them to all.
        rules: When it is a pass.
        repeats: How often the questions are asked in all; from 2 on the noise between runs is known.
        repeated: Over how many examples, from the first; None: all.
        scored: Over how many references, from the first, the likelihood is measured; 0: not at all.
        max_tokens: Longest answer.
        judge: Name of a judge of the operator's settings.
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
    judge: str | None = Field(None, min_length=1, max_length=64)

    @model_validator(mode="after")
    def _complete(self) -> Self:
        labels = [arm.label for arm in self.arms]
        if len(set(labels)) != len(labels):
            raise ValueError(f"two arms have the same label: {', '.join(labels)}")
        named = [*self.bases, *(label for label in (self.candidate, self.live) if label is not None)]
        unknown = [label for label in named if label not in labels]
        if unknown:
            raise ValueError(f"no arm is named {unknown[0]!r}; there are: {', '.join(labels)}")
        if self.candidate is not None and (not self.bases or self.candidate in self.bases):
            raise ValueError("a candidate needs a base to compare with: `bases` names at least one other arm")
        if self.metric.name == JUDGE and (self.judge is None or self.candidate is None):
            raise ValueError("where a judge decides there is a judge, and a candidate")
        return self

    def arm(self, label: str) -> Arm:
        """The arm of that label. Raises EvaluationInvalid."""
        for arm in self.arms:
            if arm.label == label:
                return arm
        raise EvaluationInvalid(f"no arm is named {label!r}; there are: {', '.join(arm.label for arm in self.arms)}")


class SuiteResult(Frozen):
    """What a suite found.

    ``kind``: one with a `budget` counts in the verdict by its ``state`` (kept, broken, open), a `report` is shown.
    ``silent``: the base is at chance, so that no loss can show. ``numbers``: plain JSON for the report.
    ``forgetting``: of the general suite, for the report's own page.
    """

    name: str
    kind: Literal["budget", "report"]
    state: SuiteState = "kept"
    silent: bool = False
    sentence: str
    numbers: dict[str, Any] = Field(default_factory=dict)
    forgetting: Forgetting | None = None


class Suite(Protocol):
    """Measures what an arm can do beside its task, before and after."""

    @property
    def name(self) -> str:
        """As it stands in requests and reports."""

    async def run(self, before: Arm, after: Arm, on_stage: OnStage | None = None) -> SuiteResult:
        """Put it to both.

        Args:
            before: The base.
            after: The candidate.
            on_stage: Hears of the progress; may raise to end it.

        Raises:
            EvaluationError, GatewayUnreachable: As an `Answerer`.
        """
        ...


class JudgeResult(Frozen):
    """What a judge found: a score an example, 1 where the candidate is preferred, 0 where the base is, ½ for a tie.
    Examples that it would not look at are left out; where it was away there are none.

    ``counted``: the judge has been found to agree with people, so that its word counts; ``sentence`` says why or why
    not. ``missed``: it would have counted, but too few of its votes could be had. ``numbers``: plain JSON for the
    report.
    """

    judge: str
    scores: tuple[float, ...]
    counted: bool
    missed: bool = False
    sentence: str
    numbers: dict[str, Any] = Field(default_factory=dict)


class Preference(Frozen):
    """What a judge prefers of an arm and the candidate: as a `JudgeResult`'s scores, but one for every example.

    What could not be had counts as a tie. ``enough``: that was seldom.
    """

    scores: tuple[float, ...]
    enough: bool


class Judge(Protocol):
    """Prefers one of two answers."""

    @property
    def name(self) -> str:
        """As the operator's settings name it."""

    async def judge(
        self, comparison: Comparison, candidate: str, base: str, on_stage: OnStage | None = None
    ) -> JudgeResult:
        """Compare two arms' answers (of the run that counts) to every question.

        Args:
            comparison: With both arms.
            candidate: Label of the arm that is judged.
            base: Label of the arm that it is judged against: the base's strongest.
            on_stage: Hears of the progress; may raise to end it.

        A judge that is away, or refuses, is no error: the verdict stands without it.
        """
        ...

    async def prefer(
        self,
        questions: Sequence[Question],
        candidate: Sequence[str],
        other: Sequence[str],
        name: str,
        on_stage: OnStage | None = None,
    ) -> Preference:
        """Compare the candidate's answers with others, whosever they are; ``name`` says whose. Else as `judge`."""
        ...


class Outcome(Frozen):
    """All that an evaluation found. ``verdict`` is None where no candidate was named."""

    comparison: Comparison
    verdict: Verdict | None = None
    suites: tuple[SuiteResult, ...] = ()
    judged: JudgeResult | None = None


def most_frequent_answers(answers: Sequence[str]) -> tuple[str, ...]:
    """The most frequent answers, the most frequent first: what `EvaluationSpec.taught` is made of."""
    counts: dict[str, int] = {}
    for answer in answers:
        counts[answer] = counts.get(answer, 0) + 1
    return tuple(sorted(counts, key=lambda answer: -counts[answer])[:MAX_TRAINED_ANSWERS])
