"""What all of the trainer's routes share: who asks, bodies that are read with a bound, pages of lists."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator
from typing import Annotated, Any, Final

from fastapi import Depends, Header, Query, Request

from trainer.errors import BodyTooLarge, Invalid
from trainer.jobs.service import Who

MAX_BODY_BYTES: Final = 2 * 2**20
MOST_LISTED: Final = 100
DEFAULT_LISTED: Final = 20
REPLAYED: Final = "x-hatrack-replayed"
"""Told to the gateway where an Idempotency-Key was known: the key that it has minted is then of no use."""


async def who(
    project: Annotated[str, Header(alias="x-hatrack-project", max_length=128)],
    key_id: Annotated[str, Header(alias="x-hatrack-key-id", max_length=128)],
    adapters: Annotated[str | None, Header(alias="x-hatrack-adapters", max_length=16_384)] = None,
) -> Who:
    """Who asks."""
    globs = None if adapters is None else tuple(glob for glob in adapters.split(",") if glob)
    return Who(project, key_id, globs)


Caller = Annotated[Who, Depends(who)]
After = Annotated[str | None, Query(max_length=64)]
Limit = Annotated[int, Query(ge=1, le=MOST_LISTED)]


async def read_json(request: Request) -> Any:
    """The body as JSON. Raises Invalid, BodyTooLarge."""
    content = b"".join([piece async for piece in at_most(request, MAX_BODY_BYTES)])
    try:
        return json.loads(content)
    except (ValueError, RecursionError) as error:
        raise Invalid("the body is not JSON") from error


async def at_most(request: Request, most: int) -> AsyncGenerator[bytes, None]:
    """The body's pieces. Raises BodyTooLarge once there are more than ``most`` bytes."""
    total = 0
    async for piece in request.stream():
        total += len(piece)
        if total > most:
            raise BodyTooLarge(f"the body has more than {most} bytes")
        yield piece
