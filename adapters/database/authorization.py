"""`adapters.authorization` as conditions of SQL. Not beside it: a client may import that, and has no SQLAlchemy."""

from __future__ import annotations

from collections.abc import Sequence

import sqlalchemy as sa

from adapters.authorization import Globs, KeyScope, StoreNames
from adapters.database.sql import json_values, matches_glob


def visible(
    caller: KeyScope,
    *,
    project: sa.ColumnElement[str],
    adapters: sa.ColumnElement[list[str]],
    stores: sa.ColumnElement[list[StoreNames]],
    key_id: sa.ColumnElement[str],
) -> sa.ColumnElement[bool]:
    """`KeyScope.may_see` as a condition on the columns with an object's ownership; both arrays are JSON."""
    own = key_id == caller.key_id
    names_none = sa.and_(adapters.is_not(None), sa.func.json_array_length(adapters) == 0)
    used = sa.or_(adapters_match(adapters, caller.adapters), sa.and_(own, names_none))
    read = sa.or_(stores_match(stores, caller.stores), own)
    return sa.and_(project == caller.project, used, read)


def adapters_match(names: sa.ColumnElement[list[str]], globs: Globs) -> sa.ColumnElement[bool]:
    """Condition: the globs match every name of a JSON array, and it has one."""
    if globs is None:
        return sa.true()
    name = json_values(names).table_valued("value")
    unmatched = sa.select(sa.literal(1)).select_from(name).where(sa.not_(_any(name.c.value, globs)))
    return sa.and_(names.is_not(None), sa.func.json_array_length(names) > 0, sa.not_(unmatched.exists()))


def stores_match(stores: sa.ColumnElement[list[StoreNames]], globs: Globs) -> sa.ColumnElement[bool]:
    """Condition: the globs match the id or the name of every store of a JSON array of `StoreNames`."""
    if globs is None:
        return sa.true()
    store = json_values(stores).table_valued("value")
    name = json_values(store.c.value).table_valued("value")
    matched = sa.select(sa.literal(1)).select_from(name).where(_any(name.c.value, globs)).correlate(store)
    unmatched = sa.select(sa.literal(1)).select_from(store).where(sa.not_(matched.exists()))
    return sa.and_(stores.is_not(None), sa.not_(unmatched.exists()))


def _any(text: sa.ColumnElement[str], globs: Sequence[str]) -> sa.ColumnElement[bool]:
    return sa.or_(sa.false(), *(matches_glob(text, glob) for glob in globs))
