"""Checks what a new key may do: its globs, and that it has no more permissions than its parent key."""

from __future__ import annotations

import re
from dataclasses import replace
from fnmatch import fnmatchcase
from typing import Final

from service.access.caller import Limits, Scope
from service.access.records import KeyDraft, KeyRow
from service.errors import BadRequest, Forbidden, Unauthenticated

MAX_GLOBS: Final = 64
MAX_EXPIRES_AT: Final = 253_402_300_799
"""The end of the year 9999, Unix seconds."""
_GLOB: Final = re.compile(r"[a-z0-9._*?-]{1,64}", re.ASCII)


def is_glob(text: str) -> bool:
    """Whether ``text`` is a glob over names: their characters, ``*`` for any number of them, ``?`` for exactly one."""
    return _GLOB.fullmatch(text) is not None


def covers(wide: tuple[str, ...] | None, narrow: tuple[str, ...] | None) -> bool:
    """Whether ``wide`` matches every name that ``narrow`` matches; None matches everything.

    Sound but not complete: each narrow glob must lie within a single wide one (``["a*", "b*"]`` does not cover
    ``[ab]?``). A narrow glob is matched as if it were a name: no name contains ``*`` or ``?``, so only a wildcard of
    the wide glob can match them, and it also matches whatever they stand for; but a ``?`` must not match a ``*``.
    """
    if wide is None or narrow is None:
        return wide is None
    patterns = [glob.replace("?", "[!*]") for glob in wide]
    return all(any(fnmatchcase(glob, pattern) for pattern in patterns) for glob in narrow)


def check(draft: KeyDraft, now: float) -> None:
    """Reject an inconsistent key. ``now`` is Unix seconds.

    Raises:
        BadRequest: It expires in the past, has the scope ``admin`` together with globs, or filters together with
            another scope than ``infer``.
    """
    if draft.expires_at is not None and draft.expires_at <= now:
        raise BadRequest(
            f"`expires_at` must be in the future: a Unix time in seconds after {int(now)}; got {draft.expires_at}",
            param="expires_at",
        )
    if Scope.ADMIN in draft.scopes:
        for param in ("adapters", "stores"):
            if getattr(draft, param) is not None:
                raise BadRequest(f"`{param}` cannot restrict a key with the scope `admin`; omit it", param=param)
    wider = sorted(draft.scopes - {Scope.INFER})
    if draft.filters and wider:
        # documents, their attributes, answers of evaluations: none of them is filtered. The files that `infer` gives,
        # those of batches, are narrowed to the key's own
        raise BadRequest(
            f"a key with `filters` can only have the scope `infer`, which reads documents through searches alone, and "
            f"files only of the key's own batches; got `{wider[0]}`, too",
            param="filters",
        )


def restrict_to_parent(parent: KeyRow | None, draft: KeyDraft, now: float) -> KeyDraft:
    """Return ``draft`` as a child key of ``parent``: what it does not set is inherited from the parent.

    Raises:
        Unauthenticated: The parent does not exist, was revoked or has expired.
        Forbidden: The draft has permissions that the parent lacks.
    """
    if parent is None or (parent.expires_at is not None and parent.expires_at <= now):
        raise Unauthenticated("the API key of this request is no longer valid: it was revoked or has expired")
    expiries = [time for time in (draft.expires_at, parent.expires_at) if time is not None]
    limits = _stricter(draft.limits, parent.limits)
    yields = draft.background or parent.background
    filters = {**draft.filters, **parent.filters}
    draft = replace(draft, expires_at=min(expiries, default=None), limits=limits, background=yields, filters=filters)
    if Scope.ADMIN in parent.scopes:
        return draft
    if draft.project != parent.project:
        raise Forbidden("a child key must belong to the project of its parent key", code="project_mismatch")
    missing = sorted(draft.scopes - parent.scopes)
    if missing:
        raise Forbidden(f"the API key is missing the scope `{missing[0]}`")
    adapters = parent.adapters if draft.adapters is None else draft.adapters
    stores = parent.stores if draft.stores is None else draft.stores
    if not covers(parent.adapters, adapters) or not covers(parent.stores, stores):
        raise Forbidden(
            "the globs of a child key must not match more names than those of its parent key", code="globs_exceeded"
        )
    return replace(draft, adapters=adapters, stores=stores)


def cap_expiry(creator: KeyRow | None, draft: KeyDraft) -> KeyDraft:
    """Return ``draft``, expiring no later than the key that creates it.

    Raises:
        BadRequest: ``expires_at`` is later than that of the key that creates it.
    """
    if creator is None or creator.expires_at is None:
        return draft
    if draft.expires_at is not None and draft.expires_at > creator.expires_at:
        raise BadRequest(
            f"`expires_at` must be at most {creator.expires_at}, when the key that creates this one expires: a key "
            f"cannot outlive its creator; got {draft.expires_at}",
            param="expires_at",
        )
    return replace(draft, expires_at=draft.expires_at or creator.expires_at)


def _stricter(first: Limits, second: Limits) -> Limits:
    """The smaller of each limit; None: unlimited."""
    pairs = {name: (getattr(first, name), getattr(second, name)) for name in Limits.model_fields}
    return Limits(**{name: min((v for v in pair if v is not None), default=None) for name, pair in pairs.items()})
