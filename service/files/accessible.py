"""Which files a key may access: all of its project or, if the key has globs, those of the objects that they match.

A key with filters accesses only what it has uploaded or its batches have written: no filter says whose a file is.

A file belongs to the versions, datasets, vector stores and jobs that hold it, and to the job that wrote it. A narrowed
key also accesses what it has uploaded itself, and the files of its jobs' keys. A file that belongs to nothing is
accessible to the key that uploaded it and to keys without globs; so are what batches read and write. What a run has
written is accessible only where the key's globs match all vector stores whose passages it may show.
"""

from __future__ import annotations

from collections.abc import Iterable

import sqlalchemy as sa

from adapters.database.authorization import adapters_match, stores_match
from adapters.database.sql import matches_glob
from service.access.caller import Caller
from service.access.tables import keys
from service.files.purposes import BATCH_FILES, DOCUMENTS, Purpose
from service.files.tables import file_holds, files, stores

VERSION, KEY, STORE, DATASET, BATCH = "version", "key", "store", "dataset", "batch"
"""Kinds of holds. A key's globs over adapters are held against the names of datasets, too."""


def accessible(caller: Caller) -> sa.ColumnElement[bool]:
    """SQL condition on ``files`` (of the caller's project): the caller may see and use the file."""
    if caller.filters:
        return files.c.key_id == caller.key_id
    if caller.adapters is None and caller.stores is None:
        return sa.true()
    is_document = files.c.purpose.in_(sorted(DOCUMENTS))
    is_batch = files.c.purpose.in_(sorted(BATCH_FILES))
    held = sa.exists().where(file_holds.c.file_id == files.c.id, _holder_matches(caller))
    conditions = [held, files.c.key_id.in_(_matching_jobs(caller))]
    if caller.stores is None:
        conditions.append(is_document)
    if caller.adapters is None:
        conditions.append(sa.not_(is_document))
    if caller.stores is not None:  # whoever holds it: a report quotes what the stores of its run had
        quotes = files.c.key_id.in_(sa.select(keys.c.id).where(stores_match(keys.c.run_stores, caller.stores)))
        conditions = [sa.and_(sa.or_(*conditions), sa.or_(files.c.purpose != Purpose.RESULTS, quotes))]
    # which stores were quoted in a batch's answers is in no column: as its batches, they are their own key's
    return sa.or_(_uploaded_or_held_by(caller), sa.and_(sa.not_(is_batch), sa.or_(*conditions)))


def deletable(caller: Caller) -> sa.ColumnElement[bool]:
    """SQL condition on accessible ``files``: the caller may also delete the file.

    Deleting affects everyone, so a key with globs may only delete what it uploaded or what belongs to nothing else.
    """
    if caller.adapters is None and caller.stores is None:
        return sa.true()
    held_elsewhere = sa.exists().where(file_holds.c.file_id == files.c.id, sa.not_(_holder_matches(caller)))
    return sa.or_(_uploaded_or_held_by(caller), sa.not_(held_elsewhere))


def _uploaded_or_held_by(caller: Caller) -> sa.ColumnElement[bool]:
    """Uploaded with the key or with one that was made under it, or held by the key, where it is a job's."""
    children = sa.select(keys.c.id).where(keys.c.parent_key_id == caller.key_id)
    held = sa.exists().where(
        file_holds.c.file_id == files.c.id, file_holds.c.kind == KEY, file_holds.c.holder == caller.key_id
    )
    return sa.or_(files.c.key_id == caller.key_id, files.c.key_id.in_(children), held)


def _holder_matches(caller: Caller) -> sa.ColumnElement[bool]:
    """Of rows of ``file_holds`` whose holder the caller's globs match."""
    holder, kind = file_holds.c.holder, file_holds.c.kind
    version: sa.ColumnElement[bool] = sa.true()
    store: sa.ColumnElement[bool] = sa.true()
    if caller.adapters is not None:
        version = _any(matches_glob(holder, f"{glob}@*") for glob in caller.adapters)
    if caller.stores is not None:
        named = sa.func.coalesce(stores.c.name, "")
        matching = _any(sa.or_(matches_glob(stores.c.id, glob), matches_glob(named, glob)) for glob in caller.stores)
        store = holder.in_(sa.select(stores.c.id).where(stores.c.project == caller.project, matching))
    return sa.or_(
        sa.and_(kind.in_((VERSION, DATASET)), version),
        sa.and_(kind == STORE, store),
        sa.and_(kind == KEY, holder.in_(_matching_jobs(caller))),
    )


def _matching_jobs(caller: Caller) -> sa.Select[tuple[str]]:
    """The ids of the keys of jobs and evaluations all of whose adapters, at least one, the caller's globs match."""
    query = sa.select(keys.c.id).where(keys.c.project == caller.project, keys.c.background.is_(True))
    return query.where(adapters_match(keys.c.adapters, caller.adapters))


def _any(conditions: Iterable[sa.ColumnElement[bool]]) -> sa.ColumnElement[bool]:
    return sa.or_(sa.false(), *conditions)
