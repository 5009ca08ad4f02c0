"""Patterns and schemas from requests are refused before they cost memory, or arms that could not be scored."""

from __future__ import annotations

import json
import resource
import time
from typing import Any

import pytest
import regex

from trainer.errors import EvaluationInvalid
from trainer.evaluate.metrics.json_schema import MAX_REFERENCES, SchemaValidator
from trainer.evaluate.metrics.match import Regex
from trainer.evaluate.metrics.structure import JsonExact, JsonSchema

BOMB = "(?:(?:a{999}){999}){999}"
UUID = r"^[0-9a-f]{8}-([0-9a-f]{4}-){3}[0-9a-f]{12}$"


@pytest.fixture
def compiled(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What was compiled; a bomb among it would take the machine down, so it is not."""
    patterns: list[str] = []
    compile_pattern = regex.compile

    def record(pattern: str) -> Any:
        patterns.append(pattern)
        return compile_pattern(pattern) if pattern.count("{999}") < 2 else pytest.fail(f"compiled {pattern}")

    monkeypatch.setattr(regex, "compile", record)
    return patterns


@pytest.mark.parametrize(
    "bomb",
    [
        BOMB,
        "(?:(?:a{999}){999,}){999}?",
        "(?=(?>a{999}){999})",
        "(?x)(?:(?:a{9 9 9}#)\n){999})",  # the comment's bracket closes nothing
        "(?:(?:a{999}(?x)#)\n){999})",
        r"\)(?:[)](?:a{999}){999})",
        "a{9999999}",
        "(?:{reference}){999}",
    ],
)
def test_a_pattern_that_would_be_unrolled_into_gigabytes_is_not_compiled(bomb: str, compiled: list[str]) -> None:
    began = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(EvaluationInvalid, match="too large"):
        Regex(bomb)
    assert compiled == []
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - began < 64 * 1024


def test_nor_is_such_a_pattern_of_a_schema(compiled: list[str]) -> None:
    for schema in (
        {"pattern": BOMB},
        {"items": [{"not": {"pattern": BOMB}}]},
        {"properties": {"a": {"pattern": BOMB}}},
    ):
        with pytest.raises(EvaluationInvalid, match="too large"):
            SchemaValidator({"$schema": "http://json-schema.org/draft-07/schema#", **schema})
    assert compiled == []


@pytest.mark.parametrize("pattern", [UUID, r"^.{1,5000}$", r"(?:a{30}){30}", r"^\d{4}-\d{2}-\d{2}$", "[{}{9}{999}]"])
def test_ordinary_counts_stay_allowed(pattern: str) -> None:
    Regex(pattern)
    SchemaValidator({"type": "string", "pattern": pattern})


@pytest.mark.parametrize("pattern", ["[{reference}]", "[a-{reference}]", "[^x{reference}]", "(?i)[a{reference}]"])
def test_a_reference_in_a_class_is_refused_before_anything_is_paid(pattern: str) -> None:
    with pytest.raises(EvaluationInvalid, match="character"):
        Regex(pattern)


@pytest.mark.parametrize("pattern", ["(" * 400 + ")" * 400, r"\L<words>", r"(?x)a#{reference}", r"\{reference}"])
def test_what_only_fails_inside_the_library_is_refused_too(pattern: str) -> None:
    with pytest.raises(EvaluationInvalid, match="pattern"):
        Regex(pattern)


@pytest.mark.parametrize(
    "reference", ["", "a.b", "5]a", "9999999", "a\nb", "".join(map(str, range(5_000))), "(?x)#", "\\"]
)
def test_an_accepted_pattern_can_be_filled_with_every_reference(reference: str) -> None:
    assert Regex(r"^{reference}$").score(reference, reference) == 1
    assert Regex(r"^{reference}$").score(f"{reference}!", reference) == 0
    began = time.monotonic()
    assert Regex(r"^(?:a{{reference}})$").score("b", reference) == 0  # its digits are no count
    assert time.monotonic() - began < 5


@pytest.mark.parametrize(
    ("schema", "reason"),
    [
        ({"$schema": 5}, "must be one of"),
        ({"$schema": {}}, "must be one of"),
        ({"$schema": "http://[::1"}, "must be one of"),
        ({"$ref": "#"}, "without end"),
        ({"$ref": "#/x", "x": {"$schema": {}}}, "cannot be applied"),
        ({"$ref": "#/x", "x": {"type": "colour"}}, "cannot be applied"),
        ({"$ref": "#/x", "x": {"multipleOf": 0}}, "cannot be applied"),
        ({"$ref": "#/nowhere"}, "cannot be resolved"),
        ({"$ref": "#/const/x", "const": {"x": {"pattern": "(?:a{999}){999}"}}}, "too large"),
    ],
)
def test_a_schema_that_cannot_be_applied_is_refused_with_the_request(schema: dict[str, Any], reason: str) -> None:
    with pytest.raises(EvaluationInvalid, match=reason):
        JsonExact(schema)


def test_a_long_pattern_of_a_schema_is_refused() -> None:
    SchemaValidator({"pattern": "xy" * 500})
    with pytest.raises(EvaluationInvalid, match="at most 1,000 are"):
        SchemaValidator({"pattern": "xy" * 501})


def test_a_schema_of_endless_branches_ends() -> None:
    branches = {f"d{n}": {"allOf": [{"$ref": f"#/$defs/d{n + 1}"}] * 2} for n in range(40)}
    with pytest.raises(EvaluationInvalid, match=f"{MAX_REFERENCES:,} references"):
        SchemaValidator({"$defs": {**branches, "d40": {}}, "$ref": "#/$defs/d0"})


def test_a_schema_that_never_ends_on_an_answer_is_the_schema_s_fault_and_a_deep_answer_is_not() -> None:
    with pytest.raises(EvaluationInvalid, match="without end"):
        JsonSchema({"properties": {"a": {"$ref": "#/properties/a"}}}).score('{"a": 1}', "")
    nested = {"anyOf": [{"type": "array", "items": {"allOf": [{"allOf": [{"$ref": "#"}]}]}}, {"type": "integer"}]}
    for levels in (90, 150, 600, 5_000):
        assert JsonSchema(nested).score("[" * levels + "]" * levels, "") == 0
    assert JsonSchema(nested).score("[[[1]]]", "") == 1


def test_an_answer_of_many_levels_equals_nothing_and_breaks_nothing() -> None:
    deep = "[" * 600 + "]" * 600
    assert JsonExact().score(deep, json.dumps([1])) == 0
