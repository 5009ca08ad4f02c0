"""People's blind choices between two answers, and what came of them."""

from typing import Literal, NotRequired, TypedDict


class Agreement(TypedDict):
    """Agreement between a judge and people."""

    pairs: int
    kappa: float | None
    """Cohen's kappa."""
    low: float | None
    high: float | None
    observed: float | None
    """Share of pairs on which they agree."""
    lean: NotRequired[float | None]
    """How much more the judge favours the candidate than people do, from -1 to 1; 0.1: 10 points of 100."""
    lean_low: NotRequired[float | None]
    lean_high: NotRequired[float | None]
    confidence: NotRequired[float]
    """Of both intervals, two-sided."""


class HumanPreference(TypedDict):
    """Which answers people preferred, blind, on all pairs of an evaluation. It decides nothing in a verdict."""

    of: str
    """The candidate's arm; `against`: the base's strongest."""
    against: str
    pairs: int
    reviewers: int
    candidate: int
    """Choices for the candidate's answer, for neither (`tie`) and for the base's."""
    tie: int
    base: int
    mean: float
    """1 for the candidate, 0.5 for a tie, 0 for the base, over independent questions; 0.5: even."""
    low: float
    high: float
    confidence: NotRequired[float]
    """Of both intervals, two-sided."""
    differing: NotRequired[int | None]
    """Questions with different answers, from which the pairs are drawn; `alike`: those with the same answer twice."""
    alike: NotRequired[int | None]
    agreed: NotRequired[float | None]
    """How often two reviewers of a pair chose the same; None with one reviewer, or if no pair has all its choices."""
    kappa: NotRequired[float | None]
    """Fleiss' kappa; None with one reviewer, or if all chose the same."""
    kappa_low: NotRequired[float | None]
    kappa_high: NotRequired[float | None]
    sentence: str


class ReviewQueue(TypedDict):
    """The pairs of an evaluation for people to review."""

    object: Literal["review.queue"]
    id: str
    """Id of the evaluation or job."""
    judge: str | None
    """The judge that people's choices validate; None if there is none."""
    created_at: int
    pairs: int
    reviewed: int
    """Pairs that have all their choices."""
    reviewers: NotRequired[int]
    """Choices on each pair, each by another key."""
    final: bool
    """Every pair is reviewed, or the review was ended; choices can no longer change."""
    ended_at: NotRequired[int | None]
    """When it was ended before all were reviewed; None: it was not."""
    agreement: Agreement | None
    """Of the judge with people; None without a judge."""
    standing: Agreement | None
    """Over all evaluations of the project."""
    counted: bool
    people: NotRequired[HumanPreference | None]
    """What people preferred; None until it is final."""
    more_reviews: NotRequired[int | None]
    """Further reviews that would make the judge count if the estimates are true; None if unknown."""
    sentence: str


class ReviewTurn(TypedDict):
    """A message of the conversation."""

    role: str
    content: str


class Review(TypedDict):
    """A pair of answers to choose between. Whose they are is revealed once all pairs are reviewed."""

    object: Literal["review"]
    id: str
    evaluation: str
    asked: list[ReviewTurn]
    reference: str | None
    first: str
    second: str
    choice: Literal["first", "second", "tie"] | None
    chosen_at: int | None
    first_is: NotRequired[Literal["candidate", "base"] | None]
    judge_vote: NotRequired[Literal["candidate", "base", "tie"] | None]
    vote: NotRequired[Literal["candidate", "base", "tie"] | None]
    """The person's vote."""


class NextReview(TypedDict):
    """The next pair to review."""

    object: Literal["review.next"]
    review: Review | None
    """None if no pair is left."""
    evaluation: str | None
    reviewed: int
    total: int
