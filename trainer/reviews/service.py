"""Human reviews: imports pairs from an evaluation's directory, and writes the judge's agreement with people into it."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final

import sqlalchemy as sa
from pydantic import TypeAdapter, ValidationError

from adapters.authorization import Ownership
from adapters.protocol.reports import HumanPreference
from adapters.protocol.requests import ReviewQueueBody
from trainer.database import Database
from trainer.errors import NotFinished, NotFound
from trainer.evaluate.endpoints import JudgeSettings, OperatorEndpoints
from trainer.evaluate.pairs import AGREEMENT, REVIEWS, JudgeAgreement, ReviewPair, Vote
from trainer.http import CurrentCaller, list_object
from trainer.reviews import records
from trainer.reviews.errors import ReviewFinal, ReviewsExist, ReviewTaken
from trainer.reviews.outcome import human_preference
from trainer.reviews.records import Choice, PairChoices, Queue, Review
from trainer.reviews.stored_answers import draw_from
from trainer.runs import records as run_records
from trainer.runs.directories import RunDirectories
from trainer.runs.state import Run

_PAIR: Final = TypeAdapter(ReviewPair)
_LOG = logging.getLogger("hatrack.trainer.reviews")


class Reviews:
    """The reviews of all projects.

    Args:
        database: Stores the reviews.
        endpoints: The operator's judges.
        directories: Of the kinds of runs whose answers people may review, by the kind's name.
    """

    def __init__(
        self, database: Database, endpoints: OperatorEndpoints, directories: Mapping[str, RunDirectories]
    ) -> None:
        self._database = database
        self._endpoints = endpoints
        self._directories = directories

    # used by the services that run evaluations

    async def prepare(self, project: str, judge: str | None, folder: Path) -> None:
        """Write the judge's agreement into an evaluation's directory before its worker starts, if it has a judge.

        A judge that is no longer in the settings is skipped; the worker refuses it.
        """
        settings = None if judge is None else self._endpoints.judges.get(judge)
        if settings is not None:
            standing = await self.standing(project, settings)
            await asyncio.to_thread(_replace, folder / AGREEMENT, standing.model_dump_json())

    async def take(self, owned: Ownership, evaluation: str, folder: Path) -> int:
        """Import the pairs that an evaluation wrote; returns their number. Repeated calls change nothing.

        Args:
            owned: What decides who may see the evaluation, and so the pairs.
            evaluation: Id of the evaluation or the job.
            folder: Its directory.
        """
        review_pairs = await asyncio.to_thread(_read_pairs, folder / REVIEWS)
        if review_pairs:
            await self._database.run(
                partial(records.add, owned=owned, evaluation=evaluation, review_pairs=review_pairs)
            )
        return len(review_pairs)

    async def standing(self, project: str, judge: JudgeSettings) -> JudgeAgreement:
        """The agreement between a judge and the project's reviewers so far, over all evaluations whose reviews are
        final."""
        votes = await self._database.run(partial(records.votes, project=project, digest=judge.digest))
        return JudgeAgreement.of_votes(judge.digest, votes)

    async def preference(self, caller: CurrentCaller, evaluation: str) -> HumanPreference | None:
        """What people preferred on an evaluation's pairs; None unless its reviews are final, with a choice."""

        def read(db: sa.Connection) -> tuple[Queue, list[PairChoices]] | None:
            queue = records.queue(db, caller, evaluation)
            return None if queue is None or not queue.final else (queue, records.all_choices(db, queue.number))

        found = await self._database.run(read)
        return None if found is None else await asyncio.to_thread(human_preference, *found)

    # used by the routes

    async def create(self, caller: CurrentCaller, body: ReviewQueueBody) -> dict[str, Any]:
        """Draw pairs from the stored answers of a run that has ended; returns their queue. No judge is involved.

        Raises:
            NotFound: There is no such evaluation or job.
            NotFinished: It has not ended.
            ReviewsExist: It has pairs already.
            NothingToReview: It has no answers of a candidate and a base to compare.
        """
        run = await self._database.run(partial(self._run_to_review, caller=caller, run_id=body.evaluation))
        directory = self._directories[run.kind].path_of(run.id)
        drawn = await asyncio.to_thread(draw_from, directory, run.id, body.pairs)

        def store(db: sa.Connection) -> Queue:
            added = records.add(
                db,
                run.ownership,
                run.id,
                drawn.pairs,
                reviewers=body.reviewers,
                differing=drawn.differing,
                alike=drawn.alike,
            )
            if not added:
                raise _already_queued(run.id)
            return _queue(db, caller, run.id)

        return self._summary(await self._database.run(store), None, None, None)

    def _run_to_review(self, db: sa.Connection, caller: CurrentCaller, run_id: str) -> Run:
        found = (run_records.find(db, kind, caller.project, run_id) for kind in self._directories)
        run = next((run for run in found if run is not None and caller.may_see(run.ownership)), None)
        if run is None:
            raise NotFound(f"no evaluation or job with the id {run_id!r}", param="evaluation")
        if not run.over:
            raise NotFinished(
                f"`{run.id}` is {run.shown_status}: its answers can be reviewed once it has ended",
                param="evaluation",
                retry_after_s=5,
            )
        if records.has_queue(db, run.id):
            raise _already_queued(run.id)
        return run

    async def following(self, caller: CurrentCaller, *, evaluation: str | None, after: str | None) -> dict[str, Any]:
        """The next pair to review, blind; none of reviews that were ended.

        Raises NotFound if the evaluation or review does not exist.
        """

        def work(db: sa.Connection) -> dict[str, Any]:
            passed = None if after is None else _find(db, caller, after)
            queue = None if evaluation is None else _queue(db, caller, evaluation)
            review = records.following(db, caller, evaluation=evaluation, after=passed)
            if review is not None and queue is None:
                queue = _queue(db, caller, review.evaluation)
            return {
                "object": "review.next",
                "review": None if review is None else blind(review),
                "evaluation": None if queue is None else queue.evaluation,
                "reviewed": 0 if queue is None else _done_for(db, queue, caller.key_id),
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
            ReviewTaken: Several reviewers choose on each pair, and this one has all its choices, of other keys.
        """

        def work(db: sa.Connection) -> dict[str, Any]:
            review = _find(db, caller, review_id)
            if review.choice == choice:
                return blind(review)
            queue = _queue(db, caller, review.evaluation)
            if queue.final:
                why = "was ended" if queue.ended_at is not None else "is complete: every pair has been reviewed"
                raise ReviewFinal(f"the review of {review.evaluation} {why}; its choices can no longer change")
            chosen = records.choose(db, review, choice, caller.key_id)
            if chosen is None:
                raise ReviewTaken(f"`{review.id}` has {review.reviewers} choices of other keys, and needs no more")
            return blind(chosen)

        return await self._database.run(work)

    async def end(self, caller: CurrentCaller, evaluation: str) -> dict[str, Any]:
        """Take no more choices on an evaluation's pairs; returns their queue with its outcome. One that is final stays
        as it is. Raises NotFound."""

        def work(db: sa.Connection) -> _QueueChoices:
            queue = _queue(db, caller, evaluation)
            if not queue.final:
                records.end(db, queue.number)
            return _choices_of(db, _queue(db, caller, evaluation))

        found = await self._database.run(work)
        return await asyncio.to_thread(self._with_outcome, found)

    async def page(self, caller: CurrentCaller, *, after: str | None, limit: int) -> dict[str, Any]:
        """The project's evaluations with pairs, newest first, with the progress and outcome of the reviews."""

        def read(db: sa.Connection) -> list[_QueueChoices]:
            before = None if after is None else _queue(db, caller, after).number
            queues = records.page(db, caller, before=before, limit=limit + 1)
            return [_choices_of(db, queue) for queue in queues]

        queues = await self._database.run(read)
        rows = await asyncio.to_thread(lambda: [self._with_outcome(queue) for queue in queues[:limit]])
        return list_object(rows, len(queues) > limit)

    def _with_outcome(self, found: _QueueChoices) -> dict[str, Any]:
        """A queue's summary with its statistics. Blocks for some milliseconds."""
        queue, here, overall = found.queue, None, None
        if queue.digest:
            here = JudgeAgreement.of_votes(queue.digest, found.votes)
            overall = JudgeAgreement.of_votes(queue.digest, found.all_votes)
        people = human_preference(queue, found.choices) if queue.final else None
        return self._summary(queue, here, overall, people)

    def _summary(
        self,
        queue: Queue,
        here: JudgeAgreement | None,
        overall: JudgeAgreement | None,
        people: HumanPreference | None,
    ) -> dict[str, Any]:
        """``agreement`` covers this evaluation's pairs; ``standing`` also those of its judge in all evaluations whose
        reviews are final. Both are without the judge's lean until the queue is final: together with its votes it tells
        what people prefer."""
        judge = self._endpoints.judges.get(queue.judge)
        counted, more = False, None
        if overall is None:
            sentence = _progress(queue) if people is None else people.sentence
        elif judge is not None and judge.digest == queue.digest:
            counted, more = overall.counts(judge), overall.more_reviews(judge)
            sentence = (overall.sentence if queue.final else overall.blind_sentence)(queue.judge, judge)
        else:
            sentence = f"The settings no longer contain the judge {queue.judge} with this model and rubric."
        return {
            "object": "review.queue",
            "id": queue.evaluation,
            "judge": queue.judge or None,
            "created_at": queue.created_at,
            "pairs": queue.pairs,
            "reviewed": queue.reviewed,
            "reviewers": queue.reviewers,
            "final": queue.final,
            "ended_at": queue.ended_at,
            "agreement": _shown(here, queue),
            "standing": _shown(overall, queue),
            "counted": counted,
            "more_reviews": more,
            "people": None if people is None else people.model_dump(mode="json"),
            "sentence": sentence,
        }


def _shown(agreement: JudgeAgreement | None, queue: Queue) -> dict[str, Any] | None:
    if agreement is None:
        return None
    return (agreement if queue.final else agreement.without_lean()).model_dump(exclude={"digest"})


@dataclass(frozen=True, slots=True)
class _QueueChoices:
    """A queue; with a judge, the votes of both on its pairs and on all pairs; and, if it is final, all choices."""

    queue: Queue
    votes: list[tuple[Vote, Vote]]
    all_votes: list[tuple[Vote, Vote]]
    choices: list[PairChoices]


def _choices_of(db: sa.Connection, queue: Queue) -> _QueueChoices:
    judged = partial(records.votes, db, queue.project, digest=queue.digest, evaluation=queue.evaluation)
    return _QueueChoices(
        queue=queue,
        votes=judged(others=False) if queue.digest else [],
        all_votes=judged() if queue.digest else [],
        choices=records.all_choices(db, queue.number) if queue.final else [],
    )


def _done_for(db: sa.Connection, queue: Queue, key_id: str) -> int:
    """How many pairs of a queue need nothing of this key; once it was ended, how many have all their choices."""
    return queue.reviewed if queue.ended_at is not None else queue.pairs - records.open_pairs(db, queue.number, key_id)


def _progress(queue: Queue) -> str:
    """How far the reviews of a queue without a judge are; it has no outcome."""
    if queue.ended_at is not None:
        return "The review was ended before anybody had chosen."
    by = "" if queue.reviewers == 1 else f" by {queue.reviewers} reviewers each"
    return f"{queue.reviewed} of {queue.pairs} pairs are reviewed{by}; what people prefer is shown once all are."


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
    return blind(review) | {
        "first_is": review.first_is,
        "judge_vote": review.vote or None,
        "vote": review.preferred,
    }


def _find(db: sa.Connection, caller: CurrentCaller, review_id: str) -> Review:
    review = records.find(db, caller, review_id)
    if review is None:
        raise NotFound(f"no such review: {review_id[:64]!r}", code="review_not_found")
    return review


def _queue(db: sa.Connection, caller: CurrentCaller, evaluation: str) -> Queue:
    queue = records.queue(db, caller, evaluation)
    if queue is None:
        raise NotFound(
            f"no reviews of the evaluation {evaluation[:64]!r}", code="reviews_not_found", param="evaluation"
        )
    return queue


def _already_queued(run_id: str) -> ReviewsExist:
    return ReviewsExist(
        f"`{run_id}` already has pairs to review (`hatrack review {run_id}`); an evaluation has them once",
        param="evaluation",
    )


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
