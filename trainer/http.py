"""What all of the trainer's routes share: the caller, bodies that are read with a bound, pages of lists."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, Collection, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Annotated, Any, Final

from fastapi import Depends, Header, Query, Request

from adapters.protocol.runs import ADAPTERS_HEADER, KEY_ID_HEADER, PROJECT_HEADER
from trainer.errors import BodyTooLarge, Invalid

MAX_BODY_BYTES: Final = 2 * 2**20
MOST_LISTED: Final = 100
DEFAULT_LISTED: Final = 20


@dataclass(frozen=True, slots=True)
class CurrentCaller:
    """Who asks, as the gateway says it. ``adapters`` are globs of the names that the key may use; None: of all."""

    project: str
    key_id: str
    adapters: tuple[str, ...] | None = None

    def may_use(self, adapter: str) -> bool:
        """Whether the key's globs match the adapter's name."""
        return self.adapters is None or any(fnmatchcase(adapter, glob) for glob in self.adapters)

    def may_see(self, adapters: Collection[str]) -> bool:
        """Whether the key may use all of these: what shows one adapter's answers is seen by who may ask it."""
        return all(map(self.may_use, adapters))


async def current_caller(
    project: Annotated[str, Header(alias=PROJECT_HEADER, max_length=128)],
    key_id: Annotated[str, Header(alias=KEY_ID_HEADER, max_length=128)],
    adapters: Annotated[str | None, Header(alias=ADAPTERS_HEADER, max_length=16_384)] = None,
) -> CurrentCaller:
    """Who asks."""
    globs = None if adapters is None else tuple(glob for glob in adapters.split(",") if glob)
    return CurrentCaller(project, key_id, globs)


Caller = Annotated[CurrentCaller, Depends(current_caller)]
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


def list_object(data: Sequence[dict[str, Any]], has_more: bool) -> dict[str, Any]:
    """OpenAI's list."""
    return {
        "object": "list",
        "data": list(data),
        "has_more": has_more,
        "first_id": data[0]["id"] if data else None,
        "last_id": data[-1]["id"] if data else None,
    }
