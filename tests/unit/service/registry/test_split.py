"""The arithmetic of a split: shares, positions, and who moves when the weights do."""

from __future__ import annotations

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.errors import BadRequest
from service.registry.split import (
    MAX_TOTAL,
    Split,
    parse_split,
    position_of,
    share_of,
    stored_split,
    versions_of,
)

LINE = 2**64
positions = st.integers(0, LINE - 1)
weights = st.dictionaries(st.integers(1, 40), st.integers(1, MAX_TOTAL // 8), min_size=2, max_size=8)


def borders(split: Split) -> list[int]:
    """The first position of each share, and the end of the line; found by looking, not by the formula."""
    found = [0]
    for version, following in zip(split.versions, split.versions[1:], strict=False):
        low, high = found[-1], LINE
        while low < high:
            middle = (low + high) // 2
            if split.at(middle) <= version:
                low = middle + 1
            else:
                high = middle
        assert split.at(low) == following
        found.append(low)
    return [*found, LINE]


@given(weights)
def test_each_version_holds_its_share_of_the_line_to_a_unit(given_weights: dict[int, int]) -> None:
    split = Split.of(given_weights)
    total = sum(given_weights.values())
    edges = borders(split)
    for (_, weight), low, high in zip(split.weights, edges, edges[1:], strict=False):
        assert abs(high - low - Fraction(LINE * weight, total)) <= 1


@given(weights, positions, positions)
def test_the_shares_lie_in_the_order_of_the_versions(given_weights: dict[int, int], one: int, other: int) -> None:
    split = Split.of(given_weights)
    low, high = sorted((one, other))
    assert split.at(low) <= split.at(high)
    assert {split.at(0), split.at(LINE - 1)} == {split.versions[0], split.versions[-1]}


@given(st.integers(1, 1000), st.integers(1, 1000), st.integers(1, 1000), positions)
def test_of_two_versions_only_the_difference_moves_and_only_one_way(old: int, new: int, more: int, at: int) -> None:
    before, after = Split.of({3: old, 4: new}), Split.of({3: old, 4: new + more})
    assert before.at(at) <= after.at(at), "nobody goes back to the older version as the newer one grows"
    moved = borders(before)[1] - borders(after)[1]
    assert abs(moved - LINE * (Fraction(old, old + new) - Fraction(old, old + new + more))) <= 2


@given(weights, positions)
def test_weights_that_all_grow_alike_move_nobody(given_weights: dict[int, int], at: int) -> None:
    twice = {version: 2 * weight for version, weight in given_weights.items()}
    assert Split.of(given_weights).at(at) == Split.of(twice).at(at)


@given(st.text(max_size=50))
def test_an_id_has_one_place_for_ever(sticky: str) -> None:
    assert position_of("default", "voice", "live", sticky) == position_of("default", "voice", "live", sticky)
    assert 0 <= position_of("default", "voice", "live", sticky) < LINE


def test_the_place_of_an_id_is_what_it_was_in_the_first_release() -> None:
    assert position_of("default", "voice", "live", "user-1") == 0x7BDF42D5A5776C31


def test_an_ids_place_differs_by_project_adapter_and_alias() -> None:
    places = {
        position_of(project, name, alias, "user-1")
        for project in ("default", "acme")
        for name in ("voice", "other")
        for alias in ("live", "canary")
    }
    assert len(places) == 8
    assert position_of("a", "bc", "live", "x") != position_of("ab", "c", "live", "x")
    assert position_of("a", "b", "live", "\ud800") >= 0  # what JSON refuses, a header could not hold, harms nobody


def test_ids_and_draws_fall_where_the_weights_say() -> None:
    split = Split.of({3: 90, 4: 10})
    ids = [split.at(position_of("default", "voice", "live", f"user-{n}")) for n in range(20_000)]
    assert 1_800 <= ids.count(4) <= 2_200  # 10% of 20,000; five standard deviations are 212
    drawn = [split.at(position_of("default", "voice", "live", None)) for _ in range(20_000)]
    assert 1_750 <= drawn.count(4) <= 2_250  # by chance: wider, 1 in 10⁸


@given(weights)
def test_a_split_survives_the_database(given_weights: dict[int, int]) -> None:
    split = Split.of(given_weights)
    assert stored_split(split.shown()) == split
    assert parse_split(dict(reversed(split.shown().items()))) == split


def test_a_plain_alias_is_a_share_of_all() -> None:
    assert versions_of(7) == (7,)
    assert share_of(7, LINE - 1) == 7
    assert versions_of(Split.of({4: 1, 3: 1})) == (3, 4)


@pytest.mark.parametrize(
    ("asked", "param", "says"),
    [
        ({}, "split", "2 to 8 versions; got 0"),
        ({"3": 1}, "split", "2 to 8 versions; got 1"),
        ({str(n): 1 for n in range(1, 10)}, "split", "2 to 8 versions; got 9"),
        ({"3": 0, "4": 1}, "split.3", "got 0"),
        ({"3": 1, "4": -1}, "split.4", "got -1"),
        ({"3": 1, "4": MAX_TOTAL}, "split", "add up to at most 1000000; got 1000001"),
        ({"3": 1, "04": 1}, "split", "'04'"),
        ({"3": 1, "live": 1}, "split", "'live'"),
        ({"3": 1, "0": 1}, "split", "'0'"),
    ],
)
def test_what_is_no_split_is_refused_with_what_was_found(asked: dict[str, int], param: str, says: str) -> None:
    with pytest.raises(BadRequest) as raised:
        parse_split(asked)
    assert raised.value.param == param
    assert says in raised.value.message
