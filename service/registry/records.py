"""The registry's SQL: units of work over one connection, run by ``service.database`` in a transaction of their own."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import sqlalchemy as sa

from adapters.names import DEFAULT_ALIAS
from adapters.perplexity import measured
from service.access.audit import Actor, note
from service.files.holds import hold_for_version, release_versions
from service.registry import alias_records, verdict_records
from service.registry.audit_notes import note_move
from service.registry.split import AliasTarget, versions_of
from service.registry.tables import adapters, alias_history, aliases, versions

_BLOBS = ("config", "readme")
Blob = bytes  # the class below has a field `bytes`
NO_DIGEST = ""
"""In the column ``digest`` of a version without weights, where all other code has None. SQLite cannot drop NOT NULL
from a column of a table that others refer to, and a gateway of an earlier release takes such a version for damaged
instead of serving the base under its name."""
_SUMMARY = [column for column in versions.c if column.name not in _BLOBS]


@dataclass(frozen=True, slots=True)
class VersionDraft:
    """A version without a number: the upload, and the result of its inspection.

    One without weights has the digest None, and 0 or nothing for all that describes them.
    """

    digest: str | None
    settings: dict[str, Any]
    metadata: dict[str, Any]
    rank: int
    alpha: float
    target_modules: list[str]
    bytes: int
    zero_effect: bool
    base: dict[str, Any]
    config: Blob
    readme: Blob | None
    warnings: list[str]
    wanted_alias: str | None
    expires_at: int | None = None


@dataclass(frozen=True, slots=True)
class AdapterRow:
    id: int
    project: str
    name: str
    created_at: int
    pinned_at: int | None


@dataclass(frozen=True, slots=True)
class VersionRow:
    """A version as it is stored, without its config and readme (see ``version_file``).

    One without weights has the digest None, and 0 or nothing for all that describes them.
    """

    id: int
    adapter_id: int
    number: int
    digest: str | None
    state: str
    reason: dict[str, Any] | None
    settings: dict[str, Any]
    metadata: dict[str, Any]
    proof: dict[str, Any] | None
    rank: int
    alpha: float
    target_modules: list[str]
    bytes: int
    zero_effect: bool
    base: dict[str, Any]
    warnings: list[str]
    wanted_alias: str | None
    created_at: int
    ready_at: int | None
    expires_at: int | None = None


@dataclass(frozen=True, slots=True)
class AdapterWithVersions:
    """An adapter with its versions (deleted ones left out) and aliases (alias → version number or split)."""

    row: AdapterRow
    versions: list[VersionRow]
    aliases: dict[str, AliasTarget]

    def version(self, number: int) -> VersionRow | None:
        return next((row for row in self.versions if row.number == number), None)

    def aliases_of(self, number: int) -> list[str]:
        """The names of the aliases that may resolve to a version, sorted."""
        return sorted(alias for alias, target in self.aliases.items() if number in versions_of(target))


# reading


def find(db: sa.Connection, project: str, name: str) -> AdapterWithVersions | None:
    """The adapter; None if it does not exist or was deleted."""
    matches = load_adapters(db, sa.and_(adapters.c.project == project, adapters.c.name == name))
    return matches[0] if matches else None


def load_adapters(
    db: sa.Connection, where: sa.ColumnElement[bool] | None = None, limit: int | None = None
) -> list[AdapterWithVersions]:
    """Up to ``limit`` adapters that are not deleted, in the order of their first upload."""
    chosen = sa.select(adapters).where(adapters.c.deleted_at.is_(None)).order_by(adapters.c.id).limit(limit)
    if where is not None:
        chosen = chosen.where(where)
    rows = {r.id: AdapterRow(r.id, r.project, r.name, r.created_at, r.pinned_at) for r in db.execute(chosen)}
    in_chosen = chosen.with_only_columns(adapters.c.id).scalar_subquery()
    held: dict[int, list[VersionRow]] = {key: [] for key in rows}
    for row in db.execute(
        sa.select(*_SUMMARY)
        .where(versions.c.adapter_id.in_(in_chosen), versions.c.state != "deleted")
        .order_by(versions.c.number)
    ):
        held[row.adapter_id].append(_version(row))
    pointers: dict[int, dict[str, AliasTarget]] = {key: {} for key in rows}
    for row in db.execute(sa.select(aliases).where(aliases.c.adapter_id.in_(in_chosen)).order_by(aliases.c.alias)):
        target = alias_records.target_of(row)
        if target is not None:
            pointers[row.adapter_id][row.alias] = target
    return [AdapterWithVersions(row, held[key], pointers[key]) for key, row in rows.items()]


def listed(
    db: sa.Connection, project: str, after: str | None, limit: int, visible: Callable[[str], bool]
) -> list[AdapterWithVersions] | None:
    """Up to ``limit`` of the project's adapters that have a version in ``ready`` or ``proving``; oldest first.

    Only those whose name is ``visible``. None where ``after`` names no adapter, or one that is not.
    """
    shown = sa.exists().where(versions.c.adapter_id == adapters.c.id, versions.c.state.in_(("ready", "proving")))
    where = sa.and_(adapters.c.project == project, shown)
    if after is not None:
        cursor = db.scalar(sa.select(adapters.c.id).where(adapters.c.project == project, adapters.c.name == after))
        if cursor is None or not visible(after):
            return None
        where = sa.and_(where, adapters.c.id > cursor)
    names = sa.select(adapters.c.id, adapters.c.name).where(adapters.c.deleted_at.is_(None), where)
    chosen: list[int] = []
    with db.execute(names.order_by(adapters.c.id)) as rows:
        for row in rows:
            if visible(row.name):
                chosen.append(row.id)
            if len(chosen) == limit:
                break
    return load_adapters(db, adapters.c.id.in_(chosen))


def version_file(db: sa.Connection, version_id: int, column: str) -> bytes | None:
    """The uploaded ``config`` or ``readme``, byte for byte."""
    return db.scalar(sa.select(versions.c[column]).where(versions.c.id == version_id))


def version_by_id(db: sa.Connection, version_id: int) -> VersionRow | None:
    row = db.execute(sa.select(*_SUMMARY).where(versions.c.id == version_id)).one_or_none()
    return None if row is None else _version(row)


def present(db: sa.Connection, row: VersionRow) -> VersionRow | None:
    """The version as it is now; None if it was deleted. SQLite gives the id of a deleted row again: another version may
    have it since, but never the same number of the same adapter."""
    now = version_by_id(db, row.id)
    same = now is not None and (now.adapter_id, now.number) == (row.adapter_id, row.number)
    return now if same else None


def proving(db: sa.Connection) -> list[tuple[str, str, VersionRow]]:
    """(project, name, version) of all versions that are being proven."""
    rows = db.execute(
        sa.select(adapters.c.project, adapters.c.name, *_SUMMARY)
        .join(adapters, adapters.c.id == versions.c.adapter_id)
        .where(versions.c.state == "proving")
        .order_by(versions.c.id)
    )
    return [(row.project, row.name, _version(row)) for row in rows]


def states(db: sa.Connection) -> dict[str, int]:
    """Number of versions in each state, over all projects."""
    rows = db.execute(sa.select(versions.c.state, sa.func.count().label("versions")).group_by(versions.c.state))
    return {row.state: int(row.versions) for row in rows}


def digests_in_use(db: sa.Connection) -> set[str]:
    """Digests of all versions that are not deleted."""
    used = sa.select(versions.c.digest).where(versions.c.state != "deleted", versions.c.digest != NO_DIGEST)
    return set(db.scalars(used.distinct()))


def owners(db: sa.Connection, digest: str) -> set[tuple[str, str]]:
    """(project, name) of the adapters that have a version of this digest."""
    rows = db.execute(
        sa.select(adapters.c.project, adapters.c.name)
        .join(versions, versions.c.adapter_id == adapters.c.id)
        .where(versions.c.digest == digest, versions.c.state != "deleted")
        .distinct()
    )
    return {(row.project, row.name) for row in rows}


def _version(row: sa.Row[Any]) -> VersionRow:
    values = {column.name: row._mapping[column.name] for column in _SUMMARY}
    return VersionRow(**{**values, "digest": row.digest or None})


# versions


def add_version(
    db: sa.Connection, project: str, name: str, draft: VersionDraft, *, actor: Actor, is_proven: bool = False
) -> int:
    """Insert a version (and the adapter, if the name is new); returns its id.

    It is ``proving``. One that ``is_proven`` is ``ready``: the caller gives it its proof by ``make_ready``, in the same
    transaction.
    """
    adapter_id, number = _take_number(db, project, name)
    values = asdict(draft) | {"digest": draft.digest or NO_DIGEST}
    state = "ready" if is_proven else "proving"
    version_id = db.scalar(
        versions.insert()
        .values(adapter_id=adapter_id, number=number, state=state, created_at=alias_records.now(), **values)
        .returning(versions.c.id)
    )
    assert version_id is not None  # noqa: S101  an INSERT … RETURNING of one row gives one
    note(db, actor, "adapter.push", f"{name}@{number}", {"digest": draft.digest, "state": state})
    hold_for_version(db, project, f"{name}@{number}", draft.metadata, actor.key_id)
    return int(version_id)


def _take_number(db: sa.Connection, project: str, name: str) -> tuple[int, int]:
    row = db.execute(sa.select(adapters).where(adapters.c.project == project, adapters.c.name == name)).one_or_none()
    if row is None:
        adapter_id = db.scalar(
            adapters.insert()
            .values(project=project, name=name, next_version=2, created_at=alias_records.now())
            .returning(adapters.c.id)
        )
        assert adapter_id is not None  # noqa: S101  an INSERT … RETURNING of one row gives one
        return adapter_id, 1
    values: dict[str, Any] = {"next_version": row.next_version + 1}
    if row.deleted_at is not None:
        values |= {"deleted_at": None, "created_at": alias_records.now()}
    db.execute(adapters.update().where(adapters.c.id == row.id).values(values))
    return int(row.id), int(row.next_version)


def make_ready(
    db: sa.Connection,
    version_id: int,
    proof: dict[str, Any],
    warnings: list[str],
    wanted_alias: str | None,
    *,
    actor: Actor,
) -> None:
    """Make a version ``ready`` and move ``wanted_alias`` to it (None: ``live``, if none could go live before).

    ``live`` does not move to a version that its perplexity holds back.
    """
    row = version_by_id(db, version_id)
    if row is None or row.state == "deleted":  # deleted while it was being proven
        return
    first = _may_be_first(db, row.adapter_id)
    db.execute(
        versions.update()
        .where(versions.c.id == version_id)
        .values(
            state="ready", reason=None, proof=proof, warnings=warnings, ready_at=row.ready_at or alias_records.now()
        )
    )
    name = adapter_name(db, row.adapter_id)
    if row.state != "ready":
        note(db, actor, "version.ready", f"{name}@{row.number}")
    alias = DEFAULT_ALIAS if wanted_alias is None and first else wanted_alias
    if alias == DEFAULT_ALIAS and is_held_back(proof):
        note(db, actor, "version.hold_back", f"{name}@{row.number}", {"because": "push"})
    elif alias and alias_records.move(db, row.adapter_id, alias, row.number, "push"):
        note_move(db, actor, name, alias, row.number, "push")


def _may_be_first(db: sa.Connection, adapter_id: int) -> bool:
    """Whether no version of the name could go live by itself so far, and nobody has moved `live`."""
    chosen = sa.select(versions.c.proof).where(versions.c.adapter_id == adapter_id, versions.c.ready_at.is_not(None))
    return all(is_held_back(proof) for proof in db.scalars(chosen)) and not alias_records.history(
        db, adapter_id, DEFAULT_ALIAS
    )


def set_perplexity(db: sa.Connection, version: VersionRow, perplexity: dict[str, Any]) -> None:
    """Add the measured perplexity to a proof from before proofs included it."""
    now = present(db, version)
    if now is not None:
        proof = {**(now.proof or {}), "perplexity": perplexity}
        db.execute(versions.update().where(versions.c.id == now.id).values(proof=proof))


def is_held_back(proof: dict[str, Any] | None) -> bool:
    """Whether a version with this proof is held back from `live`; one that was never measured is not."""
    perplexity = measured(proof)
    return perplexity is not None and perplexity.holds_back


def adapter_name(db: sa.Connection, adapter_id: int) -> str:
    return str(db.scalar(sa.select(adapters.c.name).where(adapters.c.id == adapter_id)))


def _owner(db: sa.Connection, adapter_id: int) -> tuple[str, str]:
    """(project, name)."""
    row = db.execute(sa.select(adapters.c.project, adapters.c.name).where(adapters.c.id == adapter_id)).one()
    return row.project, row.name


def restart_proof(db: sa.Connection, version: VersionRow, draft: VersionDraft, *, actor: Actor) -> None:
    """Set a rejected version back to ``proving``, with what its new push sends beside the weights: that may be what was
    wrong (``metadata.proof``). A version in another state stays as it is."""
    sent = {name: getattr(draft, name) for name in ("wanted_alias", "metadata", "config", "readme", "warnings")}
    if _leave(db, version.id, "rejected", {"state": "proving", "reason": None, **sent}, "adapter.push", actor):
        project, name = _owner(db, version.adapter_id)
        release_versions(db, project, name, [version.number])
        hold_for_version(db, project, f"{name}@{version.number}", draft.metadata, actor.key_id)


def want_alias(db: sa.Connection, version_id: int, alias: str) -> None:
    """Set the alias that moves to a version once it is proven; empty: none does."""
    db.execute(versions.update().where(versions.c.id == version_id).values(wanted_alias=alias))


def reject(db: sa.Connection, version_id: int, reason: dict[str, Any], *, actor: Actor) -> None:
    """Set a version to ``rejected``; ``reason`` has the code, message and param of the failed proof."""
    _leave(db, version_id, "proving", {"state": "rejected", "reason": reason}, "version.reject", actor)


def _leave(db: sa.Connection, version_id: int, state: str, values: dict[str, Any], action: str, actor: Actor) -> bool:
    """Change a version that still is in ``state``, and note it; False where it is not."""
    chosen = versions.update().where(versions.c.id == version_id, versions.c.state == state).values(**values)
    rows = db.execute(chosen.returning(versions.c.adapter_id, versions.c.number, versions.c.digest)).all()
    for row in rows:
        detail = {"digest": row.digest or None, "state": values["state"]}
        if values["reason"] is not None:
            detail["code"] = values["reason"].get("code")
        note(db, actor, action, f"{adapter_name(db, row.adapter_id)}@{row.number}", detail)
    return bool(rows)


def delete_version(db: sa.Connection, adapter_id: int, number: int) -> None:
    """Delete a version and the aliases that point to it; with its last version, the adapter."""
    for row in db.execute(sa.select(aliases).where(aliases.c.adapter_id == adapter_id)).all():
        target = alias_records.target_of(row)
        if target is not None and number in versions_of(target):
            alias_records.drop(db, adapter_id, row.alias)
    db.execute(
        versions.update()
        .where(versions.c.adapter_id == adapter_id, versions.c.number == number)
        .values(state="deleted", config=b"", readme=None)
    )
    verdict_records.forget(db, sa.and_(versions.c.adapter_id == adapter_id, versions.c.number == number))
    release_versions(db, *_owner(db, adapter_id), [number])
    left = db.scalar(
        sa.select(sa.func.count())
        .select_from(versions)
        .where(versions.c.adapter_id == adapter_id, versions.c.state != "deleted")
    )
    if not left:
        delete_adapter(db, adapter_id)


def delete_adapter(db: sa.Connection, adapter_id: int) -> None:
    """Delete an adapter; only the row with its next version's number is kept."""
    numbers = db.scalars(sa.select(versions.c.number).where(versions.c.adapter_id == adapter_id)).all()
    release_versions(db, *_owner(db, adapter_id), numbers)
    db.execute(aliases.delete().where(aliases.c.adapter_id == adapter_id))
    db.execute(alias_history.update().where(alias_history.c.adapter_id == adapter_id).values(parent_id=None))
    db.execute(alias_history.delete().where(alias_history.c.adapter_id == adapter_id))
    verdict_records.forget(db, versions.c.adapter_id == adapter_id)
    db.execute(versions.delete().where(versions.c.adapter_id == adapter_id))
    db.execute(
        adapters.update().where(adapters.c.id == adapter_id).values(deleted_at=alias_records.now(), pinned_at=None)
    )
