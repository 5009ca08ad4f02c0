"""What answers reach that ignore the question: the author's, given to other questions, and the candidate's own.

Answers are given to other questions by derangements: permutations under which no question gets its own answer.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Final, Literal

import numpy as np
from numpy.typing import NDArray

from trainer.errors import EvaluationInvalid
from trainer.evaluate.arms import Frozen, Question
from trainer.evaluate.metrics.base import Metric, words
from trainer.evaluate.statistics.paired import Array, as_array

DERANGEMENTS: Final = 20
CONSTANTS_TRIED: Final = 50
MIN_BEYOND_QUESTION: Final = 0.5
"""Where less of the authors' answers than this is in words that are not the question's, what an answer has beyond the
question's words says too little of it: answers are quoted from the question, or sum it up."""
ControlKind = Literal["constant", "permuted", "reassigned", "reassigned_beyond_question", "question"]


class Control(Frozen):
    """A control arm's score on each example: what answers that ignore the question reach.

    ``kind``:
        ``constant``: one answer to every question, kept in ``answer``.
        ``permuted``: the authors' answers, each given to another question.
        ``reassigned``: the candidate's own answers, each given to another question.
        ``reassigned_beyond_question``: the same, scored without the words of the questions.
        ``question``: the question itself as the answer.

    ``candidate``: the candidate's own scores, where this control scores it differently than the metric does.
    """

    kind: ControlKind
    scores: tuple[float, ...]
    answer: str | None = None
    candidate: tuple[float, ...] | None = None

    @property
    def mean(self) -> float:
        """Over the examples."""
        return float(self.array.mean())

    @property
    def array(self) -> Array:
        """The scores, one an example."""
        return as_array(self.scores)


def constant_and_permuted(
    references: Sequence[str], metric: Metric, *, taught: Sequence[str] = (), seed: int = 0
) -> tuple[Control, Control]:
    """Both controls under a metric.

    The constant one gives the same answer to every question. Where scores are right or wrong it is the answer that
    scores best when it is given to all, chosen on the held-out itself and so stronger than any that could be learnt:
    under exact match, the most frequent one. Where scores lie between it is the better one of two that one who knows
    only what was taught would choose: the answer that is most like the others, and the most frequent one. Chosen on
    the held-out, it would be flattered by the example that it is the answer to. The permuted one gives every question
    the answer to another, drawn at random: the mean over 20 derangements.

    Args:
        references: Of the held-out examples, in their order.
        metric: The primary one.
        taught: The training examples' most frequent answers, the most frequent first.
        seed: Of the derangements.

    Raises:
        EvaluationInvalid: There are no references.
    """
    if not references:
        raise EvaluationInvalid("there are no references to make a control of")
    constant = (
        _best_constant(references, metric, taught) if metric.binary else _typical_constant(references, metric, taught)
    )
    return constant, _at_other_questions("permuted", references, references, metric, seed)


def reassigned_answers(answers: Sequence[str], references: Sequence[str], metric: Metric, *, seed: int = 0) -> Control:
    """What the candidate's own answers reach where each is given to another question: the mean over 20 derangements.

    A candidate whose answers ignore the question scores as high with these as with its own.

    Args:
        answers: The candidate's, one an example.
        references: The author's, in the same order.
        metric: The primary one.
        seed: Of the derangements.
    """
    return _at_other_questions("reassigned", answers, references, metric, seed)


def reassigned_beyond_question(
    answers: Sequence[str], questions: Sequence[Question], metric: Metric, *, seed: int = 0
) -> Control | None:
    """As `reassigned_answers`, scored on the words that are in neither of two questions.

    A candidate that says the same to everything and adds words of the question scores higher at its own question than
    at others. For each pair of questions the words of both are taken out of both answers and of the reference: what
    is left of such a candidate's two answers is the same, whatever it copies and in whatever order.

    Args:
        answers: The candidate's, one a question.
        questions: The held-out.
        metric: One of words or letters in common.
        seed: Of the derangements; 20, or as many as there are.

    Returns:
        None where it would say nothing: less than MIN_BEYOND_QUESTION of the references' words are not the questions'.
    """
    asked = [_question_words(question) for question in questions]
    references = [words(question.reference) for question in questions]
    beyond = [
        sum(word not in own for word in reference) / len(reference)
        for reference, own in zip(references, asked, strict=True)
        if reference
    ]
    if len(questions) < 2 or not beyond or float(np.mean(beyond)) < MIN_BEYOND_QUESTION:
        return None
    said = [words(answer) for answer in answers]
    ways = derangements(len(questions), DERANGEMENTS, seed)
    own_total, elsewhere_total = np.zeros(len(questions)), np.zeros(len(questions))
    for whose in ways:
        for at, other in enumerate(whose):
            both = asked[at] | asked[other]
            reference = _without(references[at], both)
            if reference:  # else neither answer can be right
                own_total[at] += metric.score(_without(said[at], both), reference)
                elsewhere_total[at] += metric.score(_without(said[other], both), reference)
    return Control(
        kind="reassigned_beyond_question",
        scores=tuple(float(value) for value in elsewhere_total / len(ways)),
        candidate=tuple(float(value) for value in own_total / len(ways)),
    )


def _question_words(question: Question) -> frozenset[str]:
    """Of all turns but the system message, which is the same for all or nobody's question."""
    return frozenset(word for turn in question.turns if turn.role != "system" for word in words(turn.content))


def _without(text: Sequence[str], removed: frozenset[str]) -> str:
    return " ".join(word for word in text if word not in removed)


def copied_question(questions: Sequence[Question], metric: Metric) -> Control:
    """What one reaches who gives the question back as the answer."""
    return Control(kind="question", scores=tuple(metric.score(each.asked, each.reference) for each in questions))


def derangements(count: int, most: int, seed: int) -> list[NDArray[np.int64]]:
    """Different ways to give each of ``count`` places another place's answer: for each place, whose it gets.

    Turns of one random cycle through all places: no place ever gets its own, and over all turns none gets the same one
    twice. ``most`` of them, or as many as there are; of one place there is none.
    """
    random = np.random.default_rng(seed)
    cycle = random.permutation(count)
    found = []
    for turn in random.permutation(np.arange(1, count))[:most]:
        whose = np.empty(count, dtype=np.int64)
        whose[cycle] = np.roll(cycle, -turn)
        found.append(whose)
    return found


def _best_constant(references: Sequence[str], metric: Metric, taught: Sequence[str]) -> Control:
    """The answer that scores best when it is given to all."""
    tried = dict.fromkeys((*_common(references), *_common(taught)))
    rows = {answer: tuple(metric.score(answer, reference) for reference in references) for answer in tried}
    best = max(rows, key=lambda answer: sum(rows[answer]))
    return Control(kind="constant", scores=rows[best], answer=best)


def _typical_constant(references: Sequence[str], metric: Metric, taught: Sequence[str]) -> Control:
    """The better one of two answers that one may know without a question: the most frequent, and the most like others.

    Both are of what was taught, or of the held-out where nothing was.
    """
    tried = _common(taught or references)
    mean = {
        answer: sum(metric.score(answer, other) for other in tried if other != answer) / max(1, len(tried) - 1)
        for answer in tried
    }
    counts = Counter(references)
    likest = max(tried, key=lambda answer: mean[answer])
    often = [tried[0]] if taught or counts[tried[0]] > 1 else []
    # an answer that is nobody else's does not profit from the example that it is the answer to
    rows = {
        answer: tuple(
            mean[answer]
            if not taught and reference == answer and counts[reference] == 1
            else metric.score(answer, reference)
            for reference in references
        )
        for answer in (likest, *often)
    }
    best = max(rows, key=lambda answer: sum(rows[answer]))
    return Control(kind="constant", scores=rows[best], answer=best)


def _common(answers: Sequence[str]) -> list[str]:
    return [answer for answer, _ in Counter(answers).most_common(CONSTANTS_TRIED)]


def _at_other_questions(
    kind: ControlKind, answers: Sequence[str], references: Sequence[str], metric: Metric, seed: int
) -> Control:
    """The mean score of other places' answers at each place."""
    ways = derangements(len(references), DERANGEMENTS, seed) or [np.zeros(1, dtype=np.int64)]  # one has only its own
    total = np.zeros(len(references))
    for whose in ways:
        total += [metric.score(answers[other], reference) for other, reference in zip(whose, references, strict=True)]
    return Control(kind=kind, scores=tuple(float(value) for value in total / len(ways)))
