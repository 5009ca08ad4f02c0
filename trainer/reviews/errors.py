"""What refuses a review, all of it 409: the request is allowed, but not as things stand."""

from __future__ import annotations

from trainer.errors import RequestError


class ReviewConflict(RequestError):
    """Base class."""

    status = 409


class ReviewFinal(ReviewConflict):
    """Every pair of the evaluation has been reviewed."""

    code = "review_final"


class ReviewTaken(ReviewConflict):
    """The pair has all its choices, of other keys."""

    code = "review_taken"


class ReviewsExist(ReviewConflict):
    """The evaluation already has pairs to review."""

    code = "reviews_exist"


class NothingToReview(ReviewConflict):
    """The run has no answers of a candidate and a base to compare."""

    code = "nothing_to_review"
