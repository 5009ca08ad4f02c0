"""The SQL of the disk space that a project's adapters take."""

from __future__ import annotations

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


def demand_room(db: sa.Connection, project: str, digest: str | None, size: int, max_bytes: int | None) -> None:
    """Raise TooLarge if weights of ``size`` bytes would exceed the project's ``max_bytes``.

    Args:
        digest: Of the weights: the project may have them already. None: of none, or not known yet.
        max_bytes: None: no limit.
    """
    if max_bytes is None or size == 0 or (digest is not None and _has(db, project, digest)):
        return
    used = stored_bytes(db, project)
    if used + size > max_bytes:
        raise TooLarge(
            f"the project's adapters take {used} bytes; {size} more would exceed the limit of {max_bytes} "
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
