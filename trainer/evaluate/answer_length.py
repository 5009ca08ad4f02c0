"""Whether free-text answers go on to the end of the author's: a cut one has much in common with the whole one.

Three shares, none of which needs a model: the words, the words without repetition (a cut answer can be filled up), and
what the answers have of the second half of the author's words beside what they have of the first.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Final

import numpy as np

from trainer.evaluate.compare import Comparison
from trainer.evaluate.metrics.base import words
from trainer.evaluate.paired_difference import IntervalMethod
from trainer.evaluate.statistics.paired import Array, Units, as_array, interval, unit_means
from trainer.evaluate.verdict_text import State
from trainer.runs.protocol import Frozen

MIN_WORDS: Final = 0.7
"""Share of the author's words that the answers must have, on average."""
MIN_UNREPEATED: Final = 0.6
"""The same without repetition. Below MIN_WORDS: half an answer with filler has 0.52 to 0.56, and a sample voice that
often repeats itself has 0.7."""
MIN_SECOND_HALF: Final = 0.5
"""What the answers must have of the second half of the author's words, as a share of what they have of the first."""
COMMON: Final = 0.5
"""A word that more than this share of the author's answers have belongs to the language, a greeting or a signature, and
does not tell which half was answered."""
MIN_WITH_HALVES: Final = 0.5
"""Share of examples whose reference must have two words that are not COMMON; below, the halves say too little."""


class Share(Frozen):
    """A ratio of means with its interval, and the least that is needed."""

    estimate: float
    low: float
    high: float
    minimum: float

    @property
    def state(self) -> State:
        """Kept if the whole interval lies above the minimum, broken if none of it does."""
        return "kept" if self.low > self.minimum else "broken" if self.high <= self.minimum else "open"

    def __str__(self) -> str:
        return (
            f"{self.estimate:.0%} (interval {self.low:.0%} to {self.high:.0%}; at least {self.minimum:.0%} are needed)"
        )


class AnswerLength(Frozen):
    """How far the candidate's answers go.

    Attributes:
        words: Their words, as a share of the author's.
        unrepeated: Both without repetition: a word that follows the same word as before in its text is not counted.
        second_half: Of the author's words that are not COMMON, the share of the second half that they have over that of
            the first half; None if too few examples have such words, or if the answers have none of the first half.
    """

    words: Share
    unrepeated: Share
    second_half: Share | None

    def state(self, enough: bool) -> State:
        """Of the check: as the worst of the shares, and never broken without ``enough`` examples."""
        states = {share.state for share in (self.words, self.unrepeated, self.second_half) if share is not None}
        if "broken" in states and enough:
            return "broken"
        return "kept" if states == {"kept"} else "open"

    def sentence(self, state: State) -> str:
        """The result of the check in words."""
        text = f"Words of its answers, as a share of the author's: {self.words}; without repetition: {self.unrepeated}"
        if self.second_half is not None:
            text += f"; words of the author's second half, as a share of those of the first: {self.second_half}"
        if state == "kept":
            return f"{text}."
        if state == "open":
            return f"{text}. So it is undecided whether they are cut short."
        filled_up = self.words.state != "broken"
        return f"{text}. So they are cut short{' and filled up' if filled_up else ''}."


def answer_length(comparison: Comparison, candidate: str, method: IntervalMethod) -> AnswerLength | None:
    """How far the candidate's answers go; None if the references have no words."""
    references = [question.reference for question in comparison.questions]
    return length_of(comparison.result(candidate).answers, references, comparison.units, method)


def length_of(
    answers: Sequence[str], references: Sequence[str], units: Units | None, method: IntervalMethod
) -> AnswerLength | None:
    """How far answers go, one to each of the author's ``references``; None if these have no words."""
    given, authored = [words(answer) for answer in answers], [words(reference) for reference in references]
    total = _ratio(_counts(given, len), _counts(authored, len), MIN_WORDS, units, method)
    unrepeated = _ratio(_counts(given, _pairs), _counts(authored, _pairs), MIN_UNREPEATED, units, method)
    if total is None or unrepeated is None:
        return None
    return AnswerLength(words=total, unrepeated=unrepeated, second_half=_second_half(given, authored, units, method))


def _counts(texts: Sequence[Sequence[str]], count: Callable[[Sequence[str]], int]) -> Array:
    return as_array([count(text) for text in texts])


def _pairs(text: Sequence[str]) -> int:
    """The number of words, of which one that follows the same word as before counts once."""
    return len(set(zip([None, *text], text, strict=False)))


def _second_half(
    answers: Sequence[Sequence[str]], references: Sequence[Sequence[str]], units: Units | None, method: IntervalMethod
) -> Share | None:
    occurrences = Counter(word for reference in references for word in set(reference))
    telling = {word for word, count in occurrences.items() if count <= COMMON * len(references)}
    rows: list[tuple[float, float]] = []
    places: list[int] = []
    for place, (answer, reference) in enumerate(zip(answers, references, strict=True)):
        tells = [word for word in reference if word in telling]
        first, second = Counter(tells[: (len(tells) + 1) // 2]), Counter(tells[(len(tells) + 1) // 2 :])
        if second:
            rows.append((_part_of(first, answer), _part_of(second, answer)))
            places.append(place)
    if len(rows) < MIN_WITH_HALVES * len(references):
        return None
    of_first, of_second = np.array(rows, dtype=np.float64).T
    units = None if units is None else [units[place] for place in places]
    return _ratio(of_second, of_first, MIN_SECOND_HALF, units, method)


def _part_of(half: Counter[str], answer: Sequence[str]) -> float:
    """The share of these words that the answer has, each at most as often as it has it."""
    return (Counter(answer) & half).total() / half.total()


def _ratio(over: Array, under: Array, minimum: float, units: Units | None, method: IntervalMethod) -> Share | None:
    """The ratio of two means, each over the units; None if the second is zero.

    The interval is that of the mean of over - minimum * under in units of the second mean, which lies above zero where
    the ratio lies above the minimum (E. C. Fieller, JRSS B 16 (1954), 175-185).
    """
    over, under = unit_means(over, units), unit_means(under, units)
    mean = float(under.mean())
    if mean == 0:
        return None
    surplus = (over - minimum * under) / mean
    bounds = interval(surplus, confidence=method.confidence, binary=False, seed=method.seed, resamples=method.resamples)
    return Share(
        estimate=float(over.mean()) / mean, low=minimum + bounds.low, high=minimum + bounds.high, minimum=minimum
    )
