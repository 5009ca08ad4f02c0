"""Metrics for JSON answers: validity, schema, and equality with the reference."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Final

from adapters.json_depth import too_deep
from trainer.evaluate.metrics.json_schema import SchemaValidator

_CALL_KEYS: Final = {"name", "arguments"}
_Path = tuple[str | int, ...]
NOT_JSON: Final = object()
"""What `parsed` returns for a text that is not JSON."""


def parsed(text: str) -> object:
    """The JSON value of the whole text; a marker that equals nothing if it is not JSON, or nested too deeply for the
    recursive functions that compare it."""
    try:
        value: object = json.loads(text, parse_constant=_refuse)
    except (ValueError, RecursionError):
        return NOT_JSON
    return NOT_JSON if too_deep(value) is not None else value


def is_json(text: str) -> bool:
    """Whether the whole text is a JSON object or array."""
    return isinstance(parsed(text), (dict, list))


@dataclass(frozen=True, slots=True)
class JsonValid:
    """1 if the whole answer is a JSON object or array. Ignores the content, so it cannot decide."""

    name: ClassVar[str] = "json_valid"
    binary: ClassVar[bool] = True
    decides: ClassVar[bool] = False

    def score(self, answer: str, reference: str) -> float:
        """1.0 if it is, else 0.0."""
        return float(is_json(answer))


class JsonSchema:
    """1 if the answer is JSON that satisfies a schema.

    Args:
        schema: A JSON Schema, as `SchemaValidator` accepts it.

    Raises:
        EvaluationInvalid: It is not a valid schema, or uses a refused keyword.
    """

    name: ClassVar[str] = "json_schema"
    binary: ClassVar[bool] = True
    decides: ClassVar[bool] = False

    def __init__(self, schema: Mapping[str, Any]) -> None:
        self._validator = SchemaValidator(schema)

    def score(self, answer: str, reference: str) -> float:
        """1.0 if it is JSON and valid, else 0.0. Raises EvaluationInvalid as `SchemaValidator.accepts`."""
        value = parsed(answer)
        return float(value is not NOT_JSON and self._validator.accepts(value))


class JsonExact:
    """1 if the answer is JSON, satisfies the schema if there is one, and equals the reference.

    The order of an object's keys does not count; that of an array does, and so does whether a value is a number or a
    string.
    """

    name: ClassVar[str] = "json_exact"
    binary: ClassVar[bool] = True
    decides: ClassVar[bool] = True

    def __init__(self, schema: Mapping[str, Any] | None = None) -> None:
        self._schema = JsonSchema(schema) if schema is not None else None

    def score(self, answer: str, reference: str) -> float:
        """1.0 if both are equal JSON, else 0.0. Raises EvaluationInvalid as JsonSchema."""
        if self._schema is not None and not self._schema.score(answer, reference):
            return 0.0
        value, expected = parsed(answer), parsed(reference)
        if value is NOT_JSON or expected is NOT_JSON:
            return 0.0
        return float(_tagged(value) == _tagged(expected))


@dataclass(frozen=True, slots=True)
class ToolCalls:
    """1 if the answer calls the same functions with the same arguments as the reference; where the reference is a text,
    1 if the answer calls none.

    Both are what `arms.calls_json` makes of a message. The order of several calls does not count, nor does the text
    beside them.
    """

    name: ClassVar[str] = "tool_calls"
    binary: ClassVar[bool] = True
    decides: ClassVar[bool] = True

    def score(self, answer: str, reference: str) -> float:
        """1.0 if they are, else 0.0."""
        return float(_calls(answer) == _calls(reference))


def _calls(text: str) -> list[object]:
    """The calls in the text, in one order; empty if it is no list of calls."""
    value = parsed(text)
    if not isinstance(value, list) or not all(isinstance(call, dict) and set(call) == _CALL_KEYS for call in value):
        return []
    return sorted(map(_tagged, value), key=lambda call: json.dumps(call, sort_keys=True))


@dataclass(frozen=True, slots=True)
class JsonFields:
    """F1 over the leaves (path and value) of answer and reference; 1 exactly where `JsonExact` without a schema is."""

    name: ClassVar[str] = "json_fields"
    binary: ClassVar[bool] = False
    decides: ClassVar[bool] = True

    def score(self, answer: str, reference: str) -> float:
        """F1, from 0 to 1; 0 if either is not JSON."""
        value, expected = parsed(answer), parsed(reference)
        if value is NOT_JSON or expected is NOT_JSON:
            return 0.0
        leaves, expected_leaves = set(_leaves(value)), set(_leaves(expected))
        return 2 * len(leaves & expected_leaves) / (len(leaves) + len(expected_leaves))


def _leaves(value: object, path: _Path = ()) -> Iterator[tuple[_Path, str]]:
    """Each value that contains no other, as JSON after its path: the keys of objects, and positions in arrays."""
    if isinstance(value, dict) and value:
        for key, entry in value.items():
            yield from _leaves(entry, (*path, key))
    elif isinstance(value, list) and value:
        for index, entry in enumerate(value):
            yield from _leaves(entry, (*path, index))
    else:
        yield path, json.dumps(_tagged(value))


def _tagged(value: object) -> object:
    """The value with booleans tagged: Python considers True and 1 equal."""
    if isinstance(value, dict):
        return {key: _tagged(entry) for key, entry in value.items()}
    if isinstance(value, list):
        return [_tagged(entry) for entry in value]
    if isinstance(value, float) and value.is_integer():
        return int(value)  # equal to Python, and in one order where they are sorted as texts
    return ("bool", value) if isinstance(value, bool) else value


def _refuse(constant: str) -> object:
    raise ValueError(f"{constant} is not valid JSON")
