"""Database queries of reviews; each runs inside ``Database.run``."""

from __future__ import annotations

import hashlib
import secrets
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, Literal

import sqlalchemy as sa

from adapters.authorization import KeyScope, Ownership, StoreNames
from adapters.database.authorization import visible
from trainer.evaluate.pairs import ReviewPair, Side, Vote
from trainer.reviews.tables import choices, pairs, queues

Choice = Literal["first", "second", "tie"]
_WITH_QUEUE: Final = pairs.join(queues, pairs.c.queue == queues.c.number)
_WITH_CHOICES: Final = _WITH_QUEUE.join(choices, choices.c.pair == pairs.c.number)
_CHOICES: Final = (
    sa.select(sa.func.count())
    .select_from(choices)
    .where(choices.c.pair == pairs.c.number)
    .correlate(pairs)
    .scalar_subquery()
)
"""How many choices a pair has."""


@dataclass(frozen=True, slots=True)
class Queue:
    """An evaluation's pairs: how many there are, and how many have been reviewed.

    Attributes:
        judge, digest: Empty if no judge has voted on the pairs.
        reviewers: How many choices each pair gets, each by another key.
        differing, alike: How many questions have different answers, and how many the same twice; None with a judge.
        reviewed: The pairs that have all their choices.
        ended_at: When somebody ended it before that was all of them; None: nobody has.
    """

    number: int
    evaluation: str
    project: str
    judge: str
    digest: str
    candidate: str
    base: str
    created_at: int
    adapters: Sequence[str] | None
    reviewers: int
    differing: int | None
    alike: int | None
    pairs: int
    reviewed: int
    ended_at: int | None = None
    stores: Sequence[StoreNames] | None = None
    key_id: str | None = None

    @property
    def final(self) -> bool:
        """Whether every pair has been reviewed or it was ended; choices can then no longer change."""
        return self.ended_at is not None or self.reviewed == self.pairs


@dataclass(frozen=True, slots=True)
class Review:
    """One pair as a reviewer sees it, and the choice, if any: with several reviewers, this one's.

    Attributes:
        vote: The judge's; empty if there is none.
        reviewers: How many choices it gets.
    """

    number: int
    id: str
    queue: int
    evaluation: str
    example: str
    turns: Sequence[dict[str, str]]
    reference: str
    first: str
    second: str
    first_is: Side
    vote: Vote | Literal[""]
    unit: int | None
    reviewers: int
    choice: Choice | None
    chosen_at: int | None

    @property
    def preferred(self) -> Vote | None:
        """The reviewer's choice as a vote for an arm."""
        return None if self.choice is None else preferred(self.choice, self.first_is)


@dataclass(frozen=True, slots=True)
class PairChoices:
    """What all reviewers of one pair preferred. ``unit``: the question's independent unit; None: its own."""

    pair: int
    unit: int | None
    votes: tuple[Vote, ...]


def preferred(choice: Choice, first_is: str) -> Vote:
    """The arm that a choice of position votes for."""
    if choice == "tie":
        return "tie"
    return "candidate" if (choice == "first") == (first_is == "candidate") else "base"


def add(
    db: sa.Connection,
    owned: Ownership,
    evaluation: str,
    review_pairs: Sequence[ReviewPair],
    *,
    reviewers: int = 1,
    differing: int | None = None,
    alike: int | None = None,
) -> bool:
    """Store an evaluation's pairs in their order; False if it already has some.

    Args:
        owned: What decides who may see them.
        reviewers, differing, alike: See `Queue`.
    """
    if has_queue(db, evaluation):
        return False
    first = review_pairs[0]
    number = db.execute(
        queues.insert()
        .values(
            evaluation=evaluation,
            project=owned.project,
            judge=first.judge,
            digest=first.digest,
            candidate=first.candidate,
            base=first.base,
            created_at=int(time.time()),
            adapters=None if owned.adapters is None else sorted(owned.adapters),
            stores=None if owned.stores is None else list(owned.stores),
            key_id=owned.key_id,
            reviewers=reviewers,
            differing=differing,
            alike=alike,
        )
        .returning(queues.c.number)
    ).scalar_one()
    db.execute(
        pairs.insert(),
        [
            {
                "id": f"rev-{secrets.token_hex(12)}",
                "queue": number,
                "example": pair.example,
                "turns": [{"role": turn.role, "content": turn.text} for turn in pair.turns],
                "reference": pair.reference,
                "first": pair.first,
                "second": pair.second,
                "first_is": pair.first_is,
                "vote": pair.vote or "",
                "unit": pair.unit,
            }
            for pair in review_pairs
        ],
    )
    return True


def has_queue(db: sa.Connection, evaluation: str) -> bool:
    """Whether an evaluation of any project has pairs."""
    return db.execute(sa.select(queues.c.number).where(queues.c.evaluation == evaluation)).first() is not None


def find(db: sa.Connection, caller: KeyScope, review_id: str) -> Review | None:
    """The review with that id as the caller sees it; None if it may not."""
    row = db.execute(_reviews(caller.key_id).where(_visible(caller), pairs.c.id == review_id)).first()
    return None if row is None else _review(row, caller.key_id)


def following(db: sa.Connection, caller: KeyScope, *, evaluation: str | None, after: Review | None) -> Review | None:
    """The first pair that this caller may choose on, of the given or else the newest evaluation that has one.

    ``after``: those up to this pair are passed over: all of newer evaluations, and the earlier ones of its own.
    """
    query = _reviews(caller.key_id).where(_visible(caller), _open_to(caller.key_id))
    if after is not None:
        later = sa.and_(queues.c.number == after.queue, pairs.c.number > after.number)
        query = query.where(sa.or_(queues.c.number < after.queue, later))
    if evaluation is not None:
        query = query.where(queues.c.evaluation == evaluation)
    row = db.execute(query.order_by(queues.c.number.desc(), pairs.c.number).limit(1)).first()
    return None if row is None else _review(row, caller.key_id)


def open_pairs(db: sa.Connection, queue_number: int, key_id: str) -> int:
    """How many pairs of a queue this key may still choose on."""
    query = sa.select(sa.func.count()).select_from(_WITH_QUEUE).where(queues.c.number == queue_number, _open_to(key_id))
    return db.execute(query).scalar_one()


def choose(db: sa.Connection, review: Review, choice: Choice, key_id: str) -> Review | None:
    """Store a key's choice; returns the updated review, or None if the pair has all its choices, of other keys.

    A key may change its own choice. With one reviewer a pair any key may change it.
    """
    on_pair = choices.c.pair == review.number
    values = {"choice": choice, "key_id": key_id, "first_is": review.first_is, "chosen_at": int(time.time())}
    if review.reviewers == 1:
        changed = db.execute(choices.update().where(on_pair).values(**values))
    else:
        changed = db.execute(choices.update().where(on_pair, choices.c.key_id == key_id).values(**values))
    if changed.rowcount == 0:
        made = db.execute(sa.select(sa.func.count()).select_from(choices).where(on_pair)).scalar_one()
        if made >= review.reviewers:
            return None
        db.execute(choices.insert().values(pair=review.number, **values))
    return _review(db.execute(_reviews(key_id).where(pairs.c.id == review.id)).one(), key_id)


def end(db: sa.Connection, queue_number: int) -> None:
    """Take no more choices on a queue's pairs."""
    db.execute(queues.update().where(queues.c.number == queue_number).values(ended_at=int(time.time())))


def queue(db: sa.Connection, caller: KeyScope, evaluation: str) -> Queue | None:
    """The evaluation's queue, if the caller may see it."""
    row = db.execute(_queues().where(_visible(caller), queues.c.evaluation == evaluation)).first()
    return None if row is None else Queue(**row._mapping)


def page(db: sa.Connection, caller: KeyScope, *, before: int | None, limit: int) -> list[Queue]:
    """The queues that the caller may see, newest first."""
    query = _queues().where(_visible(caller))
    if before is not None:
        query = query.where(queues.c.number < before)
    return [Queue(**row._mapping) for row in db.execute(query.order_by(queues.c.number.desc()).limit(limit))]


def votes(
    db: sa.Connection, project: str, *, digest: str, evaluation: str | None = None, others: bool = True
) -> list[tuple[Vote, Vote]]:
    """(judge's vote, reviewer's vote) of each pair that people and the judge with this digest compared.

    Args:
        evaluation: One whose pairs are taken, even if its review is not final.
        others: Take the pairs of all other evaluations, too, whose reviews are final: choices that may still change
            count nowhere else, and nobody can tell them from a number that has changed.
    """
    query = sa.select(pairs.c.vote, choices.c.choice, choices.c.first_is).select_from(_WITH_CHOICES)
    query = query.where(queues.c.project == project, queues.c.digest == digest, pairs.c.vote != "")
    taken = [] if evaluation is None else [queues.c.evaluation == evaluation]
    if others:
        taken.append(queues.c.number.in_(_final_queues(project)))
    rows = db.execute(query.where(sa.or_(sa.false(), *taken)).order_by(pairs.c.number))
    return [(row.vote, preferred(row.choice, row.first_is)) for row in rows]


def all_choices(db: sa.Connection, queue_number: int) -> list[PairChoices]:
    """What people chose on each pair of a queue, in the pairs' order; pairs without a choice are left out."""
    query = sa.select(pairs.c.number, pairs.c.unit, choices.c.choice, choices.c.first_is).select_from(_WITH_CHOICES)
    found: dict[int, PairChoices] = {}
    for row in db.execute(query.where(queues.c.number == queue_number).order_by(pairs.c.number, choices.c.key_id)):
        earlier = found.get(row.number, PairChoices(row.number, row.unit, ()))
        found[row.number] = replace(earlier, votes=(*earlier.votes, preferred(row.choice, row.first_is)))
    return list(found.values())


def _open_to(key_id: str) -> sa.ColumnElement[bool]:
    """Condition for the pairs that still take a choice, and on which this key has made none."""
    own = sa.select(sa.literal(1)).where(choices.c.pair == pairs.c.number, choices.c.key_id == key_id)
    return sa.and_(queues.c.ended_at.is_(None), queues.c.reviewers > _CHOICES, sa.not_(own.correlate(pairs).exists()))


def _visible(caller: KeyScope) -> sa.ColumnElement[bool]:
    columns = queues.c
    return visible(
        caller, project=columns.project, adapters=columns.adapters, stores=columns.stores, key_id=columns.key_id
    )


def _reviews(key_id: str) -> sa.Select[Any]:
    """The pairs with the choice that a key sees: its own, or with one reviewer a pair the only one."""
    seen = sa.and_(choices.c.pair == pairs.c.number, sa.or_(queues.c.reviewers == 1, choices.c.key_id == key_id))
    return sa.select(
        *pairs.c, queues.c.evaluation, queues.c.reviewers, choices.c.choice, choices.c.chosen_at
    ).select_from(_WITH_QUEUE.outerjoin(choices, seen))


def _review(row: sa.Row[Any], key_id: str) -> Review:
    """With several reviewers each sees the answers in an order of its own, so that a habit of choosing the first does
    not look like agreement. It depends on pair and key, and stays the same."""
    review = Review(**row._mapping)
    if review.reviewers == 1 or hashlib.sha256(f"{review.id}/{key_id}".encode()).digest()[0] % 2:
        return review
    other: Side = "base" if review.first_is == "candidate" else "candidate"
    return replace(review, first=review.second, second=review.first, first_is=other)


def _final_queues(project: str) -> sa.Select[tuple[int]]:
    """Numbers of the project's queues that are final, as `Queue.final` says."""
    every = sa.func.sum(sa.case((queues.c.reviewers <= _CHOICES, 0), else_=1)) == 0
    return (
        sa.select(queues.c.number)
        .select_from(_WITH_QUEUE)
        .where(queues.c.project == project)
        .group_by(queues.c.number, queues.c.ended_at)
        .having(sa.or_(queues.c.ended_at.is_not(None), every))
        .correlate(None)
    )


def _queues() -> sa.Select[Any]:
    return (
        sa.select(
            *queues.c,
            sa.func.count(pairs.c.number).label("pairs"),
            sa.func.sum(sa.case((queues.c.reviewers <= _CHOICES, 1), else_=0)).label("reviewed"),
        )
        .select_from(_WITH_QUEUE)
        .group_by(queues.c.number)
    )
