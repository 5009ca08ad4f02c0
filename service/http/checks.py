"""Checks of single JSON values. Every error message says what is allowed and what was given."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import orjson

from service.errors import BadRequest, FieldRefused, UnknownField
from service.http.json_text import load_json

Check = Callable[[Any, str], None]
"""Takes a value and its dotted path; raises BadRequest if the value is not allowed."""

INT64 = 2**63
MAX_DEPTH = 64
"""Maximum nesting of a request's JSON, and of JSON in its strings that the engine parses."""
SCHEMA = "__json_schema__"
TYPES = {str: "a string", bool: "a boolean", int: "an integer", float: "a number", list: "an array", dict: "an object"}


def describe(value: Any) -> str:
    """A caller's value for an error message: shortened; arrays and objects by their type only."""
    if isinstance(value, str):
        return repr(value if len(value) <= 60 else value[:57] + "...")
    if value is None or isinstance(value, (bool, int, float)):
        return orjson.dumps(value).decode()
    return f"an array of {len(value)}" if isinstance(value, list) else "an object"


def invalid_value(path: str, value: Any, allowed: str) -> BadRequest:
    """The error for a value that is not allowed at ``path``; ``allowed`` completes "must be ..."."""
    return BadRequest(f"`{path}` must be {allowed}; got {describe(value)}", param=path)


def with_schema(check: Check, schema: dict[str, Any]) -> Check:
    """Attach the JSON schema of the values that pass to ``check``, and return it."""
    setattr(check, SCHEMA, schema)
    return check


def schema_of(check: Check) -> dict[str, Any]:
    """The JSON schema of the values that pass a check; empty if none was attached."""
    return dict(getattr(check, SCHEMA, {}))


def _bounds(**bounds: float | None) -> dict[str, Any]:
    return {name: bound for name, bound in bounds.items() if bound is not None}


def boolean(value: Any, path: str) -> None:
    """True or false."""
    if value is not True and value is not False:
        raise invalid_value(path, value, "true or false")


def integer(low: int, high: int | None = None) -> Check:
    """An integer from ``low`` to ``high``, inclusive; 1.0 is not an integer."""
    allowed = f"an integer from {low} to {high}" if high is not None else f"an integer of at least {low}"

    def check(value: Any, path: str) -> None:
        if type(value) is not int or value < low or (high is not None and value > high):
            raise invalid_value(path, value, allowed)

    return with_schema(check, {"type": "integer", **_bounds(minimum=low, maximum=high)})


def number(low: float, high: float | None = None) -> Check:
    """A number from ``low`` to ``high``, inclusive."""
    allowed = f"a number from {low:g} to {high:g}" if high is not None else f"a number of at least {low:g}"

    def check(value: Any, path: str) -> None:
        if type(value) not in (int, float) or value < low or (high is not None and value > high):
            raise invalid_value(path, value, allowed)

    return with_schema(check, {"type": "number", **_bounds(minimum=low, maximum=high)})


def text(max_chars: int | None = None) -> Check:
    """A string of at most ``max_chars`` characters."""

    def check(value: Any, path: str) -> None:
        if not isinstance(value, str):
            raise invalid_value(path, value, "a string")
        if max_chars is not None and len(value) > max_chars:
            raise BadRequest(f"`{path}` must have at most {max_chars} characters; got {len(value)}", param=path)

    return with_schema(check, {"type": "string", **_bounds(maxLength=max_chars)})


def one_of(*values: str) -> Check:
    """One of some strings."""
    allowed = "one of " + ", ".join(map(repr, values))

    def check(value: Any, path: str) -> None:
        if not isinstance(value, str) or value not in values:
            raise invalid_value(path, value, allowed)

    return with_schema(check, {"type": "string", "enum": list(values)})


def list_of(item: Check, *, min_items: int = 0, max_items: int | None = None) -> Check:
    """An array whose items all pass ``item``."""

    def check(value: Any, path: str) -> None:
        if not isinstance(value, list):
            raise invalid_value(path, value, "an array")
        if len(value) < min_items or (max_items is not None and len(value) > max_items):
            bounds = f"at least {min_items}" if max_items is None else f"{min_items} to {max_items}"
            raise BadRequest(f"`{path}` must have {bounds} items; got {len(value)}", param=path)
        for index, entry in enumerate(value):
            item(entry, f"{path}.{index}")

    return with_schema(
        check, {"type": "array", "items": schema_of(item), **_bounds(minItems=min_items or None, maxItems=max_items)}
    )


def either(*options: tuple[type, Check], allowed: str) -> Check:
    """The first check whose type the value has."""

    def check(value: Any, path: str) -> None:
        for kind, option in options:
            if isinstance(value, kind):
                return option(value, path)
        raise invalid_value(path, value, allowed)

    return with_schema(check, {"anyOf": [schema_of(option) for _, option in options]})


def sized(max_bytes: int, inner: Check) -> Check:
    """A value that passes ``inner`` and has at most ``max_bytes`` bytes as JSON."""

    def check(value: Any, path: str) -> None:
        size = len(orjson.dumps(value))
        if size > max_bytes:
            raise BadRequest(f"`{path}` must have at most {max_bytes} bytes as JSON; got {size}", param=path)
        inner(value, path)

    return with_schema(check, schema_of(inner))


def fields(known: dict[str, Check], *, required: tuple[str, ...] = ()) -> Check:
    """An object with these fields only; null counts as absent."""

    def check(value: Any, path: str) -> None:
        if not isinstance(value, dict):
            raise invalid_value(path, value, "an object")
        for name in required:
            if value.get(name) is None:
                raise BadRequest(
                    f"`{path}.{name}` is missing", param=f"{path}.{name}", code="missing_required_parameter"
                )
        for name, entry in value.items():
            inner = known.get(name)
            if inner is None:
                raise UnknownField(
                    f"`{path}` has the unknown field {describe(name)}; allowed are {', '.join(known) or 'none'}",
                    param=f"{path}.{name[:100]}",
                )
            if entry is not None:
                inner(entry, f"{path}.{name}")

    return with_schema(check, _object(known, required))


def _object(known: Mapping[str, Check], required: tuple[str, ...]) -> dict[str, Any]:
    properties = {name: schema_of(check) for name, check in known.items()}
    schema = {"type": "object", "properties": properties, "additionalProperties": False}
    return schema | ({"required": list(required)} if required else {})


def _typed(name: str, check: Check) -> dict[str, Any]:
    """The schema of an object with this ``type``."""
    schema = schema_of(check) or {"type": "object"}
    return schema | {"properties": {**schema.get("properties", {}), "type": {"const": name}}}


def shaped(known: dict[str, Check], *, required: tuple[str, ...] = (), dropped: tuple[str, ...] = ()) -> Check:
    """Like `fields`, but first removes null and ``dropped`` fields from the object, in place."""
    inner = fields(known, required=required)

    def check(value: Any, path: str) -> None:
        mapping(value, path)
        for name in [name for name, entry in value.items() if entry is None or name in dropped]:
            del value[name]
        inner(value, path)

    return with_schema(check, _object(known, required))


def by_type(kinds: Mapping[str, Check], *, default: str | None = None, otherwise: str = "") -> Check:
    """An object whose ``type`` selects the check that it must pass.

    Args:
        default: The type of an object without one; None: the type is required.
        otherwise: Appended to the error: why no other type is supported.
    """
    allowed = ", ".join(kinds) + (f" ({otherwise})" if otherwise else "")

    def check(value: Any, path: str) -> None:
        mapping(value, path)
        kind = value.get("type") or default
        inner = kinds.get(kind) if isinstance(kind, str) else None
        if inner is None:
            raise FieldRefused(f"`{path}.type` must be one of {allowed}; got {describe(kind)}", param=f"{path}.type")
        inner(value, path)

    return with_schema(check, {"anyOf": [_typed(name, inner) for name, inner in kinds.items()]})


def mapping(value: Any, path: str) -> None:
    """Any object."""
    if not isinstance(value, dict):
        raise invalid_value(path, value, "an object")


def anything(_value: Any, _path: str) -> None:
    """Any value; the engine or an outer check decides."""


with_schema(boolean, {"type": "boolean"})
with_schema(mapping, {"type": "object"})


def parse_body(raw: bytes) -> dict[str, Any]:
    """Parse a request's body as an object. The engine gets this object serialised again, not the raw bytes.

    Raises:
        BadRequest: It is not a JSON object, has too many values, or is nested more than MAX_DEPTH levels deep.
    """
    body = load_json(raw)
    if not isinstance(body, dict):
        raise BadRequest("the body must be a JSON object", code="invalid_json")
    if raw.count(b"{") + raw.count(b"[") > MAX_DEPTH:
        _check_depth(body)
    return body


def _check_depth(body: dict[str, Any]) -> None:
    level: list[Any] = [body]
    for _ in range(MAX_DEPTH):
        inner: list[Any] = []
        for value in level:
            inner.extend(
                v for v in (value.values() if isinstance(value, dict) else value) if isinstance(v, (dict, list))
            )
        if not inner:
            return
        level = inner
    raise BadRequest(f"the body must be nested at most {MAX_DEPTH} levels deep", code="invalid_json")
