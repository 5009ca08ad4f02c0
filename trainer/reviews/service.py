"""Human reviews: imports pairs from an evaluation's directory, and writes the judge's agreement with people into it."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Collection
from functools import partial
from pathlib import Path
from typing import Any, Final

import sqlalchemy as sa
from pydantic import TypeAdapter, ValidationError

from trainer.database import Database
from trainer.errors import NotFound, ReviewFinal
from trainer.evaluate.endpoints import JudgeSettings, OperatorEndpoints
from trainer.evaluate.pairs import AGREEMENT, REVIEWS, JudgeAgreement, ReviewPair
from trainer.http import CurrentCaller, list_object
from trainer.reviews import records
from trainer.reviews.records import Choice, Queue, Review

_PAIR: Final = TypeAdapter(ReviewPair)
_LOG = logging.getLogger("hatrack.trainer.reviews")


class Reviews:
    """The reviews of all projects.

    Args:
        database: Stores the reviews.
        endpoints: The operator's judges.
    """

    def __init__(self, database: Database, endpoints: OperatorEndpoints) -> None:
        self._database = database
        self._endpoints = endpoints

    # used by the services that run evaluations

    async def prepare(self, project: str, judge: str | None, folder: Path) -> None:
        """Write the judge's agreement into an evaluation's directory before its worker starts, if it has a judge.

        A judge that is no longer in the settings is skipped; the worker refuses it.
        """
        settings = None if judge is None else self._endpoints.judges.get(judge)
        if settings is not None:
            standing = await self.standing(project, settings)
            await asyncio.to_thread(_replace, folder / AGREEMENT, standing.model_dump_json())

    async def take(self, project: str, evaluation: str, folder: Path, adapters: Collection[str] = ()) -> int:
        """Import the pairs that an evaluation wrote; returns their number. Repeated calls change nothing.

        Args:
            project: The evaluation's project.
            evaluation: Id of the evaluation or the job.
            folder: Its directory.
            adapters: Names of the compared adapters; keys that may not use all of them do not see the pairs.
        """
        review_pairs = await asyncio.to_thread(_read_pairs, folder / REVIEWS)
        if review_pairs:
            await self._database.run(
                partial(
                    records.add, project=project, evaluation=evaluation, review_pairs=review_pairs, adapters=adapters
                )
            )
        return len(review_pairs)

    async def standing(self, project: str, judge: JudgeSettings) -> JudgeAgreement:
        """The agreement between a judge and the project's reviewers so far, over all evaluations."""
        votes = await self._database.run(partial(records.votes, project=project, digest=judge.digest))
        return JudgeAgreement.of_votes(judge.digest, votes)

    # used by the routes

    async def following(self, caller: CurrentCaller, *, evaluation: str | None, after: str | None) -> dict[str, Any]:
        """The next pair to review, blind. Raises NotFound if the evaluation or review does not exist."""

        def work(db: sa.Connection) -> dict[str, Any]:
            number = 0 if after is None else _find(db, caller, after).number
            queue = None if evaluation is None else _queue(db, caller, evaluation)
            review = records.following(db, caller.project, evaluation=evaluation, after=number, globs=caller.adapters)
            if review is not None and queue is None:
                queue = _queue(db, caller, review.evaluation)
            return {
                "object": "review.next",
                "review": None if review is None else blind(review),
                "evaluation": None if queue is None else queue.evaluation,
                "reviewed": 0 if queue is None else queue.reviewed,
                "total": 0 if queue is None else queue.pairs,
            }

        return await self._database.run(work)

    async def get(self, caller: CurrentCaller, review_id: str) -> dict[str, Any]:
        """One pair, blind until all of its evaluation's pairs have been reviewed. Raises NotFound."""

        def work(db: sa.Connection) -> dict[str, Any]:
            review = _find(db, caller, review_id)
            return unblinded(review) if _queue(db, caller, review.evaluation).final else blind(review)

        return await self._database.run(work)

    async def choose(self, caller: CurrentCaller, review_id: str, choice: Choice) -> dict[str, Any]:
        """Choose the better answer; may be changed until all of the evaluation's pairs have been reviewed.

        Raises:
            NotFound: The pair does not exist.
            ReviewFinal: All pairs have been reviewed.
        """

        def work(db: sa.Connection) -> dict[str, Any]:
            review = _find(db, caller, review_id)
            if review.choice == choice:
                return blind(review)
            if _queue(db, caller, review.evaluation).final:
                raise ReviewFinal(
                    f"every pair of {review.evaluation} has been reviewed; its choices can no longer change"
                )
            return blind(records.choose(db, review_id, choice, caller.key_id))

        return await self._database.run(work)

    async def page(self, caller: CurrentCaller, *, after: str | None, limit: int) -> dict[str, Any]:
        """The project's evaluations with pairs, newest first, with the progress and agreement of the reviews."""

        def work(db: sa.Connection) -> dict[str, Any]:
            before = None if after is None else _queue(db, caller, after).number
            queues = records.page(db, caller.project, before=before, limit=limit + 1, globs=caller.adapters)
            rows = [
                self._summary(
                    queue,
                    JudgeAgreement.of_votes(
                        queue.digest, records.votes(db, caller.project, evaluation=queue.evaluation)
                    ),
                    JudgeAgreement.of_votes(queue.digest, records.votes(db, caller.project, digest=queue.digest)),
                )
                for queue in queues[:limit]
            ]
            return list_object(rows, len(queues) > limit)

        return await self._database.run(work)

    def _summary(self, queue: Queue, here: JudgeAgreement, overall: JudgeAgreement) -> dict[str, Any]:
        """``agreement`` covers this evaluation's pairs; ``standing`` covers all reviewed pairs of its judge."""
        judge = self._endpoints.judges.get(queue.judge)
        is_current = judge is not None and judge.digest == queue.digest
        return {
            "object": "review.queue",
            "id": queue.evaluation,
            "judge": queue.judge,
            "created_at": queue.created_at,
            "pairs": queue.pairs,
            "reviewed": queue.reviewed,
            "final": queue.final,
            "agreement": here.model_dump(exclude={"digest"}),
            "standing": overall.model_dump(exclude={"digest"}),
            "counted": judge is not None and is_current and overall.counts(judge),
            "more_reviews": overall.more_reviews(judge) if judge is not None and is_current else None,
            "sentence": overall.sentence(queue.judge, judge)
            if judge is not None and is_current
            else f"The settings no longer contain the judge {queue.judge} with this model and rubric.",
        }


def blind(review: Review) -> dict[str, Any]:
    """A pair as reviewers see it, without the arms' positions and the judge's vote."""
    return {
        "object": "review",
        "id": review.id,
        "evaluation": review.evaluation,
        "asked": list(review.turns),
        "reference": review.reference or None,
        "first": review.first,
        "second": review.second,
        "choice": review.choice,
        "chosen_at": review.chosen_at,
    }


def unblinded(review: Review) -> dict[str, Any]:
    """A pair with the arms' positions and the votes, for a queue that is final."""
    return blind(review) | {"first_is": review.first_is, "judge_vote": review.vote, "vote": review.preferred}


def _find(db: sa.Connection, caller: CurrentCaller, review_id: str) -> Review:
    review = records.find(db, caller.project, review_id, caller.adapters)
    if review is None:
        raise NotFound(f"no such review: {review_id[:64]!r}", code="review_not_found")
    return review


def _queue(db: sa.Connection, caller: CurrentCaller, evaluation: str) -> Queue:
    queue = records.queue(db, caller.project, evaluation, caller.adapters)
    if queue is None:
        raise NotFound(
            f"no reviews of the evaluation {evaluation[:64]!r}", code="reviews_not_found", param="evaluation"
        )
    return queue


def _read_pairs(path: Path) -> list[ReviewPair]:
    try:
        return [_PAIR.validate_json(line) for line in path.read_bytes().splitlines()]
    except FileNotFoundError:
        return []
    except (OSError, ValueError, ValidationError):
        _LOG.exception("cannot read review pairs from %s", path)
        return []


def _replace(path: Path, content: str) -> None:
    partial = path.with_name(f".{path.name}")
    partial.write_text(content, "utf-8")
    partial.replace(path)
