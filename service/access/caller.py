"""The authenticated caller of one request."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

DEFAULT_PROJECT = "default"


class Scope(StrEnum):
    """What a key may do; ``admin`` stands for all of them, in every project."""

    INFER = "infer"
    ADAPTERS = "adapters"
    KNOWLEDGE = "knowledge"
    TRAIN = "train"
    ADMIN = "admin"


@dataclass(frozen=True, slots=True)
class Caller:
    """Who sends a request, and in whose project it acts."""

    key_id: str
    project: str
    scopes: frozenset[Scope]

    def may(self, scope: Scope) -> bool:
        """True where the key has the scope, or is an admin's."""
        return Scope.ADMIN in self.scopes or scope in self.scopes
