"""Comparing arms: every arm answers every held-out example, and each answer is scored."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Final

from pydantic import Field

from trainer.data.similar import groups, merged
from trainer.errors import ArmVersionChanged, EvaluationInvalid
from trainer.evaluate.announced import closed_labels
from trainer.evaluate.answers import Answer
from trainer.evaluate.arms import Arm, Question
from trainer.evaluate.asking import Answerer
from trainer.evaluate.likelihood import Scorer
from trainer.evaluate.metrics.base import Batched, Metric
from trainer.evaluate.reading import form_of, read_answer
from trainer.evaluate.reference_likelihood import nats_elsewhere, nats_of_references, prefers
from trainer.evaluate.statistics.paired import Array, Units, as_array, unit_means
from trainer.evaluate.turns import ArmAnswers, ask_in_turn
from trainer.runs.protocol import Frozen

OnStage = Callable[[str, int, int], None]
"""Called with the stage, how many items are done, and how many there are; may raise to stop the evaluation."""
PREFERS: Final = "prefers_reference"
"""Name of the secondary scores that `prefers` gives, for preference data."""
LENGTH_REACHED: Final = "length"
"""The finish_reason of an answer that reached `max_tokens`."""
CUT_OFTEN: Final = 0.1
"""Share of an arm's answers that reached `max_tokens` above which the arm may be better than its score."""


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
        passages: What was retrieved for each answer of the first run (`Answer.passages`).
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
    passages: tuple[str | None, ...] = ()
    cut_at: tuple[int, ...] = ()
    prompt_tokens: int = 0
    completion_tokens: int = 0
    seconds: float = 0.0

    @property
    def cut(self) -> int:
        """Number of the first run's answers that reached `max_tokens`."""
        return len(self.cut_at)

    @property
    def scores_if_cut_were_right(self) -> Array:
        """As `scores`, with 1 for every answer that was cut: the most that what came next could have made of it."""
        scores = self.scores.copy()
        scores[list(self.cut_at)] = 1.0
        return scores

    @property
    def scores(self) -> Array:
        """The first run's scores: float64, one per example."""
        return as_array(self.runs[0])

    @property
    def mean(self) -> float:
        """The first run's mean score over the examples."""
        return float(self.scores.mean())

    @property
    def often_cut(self) -> bool:
        """Whether more than CUT_OFTEN of the answers reached `max_tokens`."""
        return self.cut > CUT_OFTEN * len(self.answers)


class StoppedArm(Frozen):
    """A base's arm that was not asked all questions, because it could no longer be the strongest one.

    ``answered``: how many it was asked. ``max_mean``: the mean score that it would have had if all its other answers
    were right. ``version``, ``digest``: What the gateway served.
    """

    arm: Arm
    answered: int
    max_mean: float
    version: str | None = None
    digest: str | None = None
    prompt_tokens: int = 0
    completion_tokens: int = 0


class Comparison(Frozen):
    """Arms over the same questions.

    ``binary``: every score is 0 or 1. ``units``: the number of each question's independent unit
    (`independent_units`); None if every question is its own. ``stopped``: arms that are not in ``results``.
    """

    metric: str
    binary: bool
    questions: tuple[Question, ...]
    results: tuple[ArmResult, ...]
    units: tuple[int, ...] | None = None
    stopped: tuple[StoppedArm, ...] = ()

    @property
    def independent(self) -> int:
        """The number of independent examples."""
        return len(self.questions) if self.units is None else len(set(self.units))

    def units_without(self, left_out: Collection[int]) -> Units | None:
        """``units`` of all questions but those at these positions."""
        if self.units is None:
            return None
        return [unit for position, unit in enumerate(self.units) if position not in left_out]

    def finished(self, labels: Sequence[str]) -> tuple[str, ...]:
        """The labels without those of arms that were stopped."""
        stopped = {stopped.arm.label for stopped in self.stopped}
        return tuple(label for label in labels if label not in stopped)

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
    rivals: Sequence[str] = (),
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
        arms, held_out: With unique labels, and unique ids.
        metric, secondary: The primary metric, and others to report.
        rivals: Labels of arms of which only the strongest matters, such as those of the base. If scores are 0 or 1, the
            last one is asked first, and another one is stopped as soon as it could not be the strongest even if all its
            other answers were right (`turns`).
        scorer: Also measures the references' likelihood, and of preference data whether they are preferred, for the
            gateway's arms with a plain prompt.
        scored: Number of references to score, from the first; None for all.
        elsewhere: Label of an arm whose references are also scored after other examples' questions, which ``seed``
            decides; None for no arm.
        repeats: How often each question is asked; with 2 or more the noise between runs is measured, of the strongest
            rival and of all arms that are no rivals.
        repeated: Number of examples, from the first, in the later runs; None for all.

    Raises:
        EvaluationInvalid: There are no arms or no examples, or a label or an id is not unique.
        ArmVersionChanged: The gateway served two versions under one arm.
        EvaluationError, GatewayUnreachable: As the answerer; no comparison is made over fewer examples.
    """
    _check(arms, held_out, repeats)
    units, scoring = _shared_units(held_out), _Scoring(metric, tuple(secondary), held_out)
    turns = await ask_in_turn(
        *(arms, held_out, answerer, rivals),
        may_stop=metric.binary,
        max_mean=lambda answers: scoring.max_mean(answers, units),
        repeats=repeats,
        repeated=repeated,
        on_progress=_progress_of(on_stage, "asking"),
    )
    results = [scoring.result(arm, turns.answers[arm.label], repeats) for arm in arms if arm.label not in turns.stopped]
    if scorer is not None and scored != 0:
        likelihoods = _Likelihoods(scorer, held_out, units, scored, seed, on_stage)
        results = [await likelihoods.added_to(result, elsewhere) for result in results]
    return Comparison(
        metric=metric.name,
        binary=metric.binary,
        questions=tuple(held_out),
        results=tuple(results),
        units=units,
        stopped=tuple(_stopped(arm, turns) for arm in arms if arm.label in turns.stopped),
    )


def _stopped(arm: Arm, turns: ArmAnswers) -> StoppedArm:
    answers = turns.answers[arm.label]
    version, digest = _served(arm, answers)
    return StoppedArm(
        arm=arm,
        answered=len(answers),
        max_mean=turns.stopped[arm.label],
        version=version,
        digest=digest,
        prompt_tokens=sum(answer.prompt_tokens for answer in answers),
        completion_tokens=sum(answer.completion_tokens for answer in answers),
    )


@dataclass(frozen=True, slots=True)
class _Likelihoods:
    """Measures the likelihood of the first references, and of preference data which answer is preferred."""

    scorer: Scorer
    questions: Sequence[Question]
    units: Units | None
    scored: int | None
    seed: int
    on_stage: OnStage | None

    async def added_to(self, result: ArmResult, elsewhere: str | None) -> ArmResult:
        """The result with the likelihoods under its arm; unchanged if they cannot be measured."""
        arm = result.arm
        if arm.endpoint is not None or not arm.prompt.is_plain:
            return result
        stage = f"likelihood under {arm.label}"
        if all(question.rejected is not None for question in self.questions):
            on_preferences = _progress_of(self.on_stage, f"preferences of {arm.label}")
            chosen = await prefers(self.scorer, arm, self.questions, on_preferences)
            result = result.model_copy(update={"secondary": result.secondary | {PREFERS: chosen}})
        scored, units = self.questions[: self.scored], None if self.units is None else self.units[: self.scored]
        nats = await nats_of_references(self.scorer, arm, scored, _progress_of(self.on_stage, stage))
        if arm.label != elsewhere or len(nats) < 2:
            return result.model_copy(update={"nats": nats})
        on_progress = _progress_of(self.on_stage, f"{stage}, after other questions")
        others = await nats_elsewhere(self.scorer, arm, scored, seed=self.seed, units=units, on_progress=on_progress)
        return result.model_copy(update={"nats": nats, "nats_elsewhere": others})


def compared_so_far(
    arms: Sequence[Arm], held_out: Sequence[Question], metric: Metric, answers: Sequence[Answer]
) -> Comparison | None:
    """The comparison over the questions that every arm has answered once; None if there is no such question.

    Args:
        arms, held_out, metric: As for `compare`.
        answers: Those that are there by now, of all arms; later runs do not count.

    Raises:
        ArmVersionChanged: The gateway served two versions under one arm.
    """
    by_key = {answer.key: answer for answer in answers}
    done = [question for question in held_out if all((arm.label, question.id, 0) in by_key for arm in arms)]
    if not done:
        return None
    scoring = _Scoring(metric, (), held_out)
    return Comparison(
        metric=metric.name,
        binary=metric.binary,
        questions=tuple(done),
        results=tuple(scoring.result(arm, [by_key[arm.label, each.id, 0] for each in done], 1) for arm in arms),
        units=_shared_units(done),
    )


def independent_units(questions: Sequence[Question]) -> tuple[int, ...]:
    """Which held-out questions are independent: the number of each one's unit, from 0 in the order of their first.

    Ten variants of one question are answered alike, so they are one observation, not ten. Intervals that take them for
    ten are too narrow: with 80 questions in 8 groups, equal arms passed in 14% to 28% of cases instead of 2.5%.

    Two questions are in one unit if they are near-duplicates (`trainer.data.similar`, as for the split), if they name
    the same `group`, or if a chain of such pairs connects them.
    """
    similar = groups([question.text for question in questions])
    units = [0] * len(questions)
    for number, unit in enumerate(merged(similar, [question.group for question in questions])):
        for index in unit:
            units[index] = number
    return tuple(units)


def _shared_units(held_out: Sequence[Question]) -> tuple[int, ...] | None:
    units = independent_units(held_out)
    return units if len(set(units)) < len(units) else None


def _check(arms: Sequence[Arm], held_out: Sequence[Question], repeats: int) -> None:
    if not arms or not held_out:
        raise EvaluationInvalid("a comparison needs at least one arm and one held-out example")
    if len({arm.label for arm in arms}) != len(arms):
        raise EvaluationInvalid(f"arm labels must be unique; got: {', '.join(arm.label for arm in arms)}")
    if len({question.id for question in held_out}) != len(held_out):
        raise EvaluationInvalid("the ids of the held-out examples must be unique")
    if repeats < 1:
        raise EvaluationInvalid(f"`repeats` must be at least 1; got {repeats}")


def _served(arm: Arm, answers: Sequence[Answer]) -> tuple[str | None, str | None]:
    """The version and the digest that answered. Raises ArmVersionChanged if there are several."""
    # without weights there is no digest, and the version tells settings apart
    if len({answer.digest or answer.version for answer in answers}) > 1:
        versions = ", ".join(sorted({answer.version or "none" for answer in answers}))
        raise ArmVersionChanged(
            f"{arm.model} was served by more than one version ({versions}); "
            "name a version (`name@3`) instead of an alias"
        )
    return answers[0].version, answers[0].digest


class _Scoring:
    """Reads and scores answers to the held-out questions."""

    def __init__(self, metric: Metric, secondary: tuple[Metric, ...], held_out: Sequence[Question]) -> None:
        self._metric, self._secondary, self._form = metric, secondary, form_of(metric)
        self._references = {question.id: question.reference for question in held_out}
        self._labels = closed_labels(list(self._references.values()))

    def max_mean(self, answers: Sequence[Answer], units: Units | None) -> float:
        """The mean score of these answers to the first questions, as if all others were right."""
        scores = [*self._scores(self._metric, answers), *[1.0] * (len(self._references) - len(answers))]
        return float(unit_means(as_array(scores), units).mean())

    def result(self, arm: Arm, answers: Sequence[Answer], repeats: int) -> ArmResult:
        """An arm's result from its answers of all runs."""
        version, digest = _served(arm, answers)
        by_run: list[list[Answer]] = [[] for _ in range(repeats)]
        for answer in answers:
            by_run[answer.repeat].append(answer)
        first = by_run[0]
        return ArmResult(
            arm=arm,
            answers=tuple(self._read(answer) for answer in first),
            runs=tuple(self._scores(self._metric, run) for run in by_run if run),
            secondary={metric.name: self._scores(metric, first) for metric in self._secondary},
            version=version,
            digest=digest,
            passages=tuple(answer.passages for answer in first),
            cut_at=tuple(at for at, answer in enumerate(first) if answer.finish_reason == LENGTH_REACHED),
            prompt_tokens=sum(answer.prompt_tokens for answer in answers),
            completion_tokens=sum(answer.completion_tokens for answer in answers),
            seconds=sum(answer.seconds for answer in answers),
        )

    def _scores(self, metric: Metric, answers: Sequence[Answer]) -> tuple[float, ...]:
        read = [self._read(answer) for answer in answers]
        references = [self._references[answer.example] for answer in answers]
        if isinstance(metric, Batched):
            metric.prepare([*references, *read])
        return tuple(metric.score(answer, reference) for answer, reference in zip(read, references, strict=True))

    def _read(self, answer: Answer) -> str:
        return read_answer(answer.text, self._references[answer.example], self._form, self._labels)


def _progress_of(on_stage: OnStage | None, stage: str) -> Callable[[int, int], None] | None:
    return None if on_stage is None else lambda done, total: on_stage(stage, done, total)
