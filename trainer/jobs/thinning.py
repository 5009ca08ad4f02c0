"""Old jobs' curves: of a job that has long been over, as many points stay on record as a picture of it shows.

Its whole curve is in its result file. Runs inside ``Database.run``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import sqlalchemy as sa

from trainer.jobs.tables import events

MOST_POINTS: Final = 400
AT_ONCE: Final = 500
"""Rows that one statement deletes: SQLite bounds its parameters."""


def thin(db: sa.Connection, job_id: str) -> int:
    """Delete a job's `metrics` events but those that end an epoch and at most MOST_POINTS between; how many went.

    All other events stay, and so do the ids of those that are left.
    """
    ends = sa.func.json_extract(events.c.data, "$.ends_epoch")
    wanted = sa.select(events.c.number, ends).where(events.c.job == job_id, events.c.type == "metrics")
    between = [number for number, ends_epoch in db.execute(wanted.order_by(events.c.number)) if not ends_epoch]
    gone = sorted(set(between) - set(spread(between, MOST_POINTS)))
    for start in range(0, len(gone), AT_ONCE):
        chunk = gone[start : start + AT_ONCE]
        db.execute(events.delete().where(events.c.job == job_id, events.c.number.in_(chunk)))
    return len(gone)


def spread(numbers: Sequence[int], most: int) -> list[int]:
    """At most ``most`` (two or more) of ``numbers``, evenly spread, the first and the last among them."""
    if len(numbers) <= most:
        return list(numbers)
    return [numbers[index * (len(numbers) - 1) // (most - 1)] for index in range(most)]
