"""The SQL of the disk space that a project's adapters take."""

from __future__ import annotations

from dataclasses import dataclass

import sqlalchemy as sa

from adapters.store import WEIGHTS_FILE
from service.errors import TooLarge
from service.registry.records import NO_DIGEST
from service.registry.tables import adapters, versions


def stored_bytes(db: sa.Connection, project: str) -> int:
    """Size of the weights of a project's versions that are not deleted; equal ones count once."""
    weights = (
        sa.select(versions.c.digest, sa.func.max(versions.c.bytes).label("bytes"))
        .join(adapters, adapters.c.id == versions.c.adapter_id)
        .where(adapters.c.project == project, versions.c.state != "deleted", versions.c.digest != NO_DIGEST)
        .group_by(versions.c.digest)
        .subquery()
    )
    return int(db.scalar(sa.select(sa.func.sum(weights.c.bytes))) or 0)


@dataclass(frozen=True, slots=True)
class AdapterSpace:
    """How much of the disk the adapters of one project may take, in bytes; None: as much as there is."""

    max_bytes: int | None

    def demand(self, db: sa.Connection, project: str, digest: str | None, size: int) -> None:
        """Raise TooLarge if weights of ``size`` bytes would exceed it, unless the project has this digest already."""
        if self.max_bytes is None or digest is None or _has(db, project, digest):
            return
        used = stored_bytes(db, project)
        if used + size > self.max_bytes:
            raise TooLarge(
                f"the project's adapters take {used} bytes; {size} more would exceed the limit of {self.max_bytes} "
                "(HATRACK_MAX_ADAPTERS_GIB). Delete versions first",
                param=WEIGHTS_FILE,
                code="project_storage_full",
            )


def _has(db: sa.Connection, project: str, digest: str) -> bool:
    query = (
        sa.select(versions.c.id)
        .join(adapters, adapters.c.id == versions.c.adapter_id)
        .where(adapters.c.project == project, versions.c.digest == digest, versions.c.state != "deleted")
    )
    return db.scalar(query.limit(1)) is not None
