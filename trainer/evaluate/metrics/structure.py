"""Metrics for JSON answers: validity, schema, and equality with the reference."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Final

import jsonschema
import regex
from referencing import Registry
from referencing.exceptions import Unresolvable

from trainer.errors import EvaluationInvalid
from trainer.evaluate.metrics.match import REGEX_TIMEOUT_S

_CALL_KEYS: Final = {"name", "arguments"}
NOT_JSON: Final = object()
"""What `parsed` returns for a text that is not JSON."""


def parsed(text: str) -> object:
    """The JSON value of the whole text; a marker that equals nothing if it is not JSON."""
    try:
        return json.loads(text, parse_constant=_refuse)
    except (ValueError, RecursionError):
        return NOT_JSON


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
        schema: A JSON Schema. References are resolved within it only; no URL is fetched. `patternProperties` is
            refused because nothing bounds the time of its patterns, and so is a nested `$schema`, under which a
            `pattern` would run without our time limit.

    Raises:
        EvaluationInvalid: It is not a valid schema, or uses a refused keyword.
    """

    name: ClassVar[str] = "json_schema"
    binary: ClassVar[bool] = True
    decides: ClassVar[bool] = False

    def __init__(self, schema: Mapping[str, Any]) -> None:
        kind = jsonschema.validators.validator_for(schema, default=jsonschema.Draft202012Validator)
        try:
            kind.check_schema(schema)
        except jsonschema.SchemaError as error:
            raise EvaluationInvalid(f"`schema` is not a valid JSON Schema: {error.message}") from error
        if '"patternProperties"' in json.dumps(schema):
            raise EvaluationInvalid("`schema` must not use `patternProperties`")
        if any(_changes_dialect(part) for part in schema.values()):
            raise EvaluationInvalid("`schema` may set `$schema` at the top level only")
        self._validator = jsonschema.validators.extend(kind, {"pattern": _pattern})(schema, registry=Registry())

    def score(self, answer: str, reference: str) -> float:
        """1.0 if it is JSON and valid, else 0.0.

        Raises:
            EvaluationInvalid: A `$ref` cannot be resolved within the schema, or a `pattern` takes too long.
        """
        value = parsed(answer)
        try:
            return float(value is not NOT_JSON and self._validator.is_valid(value))
        except Unresolvable as error:
            raise EvaluationInvalid(f"`schema` has a reference that cannot be resolved within it: {error}") from error


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
    """F1 over the leaves (path and value) of answer and reference."""

    name: ClassVar[str] = "json_fields"
    binary: ClassVar[bool] = False
    decides: ClassVar[bool] = True

    def score(self, answer: str, reference: str) -> float:
        """F1, from 0 to 1; 0 if either is not JSON."""
        value, expected = parsed(answer), parsed(reference)
        if value is NOT_JSON or expected is NOT_JSON:
            return 0.0
        leaves, expected_leaves = set(_leaves(value, "")), set(_leaves(expected, ""))
        return 2 * len(leaves & expected_leaves) / (len(leaves) + len(expected_leaves))


def _changes_dialect(part: object) -> bool:
    """Whether a part of a schema contains a `$schema`."""
    if isinstance(part, Mapping):
        return isinstance(part.get("$schema"), str) or any(_changes_dialect(entry) for entry in part.values())
    return isinstance(part, list) and any(_changes_dialect(entry) for entry in part)


def _pattern(validator: Any, pattern: str, value: object, _schema: object) -> Iterator[jsonschema.ValidationError]:
    """The keyword `pattern`, bounded in time."""
    if not validator.is_type(value, "string"):
        return
    try:
        if not regex.search(pattern, value, timeout=REGEX_TIMEOUT_S):
            yield jsonschema.ValidationError(f"{value!r} does not match {pattern!r}")
    except TimeoutError as error:
        raise EvaluationInvalid(
            f"a `pattern` in `schema` took more than {REGEX_TIMEOUT_S:g} s on one answer; simplify it"
        ) from error


def _leaves(value: object, path: str) -> Iterator[tuple[str, str]]:
    if isinstance(value, dict) and value:
        for key, entry in value.items():
            yield from _leaves(entry, f"{path}/{key}")
    elif isinstance(value, list) and value:
        for index, entry in enumerate(value):
            yield from _leaves(entry, f"{path}/{index}")
    else:
        yield path, json.dumps(value)


def _tagged(value: object) -> object:
    """The value with booleans tagged: Python considers True and 1 equal."""
    if isinstance(value, dict):
        return {key: _tagged(entry) for key, entry in value.items()}
    if isinstance(value, list):
        return [_tagged(entry) for entry in value]
    return ("bool", value) if isinstance(value, bool) else value


def _refuse(constant: str) -> object:
    raise ValueError(f"{constant} is not valid JSON")
