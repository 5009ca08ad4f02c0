"""What refuses a review, all of it 409: the request is allowed, but not as things stand."""

from __future__ import annotations

from trainer.errors import RequestError


class ReviewFinal(RequestError):
    """Every pair of the evaluation has been reviewed."""

    status, code = 409, "review_final"


class ReviewTaken(RequestError):
    """The pair has all its choices, of other keys."""

    status, code = 409, "review_taken"


class ReviewsExist(RequestError):
    """The evaluation already has pairs to review."""

    status, code = 409, "reviews_exist"


class NothingToReview(RequestError):
    """The run has no answers of a candidate and a base to compare."""

    status, code = 409, "nothing_to_review"
