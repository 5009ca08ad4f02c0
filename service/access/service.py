"""API keys: made, listed, revoked; the table in memory follows the one on disk before a change is answered."""

from __future__ import annotations

import asyncio
import errno
import logging
import secrets
import string
import time
from collections.abc import Callable, Coroutine
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Final, TypeVar

import sqlalchemy as sa

from service.access import audit, grants, records
from service.access.audit import ADMIN_ID, Actor
from service.access.authentication import NEVER, Authenticator, Entry
from service.access.keys import admin_key, hint, key_hmac, key_secret, make_key, write_secret
from service.access.records import Draft, KeyRow
from service.database import Database
from service.errors import BadRequest, Conflict, DiskFull, Internal, NotFound

T = TypeVar("T")
ID_CHARS: Final = 16
_ID_ALPHABET: Final = string.digits + string.ascii_lowercase
_LOG = logging.getLogger("hatrack.access")


class Keys:
    """The keys of all projects.

    Args:
        home: Holds ``key.secret`` and, where it is not given, ``admin.key``; both are made at first start.
        database: Opened before :meth:`open`.
        given_admin_key: The admin key from the settings, or None.
        on_revoked: Is told the id of every key that dies; must be quick and must not raise.

    Raises:
        SettingsError: The admin key or the secret cannot be used.
    """

    def __init__(
        self,
        home: Path,
        database: Database,
        given_admin_key: str | None,
        *,
        on_revoked: Callable[[str], None] = lambda key_id: None,
    ) -> None:
        self._home = home
        self._database = database
        self._admin_given = given_admin_key is not None
        self._on_revoked = on_revoked
        secret, self._new_secret = key_secret(home)
        self._secret = secret
        self.authenticator = Authenticator(admin_key(home, given_admin_key), secret)
        # one change at a time: the table in memory takes them in the order that the database took them
        self._changing = asyncio.Lock()

    def derived_secret(self, purpose: str) -> bytes:
        """32 bytes for one purpose beside the keys; the same after each start that finds the same ``key.secret``."""
        return key_hmac(self._secret, "\0" + purpose)  # which no key is: a header holds no NUL

    async def open(self) -> None:
        """Load all keys. Until then, only the admin key is known."""
        found = await self._database.run(records.living)
        if found and self._new_secret:
            _LOG.warning(
                "%d API keys can no longer be told: key.secret under HATRACK_HOME was not there, and a new one was "
                "made; put the old one back and start again, or make new keys",
                len(found),
            )
        self.authenticator.load({digest: _entry(row) for digest, row in found})

    # reading

    async def show(self, key_id: str) -> dict[str, Any]:
        """One key, without the key itself. Raises NotFound."""
        row = await self._database.run(lambda db: records.find(db, key_id))
        if row is None:
            raise _not_found(key_id)
        return shown(row)

    async def page(self, project: str | None, after: str | None, limit: int) -> dict[str, Any]:
        """A page of keys, oldest first; of one project or of all. Raises BadRequest where ``after`` names no key."""
        found = await self._database.run(lambda db: records.listed(db, project, after, limit + 1))
        if found is None:
            raise BadRequest("`after` names no key", param="after")
        return _listed([shown(row) for row in found], limit)

    async def audited(
        self, *, after: int | None, limit: int, project: str | None = None, action: str | None = None
    ) -> dict[str, Any]:
        """A page of the audit, newest first."""
        found = await self._database.run(
            lambda db: audit.page(db, after=after, limit=limit + 1, project=project, action=action)
        )
        return _listed([{"object": "audit.entry", **asdict(row)} for row in found], limit)

    # changing

    async def mint(self, actor: Actor, draft: Draft) -> tuple[dict[str, Any], str]:
        """Make a key: the key object, and the key, which nothing can tell a second time.

        A key with a ``parent_key_id`` can do no more than its parent could when it was made, and dies with it; what it
        leaves open (globs, limits, expiry) is the parent's.

        Raises:
            BadRequest: It makes no sense (see ``grants.check``), or would outlive the key that makes it.
            Unauthenticated: The parent is not valid any more.
            Forbidden: It reaches further than its parent.
        """
        return await _to_the_end(self._mint(actor, draft))

    async def _mint(self, actor: Actor, draft: Draft) -> tuple[dict[str, Any], str]:
        grants.check(draft, time.time())
        key, key_id = make_key(), _new_id()
        digest = self.authenticator.hmac(key)

        def work(db: sa.Connection) -> KeyRow:
            wanted = draft
            if wanted.parent_key_id is not None and wanted.parent_key_id != ADMIN_ID:
                wanted = grants.under(records.find(db, wanted.parent_key_id), wanted, time.time())
            wanted = grants.no_longer(records.find(db, actor.key_id), wanted)
            row = records.add(db, key_id, digest, hint(key), wanted)
            audit.note(db, replace(actor, project=row.project), "key.create", row.id, _granted(row))
            return row

        async with self._changing:
            row = await self._database.run(work)
            self.authenticator.put(digest, _entry(row))
        return shown(row), key

    async def delete(self, actor: Actor, key_id: str) -> list[str]:
        """Revoke a key and all that were made under it: the ids of the dead. The next request with one is refused.

        Raises:
            NotFound: There is no such key (any more).
        """
        return await _to_the_end(self._delete(actor, key_id))

    async def _delete(self, actor: Actor, key_id: str) -> list[str]:
        def work(db: sa.Connection) -> dict[str, bytes]:
            row = records.find(db, key_id)
            if row is None:
                raise _not_found(key_id)
            dead = records.revoke(db, key_id)
            detail: dict[str, Any] = {"name": row.name}
            if len(dead) > 1:
                detail["with"] = sorted(set(dead) - {key_id})
            audit.note(db, replace(actor, project=row.project), "key.delete", key_id, detail)
            return dead

        return sorted(await self._revoked(work))

    async def rotate_admin(self, actor: Actor) -> str:
        """A new admin key, written to ``admin.key``; the old one, and the keys that were made under it, are dead.

        Raises:
            Conflict: ``admin_key_given``: the settings give the admin key, so they must change it.
            DiskFull, Internal: The file could not be written; nothing was changed.
        """
        if self._admin_given:
            raise Conflict(
                "HATRACK_ADMIN_KEY gives the admin key: change it there and start the gateway again",
                code="admin_key_given",
            )
        return await _to_the_end(self._rotate_admin(actor))

    async def _rotate_admin(self, actor: Actor) -> str:
        key = make_key()

        def work(db: sa.Connection) -> dict[str, bytes]:
            dead = records.revoke_children(db, ADMIN_ID)
            audit.note(db, actor, "key.rotate_admin", ADMIN_ID, {"with": sorted(dead)} if dead else None)
            try:
                write_secret(self._home / "admin.key", key + "\n")  # last: where it fails, nothing was changed
            except OSError as error:
                kind = DiskFull if error.errno in (errno.ENOSPC, errno.EDQUOT) else Internal
                raise kind(f"admin.key could not be written ({error.strerror}); the old key stays") from error
            return dead

        await self._revoked(work, lambda: self.authenticator.set_admin(key))
        return key

    async def _revoked(
        self, work: Callable[[sa.Connection], dict[str, bytes]], also: Callable[[], None] = lambda: None
    ) -> dict[str, bytes]:
        async with self._changing:
            dead = await self._database.run(work)
            self.authenticator.drop(frozenset(dead.values()))
            also()
        for key_id in dead:
            self._on_revoked(key_id)
        return dead


def shown(row: KeyRow) -> dict[str, Any]:
    """A key as the API shows it: never the key itself."""
    return {
        "object": "key",
        "id": row.id,
        "hint": row.hint,
        **_granted(row),
        "created_at": row.created_at,
    }


def _granted(row: KeyRow) -> dict[str, Any]:
    return {
        "name": row.name,
        "project": row.project,
        "scopes": sorted(row.scopes),
        "adapters": row.adapters,
        "stores": row.stores,
        "limits": row.limits.model_dump(exclude_none=True),
        "background": row.background,
        "parent_key_id": row.parent_key_id,
        "expires_at": row.expires_at,
    }


def _entry(row: KeyRow) -> Entry:
    return Entry(row.caller(), NEVER if row.expires_at is None else row.expires_at)


def _listed(data: list[dict[str, Any]], limit: int) -> dict[str, Any]:
    """One page of ``data``, which holds one item more than the page where there are more."""
    shown_now = data[:limit]
    return {
        "object": "list",
        "data": shown_now,
        "first_id": shown_now[0]["id"] if shown_now else None,
        "last_id": shown_now[-1]["id"] if shown_now else None,
        "has_more": len(data) > limit,
    }


def _new_id() -> str:
    return "key_" + "".join(secrets.choice(_ID_ALPHABET) for _ in range(ID_CHARS))


def _not_found(key_id: str) -> NotFound:
    return NotFound(f"there is no key {key_id[:80]!r}", param="id")


async def _to_the_end(change: Coroutine[Any, Any, T]) -> T:
    """Run a change that must not be cut between the database and the table in memory, whoever leaves meanwhile."""
    return await asyncio.shield(asyncio.ensure_future(change))
