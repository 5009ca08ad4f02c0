"""What a judge and people have to do with each other: pairs that are left for people, and how far both agree.

Apart from the judge itself, so that the trainer's own process, which keeps the pairs, loads no statistics.
"""

from __future__ import annotations

from typing import Final, Literal

from trainer.evaluate.arms import ChatMessage, Frozen
from trainer.evaluate.endpoints import JudgeSettings

REVIEWS: Final = "reviews.jsonl"
"""In an evaluation's folder: the pairs for people, a `ReviewPair` a line."""
AGREEMENT: Final = "judge_standing.json"
"""There, from the trainer: how far this judge and people have agreed so far, a `JudgeAgreement`."""

Vote = Literal["candidate", "base", "tie"]


class JudgeAgreement(Frozen):
    """How far a judge (of one digest) and the people of one project agree."""

    digest: str
    pairs: int = 0
    kappa: float | None = None
    low: float | None = None
    high: float | None = None
    observed: float | None = None

    def counts(self, judge: JudgeSettings) -> bool:
        """Whether that is enough for the judge's word to count."""
        return (
            self.digest == judge.digest
            and self.pairs >= judge.least_reviews
            and self.kappa is not None
            and self.kappa >= judge.least_kappa
        )

    def sentence(self, name: str, judge: JudgeSettings) -> str:
        """Why it counts or why not."""
        if self.digest != judge.digest or self.pairs < judge.least_reviews:
            seen = self.pairs if self.digest == judge.digest else 0
            return (
                f"The judge {name} is not counted: people have looked at {seen} of its votes, and "
                f"{judge.least_reviews} are needed (`hatrack review`)."
            )
        if self.kappa is None:
            return f"The judge {name} is not counted: on {self.pairs} pairs it and people always said one same thing."
        agreed = f"on {self.pairs} pairs its agreement with people is κ = {self.kappa:.2f}"
        if self.low is not None and self.high is not None:
            agreed += f" (interval {self.low:.2f} to {self.high:.2f})"
        if self.kappa < judge.least_kappa:
            return f"The judge {name} is not counted: {agreed}, below {judge.least_kappa:.2f}."
        return f"The judge {name} counts: {agreed}, at least {judge.least_kappa:.2f}."


class ReviewPair(Frozen):
    """A pair for people. ``first_is``: whose answer is shown first; ``vote``: the judge's. Neither is ever shown."""

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
