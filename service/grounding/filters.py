"""Filters on metadata, in the form of OpenAI's vector stores, applied before anything is ranked.

``{"type": "eq", "key": "region", "value": "eu"}`` compares; ``{"type": "and" | "or", "filters": […]}`` joins. ``eq``,
``ne``, ``in`` and ``nin`` take strings, numbers and booleans; ``gt``, ``gte``, ``lt`` and ``lte`` numbers, and strings
in the order of their characters (which suits ISO dates). Values of different kinds are never equal and have no order.
Where an attribute is missing, ``ne`` and ``nin`` hold and nothing else does.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from service.errors import BadRequest
from service.grounding.provider import Attribute, Filters

Mask = NDArray[np.bool_]
MAX_DEPTH: Final = 8
MAX_COMPARISONS: Final = 64
MAX_VALUES: Final = 1000
MAX_KEY: Final = 64
MAX_STRING: Final = 512
_ORDER: Final[dict[str, Callable[[Any, Any], bool]]] = {
    "gt": operator.gt,
    "gte": operator.ge,
    "lt": operator.lt,
    "lte": operator.le,
}
_NEGATED: Final = {"ne": "eq", "nin": "in"}
COMPARISONS: Final = ("eq", "ne", "gt", "gte", "lt", "lte", "in", "nin")
JOINS: Final = ("and", "or")


@dataclass(frozen=True, slots=True)
class Column:
    """One attribute of all rows: ``values[codes[row]]``; code 0 is "missing", and ``values[0]`` is never looked at."""

    values: Sequence[Attribute | None]
    codes: NDArray[np.int32]


def check_filters(value: Any, path: str = "filters") -> Filters:
    """Check a filter and return it.

    Args:
        value: Parsed JSON.
        path: The request's field, for the error.

    Raises:
        BadRequest: It is none; ``param`` names the part at fault.
    """
    _check(value, path, MAX_DEPTH, [0])
    filters: Filters = value
    return filters


def _check(value: Any, path: str, depth: int, comparisons: list[int]) -> None:
    if not isinstance(value, dict):
        raise BadRequest(f"`{path}` must be an object with `type`; got {_kind(value)}", param=path)
    kind = value.get("type")
    allowed = {"type", "filters"} if kind in JOINS else {"type", "key", "value"}
    if kind not in JOINS and kind not in COMPARISONS:
        names = ", ".join(f"`{name}`" for name in (*COMPARISONS, *JOINS))
        raise BadRequest(f"`{path}.type` is {str(kind)[:40]!r}; allowed values are {names}", param=f"{path}.type")
    unknown = next((name for name in value if name not in allowed), None)
    if unknown is not None:
        shown = str(unknown)[:40]
        raise BadRequest(f"`{path}` has an unknown field {shown!r}", param=f"{path}.{shown}", code="unknown_parameter")
    if kind in COMPARISONS:
        comparisons[0] += 1
        if comparisons[0] > MAX_COMPARISONS:
            raise BadRequest(f"`{path}` exceeds the limit of {MAX_COMPARISONS} comparisons per filter", param=path)
        _check_comparison(str(kind), value, path)
        return
    parts = value.get("filters")
    if not isinstance(parts, list) or not parts:
        raise BadRequest(f"`{path}.filters` must be a non-empty list", param=f"{path}.filters")
    if depth <= 1:
        raise BadRequest(f"`{path}` is nested deeper than {MAX_DEPTH} levels", param=path)
    for number, part in enumerate(parts):
        _check(part, f"{path}.filters[{number}]", depth - 1, comparisons)


def _check_comparison(kind: str, value: Mapping[str, Any], path: str) -> None:
    key = value.get("key")
    if not isinstance(key, str) or not 0 < len(key) <= MAX_KEY:
        raise BadRequest(f"`{path}.key` must be a string of 1 to {MAX_KEY} characters", param=f"{path}.key")
    operand = value.get("value")
    operand_path = f"{path}.value"
    if kind in ("in", "nin"):
        if not isinstance(operand, list) or not 0 < len(operand) <= MAX_VALUES or not all(map(is_attribute, operand)):
            raise BadRequest(
                f"`{operand_path}` must be a list of 1 to {MAX_VALUES} strings, numbers or booleans for `{kind}`",
                param=operand_path,
            )
    elif kind in _ORDER:
        if not is_attribute(operand) or isinstance(operand, bool):
            raise BadRequest(
                f"`{operand_path}` must be a number or a string for `{kind}`; got {_kind(operand)}",
                param=operand_path,
            )
    elif not is_attribute(operand):
        raise BadRequest(
            f"`{operand_path}` must be a string, a number or a boolean; got {_kind(operand)}", param=operand_path
        )


def is_attribute(value: Any) -> bool:
    """Whether parsed JSON may be an attribute's value: a short string, a number or a boolean."""
    if isinstance(value, str):
        return len(value) <= MAX_STRING
    return isinstance(value, bool | int) or (isinstance(value, float) and math.isfinite(value))


def mask(filters: Filters, column: Callable[[str], Column]) -> Mask:
    """The rows that match, as a boolean array.

    Args:
        filters: As `check_filters` lets it pass.
        column: The attribute of that name, of all rows.
    """
    kind = filters["type"]
    if kind in JOINS:
        parts = [mask(part, column) for part in filters["filters"]]
        joined = np.logical_and.reduce(parts) if kind == "and" else np.logical_or.reduce(parts)
        return np.asarray(joined, dtype=np.bool_)
    return _compare(str(kind), filters["value"], column(filters["key"]))


def _compare(kind: str, operand: Any, column: Column) -> Mask:
    if kind in _NEGATED:
        return ~_compare(_NEGATED[kind], operand, column)
    matches: Callable[[Attribute], bool]
    if kind in _ORDER:
        order, sort = _ORDER[kind], _type_name(operand)

        def matches(value: Attribute) -> bool:
            return _type_name(value) == sort and order(value, operand)
    else:
        allowed = {(_type_name(value), value) for value in (operand if kind == "in" else [operand])}

        def matches(value: Attribute) -> bool:
            return (_type_name(value), value) in allowed

    hits = np.fromiter((value is not None and matches(value) for value in column.values), np.bool_, len(column.values))
    hits[0] = False
    return hits[column.codes]


def _type_name(value: Attribute) -> str:
    return "boolean" if isinstance(value, bool) else "string" if isinstance(value, str) else "number"


def _kind(value: Any) -> str:
    names = {dict: "an object", list: "a list", str: "a string", bool: "a boolean", type(None): "null"}
    return names.get(type(value), "a number")
