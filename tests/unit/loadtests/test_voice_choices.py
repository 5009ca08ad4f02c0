"""What VOICE.md says of the blind choices is what the file of choices gives."""

from __future__ import annotations

import re
from collections import Counter

import pytest

from loadtests.voice_choices import CHOICES, agreements, choices, held_out, table
from tests.conftest import REPO

PAGE = (REPO / "trainer" / "evaluate" / "VOICE.md").read_text("utf-8")
NUMBER = re.compile(r"−?\d+(?:\.\d+)?")


def rows(markdown: str) -> dict[str, list[float]]:
    """The numbers of each line of the tables, by their first cell."""
    cells = [line.strip("| ").split(" | ") for line in markdown.splitlines() if line.startswith("| ")]
    return {first: [float(number) for cell in rest for number in NUMBER.findall(cell)] for first, *rest in cells}


def test_there_are_sixty_choices_or_more_in_each_part_between_replies_to_held_out_tickets() -> None:
    pairs = choices()
    assert min(Counter(pair.part for pair in pairs).values()) >= 60
    assert {pair.choice for pair in pairs} == {"first", "second", "tie"}
    assert {str(pair.ticket) for pair in pairs} <= {ticket.id for ticket in held_out()}
    assert all(pair.first_is != pair.second_is for pair in pairs)
    assert CHOICES.name in PAGE


@pytest.mark.slow
@pytest.mark.parametrize(("printed", "tolerance"), [(table, 3), (agreements, 4)])
def test_the_page_has_the_tables_that_the_command_prints(printed: object, tolerance: float) -> None:
    assert callable(printed)
    page = rows(PAGE)
    for name, numbers in rows(printed()).items():
        assert page[name] == pytest.approx(numbers, abs=tolerance), name
