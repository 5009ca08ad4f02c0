"""What every room's routes ask of access: who calls, whether they may, and who to name in the audit.

    Who = Annotated[Caller, Depends(needs(Scope.ADAPTERS))]
    By = Annotated[Actor, Depends(actor)]

Dependencies are solved before a route reads its body, so a key without the scope learns nothing about its body.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Annotated

from fastapi import Depends, Request

from service.access.audit import Actor
from service.access.caller import Caller, Scope
from service.access.refusals import Refusals


# coroutines, though they await nothing: FastAPI would run plain functions in its thread pool
async def caller(request: Request) -> Caller:
    """Who asks, once a request. Raises Unauthenticated, Forbidden, BadRequest: see ``Authenticator``."""
    known: Caller = request.app.state.authenticator.authenticate(request.headers)
    request.state.caller = known
    return known


def needs(*scopes: Scope) -> Callable[[Caller], Awaitable[Caller]]:
    """A dependency: the caller, who must have all of ``scopes``; else Forbidden, naming the first that is missing."""

    async def demand(who: Annotated[Caller, Depends(caller)]) -> Caller:
        who.demand(*scopes)
        return who

    return demand


async def actor(request: Request, who: Annotated[Caller, Depends(caller)]) -> Actor:
    """The caller and the request's id, as the audit names them."""
    return Actor.of(who, request_id(request))


def note_refusal(request: Request, status: int, code: str | None) -> None:
    """Count an answer for the audit where it refuses access; nothing where the app has no ``Refusals``."""
    refusals: Refusals | None = getattr(request.app.state, "refusals", None)
    if refusals is not None:
        known: Caller | None = getattr(request.state, "caller", None)
        peer = request.client.host if request.client else ""
        refusals.note(status, code, known, peer, request.url.path, request_id(request))


def request_id(request: Request) -> str | None:
    """The id that the answer will carry; None where no ``RequestIds`` stands before the route."""
    found: str | None = getattr(request.state, "request_id", None)
    return found
