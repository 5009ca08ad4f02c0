"""The SQL of the disk space that a project's adapters take."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import sqlalchemy as sa

from adapters.store import WEIGHTS_FILE
from service.errors import TooLarge
from service.registry.records import NO_DIGEST
from service.registry.tables import adapters, project_weights, versions


def stored_bytes(db: sa.Connection, project: str) -> int:
    """Size of a project's weights, whether a version has them, or they only wait to be removed; equal ones count
    once."""
    weights = _weights(project).subquery()
    each = sa.select(sa.func.max(weights.c.bytes).label("bytes")).group_by(weights.c.digest).subquery()
    return int(db.scalar(sa.select(sa.func.sum(each.c.bytes))) or 0)


def forget_removed(db: sa.Connection, stored: Collection[str]) -> None:
    """Count no longer what is gone from the store. ``stored``: the digests that it has."""
    counted = set(db.scalars(sa.select(project_weights.c.digest).distinct()))
    forget(db, counted.difference(stored))


def forget(db: sa.Connection, digests: Collection[str]) -> None:
    """Count these digests no longer, in any project."""
    for digest in sorted(digests):
        db.execute(project_weights.delete().where(project_weights.c.digest == digest))


@dataclass(frozen=True, slots=True)
class AdapterSpace:
    """How much of the disk the adapters of one project may take, in bytes; None: as much as there is."""

    max_bytes: int | None

    def take(self, db: sa.Connection, project: str, digest: str, size: int) -> None:
        """Count weights of ``size`` bytes from now on, until they are gone from the store.

        Raises:
            TooLarge: They would exceed it, and the project does not have this digest already.
        """
        weights = _weights(project).subquery()
        if db.execute(sa.select(weights.c.digest).where(weights.c.digest == digest).limit(1)).first() is None:
            used = 0 if self.max_bytes is None else stored_bytes(db, project)
            if self.max_bytes is not None and used + size > self.max_bytes:
                raise TooLarge(
                    f"the project's adapters take {used} bytes; {size} more would exceed the limit of "
                    f"{self.max_bytes} (HATRACK_MAX_ADAPTERS_GIB). Delete versions; weights that no version uses any "
                    "more, and those of refused pushes, are removed when the engine next starts, and count until then",
                    param=WEIGHTS_FILE,
                    code="project_storage_full",
                )
        known = sa.and_(project_weights.c.project == project, project_weights.c.digest == digest)
        if db.execute(sa.select(project_weights.c.digest).where(known)).first() is None:
            db.execute(project_weights.insert().values(project=project, digest=digest, bytes=size))


def _weights(project: str) -> sa.CompoundSelect[tuple[str, int]]:
    """Digest and size of what a project has in the store; a digest may be there twice."""
    named = (
        sa.select(versions.c.digest, versions.c.bytes)
        .join(adapters, adapters.c.id == versions.c.adapter_id)
        .where(adapters.c.project == project, versions.c.state != "deleted", versions.c.digest != NO_DIGEST)
    )
    pushed = sa.select(project_weights.c.digest, project_weights.c.bytes).where(project_weights.c.project == project)
    return sa.union_all(named, pushed)
