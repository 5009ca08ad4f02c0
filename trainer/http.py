"""Shared by all routes of the trainer: the caller, size-limited request bodies, list responses."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Final

from fastapi import Depends, Header, Query, Request

from adapters.authorization import KeyScope
from adapters.protocol.runs import ADAPTERS_HEADER, KEY_ID_HEADER, PROJECT_HEADER, STORES_HEADER
from trainer.errors import BodyTooLarge, InvalidField

MAX_BODY_BYTES: Final = 2 * 2**20
MAX_LISTED: Final = 100
DEFAULT_LISTED: Final = 20


@dataclass(frozen=True, slots=True)
class CurrentCaller(KeyScope):
    """The caller, from the gateway's headers."""

    project: str
    key_id: str
    adapters: tuple[str, ...] | None = None
    stores: tuple[str, ...] | None = None


async def current_caller(
    project: Annotated[str, Header(alias=PROJECT_HEADER, max_length=128)],
    key_id: Annotated[str, Header(alias=KEY_ID_HEADER, max_length=128)],
    adapters: Annotated[str | None, Header(alias=ADAPTERS_HEADER, max_length=16_384)] = None,
    stores: Annotated[str | None, Header(alias=STORES_HEADER, max_length=16_384)] = None,
) -> CurrentCaller:
    """The caller, from the gateway's headers."""
    return CurrentCaller(project, key_id, _globs(adapters), _globs(stores))


def _globs(header: str | None) -> tuple[str, ...] | None:
    return None if header is None else tuple(glob for glob in header.split(",") if glob)


Caller = Annotated[CurrentCaller, Depends(current_caller)]
After = Annotated[str | None, Query(max_length=64)]
Limit = Annotated[int, Query(ge=1, le=MAX_LISTED)]


async def read_json(request: Request) -> Any:
    """The body as JSON. Raises InvalidField, BodyTooLarge."""
    content = b"".join([chunk async for chunk in read_bounded(request, MAX_BODY_BYTES)])
    try:
        return json.loads(content)
    except (ValueError, RecursionError) as error:
        raise InvalidField(f"the request body is not valid JSON: {error}") from error


async def read_bounded(request: Request, max_bytes: int) -> AsyncGenerator[bytes, None]:
    """The chunks of the request body. Raises BodyTooLarge once they exceed ``max_bytes``."""
    total = 0
    async for chunk in request.stream():
        total += len(chunk)
        if total > max_bytes:
            raise BodyTooLarge(f"the request body exceeds {max_bytes} bytes")
        yield chunk


def list_object(data: Sequence[dict[str, Any]], has_more: bool) -> dict[str, Any]:
    """OpenAI's list object."""
    return {
        "object": "list",
        "data": list(data),
        "has_more": has_more,
        "first_id": data[0]["id"] if data else None,
        "last_id": data[-1]["id"] if data else None,
    }
