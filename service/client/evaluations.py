"""`client.evaluations`, `client.revalidations` and `client.reviews`: is a version better, still, and to people?"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal, TypeAlias

from service.client.adapters import REVALIDATING
from service.client.connection import LONG, Resource, given, path_of
from service.client.types.evaluations import Evaluation, EvaluationReport, StartedRevalidations
from service.client.types.reviews import NextReview, Review, ReviewQueue

Choice: TypeAlias = Literal["first", "second", "tie"]


class Evaluations(Resource):
    """`client.evaluations`. Needs a key with the scopes `train` and `infer`.

    Every method raises ClientError: `not_found` (404) for an evaluation that does not exist or is hidden from the key,
    `trainer_unavailable` (503) while the trainer is down.
    """

    def create(
        self,
        held_out: str,
        *,
        model: str | None = None,
        arms: Sequence[Mapping[str, Any]] | None = None,
        candidate: str | None = None,
        bases: Sequence[str] | None = None,
        metric: str | Mapping[str, Any] | None = None,
        suites: Sequence[str] | None = None,
        promote: Literal["auto", "never"] | None = None,
        judge: str | None = None,
        max_tokens: int | None = None,
        repeats: int | None = None,
        metadata: Mapping[str, str] | None = None,
    ) -> Evaluation:
        """Judge a version against the base model and the live version, or compare arms. Send ``model`` or ``arms``.

        Args:
            held_out: The id of an uploaded file, or a dataset (`support-heldout@2`), of examples not trained on.
            model: The version to judge, `brand-voice@3`.
            arms: Up to nine, each with `label` and `model`, optionally `prompt`, `grounding` and `endpoint`.
            candidate: With ``arms``: the label of the one to judge.
            bases: With ``candidate``: the labels of those to beat.
            metric: A metric's name, or an object of `name` and `pattern` or `schema`. None: chosen from the data.
            suites: What must not be forgotten. None: the general suite; empty: nothing.
            promote: `auto`: a version that passes goes live, which needs the scope `adapters`. None: `never`.
            judge: The name of a judge in the operator's settings.
            max_tokens: Longest answer, in tokens. None: twice the longest reference, and room for its form.
            repeats: How often each question is asked, 1 to 5.

        Raises:
            ClientError: `too_many_evaluations` (429).
        """
        body = given(
            {
                "model": model,
                "arms": arms,
                "held_out": held_out,
                "candidate": candidate,
                "bases": bases,
                "metric": metric,
                "suites": suites,
                "promote": promote,
                "judge": judge,
                "max_tokens": max_tokens,
                "repeats": repeats,
                "metadata": metadata,
            }
        )
        return self._connection.request(Evaluation, "POST", path_of("evaluations"), json=body, timeout=LONG)

    def list(self) -> Iterator[Evaluation]:
        """All evaluations, newest first."""
        return self._connection.pages(Evaluation, path_of("evaluations"))

    def retrieve(self, evaluation_id: str) -> Evaluation:
        """One evaluation."""
        return self._connection.request(Evaluation, "GET", path_of("evaluations", evaluation_id))

    def cancel(self, evaluation_id: str) -> Evaluation:
        """End an evaluation within seconds. Raises ClientError `invalid_state` (400)."""
        path = path_of("evaluations", evaluation_id, "cancel")
        return self._connection.request(Evaluation, "POST", path, timeout=LONG)

    def report(self, evaluation_id: str) -> EvaluationReport:
        """The report of an evaluation that has succeeded. Raises ClientError `not_finished` (409)."""
        path = path_of("evaluations", evaluation_id, "report")
        return self._connection.request(EvaluationReport, "GET", path, timeout=LONG)

    def report_html(self, evaluation_id: str) -> bytes:
        """The report as one HTML page that loads nothing else. Raises ClientError `not_finished` (409)."""
        path = path_of("evaluations", evaluation_id, "report.html")
        return self._connection.checked("GET", path, timeout=LONG).content


class Revalidations(Resource):
    """`client.revalidations`: versions judged again. Needs a key with the scopes `train`, `infer` and `adapters`."""

    def create(self, *, all_versions: bool = False) -> StartedRevalidations:
        """Run the latest evaluation of every due version of the project again, at most 100. Raises ClientError.

        Args:
            all_versions: Include versions that are not due.
        """
        return self._connection.request(
            StartedRevalidations, "POST", path_of("revalidations"), json={"all": all_versions}, timeout=REVALIDATING
        )


class Reviews(Resource):
    """`client.reviews`: pairs of answers that people choose between, blind. Needs a key with the scope `train`.

    Every method raises ClientError: `not_found` (404).
    """

    def create(self, evaluation: str, *, pairs: int | None = None, reviewers: int | None = None) -> ReviewQueue:
        """Have people compare the candidate's answers with the strongest base's, without a judge.

        Args:
            evaluation: The id of an evaluation or a job that has ended with a verdict and still has its answers.
            pairs: How many pairs to draw, 1 to 1,000. None: 50.
            reviewers: How many people, each with a key of their own, choose on every pair, 1 to 5. None: 1.

        Raises:
            ClientError: `not_finished`, `nothing_to_review` or `reviews_exist` (409).
        """
        body = given({"evaluation": evaluation, "pairs": pairs, "reviewers": reviewers})
        return self._connection.request(ReviewQueue, "POST", path_of("reviews"), json=body)

    def list(self) -> Iterator[ReviewQueue]:
        """The project's evaluations with pairs to review, newest first, with progress and outcome."""
        return self._connection.pages(ReviewQueue, path_of("reviews"))

    def next(self, evaluation: str | None = None, *, after: str | None = None) -> NextReview:
        """The next pair that needs a choice of this key; its `review` is None if there is none.

        Args:
            evaluation: The id of an evaluation or job. None: the newest one with pairs.
            after: The id of a pair; it and all before it are skipped.
        """
        params = given({"evaluation": evaluation, "after": after})
        return self._connection.request(NextReview, "GET", path_of("reviews", "next"), params=params)

    def end(self, evaluation: str) -> ReviewQueue:
        """Take no more choices on an evaluation's pairs: what people prefer is then shown of those made so far."""
        return self._connection.request(ReviewQueue, "POST", path_of("reviews", evaluation, "end"))

    def retrieve(self, review_id: str) -> Review:
        """One pair: blind until all pairs of its evaluation have a choice."""
        return self._connection.request(Review, "GET", path_of("reviews", review_id))

    def choose(self, review_id: str, choice: Choice) -> Review:
        """Say which answer is better.

        Raises ClientError `review_final` (409) once all pairs have their choices or the review was ended,
        `review_taken` (409) if several reviewers choose on each pair and others have made all choices on this one.
        """
        return self._connection.request(Review, "POST", path_of("reviews", review_id), json={"choice": choice})
