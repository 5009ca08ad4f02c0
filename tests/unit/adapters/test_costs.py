"""How amounts are shown, wherever they are: what is not nothing is never shown as 0.00."""

from __future__ import annotations

import pytest

from adapters.costs import amount_text


@pytest.mark.parametrize(
    ("amount", "text"),
    [
        (0, "0.00"),
        (12.5, "12.50"),
        (999.994, "999.99"),
        (1234.5, "1,234"),
        (1_000_000, "1,000,000"),
        (0.01, "0.01"),
        (0.0099, "0.0099"),
        (0.00999, "0.0100"),
        (0.004, "0.0040"),
        (0.00001234, "0.000012"),
        (-0.004, "-0.0040"),
        (1e-12, "0.000000000"),
    ],
)
def test_an_amount_has_as_many_digits_as_it_needs(amount: float, text: str) -> None:
    assert amount_text(amount) == text
