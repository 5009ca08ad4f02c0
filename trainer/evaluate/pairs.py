"""The pairs that a judge leaves for people to review, and how far people agree with the judge.

Separate from the judge itself, so that the trainer's API process, which stores the pairs, does not load statistics.
"""

from __future__ import annotations

from typing import Final, Literal

from trainer.evaluate.arms import ChatMessage, Frozen
from trainer.evaluate.endpoints import JudgeSettings

REVIEWS: Final = "reviews.jsonl"
"""In an evaluation's folder: the pairs for people to review, one `ReviewPair` per line."""
AGREEMENT: Final = "judge_standing.json"
"""In an evaluation's folder, written by the trainer: a `JudgeAgreement`."""

Vote = Literal["candidate", "base", "tie"]


class JudgeAgreement(Frozen):
    """How far a judge (of one digest) and the people of one project agree: Cohen's kappa over ``pairs`` reviews."""

    digest: str
    pairs: int = 0
    kappa: float | None = None
    low: float | None = None
    high: float | None = None
    observed: float | None = None

    def counts(self, judge: JudgeSettings) -> bool:
        """Whether the agreement meets the judge's settings, so that its votes count."""
        return (
            self.digest == judge.digest
            and self.pairs >= judge.least_reviews
            and self.kappa is not None
            and self.kappa >= judge.least_kappa
        )

    def sentence(self, name: str, judge: JudgeSettings) -> str:
        """Why the judge counts, or why not."""
        if self.digest != judge.digest or self.pairs < judge.least_reviews:
            reviewed = self.pairs if self.digest == judge.digest else 0
            return (
                f"The judge {name} is not counted: people have looked at {reviewed} of its votes, and "
                f"{judge.least_reviews} are needed (`hatrack review`)."
            )
        if self.kappa is None:
            return (
                f"The judge {name} is not counted: on all {self.pairs} pairs it and people gave the same vote, "
                "so that their agreement cannot be measured."
            )
        agreement = f"on {self.pairs} pairs its agreement with people is κ = {self.kappa:.2f}"
        if self.low is not None and self.high is not None:
            agreement += f" (interval {self.low:.2f} to {self.high:.2f})"
        if self.kappa < judge.least_kappa:
            return f"The judge {name} is not counted: {agreement}, below {judge.least_kappa:.2f}."
        return f"The judge {name} counts: {agreement}, at least {judge.least_kappa:.2f}."


class ReviewPair(Frozen):
    """A pair to review. ``first_is``: whose answer is shown first; ``vote``: the judge's. Reviewers see neither."""

    judge: str
    digest: str
    example: str
    turns: tuple[ChatMessage, ...]
    reference: str
    first: str
    second: str
    first_is: Literal["candidate", "base"]
    vote: Vote
    candidate: str
    base: str
