"""Texts that are made to take the static bound itself long, or to make it fail."""

from __future__ import annotations

import gc
import math
import re
import time
from collections.abc import Callable
from typing import Any

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from service.errors import BadRequest, HatrackError
from service.structured import bounds, regex_parser
from service.structured.bounds import check, is_lark
from service.structured.limits import TRIED, UNTRIED, GrammarLimits
from service.structured.spec import Kind, Spec

SIZE = 64 * 1024
"""As much as `HATRACK_MAX_SCHEMA_KIB` allows."""
REPEATED = [
    *(" ", "{", "{ ", "{1", "{1,", "~", "~ ", "~1 ", "~1..", "}", "[", "[ ", '"', '\\"', "\\", "/", "\\/\\", "//", "#"),
    *(
        "a",
        "a ",
        "a{",
        "a.",
        "a.1",
        "a-",
        "?",
        "!a",
        "(",
        ")",
        "|",
        "::=",
        "a::=",
        "a:",
        ":",
        "*",
        ") ",
        "\n",
        "\n ",
        "\na",
    ),
    *(
        "\na ::= ",
        "\na: ",
        "[a",
        '["',
        '"[',
        "/a",
        "/[",
        "\\]",
        "[^",
        "é",
        "1",
        "a\t",
        "a[",
        "x{}",
        "{,",
        "a ::= b{ ",
        "[^x]{0,2} ",
        "[^x]{9} ",
    ),
]
BEGINNINGS = [
    'root ::= "a" ',
    'root ::= "a" {',
    "root ::= [",
    'root ::= "',
    "start: /",
    "start: a ~ ",
    "start: ",
    "a",
    "",
]
EXPRESSIONS = [
    (f"{module.__name__.rpartition('.')[2]}.{name}", value)
    for module in (bounds, regex_parser)
    for name, value in vars(module).items()
    if isinstance(value, re.Pattern)
]


def cpu_s(work: Callable[[], object]) -> float:
    gc.disable()  # a collection takes time by what else the process holds
    try:
        began = time.process_time()
        work()
        return time.process_time() - began
    finally:
        gc.enable()


def assert_linear(work: Callable[[str], object], beginning: str, unit: str, size: int = SIZE) -> None:
    """Four times the text takes about four times as long; what grows with the square would take sixteen times."""
    small, large = (beginning + unit * (length // len(unit)) for length in (size // 4, size))
    fast, slow = math.inf, math.inf
    for _ in range(20):  # a busy machine only ever adds to a time: the shortest of several are those of the work
        fast, slow = min(fast, cpu_s(lambda: work(small))), min(slow, cpu_s(lambda: work(large)))
        if slow < 10 * fast + 0.02:
            return
    pytest.fail(f"{unit!r} after {beginning!r} does not take linear time")


def test_there_are_expressions_to_look_at() -> None:
    assert {"bounds._COUNT", "bounds._LARK_TOKEN", "regex_parser._LITERALS"} <= {name for name, _ in EXPRESSIONS}


@pytest.mark.parametrize("expression", [value for _, value in EXPRESSIONS], ids=[name for name, _ in EXPRESSIONS])
def test_every_regular_expression_takes_linear_time(expression: re.Pattern[str]) -> None:
    for unit in REPEATED:
        for beginning in ("", "{", "a"):
            assert_linear(expression.findall, beginning, unit, SIZE // 2)


def refusal(kind: Kind, value: Any, limits: GrammarLimits = TRIED) -> str:
    """The message, empty where there is none; whatever else is raised fails the test."""
    try:
        check(Spec(kind, value, "field"), limits)
    except HatrackError as error:
        return error.message
    return ""


@pytest.mark.slow
@pytest.mark.parametrize("beginning", BEGINNINGS)
def test_the_bound_of_a_grammar_takes_linear_time(beginning: str) -> None:
    for unit in REPEATED:
        assert_linear(lambda text: (is_lark(text), refusal("grammar", text)), beginning, unit)
        assert_linear(lambda text: refusal("grammar", text, UNTRIED), beginning, unit)


@pytest.mark.parametrize("kind", ["regex", "json"])
def test_the_bound_of_an_expression_takes_linear_time(kind: Kind) -> None:
    for unit in [*REPEATED, "[a-z]{1,2}", "(a|b)*", "(", "(?<", "\\p{", "\\x{", "\\u{", "[a-"]:

        def bound(text: str) -> str:
            text = text[: len(text) // 16]  # 4,096 characters at most
            return refusal(kind, text if kind == "regex" else {"pattern": text})

        assert_linear(bound, "", unit)


def test_long_names_are_not_copied_for_every_value_below_them() -> None:
    def bound(name: str) -> str:
        return refusal("json", {name: [{}] * (len(name) // 4)})

    assert_linear(bound, "", "n")


@pytest.mark.parametrize(
    ("kind", "value"),
    [
        ("regex", "\\x-1"),
        ("regex", "\\u-001"),
        ("regex", "\\x{-1}"),
        ("regex", "\\x 1"),
        ("regex", "a{             5}"),
        ("regex", "a{5,             6}"),
        ("regex", "a{00000000000005}"),
        ("grammar", "start: /\\x-1/"),
        ("choice", 5),
        ("choice", [5]),
        ("choice", "\ud800"),
        ("regex", "\ud800"),
        ("json", {"type": "string", "maxLength": 1e300}),
        ("json", {"const": 10**40}),
        ("structural_tag", '{"format": {"json_schema": ' + '{"a":' * 300 + "1" + "}" * 302),
        ("structural_tag", '{"structures": [{"schema": ' + "[" * 500 + "]" * 500 + "}]}"),
    ],
)
def test_what_once_failed_is_measured_or_refused(kind: Kind, value: Any) -> None:
    for limits in (TRIED, UNTRIED):
        message = refusal(kind, value, limits)
        assert not message or "field" in message


def test_zeros_before_a_count_do_not_hide_it() -> None:
    for grammar in ("root ::= a{000000000099999}", "start: a~000000000099999"):
        with pytest.raises(BadRequest, match="99999 for the bound of a repeat"):
            check(Spec("grammar", grammar, "field"), TRIED)
    with pytest.raises(BadRequest, match="times; at most"):
        check(Spec("regex", "a{000000000099999}", "field"), TRIED)


def test_a_lark_expression_with_a_quotation_mark_is_seen() -> None:
    with pytest.raises(BadRequest, match="inside another repeat"):
        check(Spec("grammar", 'start: /(["a-z].{1,2})+/ "x" /["]/', "field"), TRIED)


METACHARACTERS = st.text(alphabet="ab.*+?{}()|[]\\^$-,:=!<>PpxudwsbB 0159\u00e9", max_size=60)
EBNF = st.lists(
    st.sampled_from(
        [
            "root ::= ",
            "a ::= ",
            "b",
            "a",
            '"x"',
            '"',
            "[a-z]",
            "[^",
            "]",
            "(",
            ")",
            "|",
            "*",
            "+",
            "?",
            "{1,99}",
            "{2}",
            "{",
            "}",
            "{ 9 }",
            " ",
            "\n",
            "#",
            "\\",
            "\x00",
            "(=",
            "9",
        ]
    ),
    max_size=40,
).map("".join)
LARK = st.lists(
    st.sampled_from(
        [
            "start: ",
            "a: ",
            "?b.2: ",
            "A: ",
            "a",
            '"x"',
            '"',
            "/a.{1,9}/",
            "/",
            "/i",
            "(",
            ")",
            "[",
            "]",
            "|",
            "*",
            "+",
            "~",
            "~ 3",
            "~1..99",
            "..",
            "->",
            "%import x",
            " ",
            "\n",
            "//",
            "#",
            "\\",
            "{",
            "}",
        ]
    ),
    max_size=40,
).map("".join)
NAMES = st.sampled_from(
    [
        "anyOf",
        "allOf",
        "oneOf",
        "enum",
        "const",
        "$ref",
        "$defs",
        "pattern",
        "patternProperties",
        "maxLength",
        "minItems",
        "items",
        "properties",
        "required",
        "format",
        "type",
        "structures",
        "schema",
        "json_schema",
        "grammar",
        "tags",
        "x",
    ]
)
LEAVES = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | METACHARACTERS | EBNF
LEAVES |= st.sampled_from(["#", "#/$defs/x", "#/anyOf/0", "string", "array", "object", "or", "sequence"])
VALUES = st.recursive(
    LEAVES,
    lambda inner: st.lists(inner, max_size=6) | st.dictionaries(NAMES, inner, max_size=4),
    max_leaves=24,
)
FUZZ = settings(deadline=None, derandomize=True, max_examples=150)


def assert_bounded(kind: Kind, value: Any) -> None:
    for limits in (TRIED, UNTRIED):
        message = refusal(kind, value, limits)
        assert not message or "field" in message


@FUZZ
@given(METACHARACTERS)
def test_any_expression(text: str) -> None:
    assert_bounded("regex", text)
    assert_bounded("json", {"type": "string", "pattern": text})


@FUZZ
@given(EBNF | LARK | st.text(max_size=60))
def test_any_grammar(text: str) -> None:
    assert_bounded("grammar", text)
    assert_bounded("structural_tag", {"format": {"type": "grammar", "grammar": text}})


@FUZZ
@given(VALUES)
def test_any_json(value: Any) -> None:
    kinds: tuple[Kind, ...] = ("json", "structural_tag", "choice", "regex", "grammar")
    for kind in kinds:
        assert_bounded(kind, value)
    try:
        text = orjson.dumps(value).decode()
    except TypeError:
        return
    for kind in kinds:
        assert_bounded(kind, text)


@FUZZ
@given(st.lists(st.text(max_size=8), max_size=8))
def test_any_choice(entries: list[str]) -> None:
    assert_bounded("choice", entries)
