"""The authenticated caller of one request."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from types import MappingProxyType
from typing import Final

from pydantic import BaseModel, ConfigDict, Field

from adapters.authorization import KeyScope
from service.errors import Forbidden

DEFAULT_PROJECT = "default"


class Scope(StrEnum):
    """What a key may do; ``admin`` includes every scope, in every project."""

    INFER = "infer"
    ADAPTERS = "adapters"
    KNOWLEDGE = "knowledge"
    TRAIN = "train"
    ADMIN = "admin"


class Limits(BaseModel):
    """Usage limits of a key; None: unlimited. A day is a UTC day."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    requests_per_minute: int | None = Field(None, ge=1, le=2**53)
    tokens_per_minute: int | None = Field(None, ge=1, le=2**53)
    concurrent: int | None = Field(None, ge=1, le=2**53)
    tokens_per_day: int | None = Field(None, ge=1, le=2**53)


NO_LIMITS = Limits()
FilterValue = str | bool | float
"""A value of a document's attribute."""
NO_FILTERS: Final[Mapping[str, FilterValue]] = MappingProxyType({})


@dataclass(frozen=True, slots=True)
class Caller(KeyScope):
    """Who sends a request, the project it acts in, and its permissions.

    ``adapters`` and ``stores`` are globs over names; None: everything in the project. ``background`` callers
    (evaluations) yield to all others.
    """

    key_id: str
    project: str
    scopes: frozenset[Scope]
    adapters: tuple[str, ...] | None = None
    stores: tuple[str, ...] | None = None
    limits: Limits = NO_LIMITS
    background: bool = False
    limited_as: str | None = None
    """The id of the key whose limits count, if that is not this key but its parent."""
    filters: Mapping[str, FilterValue] = field(default_factory=lambda: NO_FILTERS, hash=False)
    """Attributes and their values, to which every search with this key is restricted."""

    def may(self, scope: Scope) -> bool:
        """Whether the key has the scope, or ``admin``."""
        return Scope.ADMIN in self.scopes or scope in self.scopes

    def demand(self, *scopes: Scope) -> None:
        """Raise Forbidden if the key is missing one of ``scopes``; the message names the first."""
        for scope in scopes:
            if not self.may(scope):
                raise Forbidden(f"the API key is missing the scope `{scope.value}`")
