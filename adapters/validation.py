"""Error messages for values that pydantic rejects: the field's path, what was given, and what is allowed.

Pydantic's own messages mention classes, validators and its web site, which mean nothing to an API client.
"""

import json
from collections.abc import Collection, Mapping, Sequence
from typing import Any, Final

from pydantic import ValidationError
from pydantic_core import ErrorDetails

MAX_SHOWN: Final = 100
MAX_PART: Final = 64
_PLAIN: Final[Mapping[str, str]] = {
    "model_type": "Input should be an object",
    "model_attributes_type": "Input should be an object",
    "dataclass_type": "Input should be an object",
    "dict_type": "Input should be an object",
    "mapping_type": "Input should be an object",
    "list_type": "Input should be an array",
    "tuple_type": "Input should be an array",
    "set_type": "Input should be an array",
    "frozen_set_type": "Input should be an array",
    "is_instance_of": "Input is of a type that is not allowed here",
    "is_subclass_of": "Input is of a type that is not allowed here",
    "none_required": "Input should be null",
}
"""Messages in JSON's terms for error types whose own message names Python types or classes."""


def faults(error: ValidationError) -> list[ErrorDetails]:
    """All errors; at least one."""
    return error.errors(include_url=False, include_context=False)


def message(fault: ErrorDetails) -> str:
    """What is allowed, without names from the code."""
    plain = _PLAIN.get(fault["type"])
    return plain if plain is not None else fault["msg"].removeprefix("Value error, ")


def path(fault: ErrorDetails, content: object) -> list[str]:
    """The parts of the field's dotted name, each truncated to MAX_PART characters.

    Args:
        fault: The error.
        content: The validated value. Pydantic's location also contains the branches of unions; parts that do not lead
            into the value are left out. For a missing field the last part is its name.
    """
    parts: list[str] = []
    node: Any = content
    for depth, part in enumerate(fault["loc"], start=1):
        if isinstance(node, Mapping):
            if part in node:
                node = node[part]
                parts.append(str(part)[:MAX_PART])
            elif fault["type"] == "missing" and depth == len(fault["loc"]):
                parts.append(str(part)[:MAX_PART])
        elif isinstance(node, list | tuple) and isinstance(part, int) and 0 <= part < len(node):
            node = node[part]
            parts.append(str(part))
    return parts


def shown(value: object) -> str:
    """A value for a message: truncated; objects and arrays only by their kind."""
    if isinstance(value, str):
        return repr(value[:MAX_SHOWN])
    if isinstance(value, Mapping):
        return "an object"
    if isinstance(value, Sequence | set | frozenset):
        return f"an array of {len(value)}"
    if value is None or isinstance(value, bool):
        return json.dumps(value)
    if isinstance(value, int) and value.bit_length() > 256:
        return "an integer of more than 256 bits"
    return str(value)[:MAX_SHOWN] if isinstance(value, int | float) else "a value"


def settings_message(
    error: ValidationError, *, prefix: str, secrets: Collection[str], names: Mapping[str, str] | None = None
) -> str:
    """A line for each environment variable that is wrong: its name, what is allowed, and what was found.

    Args:
        prefix: Of the variables' names.
        secrets: Names of variables whose value is not shown.
        names: The variables of fields whose names are not made with the prefix.
    """
    lines = []
    for fault in error.errors():
        field = "_".join(str(part) for part in fault["loc"])
        name = (names or {}).get(field, prefix + field.upper()) if field else ""
        given = f" (found {fault['input']!r})" if name and name not in secrets else ""
        lines.append(f"{name}{': ' if name else ''}{fault['msg'].removeprefix('Value error, ')}{given}")
    return "\n".join(lines)
