"""Control arms: what answers that ignore the question score. The authors' and the candidate's own, at other questions.

Answers are given to other questions by derangements: permutations under which no question keeps its own answer.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Final, Literal

import numpy as np
from numpy.typing import NDArray

from trainer.errors import EvaluationInvalid
from trainer.evaluate.arms import Question
from trainer.evaluate.metrics.base import Metric, words
from trainer.evaluate.metrics.similarity import Similarity
from trainer.evaluate.statistics.paired import Array, Units, as_array
from trainer.runs.protocol import Frozen

DERANGEMENTS: Final = 20
CONSTANTS_TRIED: Final = 50
MIN_BEYOND_QUESTION: Final = 0.5
"""The control `reassigned_beyond_question` needs at least this share of the references' words to be absent from their
questions. Below, answers quote or summarise the question, and the remaining words say too little."""
COPIED_RUN: Final = 3
"""Words of the question in a row, from which an answer's words count as copied."""
COPIES: Final = 0.2
"""An answer repeats its question if at least this share of its words is copied."""
ControlKind = Literal["constant", "permuted", "reassigned", "reassigned_beyond_question", "question", "nearest"]


class ControlArm(Frozen):
    """A control arm's score on each example: what answers that ignore the question reach.

    ``kind``:
        ``constant``: one answer to every question, kept in ``answer``.
        ``permuted``: the authors' answers, each given to another question.
        ``reassigned``: the candidate's own answers, each given to another question.
        ``reassigned_beyond_question``: the same, scored without the words of the questions.
        ``question``: the question itself as the answer.
        ``nearest``: the answer of the training example whose question is the most similar.

    ``candidate``: the candidate's own scores, where this control scores it differently than the metric does.
    """

    kind: ControlKind
    scores: tuple[float, ...]
    answer: str | None = None
    candidate: tuple[float, ...] | None = None

    @property
    def mean(self) -> float:
        """The mean score over the examples."""
        return float(self.array.mean())

    @property
    def array(self) -> Array:
        """The scores: float64, one per example."""
        return as_array(self.scores)


def constant_and_permuted(
    references: Sequence[str],
    metric: Metric,
    *,
    trained_answers: Sequence[str] = (),
    seed: int = 0,
    units: Units | None = None,
) -> tuple[ControlArm, ControlArm]:
    """The controls `constant` and `permuted` under a metric.

    `constant` gives the same answer to every question. For binary metrics it is the answer that scores best when given
    to all, chosen on the held-out examples themselves and so stronger than any that could be learnt (under exact
    match: the most frequent one). For graded metrics it is the better of two answers that can be known from the
    training data alone: the one most similar to the others, and the most frequent one; chosen on the held-out examples
    it would profit from the example that it belongs to. `permuted` gives every question another question's answer: the
    mean over 20 random derangements.

    Args:
        references: Of the held-out examples, in order.
        metric: The primary metric.
        trained_answers: The training examples' most frequent answers, the most frequent first.
        seed: Of the derangements.
        units: Which examples are not independent; None if all are.

    Raises:
        EvaluationInvalid: There are no references.
    """
    if not references:
        raise EvaluationInvalid("cannot build a control: there are no references")
    constant = (
        _best_constant(references, metric, trained_answers)
        if metric.binary
        else _typical_constant(references, metric, trained_answers)
    )
    return constant, _at_other_questions("permuted", references, references, metric, seed, units)


def reassigned_answers(
    answers: Sequence[str],
    references: Sequence[str],
    metric: Metric,
    *,
    seed: int = 0,
    units: Units | None = None,
) -> ControlArm:
    """The score of the candidate's own answers, each given to another question: the mean over 20 derangements.

    A candidate whose answers ignore the question scores as high as with its own order.

    Args:
        answers: The candidate's, one per example.
        references: The authors', in the same order.
        metric: The primary metric.
        seed: Of the derangements.
        units: Which examples are not independent; None if all are.
    """
    return _at_other_questions("reassigned", answers, references, metric, seed, units)


def reassigned_beyond_question(
    answers: Sequence[str],
    questions: Sequence[Question],
    metric: Metric,
    *,
    seed: int = 0,
    units: Units | None = None,
) -> ControlArm | None:
    """As `reassigned_answers`, scored on the words that occur in neither of the two questions.

    A candidate that gives a constant answer and adds words of the question scores higher at its own question than at
    others. For each pair of questions, the words of both are removed from both answers and from the reference: then
    such a candidate's two answers are equal, whatever it copies and in whatever order.

    Args:
        answers: The candidate's, one per question.
        questions: The held-out questions.
        metric: A metric of words in common, whichever decides.
        seed: Of the derangements: 20, or as many as there are.
        units: Which examples are not independent; None if all are.

    Returns:
        None if fewer than MIN_BEYOND_QUESTION of the references' words are absent from their questions.
    """
    question_words = [_question_words(question) for question in questions]
    references = [words(question.reference) for question in questions]
    beyond = [
        sum(word not in in_question for word in reference) / len(reference)
        for reference, in_question in zip(references, question_words, strict=True)
        if reference
    ]
    if len(questions) < 2 or not beyond or float(np.mean(beyond)) < MIN_BEYOND_QUESTION:
        return None
    answer_words = [words(answer) for answer in answers]
    permutations = derangements(len(questions), DERANGEMENTS, seed, units)
    own_total, elsewhere_total = np.zeros(len(questions)), np.zeros(len(questions))
    for sources in permutations:
        for index, source in enumerate(sources):
            both = question_words[index] | question_words[source]
            reference = _without(references[index], both)
            if reference:  # without any words left neither answer can score
                own_total[index] += metric.score(_without(answer_words[index], both), reference)
                elsewhere_total[index] += metric.score(_without(answer_words[source], both), reference)
    return ControlArm(
        kind="reassigned_beyond_question",
        scores=tuple(float(value) for value in elsewhere_total / len(permutations)),
        candidate=tuple(float(value) for value in own_total / len(permutations)),
    )


def _question_words(question: Question) -> frozenset[str]:
    """The words of all messages but the system message."""
    return frozenset(word for turn in question.turns if turn.role != "system" for word in words(turn.text))


def _without(tokens: Sequence[str], removed: frozenset[str]) -> str:
    return " ".join(word for word in tokens if word not in removed)


def copied_question(questions: Sequence[Question], metric: Metric) -> ControlArm:
    """The control that repeats the question as the answer."""
    return ControlArm(
        kind="question", scores=tuple(metric.score(question.last_message, question.reference) for question in questions)
    )


def copied_where_repeated(answers: Sequence[str], questions: Sequence[Question], metric: Metric) -> ControlArm:
    """As `copied_question`, for answers of which most do not repeat their question.

    A question can be as similar to its answer as a good answer is, by its subject alone. So it stands only against
    answers that repeat it (`repeats`) although the author's does not: these score nothing, and the question what it
    scores. On all other examples the question scores nothing.

    Args:
        answers: The candidate's, one per question.
        questions: The held-out questions.
        metric: The primary metric.
    """
    own, copied = [], []
    for answer, question in zip(answers, questions, strict=True):
        source, reference = question.last_message, question.reference
        repeated = repeats(answer, source) and not repeats(reference, source)
        own.append(0.0 if repeated else metric.score(answer, reference))
        copied.append(metric.score(source, reference) if repeated else 0.0)
    return ControlArm(kind="question", scores=tuple(copied), candidate=tuple(own))


def repeats(answer: str, question: str) -> bool:
    """Whether at least COPIES of an answer's words stand in runs of COPIED_RUN words or more of the question."""
    given, source = words(answer), words(question)
    runs = {tuple(source[at : at + COPIED_RUN]) for at in range(len(source) - COPIED_RUN + 1)}
    copied = {
        at + offset
        for at in range(len(given) - COPIED_RUN + 1)
        if tuple(given[at : at + COPIED_RUN]) in runs
        for offset in range(COPIED_RUN)
    }
    if len(given) < COPIED_RUN:
        return bool(given) and set(given) <= set(source)
    return len(copied) >= COPIES * len(given)


def nearest_answers(questions: Sequence[Question], trained_on: Sequence[Question], metric: Similarity) -> ControlArm:
    """The control that looks up: each question gets the answer of the most similar training question.

    Args:
        questions: The held-out questions.
        trained_on: The training examples, at least one.
        metric: The primary metric, whose vectors tell which question is the most similar.
    """
    trained = metric.vectors([example.last_message for example in trained_on])
    nearest = (metric.vectors([question.last_message for question in questions]) @ trained.T).argmax(axis=1)
    answers = [trained_on[int(at)].reference for at in nearest]
    metric.prepare(answers)
    scores = [metric.score(answer, question.reference) for answer, question in zip(answers, questions, strict=True)]
    return ControlArm(kind="nearest", scores=tuple(scores))


def always_same(questions: Sequence[Question], answers: Sequence[str]) -> bool:
    """Whether every question got one answer although the references differ."""
    return len({question.reference for question in questions}) > 1 and len(set(answers)) == 1


def derangements(count: int, max_count: int, seed: int, units: Units | None = None) -> list[NDArray[np.int64]]:
    """Derangements of ``count`` positions: arrays that give for each position the position whose answer it gets.

    They are rotations of one random cycle through all positions, so no position gets the same source twice. Positions
    of one unit follow each other in the cycle, so that a rotation by the size of the largest unit or more gives no
    position an answer of its own unit. If the largest unit has more than half of the positions there is none such, and
    all rotations are used.

    Args:
        count: Positions.
        max_count: How many derangements; fewer if there are fewer.
        seed: Of the cycle and the rotations.
        units: The unit of each position; None if each is its own.
    """
    rng = np.random.default_rng(seed)
    cycle, largest = rng.permutation(count), 1
    if units is not None and count:
        unit_of, sizes = np.unique(np.asarray(units)[:count], return_inverse=True, return_counts=True)[1:]
        cycle = cycle[np.argsort(rng.permutation(len(sizes))[unit_of[cycle]], kind="stable")]
        largest = int(sizes.max()) if 2 * int(sizes.max()) <= count else 1
    permutations = []
    for shift in rng.permutation(np.arange(largest, count - largest + 1))[:max_count]:
        sources = np.empty(count, dtype=np.int64)
        sources[cycle] = np.roll(cycle, -shift)
        permutations.append(sources)
    return permutations


def _best_constant(references: Sequence[str], metric: Metric, trained_answers: Sequence[str]) -> ControlArm:
    """The answer that scores best when it is given to every question."""
    candidates = dict.fromkeys((*_common(references), *_common(trained_answers)))
    scores = {answer: tuple(metric.score(answer, reference) for reference in references) for answer in candidates}
    best = max(scores, key=lambda answer: sum(scores[answer]))
    return ControlArm(kind="constant", scores=scores[best], answer=best)


def _typical_constant(references: Sequence[str], metric: Metric, trained_answers: Sequence[str]) -> ControlArm:
    """The better of two answers that need no question: the most frequent one, and the one most similar to the others.

    Both are training answers, or held-out answers if there are none.
    """
    candidates = _common(trained_answers or references)
    mean_score = {
        answer: sum(
            metric.score(answer, reference_answer) for reference_answer in candidates if reference_answer != answer
        )
        / max(1, len(candidates) - 1)
        for answer in candidates
    }
    counts = Counter(references)
    most_typical = max(candidates, key=lambda answer: mean_score[answer])
    most_frequent = [candidates[0]] if trained_answers or counts[candidates[0]] > 1 else []
    # an answer that occurs once must not profit from the example that it belongs to
    scores = {
        answer: tuple(
            mean_score[answer]
            if not trained_answers and reference == answer and counts[reference] == 1
            else metric.score(answer, reference)
            for reference in references
        )
        for answer in (most_typical, *most_frequent)
    }
    best = max(scores, key=lambda answer: sum(scores[answer]))
    return ControlArm(kind="constant", scores=scores[best], answer=best)


def _common(answers: Sequence[str]) -> list[str]:
    return [answer for answer, _ in Counter(answers).most_common(CONSTANTS_TRIED)]


def _at_other_questions(
    kind: ControlKind,
    answers: Sequence[str],
    references: Sequence[str],
    metric: Metric,
    seed: int,
    units: Units | None,
) -> ControlArm:
    """The mean score of other questions' answers at each question; those of its own unit count only if all are."""
    # a single example has no derangement: it keeps its own answer
    permutations = derangements(len(references), DERANGEMENTS, seed, units) or [np.zeros(1, dtype=np.int64)]
    unit_of = np.arange(len(references)) if units is None else np.asarray(units)
    total, counted = np.zeros(len(references)), np.zeros(len(references))
    for sources in permutations:
        scores = np.array(
            [metric.score(answers[source], reference) for source, reference in zip(sources, references, strict=True)]
        )
        # a near-duplicate's answer is not another question's
        weight = np.where(unit_of[sources] == unit_of, 1e-9, 1.0)
        total += weight * scores
        counted += weight
    return ControlArm(kind=kind, scores=tuple(float(value) for value in total / counted))
