"""How much every arm's answers sound like the author, beside a verdict on free text; it decides nothing.

No answer is scored by a classifier (`trainer.evaluate.voice`) that has seen its question: the examples are cut into
FOLDS parts, and each part is scored by a classifier that was fitted on the others. So are answers that only seem to
have the voice; where the classifier cannot tell them from the author's own, nothing is reported but that.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final, Self

import numpy as np

from trainer.evaluate.arms import Question
from trainer.evaluate.compare import Comparison
from trainer.evaluate.metrics.choose import FREE_TEXT, JUDGE
from trainer.evaluate.statistics.paired import Array, Units
from trainer.evaluate.voice import AnsweredTwice, Floats, VoiceClassifier, sentences, sigmoid
from trainer.runs.protocol import Frozen

VOICE: Final = "voice"
"""Name of the secondary scores."""
FOLDS: Final = 5
MIN_EXAMPLES: Final = 30
"""Independent examples; fewer do not show a style."""
MIN_TOLD_APART: Final = 0.8
"""Share of the questions on which the author's own answer must score higher than each of the others that are known."""
PHRASES: Final = 3
"""Sentences of the author's put before the base's answer."""


class Voice(Frozen):
    """What the scores of an evaluation mean: those of answers of which it is known how much they are the author's.

    Attributes:
        author, base: Mean scores of the author's own answers and of the base's, from 0 to 1.
        phrases: Of the base's answers with three sentences of the author's, from other questions, before them.
        shuffled: Of the author's words in random order.
        told_apart: The least share of the questions on which the author's own answer scores higher than one of these.
        examples: The number of questions.
    """

    author: float
    base: float
    phrases: float
    shuffled: float
    told_apart: float
    examples: int

    @property
    def reported(self) -> bool:
        """Whether the scores say anything: whether the author's own answers are told from the others."""
        return self.told_apart >= MIN_TOLD_APART

    def told(self, comparison: Comparison, candidate: str) -> str:
        """A sentence on the candidate, for the run's log."""
        scores = comparison.result(candidate).secondary.get(VOICE)
        if scores is None:
            return f"{self.note()}."
        mean = _percent(float(np.mean(scores)))
        return f"{candidate} sounds like the author to {mean} of 100; {self.note()}."

    def note(self) -> str:
        """A sentence for the report, without its full stop."""
        if not self.reported:
            return (
                "voice is not reported: by their style, the author's own answers are told from the base's, from the "
                "base's behind the author's phrases, or from the author's words in random order on only "
                f"{_percent(self.told_apart)}% of the questions"
            )
        return (
            "voice says how an answer sounds, not whether it is right, and decides nothing: the author's own answers "
            f"have {_percent(self.author)}, the base's {_percent(self.base)}, the base's behind {PHRASES} sentences of "
            f"the author's {_percent(self.phrases)}, the author's words in random order {_percent(self.shuffled)}"
        )


@dataclass(frozen=True, slots=True)
class VoiceScores:
    """``scores``: by the arm's label, one for every question, from 0 to 1; empty if they are not reported."""

    voice: Voice
    scores: dict[str, tuple[float, ...]]

    def added_to(self, comparison: Comparison) -> Comparison:
        """The comparison with the scores among its arms' secondary ones."""
        if not self.scores:
            return comparison
        results = [
            result.model_copy(update={"secondary": result.secondary | {VOICE: self.scores[result.arm.label]}})
            for result in comparison.results
        ]
        return comparison.model_copy(update={"results": tuple(results)})


def voice_scores(
    comparison: Comparison, base: str, authored: Sequence[str] = (), *, seed: int = 0
) -> VoiceScores | None:
    """Score every arm's answers; None if the answers are no free text or too few.

    Takes seconds, on one core.

    Args:
        comparison: With the base's arm.
        base: The label of the base with a plain prompt.
        authored: The author's answers of the training data, for the vocabulary.
        seed: Of the folds and of what is drawn.
    """
    questions, units = comparison.questions, comparison.units
    free_text = comparison.metric in (*FREE_TEXT, JUDGE) and not any(each.reference_calls for each in questions)
    if not free_text or comparison.independent < MIN_EXAMPLES:
        return None
    given = {result.arm.label: result.answers for result in comparison.results}
    folds = _Folds(questions, given[base], units, authored, seed)
    known = {
        "author": folds.scores([question.reference for question in questions]),
        "base": folds.scores(given[base]),
        "phrases": folds.scores_of(folds.behind_phrases),
        "shuffled": folds.scores_of(folds.shuffled),
    }
    others = [name for name in known if name != "author"]
    scale = _Scale.fitted(known["author"], [known[name] for name in others])
    voice = Voice(
        **{name: float(scale(scores).mean()) for name, scores in known.items()},
        told_apart=min(_higher(known["author"], known[name]) for name in others),
        examples=len(questions),
    )
    if not voice.reported:
        return VoiceScores(voice, {})
    return VoiceScores(voice, {label: tuple(scale(folds.scores(answers)).tolist()) for label, answers in given.items()})


class _Folds:
    """Classifiers of which each has not seen the questions that it scores.

    Args:
        base: The base's answers.
        units: Which questions are not independent; they are in one fold.
    """

    def __init__(
        self,
        questions: Sequence[Question],
        base: Sequence[str],
        units: Units | None,
        authored: Sequence[str],
        seed: int,
    ) -> None:
        self._questions, self._base = questions, base
        self._rng = np.random.default_rng(seed)
        unit_of = np.arange(len(questions)) if units is None else np.asarray(units)
        fold_of = self._rng.permutation(int(unit_of.max()) + 1)[unit_of] % FOLDS
        self._fold_of: list[int] = fold_of.tolist()
        self._classifiers = [
            VoiceClassifier([self._example(at) for at in self._outside(fold)], authored, seed=seed)
            for fold in range(FOLDS)
        ]

    def scores(self, answers: Sequence[str]) -> Array:
        """Of one answer to each question."""
        return self.scores_of(lambda at: answers[at])

    def scores_of(self, answer: Callable[[int], str]) -> Array:
        """Of the answer to each question, by the question's index."""
        return np.array(
            [
                self._classifiers[fold].score(answer(at), self._questions[at].text)
                for at, fold in enumerate(self._fold_of)
            ]
        )

    def behind_phrases(self, at: int) -> str:
        """The base's answer behind sentences of the author's, from answers that the classifier was fitted on."""
        drawn = [self._rng.choice(sentences(self._reference(other))) for other in self._drawn(at, PHRASES)]
        return " ".join([*(sentence.strip() for sentence in drawn), self._base[at]])

    def shuffled(self, at: int) -> str:
        """As many words as the author's answer has, of answers that the classifier was fitted on, in random order."""
        words = " ".join(self._reference(other) for other in self._outside(self._fold_of[at])).split()
        # indices: an array of the words themselves would give each the width of the longest
        drawn = self._rng.integers(0, len(words), len(self._reference(at).split())) if words else ()
        return " ".join(words[index] for index in drawn)

    def _outside(self, fold: int) -> list[int]:
        return [at for at, own in enumerate(self._fold_of) if own != fold]

    def _drawn(self, at: int, count: int) -> list[int]:
        with_text = [other for other in self._outside(self._fold_of[at]) if self._reference(other).strip()]
        drawn: list[int] = self._rng.choice(with_text, count).tolist() if with_text else []
        return drawn

    def _reference(self, at: int) -> str:
        return self._questions[at].reference

    def _example(self, at: int) -> AnsweredTwice:
        return AnsweredTwice(self._questions[at].text, self._reference(at), self._base[at])


@dataclass(frozen=True, slots=True)
class _Scale:
    """Makes probabilities of a classifier's numbers: that an answer is the author's, and not one of the known others.

    A logistic regression on their log-odds; it is monotonic, so it changes no order. The kinds of others count alike,
    and together as much as the author. Labels are smoothed as in J. Platt, Probabilistic outputs for support vector
    machines (1999), since the two sides may not overlap.
    """

    slope: float
    intercept: float

    @classmethod
    def fitted(cls, author: Array, others: Sequence[Array]) -> Self:
        from scipy.optimize import minimize

        values, count = _log_odds(np.concatenate([author, *others])), len(author)
        targets = np.repeat([(count + 1) / (count + 2), 1 / (count + 2)], [count, count * len(others)])
        weights = np.repeat([0.5 / count, 0.5 / (count * len(others))], [count, count * len(others)])

        def loss(parameters: Any) -> float:
            logits = parameters[0] * values + parameters[1]
            return float(weights @ (np.logaddexp(0, logits) - targets * logits))

        slope, intercept = minimize(loss, [1.0, 0.0], bounds=[(0.0, None), (None, None)], method="L-BFGS-B").x
        return cls(float(slope), float(intercept))

    def __call__(self, scores: Array) -> Floats:
        return sigmoid(self.slope * _log_odds(scores) + self.intercept)


def _log_odds(scores: Array) -> Floats:
    inside = np.clip(scores, 1e-3, 1 - 1e-3)
    odds: Floats = np.log(inside / (1 - inside))
    return odds


def _higher(author: Array, other: Array) -> float:
    """The share of the questions on which the author's score is the higher; equal ones count as halves."""
    return float((author > other).mean() + (author == other).mean() / 2)


def _percent(share: float) -> int:
    return math.floor(100 * share + 0.5)
