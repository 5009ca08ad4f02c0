"""How the registry's changes are named in the audit. What follows from a push (the proof's end, the alias that moves)
is the pusher's; what goes on after a restart, or without anyone asking, is the gateway's own."""

from __future__ import annotations

from dataclasses import replace

import sqlalchemy as sa

from service.access.audit import SYSTEM, Actor, note
from service.registry.split import AliasTarget, Split


def system_actor(project: str) -> Actor:
    """The gateway itself as the actor of a change in a project."""
    return replace(SYSTEM, project=project)


def note_move(
    db: sa.Connection, actor: Actor, name: str, alias: str, target: AliasTarget, because: str, *, forced: bool = False
) -> None:
    """Note in the audit that an alias was moved.

    Args:
        because: What moved it: ``push``, ``promote``, ``split``, ``rollback``, or ``revalidation``: a rollback that
            nobody asked for.
        forced: Whether whoever moved it said that it may go to versions that are held back.
    """
    detail = {"split": target.shown()} if isinstance(target, Split) else {"version": target}
    more = {"forced": True} if forced else {}
    verb = {"rollback": "rollback", "revalidation": "rollback", "split": "split"}.get(because, "promote")
    note(db, actor, f"alias.{verb}", f"{name}:{alias}", {**detail, "because": because, **more})
