"""Database queries of reviews; each runs inside ``Database.run``."""

from __future__ import annotations

import secrets
import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

import sqlalchemy as sa

from trainer.evaluate.pairs import ReviewPair, Vote
from trainer.reviews.tables import pairs, queues

Choice = Literal["first", "second", "tie"]
Globs = Sequence[str] | None
"""Patterns for adapter names; None matches all."""
_WITH_QUEUE: Final = pairs.join(queues, pairs.c.queue == queues.c.number)


@dataclass(frozen=True, slots=True)
class Queue:
    """An evaluation's pairs: how many there are, and how many have been reviewed."""

    number: int
    evaluation: str
    project: str
    judge: str
    digest: str
    candidate: str
    base: str
    created_at: int
    adapters: Sequence[str] | None
    pairs: int
    reviewed: int

    @property
    def final(self) -> bool:
        """Whether every pair has been reviewed; choices can then no longer change."""
        return self.reviewed == self.pairs


@dataclass(frozen=True, slots=True)
class Review:
    """One pair and its choice, if any."""

    number: int
    id: str
    queue: int
    evaluation: str
    example: str
    turns: Sequence[dict[str, str]]
    reference: str
    first: str
    second: str
    first_is: Literal["candidate", "base"]
    vote: Vote
    choice: Choice | None
    chosen_at: int | None

    @property
    def preferred(self) -> Vote | None:
        """The reviewer's choice as a vote for an arm."""
        return None if self.choice is None else preferred(self.choice, self.first_is)


def preferred(choice: Choice, first_is: str) -> Vote:
    """The arm that a choice of position votes for."""
    if choice == "tie":
        return "tie"
    return "candidate" if (choice == "first") == (first_is == "candidate") else "base"


def add(
    db: sa.Connection, project: str, evaluation: str, review_pairs: Sequence[ReviewPair], adapters: Collection[str] = ()
) -> bool:
    """Store an evaluation's pairs in their order; False if they are already stored.

    Args:
        adapters: Names of the adapters whose answers are compared.
    """
    if db.execute(sa.select(queues.c.number).where(queues.c.evaluation == evaluation)).first() is not None:
        return False
    first = review_pairs[0]
    number = db.execute(
        queues.insert()
        .values(
            evaluation=evaluation,
            project=project,
            judge=first.judge,
            digest=first.digest,
            candidate=first.candidate,
            base=first.base,
            created_at=int(time.time()),
            adapters=sorted(adapters),
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
                "vote": pair.vote,
            }
            for pair in review_pairs
        ],
    )
    return True


def find(db: sa.Connection, project: str, review_id: str, globs: Globs = None) -> Review | None:
    """The project's review with that id, if the globs match its adapters."""
    row = db.execute(_reviews().where(_visible(project, globs), pairs.c.id == review_id)).first()
    return None if row is None else _review(row)


def following(
    db: sa.Connection, project: str, *, evaluation: str | None, after: int, globs: Globs = None
) -> Review | None:
    """The first pair without a choice after pair number ``after``, of the given or else the newest evaluation."""
    query = _reviews().where(_visible(project, globs), pairs.c.choice.is_(None), pairs.c.number > after)
    if evaluation is not None:
        query = query.where(queues.c.evaluation == evaluation)
    row = db.execute(query.order_by(queues.c.number.desc(), pairs.c.number).limit(1)).first()
    return None if row is None else _review(row)


def choose(db: sa.Connection, review_id: str, choice: Choice, key_id: str) -> Review:
    """Store a choice; returns the updated review."""
    values = {"choice": choice, "key_id": key_id, "chosen_at": int(time.time())}
    db.execute(pairs.update().where(pairs.c.id == review_id).values(**values))
    return _review(db.execute(_reviews().where(pairs.c.id == review_id)).one())


def queue(db: sa.Connection, project: str, evaluation: str, globs: Globs = None) -> Queue | None:
    """The evaluation's queue, if it is in the project and the globs match its adapters."""
    row = db.execute(_queues().where(_visible(project, globs), queues.c.evaluation == evaluation)).first()
    return None if row is None else Queue(**row._mapping)


def page(db: sa.Connection, project: str, *, before: int | None, limit: int, globs: Globs = None) -> list[Queue]:
    """The project's queues whose adapters the globs match, newest first."""
    query = _queues().where(_visible(project, globs))
    if before is not None:
        query = query.where(queues.c.number < before)
    return [Queue(**row._mapping) for row in db.execute(query.order_by(queues.c.number.desc()).limit(limit))]


def votes(
    db: sa.Connection, project: str, *, digest: str | None = None, evaluation: str | None = None
) -> list[tuple[Vote, Vote]]:
    """(judge's vote, reviewer's vote) of each reviewed pair, optionally of one judge or one evaluation."""
    query = sa.select(pairs.c.vote, pairs.c.choice, pairs.c.first_is).select_from(_WITH_QUEUE)
    query = query.where(queues.c.project == project, pairs.c.choice.is_not(None))
    if digest is not None:
        query = query.where(queues.c.digest == digest)
    if evaluation is not None:
        query = query.where(queues.c.evaluation == evaluation)
    return [(row.vote, preferred(row.choice, row.first_is)) for row in db.execute(query)]


def _visible(project: str, globs: Globs) -> sa.ColumnElement[bool]:
    """Condition for the queues that a key may see: in its project, with every adapter matched by its globs."""
    in_project = queues.c.project == project
    if globs is None:
        return in_project
    name = sa.func.json_each(queues.c.adapters).table_valued("value")
    matching = sa.or_(sa.false(), *(name.c.value.op("GLOB")(glob) for glob in globs))
    unmatched = sa.select(sa.literal(1)).select_from(name).where(sa.not_(matching)).correlate(queues).exists()
    return sa.and_(in_project, queues.c.adapters.is_not(None), sa.not_(unmatched))


def _reviews() -> sa.Select[Any]:
    columns = [column for column in pairs.c if column.name != "key_id"]
    return sa.select(*columns, queues.c.evaluation).select_from(_WITH_QUEUE)


def _review(row: sa.Row[Any]) -> Review:
    return Review(**row._mapping)


def _queues() -> sa.Select[Any]:
    return (
        sa.select(
            *queues.c,
            sa.func.count(pairs.c.number).label("pairs"),
            sa.func.count(pairs.c.choice).label("reviewed"),
        )
        .select_from(_WITH_QUEUE)
        .group_by(queues.c.number)
    )
