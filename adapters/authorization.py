"""Who may see an object: one rule for the gateway and the trainer.

An object belongs to a project. It may show what adapters answer and what vector stores hold: a key whose globs do not
match all of these does not see it. `adapters.database.authorization` has the rule as a condition of SQL.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import TypeAlias

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

        What shows no adapter's answers, such as a comparison of prompts of the base alone, is seen by its creator and
        by keys without globs over adapters: nothing else says whose it is. The creator need not be held against the
        stores, since a run reads them with its creator's globs. What is not known is hidden from keys with globs.
        """
        if thing.project != self.project:
            return False
        own = thing.key_id == self.key_id
        uses, reads = self.adapters is None, self.stores is None or own
        if thing.adapters is not None and (thing.adapters or own):
            uses = all(map(self.may_use, thing.adapters))
        if thing.stores is not None and not own:
            reads = all(self.may_read(*each) for each in thing.stores)
        return uses and reads


def _matches(globs: Globs, names: Iterable[str]) -> bool:
    return globs is None or any(fnmatchcase(name, glob) for name in names for glob in globs)
