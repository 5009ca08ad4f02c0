"""Filters: OpenAI's comparisons and joins over metadata."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from service.errors import BadRequest
from service.grounding.filters import MAX_COMPARISONS, MAX_DEPTH, MAX_VALUES, Column, check_filters, mask

ROWS: list[dict[str, Any]] = [
    {"region": "eu", "year": 2024, "draft": True},
    {"region": "us", "year": 2025.5},
    {"year": "2024", "draft": False},
    {},
]


def column(key: str) -> Column:
    values: list[Any] = [None, *(row.get(key) for row in ROWS)]
    return Column(values, np.array([number if key in row else 0 for number, row in enumerate(ROWS, 1)], dtype=np.int32))


def matching(filters: dict[str, Any]) -> Sequence[int]:
    found: list[int] = np.flatnonzero(mask(check_filters(filters), column)).tolist()
    return found


@pytest.mark.parametrize(
    ("kind", "key", "value", "rows"),
    [
        ("eq", "region", "eu", [0]),
        ("ne", "region", "eu", [1, 2, 3]),
        ("in", "region", ["eu", "us"], [0, 1]),
        ("nin", "region", ["eu", "us"], [2, 3]),
        ("eq", "year", 2024, [0]),
        ("eq", "year", "2024", [2]),
        ("gt", "year", 2024, [1]),
        ("gte", "year", 2024, [0, 1]),
        ("lt", "year", 2025, [0]),
        ("lte", "year", 2025.5, [0, 1]),
        ("gte", "year", "2000", [2]),
        ("lt", "region", "f", [0]),
        ("eq", "draft", True, [0]),
        ("eq", "draft", 1, []),
        ("in", "draft", [False, 7], [2]),
        ("eq", "unheard", "x", []),
        ("ne", "unheard", "x", [0, 1, 2, 3]),
    ],
)
def test_a_comparison(kind: str, key: str, value: Any, rows: list[int]) -> None:
    assert matching({"type": kind, "key": key, "value": value}) == rows


def test_joins_nest() -> None:
    eu, old = {"type": "eq", "key": "region", "value": "eu"}, {"type": "eq", "key": "year", "value": "2024"}
    draft = {"type": "eq", "key": "draft", "value": True}
    assert matching({"type": "or", "filters": [eu, old]}) == [0, 2]
    assert matching({"type": "and", "filters": [{"type": "or", "filters": [eu, old]}, draft]}) == [0]


EQ = {"type": "eq", "key": "k", "value": "v"}


def nested(levels: int) -> dict[str, Any]:
    value: dict[str, Any] = EQ
    for _ in range(levels):
        value = {"type": "and", "filters": [value]}
    return value


@pytest.mark.parametrize(
    ("value", "param"),
    [
        ([EQ], "filters"),
        ({"type": "like", "key": "k", "value": "v"}, "filters.type"),
        ({"key": "k", "value": "v"}, "filters.type"),
        ({**EQ, "extra": 1}, "filters.extra"),
        ({**EQ, "key": ""}, "filters.key"),
        ({**EQ, "key": "k" * 65}, "filters.key"),
        ({**EQ, "value": None}, "filters.value"),
        ({**EQ, "value": ["v"]}, "filters.value"),
        ({**EQ, "value": float("nan")}, "filters.value"),
        ({**EQ, "type": "gt", "value": True}, "filters.value"),
        ({**EQ, "type": "in", "value": "v"}, "filters.value"),
        ({**EQ, "type": "in", "value": []}, "filters.value"),
        ({**EQ, "type": "in", "value": ["v"] * (MAX_VALUES + 1)}, "filters.value"),
        ({"type": "and", "filters": []}, "filters.filters"),
        ({"type": "or", "filters": [EQ, {**EQ, "key": 7}]}, "filters.filters[1].key"),
        ({"type": "or", "filters": [EQ] * (MAX_COMPARISONS + 1)}, f"filters.filters[{MAX_COMPARISONS}]"),
    ],
)
def test_what_is_no_filter_is_named(value: Any, param: str) -> None:
    with pytest.raises(BadRequest) as caught:
        check_filters(value)
    assert caught.value.param == param


def test_nesting_is_bounded() -> None:
    check_filters(nested(MAX_DEPTH - 1))
    with pytest.raises(BadRequest, match="nested deeper than"):
        check_filters(nested(MAX_DEPTH))
    with pytest.raises(BadRequest, match="nested deeper than"):
        check_filters(nested(500))
