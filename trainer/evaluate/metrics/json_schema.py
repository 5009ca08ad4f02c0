"""Checks JSON against a schema from a request, within bounds of time, memory and reach."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final

import jsonschema
from referencing import Registry
from referencing.exceptions import Unresolvable

from adapters.json_depth import too_deep
from trainer.errors import EvaluationInvalid
from trainer.evaluate.metrics.patterns import compiled, find

DIALECTS: Final = (
    *(f"http://json-schema.org/draft-{number:02}/schema" for number in (3, 4, 6, 7)),
    *("https://json-schema.org/draft/2019-09/schema", "https://json-schema.org/draft/2020-12/schema"),
)
MAX_REFERENCES: Final = 20_000
"""References that are followed for one answer: they can branch, so that a short schema stands for an endless one."""
MAX_RECURSIVE_LEVELS: Final = 8
"""Nesting of an answer up to which endless recursion is the schema's fault, not the answer's."""
_SAMPLES: Final[tuple[object, ...]] = (None, 0, "", [], {})
"""One value of each type but `number` and `boolean`: a schema that fails on one fails on every answer of the type."""
_REFERENCES: Final = ("$ref", "$dynamicRef", "$recursiveRef")
_PATTERN: Final = "a `pattern` in `schema`"
_DATA: Final = frozenset({"const", "default", "enum", "example", "examples"})
"""Keywords whose values are data, not schemas."""
_MALFORMED: Final = (
    *(ArithmeticError, AssertionError, AttributeError, LookupError, TypeError, ValueError),
    jsonschema.exceptions.UnknownType,
)
"""What `jsonschema` raises on a part that its check of the schema did not reach: one that only a `$ref` names."""

_Keyword = Callable[[Any, Any, Any, Any], Iterator[jsonschema.ValidationError] | None]


class SchemaValidator:
    """Validates values against a JSON Schema.

    Args:
        schema: References are resolved within it only; no URL is fetched. `patternProperties` is refused because
            nothing bounds the time of its patterns, and so is a nested `$schema`, under which a `pattern` would run
            without our time limit.

    Raises:
        EvaluationInvalid: It is not a valid schema, uses a refused keyword, or cannot be applied.
    """

    def __init__(self, schema: Mapping[str, Any]) -> None:
        if too_deep(schema) is not None:
            raise EvaluationInvalid("`schema` is nested too deeply")
        kind = _dialect(schema)
        try:
            kind.check_schema(schema)
        except jsonschema.SchemaError as error:
            raise EvaluationInvalid(f"`schema` is not a valid JSON Schema: {error.message}") from error
        except (RecursionError, *_MALFORMED) as error:
            raise EvaluationInvalid(f"`schema` is not a valid JSON Schema: {error}") from error
        if '"patternProperties"' in json.dumps(schema):
            raise EvaluationInvalid("`schema` must not use `patternProperties`")
        if any(_changes_dialect(part) for part in schema.values()):
            raise EvaluationInvalid("`schema` may set `$schema` at the top level only")
        for pattern in _patterns(schema):
            compiled(pattern, _PATTERN)
        self._references = 0
        counted = {name: self._counted(kind.VALIDATORS[name]) for name in _REFERENCES if name in kind.VALIDATORS}
        try:
            self._validator = jsonschema.validators.extend(kind, {"pattern": _pattern, **counted})(
                schema, registry=Registry()
            )
        except _MALFORMED as error:
            raise EvaluationInvalid(f"`schema` is not a valid JSON Schema: {error}") from error
        for sample in _SAMPLES:
            self.accepts(sample)

    def accepts(self, value: object) -> bool:
        """Whether the value satisfies the schema.

        Raises:
            EvaluationInvalid: A `$ref` cannot be resolved within the schema or never ends, a part that it names is no
                schema, or a `pattern` takes too long.
        """
        self._references = 0
        try:
            return bool(self._validator.is_valid(value))
        except Unresolvable as error:
            raise EvaluationInvalid(f"`schema` has a reference that cannot be resolved within it: {error}") from error
        except RecursionError as error:
            if too_deep(value, max_levels=MAX_RECURSIVE_LEVELS) is not None:
                return False
            raise EvaluationInvalid("`schema` has a `$ref` that leads back to itself without end") from error
        except _MALFORMED as error:
            reason = str(error).partition("\n")[0]
            raise EvaluationInvalid(f"`schema` cannot be applied: {type(error).__name__}: {reason}") from error

    def _counted(self, keyword: _Keyword) -> _Keyword:
        """A keyword for references that is bounded by MAX_REFERENCES."""

        def follow(validator: Any, reference: Any, value: Any, schema: Any) -> Iterator[jsonschema.ValidationError]:
            self._references += 1
            if self._references > MAX_REFERENCES:
                raise EvaluationInvalid(
                    f"`schema` follows more than {MAX_REFERENCES:,} references on one answer; simplify it"
                )
            yield from keyword(validator, reference, value, schema) or ()

        return follow


def _dialect(schema: Mapping[str, Any]) -> Any:
    """The class of validators for the schema's `$schema`. Raises EvaluationInvalid if that is not in DIALECTS."""
    if "$schema" not in schema:
        return jsonschema.Draft202012Validator
    dialect = schema["$schema"]
    if not isinstance(dialect, str) or dialect.removesuffix("#") not in DIALECTS:
        raise EvaluationInvalid(
            f"`schema`: `$schema` must be one of {', '.join(DIALECTS)}; got {json.dumps(dialect)[:100]}"
        )
    return jsonschema.validators.validator_for(schema)


def _changes_dialect(part: object) -> bool:
    """Whether a part of a schema contains a `$schema`."""
    if isinstance(part, Mapping):
        return isinstance(part.get("$schema"), str) or any(_changes_dialect(entry) for entry in part.values())
    return isinstance(part, list) and any(_changes_dialect(entry) for entry in part)


def _patterns(part: object) -> Iterator[str]:
    """The values of the keyword `pattern` in a part of a schema. What a `$ref` finds elsewhere is checked when it is
    applied."""
    if isinstance(part, Mapping):
        pattern = part.get("pattern")
        if isinstance(pattern, str):
            yield pattern
        for name, entry in part.items():
            yield from () if name in _DATA else _patterns(entry)
    elif isinstance(part, list):
        for entry in part:
            yield from _patterns(entry)


def _pattern(validator: Any, pattern: str, value: object, _schema: object) -> Iterator[jsonschema.ValidationError]:
    """The keyword `pattern`, bounded in time and memory."""
    if isinstance(value, str) and validator.is_type(value, "string") and not find(pattern, value, _PATTERN):
        yield jsonschema.ValidationError(f"{value!r} does not match {pattern!r}")
