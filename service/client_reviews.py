"""The client's calls for people's reviews of answers; they need a key with the scope `train`."""

from __future__ import annotations

from typing import Final, Literal
from urllib.parse import quote

from service.client_caller import Caller
from service.client_wire import JsonObject

REVIEWS: Final = "/v1/reviews"
Choice = Literal["first", "second", "tie"]


class ReviewCalls(Caller):
    """What ``HatrackClient`` can do with reviews; every method raises ClientError."""

    def reviews(self) -> list[JsonObject]:
        """The project's evaluations with pairs to look at, newest first, 100 at most: counts and agreement."""
        found: list[JsonObject] = self._object("GET", REVIEWS, params={"limit": 100}).get("data", [])
        return found

    def next_review(self, evaluation: str | None = None, after: str | None = None) -> JsonObject:
        """The next pair that nobody has looked at: `review` (null where there is none), `reviewed`, `total`.

        Args:
            evaluation: Of this one; None: of the newest that has any.
            after: The id of a pair that is skipped, with all before it.
        """
        wanted = {"evaluation": evaluation, "after": after}
        params = {name: value for name, value in wanted.items() if value is not None}
        return self._object("GET", f"{REVIEWS}/next", params=params)

    def review(self, review_id: str) -> JsonObject:
        """One pair: blind until all of its evaluation's have been looked at."""
        return self._object("GET", f"{REVIEWS}/{quote(review_id, safe='')}")

    def choose(self, review_id: str, choice: Choice) -> JsonObject:
        """Say which answer is better."""
        return self._object("POST", f"{REVIEWS}/{quote(review_id, safe='')}", json={"choice": choice})
