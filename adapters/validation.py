"""What is told of a value that pydantic has refused: the field's path, what was found and what is allowed.

Pydantic's own words name classes, validators and its web site. None of that is for whoever sent the value.
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
"""Kinds of faults whose message names Python's types or classes, in the words of JSON."""


def faults(error: ValidationError) -> list[ErrorDetails]:
    """All faults; at least one."""
    return error.errors(include_url=False, include_context=False)


def message(fault: ErrorDetails) -> str:
    """What is allowed, in a sentence without names of code."""
    known = _PLAIN.get(fault["type"])
    return known if known is not None else fault["msg"].removeprefix("Value error, ")


def path(fault: ErrorDetails, content: object) -> list[str]:
    """The parts of the field's dotted name, each cut to MAX_PART characters.

    Args:
        content: The value that was validated. Pydantic's location also names the branches of unions; whatever leads to
            no part of the value is left out. Of a field that is missing the last part is its name.
    """
    parts: list[str] = []
    place: Any = content
    for depth, part in enumerate(fault["loc"], start=1):
        if isinstance(place, Mapping):
            if part in place:
                place = place[part]
                parts.append(str(part)[:MAX_PART])
            elif fault["type"] == "missing" and depth == len(fault["loc"]):
                parts.append(str(part)[:MAX_PART])
        elif isinstance(place, list | tuple) and isinstance(part, int) and 0 <= part < len(place):
            place = place[part]
            parts.append(str(part))
    return parts


def shown(value: object) -> str:
    """A value for a message: short, and an object or an array by its kind alone."""
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


def settings_message(error: ValidationError, *, prefix: str, secrets: Collection[str]) -> str:
    """A line for each environment variable that is wrong: its name, what is allowed, and what was found.

    Args:
        prefix: Of the variables' names.
        secrets: Names of variables whose value is not shown.
    """
    lines = []
    for fault in error.errors():
        name = prefix + "_".join(str(part) for part in fault["loc"]).upper() if fault["loc"] else ""
        found = f" (found {fault['input']!r})" if name and name not in secrets else ""
        lines.append(f"{name}{': ' if name else ''}{fault['msg'].removeprefix('Value error, ')}{found}")
    return "\n".join(lines)
