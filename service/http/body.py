"""Reads the small JSON bodies of control-plane routes, after the caller was authorised."""

from __future__ import annotations

import asyncio
from typing import Any, Final, TypeVar

from fastapi import Request
from pydantic import BaseModel, ValidationError

from adapters.json_depth import MAX_LEVELS, too_deep_text
from adapters.validation import faults, message, path, shown
from service.errors import BadRequest, TooLarge, UnknownField
from service.http.json_text import load_json
from service.http.reading import BODIES

MAX_JSON_BYTES: Final = 64 * 1024
BODY_TIMEOUT_S: Final = 60.0
Body = TypeVar("Body", bound=BaseModel)


async def read_json(request: Request, model: type[Body], *, max_bytes: int = MAX_JSON_BYTES) -> Body:
    """Read the body, at most ``max_bytes`` bytes, as a ``model``.

    Raises:
        TooLarge: The body is larger; the rest is not read.
        BadRequest: The body is late, is not JSON, is nested too deeply, or a field's value is not allowed.
        UnknownField: The body has a field that the model does not have.
    """
    body = await read_bytes(request, max_bytes)
    content = parse(body)
    try:
        return model.model_validate_json(body)
    except ValidationError as error:
        raise validation_error(error, content) from None


async def read_object(request: Request, *, max_bytes: int) -> dict[str, Any]:
    """Read the body, at most ``max_bytes`` bytes, as a JSON object; an empty body is an empty object.

    The parser is strict: UTF-8, no NaN or Infinity; the last of repeated keys wins.

    Raises:
        TooLarge: The body is larger; the rest is not read.
        BadRequest: The body is late, is not a JSON object, or is nested too deeply.
    """
    body = await read_bytes(request, max_bytes)
    if not body.strip():
        return {}
    value = parse(body)
    if not isinstance(value, dict):
        raise BadRequest("the body must be a JSON object", code="invalid_json")
    return value


def parse(text: bytes | bytearray, param: str | None = None) -> Any:
    """The JSON value of a body, or of the part ``param`` of one, as ``load_json`` reads it.

    Raises:
        BadRequest: It is not JSON, has too many values, or is nested more than MAX_LEVELS levels deep.
    """
    value = load_json(text, param=param)
    deep = too_deep_text(text, value)
    if deep is not None:
        where = ".".join(filter(None, (param, deep))) or None
        raise BadRequest(
            f"{f'`{where}`' if where else 'the body'} must be nested at most {MAX_LEVELS} levels deep", param=where
        )
    return value


def as_model(value: dict[str, Any], model: type[Body]) -> Body:
    """``value`` as a ``model``. Raises BadRequest, UnknownField."""
    try:
        return model.model_validate(value)
    except ValidationError as error:
        raise validation_error(error, value) from None


async def read_bytes(request: Request, max_bytes: int) -> bytes:
    """Read the body.

    Raises:
        TooLarge: It has more than ``max_bytes``.
        BadRequest: It is not received in time.
        RateLimited, Unavailable: Too many bytes of bodies are being read, from this client or in all.
    """
    body = bytearray()
    peer = "" if request.client is None else request.client.host
    try:
        with BODIES.reading(peer) as read:
            async with asyncio.timeout(BODY_TIMEOUT_S):
                async for chunk in request.stream():
                    body += chunk
                    read.add(len(chunk))
                    if read.bytes > max_bytes:
                        raise TooLarge(f"the body must have at most {max_bytes} bytes", headers={"connection": "close"})
    except TimeoutError:
        raise BadRequest(f"the body was not received within {BODY_TIMEOUT_S:g} s", code="body_timeout") from None
    return bytes(body)


def validation_error(error: ValidationError, content: object, prefix: str = "") -> BadRequest:
    """The error for the first fault of a body.

    Args:
        content: What was validated.
        prefix: Dotted name of the value that contains the content, or empty.
    """
    first = faults(error)[0]
    param = ".".join([*filter(None, (prefix,)), *path(first, content)]) or None
    if first["type"] == "json_invalid":
        return BadRequest("the body is not valid JSON", code="invalid_json")
    if first["type"] == "extra_forbidden":
        return UnknownField(f"unknown field `{param}`", param=param)
    if first["type"] == "missing":
        return BadRequest(f"`{param}` is missing", param=param, code="missing_required_parameter")
    return BadRequest(f"`{param or 'body'}`: {message(first)} (got {shown(first['input'])})", param=param)
