"""A small JSON body of a control-plane route, read after the caller was authorised."""

from __future__ import annotations

import asyncio
from typing import Any, Final, TypeVar

from fastapi import Request
from pydantic import BaseModel, ValidationError

from adapters.json_depth import MAX_LEVELS, too_deep_text
from adapters.validation import faults, message, path, shown
from service.errors import BadRequest, TooLarge, UnknownField
from service.http.json_text import load_json

MAX_JSON_BYTES: Final = 64 * 1024
BODY_TIMEOUT_S: Final = 60.0
Body = TypeVar("Body", bound=BaseModel)


async def read_json(request: Request, model: type[Body], *, most: int = MAX_JSON_BYTES) -> Body:
    """The request's body, of at most ``most`` bytes, as a ``model``.

    Raises:
        TooLarge: It has more bytes; the rest is not read.
        BadRequest: It did not arrive in time, is not JSON, is nested too deeply, or a field's value is not allowed.
        UnknownField: It has a field that the model has not.
    """
    body = await read_bytes(request, most)
    content = parse(body)
    try:
        return model.model_validate_json(body)
    except ValidationError as error:
        raise refusal(error, content) from None


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
    found = parse(body)
    if not isinstance(found, dict):
        raise BadRequest("the body must be a JSON object", code="invalid_json")
    return found


def parse(text: bytes | bytearray, param: str | None = None) -> Any:
    """The JSON value of a body, or of the part ``param`` of one, as ``load_json`` reads it.

    Raises:
        BadRequest: It is not JSON, has too many values, or is nested more than MOST_LEVELS levels deep.
    """
    value = load_json(text, param=param)
    deep = too_deep_text(text, value)
    if deep is not None:
        where = ".".join(filter(None, (param, deep))) or None
        raise BadRequest(
            f"{f'`{where}`' if where else 'the body'} is nested more than {MAX_LEVELS} levels deep", param=where
        )
    return value


def as_model(value: dict[str, Any], model: type[Body]) -> Body:
    """``value`` as a ``model``. Raises BadRequest, UnknownField."""
    try:
        return model.model_validate(value)
    except ValidationError as error:
        raise refusal(error, value) from None


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


def refusal(error: ValidationError, content: object, prefix: str = "") -> BadRequest:
    """The first fault of a body, as a client is told of it.

    Args:
        content: What was validated.
        prefix: Dotted name of what the content is part of, or empty.
    """
    first = faults(error)[0]
    param = ".".join([*filter(None, (prefix,)), *path(first, content)]) or None
    if first["type"] == "json_invalid":
        return BadRequest("the body is not JSON", code="invalid_json")
    if first["type"] == "extra_forbidden":
        return UnknownField(f"`{param}` is not a field of this request", param=param)
    if first["type"] == "missing":
        return BadRequest(f"`{param}` is missing", param=param, code="missing_required_parameter")
    return BadRequest(f"`{param or 'body'}`: {message(first)} (found {shown(first['input'])})", param=param)
