"""The pairs that a judge leaves for people to review, and how far people agree with the judge.

Separate from the judge itself, so that the trainer's API process, which stores the pairs, does not load statistics.
"""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence
from statistics import NormalDist
from typing import Final, Literal, Self

from trainer.evaluate.arms import ChatMessage
from trainer.evaluate.endpoints import JudgeSettings
from trainer.runs.protocol import Frozen

REVIEWS: Final = "reviews.jsonl"
"""In an evaluation's folder: the pairs for people to review, one `ReviewPair` per line."""
AGREEMENT: Final = "judge_standing.json"
"""In an evaluation's folder, written by the trainer: a `JudgeAgreement`."""
MIN_REVIEWS_TO_PLAN: Final = 30
"""With fewer reviews the estimates are too rough to say how many more would be enough."""
MAX_MORE_REVIEWS: Final = 1000
"""A larger number of reviews is not practical advice."""
PLANNED_POWER: Final = 0.8
"""How likely the planned number of reviews is to be enough if the estimates are true."""

Vote = Literal["candidate", "base", "tie"]
Side = Literal["candidate", "base"]
SCORES: Final[Mapping[Vote, float]] = {"candidate": 1.0, "tie": 0.5, "base": 0.0}


class JudgeAgreement(Frozen):
    """How far a judge (of one digest) and the people of one project agree, over ``pairs`` reviews.

    Attributes:
        kappa, low, high: Cohen's kappa with its interval; None without reviews, or if all votes are the same.
        observed: The share of pairs on which they agree.
        lean, lean_low, lean_high: How much more the judge favours the candidate than people do, with its interval: the
            mean difference of their scores, 1 for the candidate, 0.5 for a tie. None without reviews, and in records of
            earlier versions.
        confidence: Of both intervals, two-sided; earlier versions recorded 95% intervals of kappa.
    """

    digest: str
    pairs: int = 0
    kappa: float | None = None
    low: float | None = None
    high: float | None = None
    observed: float | None = None
    lean: float | None = None
    lean_low: float | None = None
    lean_high: float | None = None
    confidence: float = 0.95

    @classmethod
    def of_votes(cls, digest: str, votes: Sequence[tuple[Vote, Vote]]) -> Self:
        """The agreement over (judge's vote, reviewer's vote) of each reviewed pair."""
        if not votes:
            return cls(digest=digest)
        from trainer.evaluate.statistics import agreement as statistics  # imported late: pulls in their libraries

        judge, people = [vote for vote, _ in votes], [vote for _, vote in votes]
        result = statistics.agreement(judge, people)
        lean = statistics.lean([SCORES[vote] for vote in judge], [SCORES[vote] for vote in people])
        return cls(
            digest=digest,
            pairs=result.pairs,
            kappa=result.kappa,
            low=result.low,
            high=result.high,
            observed=result.observed,
            lean=lean.estimate,
            lean_low=lean.low,
            lean_high=lean.high,
            confidence=statistics.CONFIDENCE,
        )

    def counts(self, judge: JudgeSettings) -> bool:
        """Whether the agreement meets the judge's settings, so that its votes count.

        The bounds decide, not the estimates: kappa is shown to reach ``least_kappa``, and a lean towards the candidate
        of ``max_lean`` is excluded. A lean towards the base does not stop a judge from counting: it never makes a
        candidate pass, and the verdict allows for it (`paired_difference.allow_for_lean`).
        """
        return (
            self.digest == judge.digest
            and self.pairs >= judge.least_reviews
            and self.kappa is not None
            and self.low is not None
            and self.low >= judge.least_kappa
            and self.lean_high is not None
            and self.lean_high < judge.max_lean
        )

    def more_reviews(self, judge: JudgeSettings) -> int | None:
        """Further reviews that would be enough, with a probability of PLANNED_POWER, if the estimates are true.

        0 if the judge counts; None if an estimate is on the wrong side of its threshold, if more than MAX_MORE_REVIEWS
        would be needed, or if there is no estimate. The intervals' widths are taken to shrink with the root of the
        number of reviews.
        """
        if self.counts(judge):
            return 0
        if self.digest != judge.digest:
            return judge.least_reviews
        if self.pairs < MIN_REVIEWS_TO_PLAN:
            return judge.least_reviews - self.pairs
        if self.kappa is None or self.low is None or self.lean is None or self.lean_high is None:
            return None
        needed = max(
            judge.least_reviews,
            self._reviews_needed(self.kappa - self.low, self.kappa - judge.least_kappa),
            self._reviews_needed(self.lean_high - self.lean, judge.max_lean - self.lean),
        )
        return max(1, math.ceil(needed) - self.pairs) if needed - self.pairs <= MAX_MORE_REVIEWS else None

    def _reviews_needed(self, half_width: float, distance: float) -> float:
        """Reviews with which an interval ends before a threshold at that distance from the estimate."""
        if distance <= 0:
            return math.inf
        power = NormalDist().inv_cdf(PLANNED_POWER) / NormalDist().inv_cdf((1 + self.confidence) / 2)
        return self.pairs * (half_width * (1 + power) / distance) ** 2

    def sentence(self, name: str, judge: JudgeSettings) -> str:
        """Why the judge counts, or why not, with the numbers, and how many more reviews would be enough."""
        uncounted = f"The judge {name} is not counted:"
        reviewed = self._reviewed(judge)
        if reviewed < judge.least_reviews:
            too_few = self._too_few(name, judge)
            if reviewed < MIN_REVIEWS_TO_PLAN or self.kappa is None or self.lean is None:
                return too_few
            return f"{too_few} So far {self._numbers(judge)}.{self._outlook(judge)}"
        if self.kappa is None:
            return (
                f"{uncounted} on all {self.pairs} pairs it and people gave the same vote, so that their agreement "
                "cannot be measured."
            )
        if self.lean is None:
            return (
                f"{uncounted} this record of its agreement was made by an earlier version, which did not measure "
                "whether it leans towards the candidate. The next evaluation measures it on the same reviews."
            )
        numbers = self._numbers(judge)
        if self.counts(judge):
            return f"The judge {name} counts: {numbers}.{self._base_lean()}"
        doubts = " and ".join(self._doubts(judge))
        return f"{uncounted} {doubts}: {numbers}.{self._base_lean()}{self._outlook(judge)}"

    def blind_sentence(self, name: str, judge: JudgeSettings) -> str:
        """The same while people still choose: the lean says what they prefer to whoever knows the judge's votes."""
        if self._reviewed(judge) < judge.least_reviews:
            return self._too_few(name, judge)
        counts = "counts" if self.counts(judge) else "is not counted"
        return (
            f"The judge {name} {counts}, on {self.pairs} pairs so far; why, and how far it leans, is shown once every "
            "pair has its choices or the review was ended."
        )

    def without_lean(self) -> Self:
        """What may be shown while people still choose."""
        return self.model_copy(update={"lean": None, "lean_low": None, "lean_high": None})

    def _reviewed(self, judge: JudgeSettings) -> int:
        return self.pairs if self.digest == judge.digest else 0

    def _too_few(self, name: str, judge: JudgeSettings) -> str:
        return (
            f"The judge {name} is not counted: people have looked at {self._reviewed(judge)} of its votes, and "
            f"{judge.least_reviews} are needed (`hatrack review`)."
        )

    def _doubts(self, judge: JudgeSettings) -> list[str]:
        """What keeps the judge from counting if there are enough reviews."""
        doubts = []
        if self.low is None or self.low < judge.least_kappa:
            doubts.append("it is not shown to agree with people enough")
        if self.lean_high is None or self.lean_high >= judge.max_lean:
            shown = self.lean_low is not None and self.lean_low > 0
            doubts.append(
                "it leans towards the candidate" if shown else "a lean towards the candidate is not ruled out"
            )
        return doubts

    def _numbers(self, judge: JudgeSettings) -> str:
        percent = f"{100 * self.confidence:.0f}%"
        kappa = (
            f"on {self.pairs} pairs its agreement with people is κ = {self.kappa:.2f} ({percent} interval "
            f"{self.low:.2f} to {self.high:.2f}; the lower end must be at least {judge.least_kappa:.2f})"
        )
        if self.lean is None or self.lean_low is None or self.lean_high is None:
            return kappa
        return (
            f"{kappa}, and it gives the candidate {points_of(abs(self.lean))} points of 100 "
            f"{'fewer' if self.lean < 0 else 'more'} than people do ({percent} interval {points_of(self.lean_low)} to "
            f"{points_of(self.lean_high)}; the upper end must be below {points_of(judge.max_lean)})"
        )

    def _base_lean(self) -> str:
        if self.lean_high is None or self.lean_high >= 0:
            return ""
        return (
            " It leans towards the base: a preference for the base that this could explain does not fail a candidate."
        )

    def _outlook(self, judge: JudgeSettings) -> str:
        more = self.more_reviews(judge)
        if more is None:
            return " No practical number of reviews would be enough if these estimates are true."
        return f" About {more} more reviews would be enough if these estimates are true."


def points_of(share: float) -> str:
    """A share in hundredths, with one decimal and a true minus sign."""
    text = f"{100 * share:.1f}".removesuffix(".0")
    return "0" if text == "-0" else text.replace("-", "−")


class ReviewPair(Frozen):
    """A pair to review. ``first_is``: whose answer is shown first; ``vote``: the judge's. Reviewers see neither.

    ``judge``, ``digest``: empty without a judge, and ``vote`` is None. ``unit``: the number of the question's
    independent unit, if several questions share one.
    """

    judge: str = ""
    digest: str = ""
    example: str
    turns: tuple[ChatMessage, ...]
    reference: str
    first: str
    second: str
    first_is: Side
    vote: Vote | None = None
    candidate: str
    base: str
    unit: int | None = None


def draw_pairs(reviewable: Sequence[int], count: int, seed: str) -> list[tuple[int, Side]]:
    """A random sample of up to ``count`` of these indices, and of each whose answer is shown first.

    The same for the same arguments, so that a run that is repeated after a crash draws the same pairs.
    """
    rng = random.Random(seed)  # noqa: S311 - no secret
    indices = rng.sample(reviewable, min(count, len(reviewable)))
    return [(index, "candidate" if rng.random() < 0.5 else "base") for index in indices]
