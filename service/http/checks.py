"""Checks of one JSON value each; every message says what was found and what is allowed."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import orjson

from service.errors import BadRequest, FieldRefused, UnknownField
from service.http.json_text import load_json

Check = Callable[[Any, str], None]
"""Takes a value and its dotted path; raises BadRequest where the value is not allowed."""

INT64 = 2**63
MAX_DEPTH = 64
"""Levels that the JSON of a request may be nested, and JSON inside its strings that the engine parses."""
SCHEMA = "__json_schema__"
TYPES = {str: "a string", bool: "a boolean", int: "an integer", float: "a number", list: "an array", dict: "an object"}


def found(value: Any) -> str:
    """A caller's value for a message: short, and structures by their kind only."""
    if isinstance(value, str):
        return repr(value if len(value) <= 60 else value[:57] + "...")
    if value is None or isinstance(value, (bool, int, float)):
        return orjson.dumps(value).decode()
    return f"an array of {len(value)}" if isinstance(value, list) else "an object"


def wrong(path: str, value: Any, allowed: str) -> BadRequest:
    """The error for a value that is not allowed at ``path``."""
    return BadRequest(f"`{path}` must be {allowed}, found {found(value)}", param=path)


def described(check: Check, schema: dict[str, Any]) -> Check:
    """The check, which from now on knows the JSON schema of what it lets pass, as far as a schema can say it."""
    setattr(check, SCHEMA, schema)
    return check


def schema_of(check: Check) -> dict[str, Any]:
    """The JSON schema of what a check lets pass; empty where it is not described."""
    return dict(getattr(check, SCHEMA, {}))


def _bounds(**bounds: float | None) -> dict[str, Any]:
    return {name: bound for name, bound in bounds.items() if bound is not None}


def boolean(value: Any, path: str) -> None:
    """True or false."""
    if value is not True and value is not False:
        raise wrong(path, value, "true or false")


def integer(low: int, high: int | None = None) -> Check:
    """An integer from ``low`` to ``high``, both allowed; a number with a fraction point is none."""
    allowed = f"an integer from {low} to {high}" if high is not None else f"an integer of at least {low}"

    def check(value: Any, path: str) -> None:
        if type(value) is not int or value < low or (high is not None and value > high):
            raise wrong(path, value, allowed)

    return described(check, {"type": "integer", **_bounds(minimum=low, maximum=high)})


def number(low: float, high: float | None = None) -> Check:
    """A number from ``low`` to ``high``, both allowed."""
    allowed = f"a number from {low:g} to {high:g}" if high is not None else f"a number of at least {low:g}"

    def check(value: Any, path: str) -> None:
        if type(value) not in (int, float) or value < low or (high is not None and value > high):
            raise wrong(path, value, allowed)

    return described(check, {"type": "number", **_bounds(minimum=low, maximum=high)})


def text(most: int | None = None) -> Check:
    """A string of at most ``most`` characters."""

    def check(value: Any, path: str) -> None:
        if not isinstance(value, str):
            raise wrong(path, value, "a string")
        if most is not None and len(value) > most:
            raise BadRequest(f"`{path}` has {len(value)} characters, at most {most} are allowed", param=path)

    return described(check, {"type": "string", **_bounds(maxLength=most)})


def one_of(*values: str) -> Check:
    """One of some strings."""
    allowed = "one of " + ", ".join(map(repr, values))

    def check(value: Any, path: str) -> None:
        if not isinstance(value, str) or value not in values:
            raise wrong(path, value, allowed)

    return described(check, {"type": "string", "enum": list(values)})


def list_of(item: Check, *, least: int = 0, most: int | None = None) -> Check:
    """An array whose every entry passes ``item``."""

    def check(value: Any, path: str) -> None:
        if not isinstance(value, list):
            raise wrong(path, value, "an array")
        if len(value) < least or (most is not None and len(value) > most):
            bounds = f"at least {least}" if most is None else f"{least} to {most}"
            raise BadRequest(f"`{path}` has {len(value)} entries, {bounds} are allowed", param=path)
        for index, entry in enumerate(value):
            item(entry, f"{path}.{index}")

    return described(
        check, {"type": "array", "items": schema_of(item), **_bounds(minItems=least or None, maxItems=most)}
    )


def either(*options: tuple[type, Check], allowed: str) -> Check:
    """The check that belongs to the value's JSON type."""

    def check(value: Any, path: str) -> None:
        for kind, option in options:
            if isinstance(value, kind):
                return option(value, path)
        raise wrong(path, value, allowed)

    return described(check, {"anyOf": [schema_of(option) for _, option in options]})


def sized(most_bytes: int, inner: Check) -> Check:
    """A value whose JSON text has at most ``most_bytes`` bytes and that passes ``inner``."""

    def check(value: Any, path: str) -> None:
        size = len(orjson.dumps(value))
        if size > most_bytes:
            raise BadRequest(f"`{path}` has {size} bytes, at most {most_bytes} are allowed", param=path)
        inner(value, path)

    return described(check, schema_of(inner))


def fields(known: dict[str, Check], *, required: tuple[str, ...] = ()) -> Check:
    """An object with these fields only; null stands for a field that is absent."""

    def check(value: Any, path: str) -> None:
        if not isinstance(value, dict):
            raise wrong(path, value, "an object")
        for name in required:
            if value.get(name) is None:
                raise BadRequest(
                    f"`{path}.{name}` is missing", param=f"{path}.{name}", code="missing_required_parameter"
                )
        for name, entry in value.items():
            inner = known.get(name)
            if inner is None:
                raise UnknownField(f"`{path}` has no field {found(name)}", param=f"{path}.{name[:100]}")
            if entry is not None:
                inner(entry, f"{path}.{name}")

    return described(check, _object(known, required))


def _object(known: Mapping[str, Check], required: tuple[str, ...]) -> dict[str, Any]:
    properties = {name: schema_of(check) for name, check in known.items()}
    schema = {"type": "object", "properties": properties, "additionalProperties": False}
    return schema | ({"required": list(required)} if required else {})


def _typed(name: str, check: Check) -> dict[str, Any]:
    """The schema of an object with this ``type``."""
    schema = schema_of(check) or {"type": "object"}
    return schema | {"properties": {**schema.get("properties", {}), "type": {"const": name}}}


def shaped(known: dict[str, Check], *, required: tuple[str, ...] = (), dropped: tuple[str, ...] = ()) -> Check:
    """Like `fields`, and takes out of the object what is null or ``dropped``: changes it in place."""
    inner = fields(known, required=required)

    def check(value: Any, path: str) -> None:
        mapping(value, path)
        for name in [name for name, entry in value.items() if entry is None or name in dropped]:
            del value[name]
        inner(value, path)

    return described(check, _object(known, required))


def by_type(kinds: Mapping[str, Check], *, default: str | None = None, otherwise: str = "") -> Check:
    """An object whose ``type`` says which check it must pass.

    Args:
        default: What an object without a type is; None: it must have one.
        otherwise: Why no other type is served.
    """
    allowed = ", ".join(kinds) + (f" ({otherwise})" if otherwise else "")

    def check(value: Any, path: str) -> None:
        mapping(value, path)
        kind = value.get("type") or default
        inner = kinds.get(kind) if isinstance(kind, str) else None
        if inner is None:
            raise FieldRefused(f"`{path}.type` is {found(kind)}; allowed are {allowed}", param=f"{path}.type")
        inner(value, path)

    return described(check, {"anyOf": [_typed(name, inner) for name, inner in kinds.items()]})


def mapping(value: Any, path: str) -> None:
    """Any object."""
    if not isinstance(value, dict):
        raise wrong(path, value, "an object")


def anything(_value: Any, _path: str) -> None:
    """Any value: the engine, or an outer bound, decides."""


described(boolean, {"type": "boolean"})
described(mapping, {"type": "object"})


def parse_body(raw: bytes) -> dict[str, Any]:
    """A request's body as an object, as ``load_json`` reads it; the engine gets what was understood here, written anew.

    Raises:
        BadRequest: It is not JSON, not an object, has too many values, or is nested deeper than MAX_DEPTH.
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
    raise BadRequest(f"the body is nested deeper than {MAX_DEPTH} levels", code="invalid_json")
