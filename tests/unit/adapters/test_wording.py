"""Counting in messages: one is one."""

from __future__ import annotations

import pytest

from adapters.wording import counted


@pytest.mark.parametrize(
    ("count", "forms", "text"),
    [
        (0, ("example",), "0 examples"),
        (1, ("example",), "1 example"),
        (2, ("example",), "2 examples"),
        (12_345, ("example",), "12,345 examples"),
        (1, ("reply is", "replies are"), "1 reply is"),
        (3, ("reply is", "replies are"), "3 replies are"),
    ],
)
def test_a_number_stands_with_the_form_that_it_needs(count: int, forms: tuple[str, ...], text: str) -> None:
    assert counted(count, *forms) == text
