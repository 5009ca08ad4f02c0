"""FastAPI dependencies: the caller, the scopes that a route needs, and the actor for the audit.

    CurrentCaller = Annotated[Caller, Depends(needs(Scope.ADAPTERS))]
    CurrentActor = Annotated[Actor, Depends(actor)]

Dependencies run before the route reads its body, so a key without the scope learns nothing about body validation.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Awaitable, Callable, Iterable
from typing import Annotated, Final

from fastapi import Depends, Request

from service.access.audit import Actor
from service.access.caller import Caller, Scope
from service.access.refusals import Refusals

_REQUEST_ID: Final = re.compile(rb"[A-Za-z0-9._-]{1,64}")


# coroutines, though they await nothing: FastAPI would run plain functions in its thread pool
async def caller(request: Request) -> Caller:
    """The authenticated caller. Raises Unauthenticated, Forbidden, BadRequest: see ``Authenticator``."""
    authenticated: Caller = request.app.state.authenticator.authenticate(request.headers)
    request.state.caller = authenticated
    return authenticated


def needs(*scopes: Scope) -> Callable[[Caller], Awaitable[Caller]]:
    """A dependency that returns the caller, or raises Forbidden, naming the first of ``scopes`` that is missing."""

    async def demand(who: Annotated[Caller, Depends(caller)]) -> Caller:
        who.demand(*scopes)
        return who

    return demand


async def actor(request: Request, who: Annotated[Caller, Depends(caller)]) -> Actor:
    """The caller and the request's id, for the audit."""
    return Actor.of(who, request_id(request))


def note_refusal(request: Request, status: int, code: str | None) -> None:
    """Count an answer for the audit if it refuses access and the app has a ``Refusals``."""
    refusals: Refusals | None = getattr(request.app.state, "refusals", None)
    if refusals is not None:
        known: Caller | None = getattr(request.state, "caller", None)
        peer = request.client.host if request.client else ""
        refusals.note(status, code, known, peer, request.url.path, request_id(request))


def request_id(request: Request) -> str | None:
    """The id in the answer's x-request-id header; None without the ``RequestIds`` middleware."""
    identifier: str | None = getattr(request.state, "request_id", None)
    return identifier


def request_id_of(headers: Iterable[tuple[bytes, bytes]]) -> str:
    """The client's own id of a request, by its headers, if it is well formed; else a new one."""
    client_id = next((value for name, value in headers if name == b"x-request-id"), b"")
    return client_id.decode() if _REQUEST_ID.fullmatch(client_id) else secrets.token_hex(12)
