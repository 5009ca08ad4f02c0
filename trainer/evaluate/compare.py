"""The one engine of comparison: every arm answers every held-out example, and each answer is scored."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

from pydantic import Field

from trainer.errors import AnswerRefused, ArmMoved, EvaluationInvalid
from trainer.evaluate.answers import Answer
from trainer.evaluate.arms import Arm, Frozen, Question
from trainer.evaluate.asking import Answerer, ArmRequest
from trainer.evaluate.control_arms import derangements
from trainer.evaluate.likelihood import Scorer
from trainer.evaluate.metrics.base import Metric
from trainer.evaluate.statistics.paired import Array, as_array

OnStage = Callable[[str, int, int], None]
"""Called with what is being done, and how many of how many are; may raise to end it."""
CONTEXT_EXCEEDED: Final = "context_length_exceeded"
"""The gateway's code for a prompt that does not fit into the context."""
LENGTH_REACHED: Final = "length"
"""The finish_reason of an answer that reached the longest length."""


class ArmResult(Frozen):
    """What one arm said, and how it scored.

    ``runs[0]`` has a score for every example and is what counts; later runs, over the first examples, measure noise.
    ``beside``: the other metrics' scores of the first run. ``nats``: of the first references, mean nats per token; None
    where it was not measured. ``nats_elsewhere``: of the same references, each after another example's question;
    None for those that do not fit into the context together.
    ``version`` and ``digest``: what the gateway served. ``cut``: answers that reached the longest length. Tokens and
    seconds are sums over all runs.
    """

    arm: Arm
    answers: tuple[str, ...]
    runs: tuple[tuple[float, ...], ...]
    beside: dict[str, tuple[float, ...]] = Field(default_factory=dict)
    nats: tuple[float, ...] | None = None
    nats_elsewhere: tuple[float | None, ...] | None = None
    version: str | None = None
    digest: str | None = None
    cut: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    seconds: float = 0.0

    @property
    def scores(self) -> Array:
        """Of the run that counts, one an example."""
        return as_array(self.runs[0])

    @property
    def mean(self) -> float:
        """Mean score of the run that counts."""
        return float(self.scores.mean())


class Comparison(Frozen):
    """Arms over the same questions; ``binary``: every score is 0 or 1."""

    metric: str
    binary: bool
    questions: tuple[Question, ...]
    results: tuple[ArmResult, ...]

    def result(self, label: str) -> ArmResult:
        """An arm's result. Raises EvaluationInvalid where there is no such arm."""
        for result in self.results:
            if result.arm.label == label:
                return result
        raise EvaluationInvalid(f"no arm is named {label!r}; there are: {', '.join(r.arm.label for r in self.results)}")


async def compare(
    arms: Sequence[Arm],
    held_out: Sequence[Question],
    metric: Metric,
    *,
    answerer: Answerer,
    beside: Sequence[Metric] = (),
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
        arms: With labels of their own; all are asked side by side, so that load strikes all alike.
        held_out: With ids of their own.
        metric: The primary one.
        answerer: Who asks.
        beside: Other metrics to report.
        scorer: Where given, the references' likelihood is measured too, for the gateway's arms that are not told the
            answers: those know the reference beforehand.
        scored: Over how many examples, from the first; None: all of them.
        elsewhere: Label of an arm under which the references' likelihood is measured after other examples' questions,
            too; None: of no arm.
        seed: Of which question each of these gets.
        repeats: How often the questions are asked in all; from 2 on the noise between runs is known.
        repeated: How many examples, from the first, the later runs are over; None: all of them.
        on_stage: Hears of the progress.

    Raises:
        EvaluationInvalid: No arms, no examples, or two with the same name.
        ArmMoved: The gateway served two versions under one arm.
        EvaluationError, GatewayUnreachable: As the answerer; there is never a comparison over fewer examples.
    """
    _check(arms, held_out, repeats)
    asks = [
        ArmRequest(arm, question, repeat)
        for repeat in range(repeats)
        for question in (held_out if repeat == 0 else held_out[:repeated])
        for arm in arms
    ]
    answers = await answerer.answer(asks, _progress_of(on_stage, "asking"))
    results = []
    for arm in arms:
        own = [answer for ask, answer in zip(asks, answers, strict=True) if ask.arm.label == arm.label]
        result = _result(arm, own, held_out, metric, beside, repeats)
        if scorer is not None and arm.endpoint is None and not arm.prompt.answers and scored != 0:
            rows = await scorer.references(
                arm, held_out[:scored], _progress_of(on_stage, f"likelihood under {arm.label}")
            )
            result = result.model_copy(update={"nats": tuple(row.nats for row in rows)})
            if arm.label == elsewhere and len(rows) > 1:
                told = _progress_of(on_stage, f"likelihood under {arm.label}, after other questions")
                nats = await _nats_elsewhere(scorer, arm, held_out[: len(rows)], seed, told)
                result = result.model_copy(update={"nats_elsewhere": nats})
        results.append(result)
    return Comparison(metric=metric.name, binary=metric.binary, questions=tuple(held_out), results=tuple(results))


async def _nats_elsewhere(
    scorer: Scorer, arm: Arm, held_out: Sequence[Question], seed: int, on_progress: Callable[[int, int], None] | None
) -> tuple[float | None, ...]:
    """Mean nats a token of each reference after another example's question; None for those that do not fit."""
    (whose,) = derangements(len(held_out), 1, seed)
    mixed = [
        Question(id=f"{question.id}/elsewhere", turns=held_out[other].turns, reference=question.reference)
        for other, question in zip(whose, held_out, strict=True)
    ]
    try:
        return tuple(row.nats for row in await scorer.references(arm, mixed, on_progress))
    except AnswerRefused as error:
        if error.answer_code != CONTEXT_EXCEEDED:
            raise
    nats: list[float | None] = []
    for question in mixed:  # the longest question and the longest answer of two examples may be more than the context
        try:
            (row,) = await scorer.references(arm, [question])
        except AnswerRefused as error:
            if error.answer_code != CONTEXT_EXCEEDED:
                raise
            nats.append(None)
        else:
            nats.append(row.nats)
        if on_progress is not None:
            on_progress(len(nats), len(mixed))
    return tuple(nats)


def _check(arms: Sequence[Arm], held_out: Sequence[Question], repeats: int) -> None:
    if not arms or not held_out:
        raise EvaluationInvalid("a comparison needs an arm and a held-out example")
    if len({arm.label for arm in arms}) != len(arms):
        raise EvaluationInvalid(f"two arms have the same label: {', '.join(arm.label for arm in arms)}")
    if len({question.id for question in held_out}) != len(held_out):
        raise EvaluationInvalid("two held-out examples have the same id")
    if repeats < 1:
        raise EvaluationInvalid(f"`repeats` must be 1 or more, found {repeats}")


def _result(
    arm: Arm,
    answers: Sequence[Answer],
    held_out: Sequence[Question],
    metric: Metric,
    beside: Sequence[Metric],
    repeats: int,
) -> ArmResult:
    digests = {answer.digest for answer in answers}
    if len(digests) > 1:
        versions = ", ".join(sorted({answer.version or "none" for answer in answers}))
        raise ArmMoved(f"{arm.model} was served by more than one version ({versions}): compare a version, not an alias")
    references = {question.id: question.reference for question in held_out}
    by_run: list[list[Answer]] = [[] for _ in range(repeats)]
    for answer in answers:
        by_run[answer.repeat].append(answer)
    first = by_run[0]
    return ArmResult(
        arm=arm,
        answers=tuple(answer.text for answer in first),
        runs=tuple(
            tuple(metric.score(answer.text, references[answer.example]) for answer in run) for run in by_run if run
        ),
        beside={
            other.name: tuple(other.score(answer.text, references[answer.example]) for answer in first)
            for other in beside
        },
        version=first[0].version,
        digest=first[0].digest,
        cut=sum(answer.finish_reason == LENGTH_REACHED for answer in first),
        prompt_tokens=sum(answer.prompt_tokens for answer in answers),
        completion_tokens=sum(answer.completion_tokens for answer in answers),
        seconds=sum(answer.seconds for answer in answers),
    )


def _progress_of(on_stage: OnStage | None, stage: str) -> Callable[[int, int], None] | None:
    return None if on_stage is None else lambda done, total: on_stage(stage, done, total)
