"""Who may see an object: one rule for the gateway and the trainer, as Python and as a condition of SQL.

An object belongs to a project. It may show what adapters answer and what vector stores hold: a key whose globs do not
match all of these does not see it. A key sees what it has created itself, since it was authorised for that.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import TypeAlias

import sqlalchemy as sa

from adapters.database.sql import json_values, matches_glob

Globs: TypeAlias = Sequence[str] | None
"""Patterns for names; None matches every name of the project."""
StoreNames: TypeAlias = tuple[str, ...]
"""A vector store's id and, if it has one, its name. A glob that matches one of them matches the store."""


@dataclass(frozen=True, slots=True)
class Ownership:
    """What decides who may see an object.

    Attributes:
        project: Whose it is.
        adapters: Names of the adapters whose answers it shows; None: not known.
        stores: The vector stores whose passages it may show; None: not known.
        key_id: The key that has created it; None: not known.
    """

    project: str
    adapters: Collection[str] | None = None
    stores: Collection[StoreNames] | None = None
    key_id: str | None = None


class KeyScope:
    """What a key may reach; the callers of the gateway and of the trainer are one.

    Attributes:
        key_id: The key.
        project: The project that it acts in.
        adapters: Globs of the adapters that it may use.
        stores: Globs of the vector stores that it may read.
    """

    __slots__ = ()
    key_id: str
    project: str
    adapters: tuple[str, ...] | None
    stores: tuple[str, ...] | None

    def may_use(self, adapter: str) -> bool:
        """Whether the key's globs match the adapter's name."""
        return _matches(self.adapters, (adapter,))

    def may_read(self, *names: str) -> bool:
        """Whether the key's globs match the store's id or its name."""
        return _matches(self.stores, names)

    def may_see(self, thing: Ownership) -> bool:
        """Whether the key may see, and so change, an object.

        A key with globs over adapters does not see what shows no adapter's answers, such as a comparison of prompts of
        the base alone: nothing says whose it is. It does not see either what is not known.
        """
        if thing.project != self.project:
            return False
        if thing.key_id == self.key_id:
            return True
        uses = self.adapters is None or (bool(thing.adapters) and all(map(self.may_use, thing.adapters or ())))
        reads = self.stores is None or (thing.stores is not None and all(self.may_read(*each) for each in thing.stores))
        return uses and reads


def _matches(globs: Globs, names: Iterable[str]) -> bool:
    return globs is None or any(fnmatchcase(name, glob) for name in names for glob in globs)


def adapters_match(names: sa.ColumnElement[list[str]], globs: Globs) -> sa.ColumnElement[bool]:
    """Condition: the globs match every name of a JSON array, and it has one. As in `KeyScope.may_see`."""
    if globs is None:
        return sa.true()
    name = json_values(names).table_valued("value")
    unmatched = sa.select(sa.literal(1)).select_from(name).where(sa.not_(_any(name.c.value, globs)))
    return sa.and_(names.is_not(None), sa.func.json_array_length(names) > 0, sa.not_(unmatched.exists()))


def stores_match(stores: sa.ColumnElement[list[StoreNames]], globs: Globs) -> sa.ColumnElement[bool]:
    """Condition: the globs match every store of a JSON array of `StoreNames`. As in `KeyScope.may_see`."""
    if globs is None:
        return sa.true()
    store = json_values(stores).table_valued("value")
    name = json_values(store.c.value).table_valued("value")
    matched = sa.select(sa.literal(1)).select_from(name).where(_any(name.c.value, globs)).correlate(store)
    unmatched = sa.select(sa.literal(1)).select_from(store).where(sa.not_(matched.exists()))
    return sa.and_(stores.is_not(None), sa.not_(unmatched.exists()))


def visible(
    caller: KeyScope,
    *,
    project: sa.ColumnElement[str],
    adapters: sa.ColumnElement[list[str]],
    stores: sa.ColumnElement[list[StoreNames]],
    key_id: sa.ColumnElement[str],
) -> sa.ColumnElement[bool]:
    """`KeyScope.may_see` as a condition on the columns with an object's ownership; both arrays are JSON."""
    shown = sa.and_(adapters_match(adapters, caller.adapters), stores_match(stores, caller.stores))
    return sa.and_(project == caller.project, sa.or_(key_id == caller.key_id, shown))


def _any(text: sa.ColumnElement[str], globs: Sequence[str]) -> sa.ColumnElement[bool]:
    return sa.or_(sa.false(), *(matches_glob(text, glob) for glob in globs))
