"""The SQL of keys: units of work over one connection, run by ``service.database`` in a transaction of their own."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field

import sqlalchemy as sa

from adapters.authorization import StoreNames
from service.access.audit import ADMIN_ID
from service.access.caller import NO_FILTERS, NO_LIMITS, Caller, FilterValue, Limits, Scope
from service.access.tables import keys, projects
from service.errors import NotFound

_NOT_SHOWN = ("seq", "hmac", "revoked_at", "run_stores", "admin_hmac")
_SHOWN = [column for column in keys.c if column.name not in _NOT_SHOWN]


@dataclass(frozen=True, slots=True)
class KeyDraft:
    """A key to be created. Globs: None matches everything in the project, an empty tuple nothing."""

    name: str
    project: str
    scopes: frozenset[Scope]
    adapters: tuple[str, ...] | None = None
    stores: tuple[str, ...] | None = None
    limits: Limits = NO_LIMITS
    expires_at: int | None = None
    """Unix time in seconds."""
    background: bool = False
    """Its requests yield to all others."""
    parent_key_id: str | None = None
    """The parent: revoking it revokes this key, which can have no more permissions."""
    filters: Mapping[str, FilterValue] = field(default_factory=lambda: NO_FILTERS)
    """Attributes and their values, to which every search with the key is restricted."""
    run_stores: tuple[StoreNames, ...] | None = None
    """Of a run's key: the stores whose passages the run's results may show."""


@dataclass(frozen=True, slots=True)
class KeyRow:
    """A key as it is stored, without its HMAC."""

    id: str
    hint: str
    name: str
    project: str
    scopes: frozenset[Scope]
    adapters: tuple[str, ...] | None
    stores: tuple[str, ...] | None
    filters: Mapping[str, FilterValue]
    limits: Limits
    background: bool
    parent_key_id: str | None
    created_at: int
    expires_at: int | None

    def caller(self) -> Caller:
        """The caller that the key authenticates."""
        parent = None if self.parent_key_id == ADMIN_ID else self.parent_key_id
        return Caller(
            self.id,
            self.project,
            self.scopes,
            self.adapters,
            self.stores,
            self.limits,
            self.background,
            parent,
            self.filters,
        )


def active_keys(db: sa.Connection) -> list[tuple[bytes, KeyRow]]:
    """(HMAC, key) of all keys that are not revoked, including expired ones, whose holders are told so."""
    rows = db.execute(sa.select(keys.c.hmac, *_SHOWN).where(keys.c.revoked_at.is_(None)))
    return [(row.hmac, _key(row)) for row in rows]


def run_key_ids(db: sa.Connection) -> list[str]:
    """The ids of all keys that were made for runs and are not revoked."""
    return list(db.scalars(sa.select(keys.c.id).where(keys.c.revoked_at.is_(None), keys.c.background)))


def find(db: sa.Connection, key_id: str) -> KeyRow | None:
    """The key, or None if it does not exist or was revoked."""
    row = db.execute(sa.select(*_SHOWN).where(keys.c.id == key_id, keys.c.revoked_at.is_(None))).one_or_none()
    return None if row is None else _key(row)


def list_keys(db: sa.Connection, project: str | None, after: str | None, limit: int) -> list[KeyRow] | None:
    """Up to ``limit`` keys that are not revoked, oldest first; of one project if it is given.

    None if ``after`` is not the id of a key; the id of a revoked key is allowed.
    """
    chosen = sa.select(*_SHOWN).where(keys.c.revoked_at.is_(None)).order_by(keys.c.seq).limit(limit)
    if project is not None:
        chosen = chosen.where(keys.c.project == project)
    if after is not None:
        cursor = db.scalar(sa.select(keys.c.seq).where(keys.c.id == after))
        if cursor is None:
            return None
        chosen = chosen.where(keys.c.seq > cursor)
    return [_key(row) for row in db.execute(chosen)]


def add(
    db: sa.Connection, key_id: str, digest: bytes, hint: str, draft: KeyDraft, admin_hmac: bytes | None = None
) -> KeyRow:
    """Insert a new key, and its project if this is its first key. ``admin_hmac``: of its parent, if that is the admin
    key."""
    now = int(time.time())
    if db.scalar(sa.select(projects.c.id).where(projects.c.id == draft.project)) is None:
        db.execute(projects.insert().values(id=draft.project, created_at=now))
    db.execute(
        keys.insert().values(
            id=key_id,
            hmac=digest,
            hint=hint,
            name=draft.name,
            project=draft.project,
            scopes=sorted(draft.scopes),
            adapters=draft.adapters,
            stores=draft.stores,
            run_stores=draft.run_stores,
            filters=dict(draft.filters) or None,
            limits=draft.limits.model_dump(exclude_none=True),
            background=draft.background,
            parent_key_id=draft.parent_key_id,
            admin_hmac=admin_hmac,
            created_at=now,
            expires_at=draft.expires_at,
        )
    )
    created = find(db, key_id)
    assert created is not None  # noqa: S101  it was inserted above, in this transaction
    return created


def revoke(db: sa.Connection, key_id: str) -> dict[str, bytes]:
    """Revoke the key and its child keys: id → HMAC of each; empty if there is no such active key."""
    return _revoke_with_children(db, [key_id])


def revoke_of_admin(db: sa.Connection, current: bytes | None = None) -> dict[str, bytes]:
    """Revoke the child keys of the admin key; with ``current``, its HMAC, only those of admin keys before it."""
    chosen = keys.c.parent_key_id == ADMIN_ID
    if current is not None:
        chosen = sa.and_(chosen, keys.c.admin_hmac != current)
    return _revoke_with_children(db, list(db.scalars(sa.select(keys.c.id).where(chosen, keys.c.revoked_at.is_(None)))))


def _revoke_with_children(db: sa.Connection, roots: list[str]) -> dict[str, bytes]:
    family = sa.select(keys.c.id).where(keys.c.id.in_(roots)).cte("family", recursive=True)
    family = family.union(sa.select(keys.c.id).join(family, keys.c.parent_key_id == family.c.id))
    rows = db.execute(
        sa.select(keys.c.id, keys.c.hmac).where(keys.c.id.in_(sa.select(family.c.id)), keys.c.revoked_at.is_(None))
    )
    revoked = {row.id: row.hmac for row in rows}
    db.execute(keys.update().where(keys.c.id.in_(revoked)).values(revoked_at=int(time.time()), hmac=None))
    return revoked


def _key(row: sa.Row[tuple[object, ...]]) -> KeyRow:
    values = {column.name: row._mapping[column.name] for column in _SHOWN}
    globs = {name: None if values[name] is None else tuple(values[name]) for name in ("adapters", "stores")}
    scopes = frozenset(map(Scope, values["scopes"]))
    limits = Limits.model_validate(values["limits"])
    return KeyRow(**values | globs | {"scopes": scopes, "limits": limits, "filters": values["filters"] or NO_FILTERS})


def require_project(db: sa.Connection, project: str) -> None:
    """Raise NotFound if the project does not exist: an admin's request may name any."""
    if db.scalar(sa.select(projects.c.id).where(projects.c.id == project)) is None:
        raise NotFound(
            f"the project `{project[:100]}` does not exist; its first key creates it "
            f"(`hatrack keys create NAME --project {project[:100]}`)",
            code="project_not_found",
        )
