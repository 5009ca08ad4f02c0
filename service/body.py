"""A small JSON body of a control-plane route, read after the caller was authorised."""

from __future__ import annotations

import asyncio
from typing import Any, Final, TypeVar

import orjson
from fastapi import Request
from pydantic import BaseModel, ValidationError

from adapters.nesting import MOST_LEVELS, too_deep
from service.errors import BadRequest, TooLarge, UnknownField

MAX_JSON_BYTES: Final = 64 * 1024
BODY_TIMEOUT_S: Final = 60.0
Body = TypeVar("Body", bound=BaseModel)


async def read_json(request: Request, model: type[Body], *, most: int = MAX_JSON_BYTES) -> Body:
    """The request's body, of at most ``most`` bytes, as a ``model``.

    Raises:
        TooLarge: It has more bytes; the rest is not read.
        BadRequest: It did not arrive in time, is not JSON, or a field's value is not allowed.
        UnknownField: It has a field that the model has not.
    """
    body = await read_bytes(request, most)
    try:
        return model.model_validate_json(body)
    except ValidationError as error:
        raise _refusal(error) from None


async def read_object(request: Request, *, most: int) -> dict[str, Any]:
    """The request's body, of at most ``most`` bytes, as a JSON object; an empty body is an empty one.

    The parser is strict: UTF-8, no NaN or Infinity; of a repeated key the last counts.

    Raises:
        TooLarge: It has more bytes; the rest is not read.
        BadRequest: It did not arrive in time, is no JSON object, or is nested too deeply.
    """
    body = await read_bytes(request, most)
    if not body.strip():
        return {}
    try:
        found = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise BadRequest(f"the body is not JSON: {error.msg} at byte {error.pos}", code="invalid_json") from None
    if not isinstance(found, dict):
        raise BadRequest("the body must be a JSON object", code="invalid_json")
    deep = too_deep(found)
    if deep is not None:
        raise BadRequest(f"`{deep}` is nested more than {MOST_LEVELS} levels deep", param=deep)
    return found


def as_model(value: dict[str, Any], model: type[Body]) -> Body:
    """``value`` as a ``model``. Raises BadRequest, UnknownField."""
    try:
        return model.model_validate(value)
    except ValidationError as error:
        raise _refusal(error) from None


async def read_bytes(request: Request, most: int) -> bytes:
    """The request's body. Raises TooLarge, BadRequest where it did not arrive in time."""
    body = bytearray()
    try:
        async with asyncio.timeout(BODY_TIMEOUT_S):
            async for chunk in request.stream():
                body += chunk
                if len(body) > most:
                    raise TooLarge(f"the body has more than {most} bytes", headers={"connection": "close"})
    except TimeoutError:
        raise BadRequest(f"the body did not arrive within {BODY_TIMEOUT_S:g} s", code="body_timeout") from None
    return bytes(body)


def _refusal(error: ValidationError) -> BadRequest:
    first = error.errors()[0]
    if first["type"] == "json_invalid":
        return BadRequest("the body is not JSON", code="invalid_json")
    param = ".".join(map(str, first["loc"])) or None
    if first["type"] == "extra_forbidden":
        return UnknownField(f"`{param}` is not a field of this request", param=param)
    code = "missing_required_parameter" if first["type"] == "missing" else None
    said = first["msg"].removeprefix("Value error, ")
    return BadRequest(f"`{param or 'body'}`: {said} (found {str(first['input'])[:100]!r})", param=param, code=code)
