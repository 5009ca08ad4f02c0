"""What people are asked and what they said: pairs come from an evaluation's folder, a judge's standing goes into it."""

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
from trainer.errors import Missing, ReviewFinal
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
        database: Where their records are.
        outside: The operator's judges.
    """

    def __init__(self, database: Database, outside: OperatorEndpoints) -> None:
        self._database = database
        self._outside = outside

    # for whoever runs evaluations

    async def prepare(self, project: str, judge: str | None, folder: Path) -> None:
        """Leave the judge's standing in an evaluation's folder, before its worker starts; nothing where it has none.

        A judge that the settings do not name any more is the worker's to refuse.
        """
        known = None if judge is None else self._outside.judges.get(judge)
        if known is not None:
            standing = await self.standing(project, known)
            await asyncio.to_thread(_replace, folder / AGREEMENT, standing.model_dump_json())

    async def take(self, project: str, evaluation: str, folder: Path, adapters: Collection[str] = ()) -> int:
        """Take in the pairs that an evaluation has left in its folder; how many there are. Once: again it does nothing.

        Args:
            project: Whose evaluation it is.
            evaluation: Its id, or the job's.
            folder: Its folder.
            adapters: The names of those that are compared: keys that may not use one of them do not see the pairs.
        """
        found = await asyncio.to_thread(_read_pairs, folder / REVIEWS)
        if found:
            await self._database.run(
                partial(records.add, project=project, evaluation=evaluation, found=found, adapters=adapters)
            )
        return len(found)

    async def standing(self, project: str, judge: JudgeSettings) -> JudgeAgreement:
        """How far a judge and the project's people have agreed so far, over all evaluations."""
        found = await self._database.run(partial(records.votes, project=project, digest=judge.digest))
        return _standing(judge.digest, found)

    # for people

    async def following(self, caller: CurrentCaller, *, evaluation: str | None, after: str | None) -> dict[str, Any]:
        """The next pair to look at, blind. Raises Missing: there is no such evaluation or review."""

        def work(db: sa.Connection) -> dict[str, Any]:
            skipped = None if after is None else _find(db, caller, after)
            counted = None if evaluation is None else _queue(db, caller, evaluation)
            behind = 0 if skipped is None else skipped.number
            found = records.following(db, caller.project, evaluation=evaluation, after=behind, globs=caller.adapters)
            if found is not None and counted is None:
                counted = _queue(db, caller, found.evaluation)
            return {
                "object": "review.next",
                "review": None if found is None else blind(found),
                "evaluation": None if counted is None else counted.evaluation,
                "reviewed": 0 if counted is None else counted.reviewed,
                "total": 0 if counted is None else counted.pairs,
            }

        return await self._database.run(work)

    async def get(self, caller: CurrentCaller, review_id: str) -> dict[str, Any]:
        """One pair: blind until its evaluation's are all looked at. Raises Missing."""

        def work(db: sa.Connection) -> dict[str, Any]:
            found = _find(db, caller, review_id)
            return opened(found) if _queue(db, caller, found.evaluation).final else blind(found)

        return await self._database.run(work)

    async def choose(self, caller: CurrentCaller, review_id: str, choice: Choice) -> dict[str, Any]:
        """Say which answer is better; it may be said otherwise until all of the evaluation's pairs are looked at.

        Raises:
            Missing: There is no such pair.
            ReviewFinal: They are.
        """

        def work(db: sa.Connection) -> dict[str, Any]:
            found = _find(db, caller, review_id)
            if found.choice == choice:
                return blind(found)
            if _queue(db, caller, found.evaluation).final:
                raise ReviewFinal(
                    f"every pair of {found.evaluation} has been looked at: its agreement stands and no choice changes"
                )
            return blind(records.choose(db, review_id, choice, caller.key_id))

        return await self._database.run(work)

    async def page(self, caller: CurrentCaller, *, after: str | None, limit: int) -> dict[str, Any]:
        """The project's evaluations with pairs, newest first: how far people are, and how far they agree."""

        def work(db: sa.Connection) -> dict[str, Any]:
            before = None if after is None else _queue(db, caller, after).number
            found = records.page(db, caller.project, before=before, limit=limit + 1, globs=caller.adapters)
            rows = [
                self._summary(
                    each,
                    _standing(each.digest, records.votes(db, caller.project, evaluation=each.evaluation)),
                    _standing(each.digest, records.votes(db, caller.project, digest=each.digest)),
                )
                for each in found[:limit]
            ]
            return list_object(rows, len(found) > limit)

        return await self._database.run(work)

    def _summary(self, queue: Queue, here: JudgeAgreement, overall: JudgeAgreement) -> dict[str, Any]:
        """``agreement`` is over this evaluation's pairs, ``standing`` over all that its judge was checked by."""
        judge = self._outside.judges.get(queue.judge)
        known = judge is not None and judge.digest == queue.digest
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
            "counted": judge is not None and known and overall.counts(judge),
            "sentence": overall.sentence(queue.judge, judge)
            if judge is not None and known
            else f"The settings name no judge {queue.judge} with this model and rubric any more.",
        }


def blind(review: Review) -> dict[str, Any]:
    """A pair as people see it: nothing says whose answer is which, or what the judge has said."""
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


def opened(review: Review) -> dict[str, Any]:
    """The same, once nothing can change any more."""
    return blind(review) | {"first_is": review.first_is, "judge_vote": review.vote, "vote": review.preferred}


def _standing(digest: str, votes: list[tuple[Any, Any]]) -> JudgeAgreement:
    if not votes:
        return JudgeAgreement(digest=digest)
    from trainer.evaluate.statistics.agreement import agreement  # statistics: nobody else here has use for them

    found = agreement([judge for judge, _ in votes], [person for _, person in votes])
    return JudgeAgreement(
        digest=digest,
        pairs=found.pairs,
        kappa=found.kappa,
        low=found.low,
        high=found.high,
        observed=found.observed,
    )


def _find(db: sa.Connection, caller: CurrentCaller, review_id: str) -> Review:
    found = records.find(db, caller.project, review_id, caller.adapters)
    if found is None:
        raise Missing(f"there is no review {review_id[:64]!r}", code="review_not_found")
    return found


def _queue(db: sa.Connection, caller: CurrentCaller, evaluation: str) -> Queue:
    found = records.queue(db, caller.project, evaluation, caller.adapters)
    if found is None:
        raise Missing(f"there are no reviews of {evaluation[:64]!r}", code="reviews_not_found", param="evaluation")
    return found


def _read_pairs(path: Path) -> list[ReviewPair]:
    try:
        return [_PAIR.validate_json(line) for line in path.read_bytes().splitlines()]
    except FileNotFoundError:
        return []
    except (OSError, ValueError, ValidationError):
        _LOG.exception("the pairs of %s cannot be read", path)
        return []


def _replace(path: Path, content: str) -> None:
    partial = path.with_name(f".{path.name}")
    partial.write_text(content, "utf-8")
    partial.replace(path)
