"""What a key may be given: globs, and a key under another key, which can do no more than that one."""

from __future__ import annotations

import re
from dataclasses import replace
from fnmatch import fnmatchcase
from typing import Final

from service.access.caller import Limits, Scope
from service.access.records import Draft, KeyRow
from service.errors import BadRequest, Forbidden, Unauthenticated

MAX_GLOBS: Final = 64
MAX_EXPIRES_AT: Final = 253_402_300_799
"""The end of the year 9999, Unix seconds."""
_GLOB: Final = re.compile(r"[a-z0-9._*?-]{1,64}", re.ASCII)


def is_glob(text: str) -> bool:
    """Whether ``text`` is a glob over names: their characters, ``*`` for any run of them and ``?`` for any one."""
    return _GLOB.fullmatch(text) is not None


def covers(wide: tuple[str, ...] | None, narrow: tuple[str, ...] | None) -> bool:
    """True where all that ``narrow`` matches is surely matched by ``wide``; None is everything.

    Sure, not complete: a narrow glob must lie within a single wide one (``["a*", "b*"]`` does not cover ``[ab]?``).
    A narrow glob is read as a name: its ``*`` and ``?`` are in no name, so only a wildcard of the wide glob can take
    them, and that takes whatever they stand for; but a ``?`` must not take a ``*``.
    """
    if wide is None or narrow is None:
        return wide is None
    patterns = [glob.replace("?", "[!*]") for glob in wide]
    return all(any(fnmatchcase(glob, pattern) for pattern in patterns) for glob in narrow)


def check(draft: Draft, now: float) -> None:
    """Refuse a key that makes no sense. ``now`` is Unix seconds.

    Raises:
        BadRequest: It expires in the past, or is an admin's and yet narrowed, or in a project.
    """
    if draft.expires_at is not None and draft.expires_at <= now:
        raise BadRequest(
            f"`expires_at` is {draft.expires_at}, which is past: a Unix time in seconds after {int(now)} is allowed",
            param="expires_at",
        )
    if Scope.ADMIN in draft.scopes:
        for param in ("adapters", "stores"):
            if getattr(draft, param) is not None:
                raise BadRequest(f"`{param}` cannot narrow a key with the scope `admin`: leave it out", param=param)


def under(parent: KeyRow | None, draft: Draft, now: float) -> Draft:
    """``draft`` as a key under ``parent``: what it leaves open is the parent's, what the parent lacks is refused.

    Raises:
        Unauthenticated: There is no such parent (any more).
        Forbidden: The draft reaches further than the parent.
    """
    if parent is None or (parent.expires_at is not None and parent.expires_at <= now):
        raise Unauthenticated("the API key that this was asked with is not valid any more")
    expiries = [time for time in (draft.expires_at, parent.expires_at) if time is not None]
    limits = _tighter(draft.limits, parent.limits)
    yields = draft.background or parent.background
    draft = replace(draft, expires_at=min(expiries, default=None), limits=limits, background=yields)
    if Scope.ADMIN in parent.scopes:
        return draft
    if draft.project != parent.project:
        raise Forbidden("a key under another belongs to the same project", code="project_mismatch")
    missing = sorted(draft.scopes - parent.scopes)
    if missing:
        raise Forbidden(f"the API key has not the scope `{missing[0]}`")
    adapters = parent.adapters if draft.adapters is None else draft.adapters
    stores = parent.stores if draft.stores is None else draft.stores
    if not covers(parent.adapters, adapters) or not covers(parent.stores, stores):
        raise Forbidden("a key under another cannot match more names than that one", code="globs_exceeded")
    return replace(draft, adapters=adapters, stores=stores)


def no_longer(maker: KeyRow | None, draft: Draft) -> Draft:
    """``draft`` as a key that ends with its maker's time: what leaves the end open ends then.

    Raises:
        BadRequest: It is to outlive its maker.
    """
    if maker is None or maker.expires_at is None:
        return draft
    if draft.expires_at is not None and draft.expires_at > maker.expires_at:
        raise BadRequest(
            f"`expires_at` is {draft.expires_at}: a key cannot outlive the key that makes it, "
            f"which expires at {maker.expires_at}",
            param="expires_at",
        )
    return replace(draft, expires_at=draft.expires_at or maker.expires_at)


def _tighter(one: Limits, other: Limits) -> Limits:
    """Of each limit the smaller; None is none."""
    pairs = {name: (getattr(one, name), getattr(other, name)) for name in Limits.model_fields}
    return Limits(**{name: min((v for v in pair if v is not None), default=None) for name, pair in pairs.items()})
