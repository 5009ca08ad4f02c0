"""Comparing arms: every arm answers every held-out example, and each answer is scored."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

from pydantic import Field

from trainer.errors import AnswerRefused, ArmVersionChanged, EvaluationInvalid
from trainer.evaluate.answers import Answer
from trainer.evaluate.arms import Arm, Frozen, Question
from trainer.evaluate.asking import Answerer, ArmRequest
from trainer.evaluate.control_arms import derangements
from trainer.evaluate.independence import independent_units
from trainer.evaluate.likelihood import Scorer
from trainer.evaluate.metrics.base import Batched, Metric
from trainer.evaluate.reading import form_of, read_answer
from trainer.evaluate.statistics.paired import Array, as_array, unit_means

OnStage = Callable[[str, int, int], None]
"""Called with the stage, how many items are done, and how many there are; may raise to stop the evaluation."""
CONTEXT_EXCEEDED: Final = "context_length_exceeded"
"""The gateway's error code for a prompt that does not fit into the context."""
LENGTH_REACHED: Final = "length"
"""The finish_reason of an answer that reached `max_tokens`."""


class ArmResult(Frozen):
    """One arm's answers and scores.

    Attributes:
        answers: Of the first run, one per example, as they are scored (`reading.read_answer`).
        runs: Scores per run. ``runs[0]`` has one for every example and decides; later runs, over the first examples
            only, measure the noise between runs.
        secondary: The other metrics' scores of the first run, by metric name.
        nats: Mean nats per token of the first references; None if not measured.
        nats_elsewhere: The same references, each after another example's question; None for those that do not fit
            into the context together.
        version, digest: What the gateway served.
        cut: Number of answers that reached `max_tokens`.
        prompt_tokens, completion_tokens, seconds: Sums over all runs.
    """

    arm: Arm
    answers: tuple[str, ...]
    runs: tuple[tuple[float, ...], ...]
    secondary: dict[str, tuple[float, ...]] = Field(default_factory=dict)
    nats: tuple[float, ...] | None = None
    nats_elsewhere: tuple[float | None, ...] | None = None
    version: str | None = None
    digest: str | None = None
    cut: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    seconds: float = 0.0

    @property
    def looked_at(self) -> str | None:
        """What a look at held-out examples counts for: the weights, else the version; None for the base and others."""
        return self.digest or self.version

    @property
    def scores(self) -> Array:
        """The first run's scores: float64, one per example."""
        return as_array(self.runs[0])

    @property
    def mean(self) -> float:
        """The first run's mean score over the examples."""
        return float(self.scores.mean())


class Comparison(Frozen):
    """Arms over the same questions.

    ``binary``: every score is 0 or 1. ``units``: the number of each question's independent unit
    (`trainer.evaluate.independence`); None if every question is its own.
    """

    metric: str
    binary: bool
    questions: tuple[Question, ...]
    results: tuple[ArmResult, ...]
    units: tuple[int, ...] | None = None

    @property
    def independent(self) -> int:
        """The number of independent examples."""
        return len(self.questions) if self.units is None else len(set(self.units))

    def mean(self, label: str) -> float:
        """The mean score of the arm with this label, in which every unit counts once."""
        return float(unit_means(self.result(label).scores, self.units).mean())

    def result(self, label: str) -> ArmResult:
        """The result of the arm with this label. Raises EvaluationInvalid if there is none."""
        for result in self.results:
            if result.arm.label == label:
                return result
        raise EvaluationInvalid(f"no arm named {label!r}; known: {', '.join(r.arm.label for r in self.results)}")


async def compare(
    arms: Sequence[Arm],
    held_out: Sequence[Question],
    metric: Metric,
    *,
    answerer: Answerer,
    secondary: Sequence[Metric] = (),
    scorer: Scorer | None = None,
    scored: int | None = None,
    elsewhere: str | None = None,
    seed: int = 0,
    repeats: int = 1,
    repeated: int | None = None,
    on_stage: OnStage | None = None,
) -> Comparison:
    """Ask every arm every question and score the answers.

    Args:
        arms: With unique labels. All are asked concurrently, so that load affects them equally.
        held_out: With unique ids.
        metric: The primary metric.
        answerer: Asks the arms.
        secondary: Other metrics to report.
        scorer: Also measures the references' likelihood, for the gateway's arms with a plain prompt.
        scored: Number of references to score, from the first; None for all.
        elsewhere: Label of an arm whose references are also scored after other examples' questions; None for no arm.
        seed: Decides which question each of those references follows.
        repeats: How often each question is asked; with 2 or more the noise between runs is measured.
        repeated: Number of examples, from the first, in the later runs; None for all.
        on_stage: Called with the progress.

    Raises:
        EvaluationInvalid: There are no arms or no examples, or a label or an id is not unique.
        ArmVersionChanged: The gateway served two versions under one arm.
        EvaluationError, GatewayUnreachable: As the answerer; no comparison is made over fewer examples.
    """
    _check(arms, held_out, repeats)
    requests = [
        ArmRequest(arm, question, repeat)
        for repeat in range(repeats)
        for question in (held_out if repeat == 0 else held_out[:repeated])
        for arm in arms
    ]
    answers = await answerer.answer(requests, _progress_of(on_stage, "asking"))
    results = []
    for arm in arms:
        arm_answers = [
            answer for request, answer in zip(requests, answers, strict=True) if request.arm.label == arm.label
        ]
        result = _result(arm, arm_answers, held_out, metric, secondary, repeats)
        if scorer is not None and arm.endpoint is None and arm.prompt.is_plain and scored != 0:
            rows = await scorer.references(
                arm, held_out[:scored], _progress_of(on_stage, f"likelihood under {arm.label}")
            )
            result = result.model_copy(update={"nats": tuple(row.nats for row in rows)})
            if arm.label == elsewhere and len(rows) > 1:
                on_progress = _progress_of(on_stage, f"likelihood under {arm.label}, after other questions")
                nats = await _nats_elsewhere(scorer, arm, held_out[: len(rows)], seed, on_progress)
                result = result.model_copy(update={"nats_elsewhere": nats})
        results.append(result)
    return Comparison(
        metric=metric.name,
        binary=metric.binary,
        questions=tuple(held_out),
        results=tuple(results),
        units=_shared_units(held_out),
    )


def _shared_units(held_out: Sequence[Question]) -> tuple[int, ...] | None:
    units = independent_units(held_out)
    return units if len(set(units)) < len(units) else None


async def _nats_elsewhere(
    scorer: Scorer, arm: Arm, held_out: Sequence[Question], seed: int, on_progress: Callable[[int, int], None] | None
) -> tuple[float | None, ...]:
    """Mean nats per token of each reference after another example's question; None for those that do not fit."""
    (sources,) = derangements(len(held_out), 1, seed)
    reassigned = [
        Question(id=f"{question.id}/elsewhere", turns=held_out[source].turns, reference=question.reference)
        for source, question in zip(sources, held_out, strict=True)
    ]
    try:
        return tuple(row.nats for row in await scorer.references(arm, reassigned, on_progress))
    except AnswerRefused as error:
        if error.answer_code != CONTEXT_EXCEEDED:
            raise
    nats: list[float | None] = []
    for question in reassigned:  # another example's question and this answer may not fit into the context together
        try:
            (row,) = await scorer.references(arm, [question])
        except AnswerRefused as error:
            if error.answer_code != CONTEXT_EXCEEDED:
                raise
            nats.append(None)
        else:
            nats.append(row.nats)
        if on_progress is not None:
            on_progress(len(nats), len(reassigned))
    return tuple(nats)


def _check(arms: Sequence[Arm], held_out: Sequence[Question], repeats: int) -> None:
    if not arms or not held_out:
        raise EvaluationInvalid("a comparison needs at least one arm and one held-out example")
    if len({arm.label for arm in arms}) != len(arms):
        raise EvaluationInvalid(f"arm labels must be unique; got: {', '.join(arm.label for arm in arms)}")
    if len({question.id for question in held_out}) != len(held_out):
        raise EvaluationInvalid("the ids of the held-out examples must be unique")
    if repeats < 1:
        raise EvaluationInvalid(f"`repeats` must be at least 1; got {repeats}")


def _result(
    arm: Arm,
    answers: Sequence[Answer],
    held_out: Sequence[Question],
    metric: Metric,
    secondary: Sequence[Metric],
    repeats: int,
) -> ArmResult:
    # without weights there is no digest, and the version tells settings apart
    served = {answer.digest or answer.version for answer in answers}
    if len(served) > 1:
        versions = ", ".join(sorted({answer.version or "none" for answer in answers}))
        raise ArmVersionChanged(
            f"{arm.model} was served by more than one version ({versions}); "
            "name a version (`name@3`) instead of an alias"
        )
    references = {question.id: question.reference for question in held_out}
    by_run: list[list[Answer]] = [[] for _ in range(repeats)]
    for answer in answers:
        by_run[answer.repeat].append(answer)
    form, first = form_of(metric), by_run[0]
    for each in (metric, *secondary):
        if isinstance(each, Batched):
            texts = (read_answer(answer.text, references[answer.example], form) for answer in answers)
            each.prepare([*references.values(), *texts])

    def scores(scored_by: Metric, run: Sequence[Answer]) -> tuple[float, ...]:
        pairs = ((answer.text, references[answer.example]) for answer in run)
        return tuple(scored_by.score(read_answer(text, reference, form), reference) for text, reference in pairs)

    return ArmResult(
        arm=arm,
        answers=tuple(read_answer(answer.text, references[answer.example], form) for answer in first),
        runs=tuple(scores(metric, run) for run in by_run if run),
        secondary={other_metric.name: scores(other_metric, first) for other_metric in secondary},
        version=first[0].version,
        digest=first[0].digest,
        cut=sum(answer.finish_reason == LENGTH_REACHED for answer in first),
        prompt_tokens=sum(answer.prompt_tokens for answer in answers),
        completion_tokens=sum(answer.completion_tokens for answer in answers),
        seconds=sum(answer.seconds for answer in answers),
    )


def _progress_of(on_stage: OnStage | None, stage: str) -> Callable[[int, int], None] | None:
    return None if on_stage is None else lambda done, total: on_stage(stage, done, total)
