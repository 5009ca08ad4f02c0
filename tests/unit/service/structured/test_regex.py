"""The size of regular expressions, and those that an engine cannot count."""

from __future__ import annotations

from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.structured.limits import TRIED, UNTRIED, TooComplex
from service.structured.regex import analyse


@pytest.mark.parametrize(
    ("pattern", "states"),
    [
        ("", 0),
        ("abc", 3),
        (r"\d{3}-\d{4}", 8),
        ("(ab|c){2,5}", 15),
        ("((a{10}){10}){10}", 1000),
        ("[a-z]+.*?x{2,}", 4),
        (r"[]\]^-]{3}", 3),
        ("a{x}", 4),
        (r"(?:a|(?P<n>b)|(?<m>c))(?!d)", 4),
        (r"\p{L}\x41\u{1F600}\n", 4),
        (")a(", 1),
    ],
)
def test_states_with_repeats_written_out(pattern: str, states: int) -> None:
    assert analyse(pattern, "regex", TRIED).states == states


@pytest.mark.parametrize(
    "pattern",
    [
        "([a-z]{1}.{1,1}|[a-z]{2}.{1,2}|[a-z]{3}.{1,3})+",
        "(.{1,3})+",
        "(.{1,3}){1,100}",
        "([a-z].{1,2})+",
        "x(y([a-z]{1,10}){1,10}z)?",
        "(" + "|".join(f"[a-z]{{{n}}}.{{1,{n}}}" for n in range(1, 30)) + ")+",
    ],
)
def test_a_count_that_can_be_made_in_many_ways_is_refused_in_a_loop(pattern: str) -> None:
    with pytest.raises(TooComplex, match="inside another repeat") as caught:
        analyse(pattern, "structured_outputs.regex", TRIED)
    assert caught.value.code == "grammar_too_complex"
    assert caught.value.status == 400


@pytest.mark.parametrize(
    "pattern",
    [
        r"(\d{1,3}\.){3}\d{1,3}",
        r"[a-zA-Z0-9._%+-]+@[a-zA-Z0-9.-]+\.[a-zA-Z]{2,}",
        r"\$\d{1,3}(,\d{3})*(\.\d{2})?",
        r"([A-Z][a-z]+ ){1,4}[A-Z][a-z]+",
        r"(\w{1,20},)*\w{1,20}",
        r"(- [^\n]{1,30}\n){1,5}",
        r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}",
        r"(a{1,3})+",
        r"(.+)+",
        r"[A-Za-z ]{1,80}",
    ],
)
def test_expressions_of_honest_callers_pass(pattern: str) -> None:
    analyse(pattern, "regex", TRIED)


@pytest.mark.parametrize(
    ("pattern", "said"),
    [
        ("a" * 4097, "4097 characters"),
        ("((a{1000}){1000})", "about 1000000 states"),
        ("a{20000}", "up to 20000 times"),
        ("a{1,99999999999999999999999}", "times; at most 10000"),
        ("(" * 40, "deeper than 32 levels"),
        ("|" * 1001, "more than 1000 alternatives"),
        ("a" + "*" * 10, "quantifiers in a row"),
    ],
)
def test_what_is_beyond_a_bound_is_refused_by_name(pattern: str, said: str) -> None:
    with pytest.raises(TooComplex, match=said) as caught:
        analyse(pattern, "the.field", TRIED)
    assert caught.value.param == "the.field"
    assert "`the.field`" in caught.value.message


def test_without_a_trial_less_is_allowed() -> None:
    analyse("(abc){1,200}", "regex", TRIED)
    with pytest.raises(TooComplex):
        analyse("(abc){1,200}", "regex", UNTRIED)


def test_parts_that_could_hide_are_tried_by_themselves() -> None:
    assert analyse("hello(x[a-z]{1,9}.{1,9}y)", "regex", TRIED).parts == [".{1,9}y", "[a-z]{1,9}.{1,9}y"]
    assert analyse("hello|(.|..|...)+", "regex", TRIED).parts == ["(.|..|...)+"]
    assert analyse(r"a(\d{2},){3}b", "regex", TRIED).parts == [r"(\d{2},){3}"]


@given(st.text(alphabet="ab.*+?{}(),|[]\\^$-0159", max_size=60))
def test_any_text_is_measured_or_refused(pattern: str) -> None:
    """Nothing but a refusal comes out, however broken the expression is."""
    try:
        found = analyse(pattern, "regex", TRIED)
    except TooComplex:
        return
    assert 0 <= found.states <= TRIED.regex_states
    assert all(part in pattern for part in found.parts)


@given(st.lists(st.integers(2, 9), min_size=1, max_size=4))
def test_nested_bounds_multiply(bounds: list[int]) -> None:
    pattern, states = "a", 1
    for bound in bounds:
        pattern, states = f"({pattern}){{{bound}}}", states * bound
    if states > TRIED.regex_states:
        with pytest.raises(TooComplex):
            analyse(pattern, "regex", TRIED)
    else:
        assert analyse(pattern, "regex", TRIED).states == states


def test_every_class_of_characters_knows_its_own() -> None:
    for inner, last in product([r"\d{1,2}", r"[0-9]{1,2}", "a{1,2}"], ["", r"\s"]):
        analyse(f"({inner}{last})+", "regex", TRIED)  # few characters: cheap, whatever follows
    with pytest.raises(TooComplex):
        analyse(r"([^x]{1,2}y?)+", "regex", TRIED)
    analyse(r"([^x]{1,2}x)+", "regex", TRIED)
