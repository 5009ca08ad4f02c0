"""Creates, lists and revokes API keys; the table in memory is updated before a change is answered."""

from __future__ import annotations

import asyncio
import errno
import logging
import secrets
import string
import time
from collections.abc import Callable, Coroutine, Iterable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Final, TypeVar

import sqlalchemy as sa

from service.access import audit, grants, records
from service.access.audit import ADMIN_ID, Actor
from service.access.authentication import NEVER, Authenticator, KeyEntry
from service.access.keys import admin_key, hint, key_hmac, key_secret, make_key, write_secret
from service.access.records import KeyDraft, KeyRow
from service.database import Database
from service.errors import BadRequest, Conflict, DiskFull, HatrackError, Internal, NotFound

T = TypeVar("T")
ID_CHARS: Final = 16
_ID_ALPHABET: Final = string.digits + string.ascii_lowercase
_LOG = logging.getLogger("hatrack.access")


@dataclass(frozen=True, slots=True)
class _Rotation:
    """A new admin key that is in ``admin.key``, while it is not known whether its rotation is saved.

    ``newest`` is the id of the audit's newest rotation before it; ``previous`` is what the file had, if it was there.
    """

    key: str
    previous: str | None
    newest: int

    def is_saved(self, db: sa.Connection) -> bool:
        return _newest_rotation(db) > self.newest


class Keys:
    """The keys of all projects.

    Args:
        home: Directory of ``key.secret`` and, unless the key is given, ``admin.key``; both are created at first start.
        database: Opened before :meth:`open`.
        given_admin_key: The admin key from the settings, or None.
        on_revoked: Called with the id of every revoked key; must be quick and must not raise.

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
        # one change at a time, so that memory and database apply changes in the same order
        self._changing = asyncio.Lock()
        self._rotation: _Rotation | None = None

    def derived_secret(self, purpose: str) -> bytes:
        """32 bytes derived for one purpose; the same as long as ``key.secret`` is the same."""
        return key_hmac(self._secret, "\0" + purpose)  # cannot equal a key: a header cannot contain NUL

    async def open(self) -> None:
        """Load all keys. Until then, only the admin key is accepted.

        If another admin key was given than before, the child keys of that one are revoked.
        """

        def work(db: sa.Connection) -> tuple[dict[str, bytes], list[tuple[bytes, KeyRow]]]:
            revoked = records.revoke_of_admin(db, self.authenticator.admin_hmac)
            if revoked:
                audit.note(db, audit.SYSTEM, "key.rotate_admin", ADMIN_ID, {"with": sorted(revoked)})
            return revoked, records.active_keys(db)

        revoked, rows = await self._database.run(work)
        if rows and self._new_secret:
            _LOG.warning(
                "%d API keys can no longer be verified: the file key.secret was missing in HATRACK_HOME, and a new one "
                "was created; restore the old file and restart, or create new keys",
                len(rows),
            )
        self.authenticator.load({digest: _entry(row) for digest, row in rows})
        self._tell(revoked)
        self._database.resync.add(self.reload)

    async def reload(self) -> None:
        """Make memory what the database says: it may have saved a change whose caller was told to try again."""
        async with self._changing:
            await self._settle_rotation()
            rows = await self._database.run(records.active_keys)
            before = {entry.caller.key_id for entry in self.authenticator.entries.values()}
            self.authenticator.load({digest: _entry(row) for digest, row in rows})
        for key_id in before - {row.id for _, row in rows}:
            self._on_revoked(key_id)

    async def _settle_rotation(self) -> None:
        """Take the new admin key where its rotation is saved, or put the old one back into the file."""
        rotation = self._rotation
        if rotation is None:
            return
        if await self._database.run(rotation.is_saved):
            self.authenticator.set_admin_key(rotation.key)
            _LOG.warning("the admin key was rotated, though the answer to that was lost: the new one is in admin.key")
        elif rotation.previous is not None:
            await asyncio.to_thread(write_secret, self._home / "admin.key", rotation.previous)
        self._rotation = None

    # reading

    async def show(self, key_id: str) -> dict[str, Any]:
        """One key, without the key itself. Raises NotFound."""
        row = await self._database.run(lambda db: records.find(db, key_id))
        if row is None:
            raise _not_found(key_id)
        return shown(row)

    async def page(self, project: str | None, after: str | None, limit: int) -> dict[str, Any]:
        """A page of keys, oldest first; of one project or of all. Raises BadRequest if ``after`` is not a key's id."""
        rows = await self._database.run(lambda db: records.list_keys(db, project, after, limit + 1))
        if rows is None:
            raise BadRequest("`after` must be the id of a key; use the `last_id` of the previous page", param="after")
        return _page([shown(row) for row in rows], limit)

    async def audit_page(
        self, *, after: int | None, limit: int, project: str | None = None, action: str | None = None
    ) -> dict[str, Any]:
        """A page of the audit, newest first."""
        rows = await self._database.run(
            lambda db: audit.page(db, after=after, limit=limit + 1, project=project, action=action)
        )
        return _page([{"object": "audit.entry", **asdict(row)} for row in rows], limit)

    # changing

    async def mint(self, actor: Actor, draft: KeyDraft) -> tuple[dict[str, Any], str]:
        """Create a key: the key object, and the key itself, which cannot be shown again.

        A key with a ``parent_key_id`` can have no more permissions than its parent has now, and is revoked with it;
        globs, limits and expiry that it does not set are inherited.

        Raises:
            BadRequest: It is inconsistent (see ``grants.check``), or would outlive the key that creates it.
            Unauthenticated: The parent is no longer valid.
            Forbidden: It has permissions that its parent lacks.
        """
        return await _run_to_completion(self._mint(actor, draft))

    async def _mint(self, actor: Actor, draft: KeyDraft) -> tuple[dict[str, Any], str]:
        grants.check(draft, time.time())
        key, key_id = make_key(), _new_id()
        digest = self.authenticator.hmac(key)

        def work(db: sa.Connection) -> KeyRow:
            granted = draft
            if granted.parent_key_id is not None and granted.parent_key_id != ADMIN_ID:
                granted = grants.restrict_to_parent(records.find(db, granted.parent_key_id), granted, time.time())
            granted = grants.cap_expiry(records.find(db, actor.key_id), granted)
            of_admin = self.authenticator.admin_hmac if granted.parent_key_id == ADMIN_ID else None
            row = records.add(db, key_id, digest, hint(key), granted, of_admin)
            audit.note(db, replace(actor, project=row.project), "key.create", row.id, _granted(row))
            return row

        async with self._changing:
            row = await self._database.run(work)
            self.authenticator.put(digest, _entry(row))
        return shown(row), key

    async def delete(self, actor: Actor, key_id: str) -> list[str]:
        """Revoke a key and its child keys; returns the revoked ids. The next request with one is refused.

        Raises:
            NotFound: The key does not exist or was revoked.
        """
        return await _run_to_completion(self._delete(actor, key_id))

    async def _delete(self, actor: Actor, key_id: str) -> list[str]:
        def work(db: sa.Connection) -> dict[str, bytes]:
            row = records.find(db, key_id)
            if row is None:
                raise _not_found(key_id)
            revoked = records.revoke(db, key_id)
            detail: dict[str, Any] = {"name": row.name}
            if len(revoked) > 1:
                detail["with"] = sorted(set(revoked) - {key_id})
            audit.note(db, replace(actor, project=row.project), "key.delete", key_id, detail)
            return revoked

        async with self._changing:
            revoked = await self._revoke(work, lambda db: records.find(db, key_id) is None)
        return self._tell(revoked)

    async def rotate_admin(self, actor: Actor) -> str:
        """Create a new admin key, written to ``admin.key``; the old one and its child keys are revoked.

        Raises:
            Conflict: ``admin_key_given``: the admin key comes from the settings and must be changed there.
            DiskFull, Internal: The file could not be written; nothing was changed.
        """
        if self._admin_given:
            raise Conflict(
                "the admin key is set by HATRACK_ADMIN_KEY; change the setting and restart the gateway",
                code="admin_key_given",
            )
        return await _run_to_completion(self._rotate_admin(actor))

    async def _rotate_admin(self, actor: Actor) -> str:
        key, path = make_key(), self._home / "admin.key"

        def work(db: sa.Connection) -> dict[str, bytes]:
            previous = path.read_text() if path.is_file() else None
            newest = _newest_rotation(db)
            revoked = records.revoke_of_admin(db)
            audit.note(db, actor, "key.rotate_admin", ADMIN_ID, {"with": sorted(revoked)} if revoked else None)
            try:
                write_secret(path, key + "\n")  # last, so that a failure changes nothing
            except OSError as error:
                kind = DiskFull if error.errno in (errno.ENOSPC, errno.EDQUOT) else Internal
                raise kind(
                    f"admin.key could not be written ({error.strerror}); the old admin key stays valid"
                ) from error
            self._rotation = _Rotation(key, previous, newest)
            return revoked

        def is_saved(db: sa.Connection) -> bool:
            return self._rotation is not None and self._rotation.is_saved(db)

        async with self._changing:
            await self._settle_rotation()
            try:
                revoked = await self._revoke(work, is_saved)
            except HatrackError:
                if self._rotation is not None:
                    self._database.resync.request()  # the file has a key that may not be the admin key
                raise
            self.authenticator.set_admin_key(key)
            self._rotation = None
        self._tell(revoked)
        return key

    async def _revoke(
        self, work: Callable[[sa.Connection], dict[str, bytes]], is_saved: Callable[[sa.Connection], bool]
    ) -> dict[str, bytes]:
        """Have keys revoked by ``work``, in the database and in memory; the caller holds ``_changing``.

        Raises:
            OutcomeUnknown: It may be saved; the keys are reloaded once the database answers.
        """
        attempts: list[dict[str, bytes]] = []

        def attempt(db: sa.Connection) -> dict[str, bytes]:
            attempts.append(work(db))
            return attempts[-1]

        def saved(db: sa.Connection) -> dict[str, bytes] | None:
            return attempts[-1] if attempts and is_saved(db) else None

        revoked = await self._database.run_or_ask(attempt, saved)
        self.authenticator.drop(frozenset(revoked.values()))
        return revoked

    def _tell(self, revoked: Iterable[str]) -> list[str]:
        for key_id in revoked:
            self._on_revoked(key_id)
        return sorted(revoked)


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
        "filters": dict(row.filters),
        "limits": row.limits.model_dump(exclude_none=True),
        "background": row.background,
        "parent_key_id": row.parent_key_id,
        "expires_at": row.expires_at,
    }


def _entry(row: KeyRow) -> KeyEntry:
    return KeyEntry(row.caller(), NEVER if row.expires_at is None else row.expires_at)


def _page(data: list[dict[str, Any]], limit: int) -> dict[str, Any]:
    """One page of ``data``, which has one item more than ``limit`` if there are more pages."""
    shown_rows = data[:limit]
    return {
        "object": "list",
        "data": shown_rows,
        "first_id": shown_rows[0]["id"] if shown_rows else None,
        "last_id": shown_rows[-1]["id"] if shown_rows else None,
        "has_more": len(data) > limit,
    }


def _newest_rotation(db: sa.Connection) -> int:
    rotations = audit.page(db, after=None, limit=1, action="key.rotate_admin")
    return rotations[0].id if rotations else 0


def _new_id() -> str:
    return "key_" + "".join(secrets.choice(_ID_ALPHABET) for _ in range(ID_CHARS))


def _not_found(key_id: str) -> NotFound:
    return NotFound(f"the key {key_id[:80]!r} does not exist", param="id")


async def _run_to_completion(change: Coroutine[Any, Any, T]) -> T:
    """Run a change to its end, even if the caller is cancelled: database and memory must not diverge."""
    return await asyncio.shield(asyncio.ensure_future(change))
