"""Which held-out questions are independent: near-duplicates, and examples of one declared group, count as one.

Ten variants of one question are answered alike, so they are one observation, not ten. Intervals that take them for ten
are too narrow: with 80 questions in 8 groups, equal arms passed in 14% to 28% of cases instead of 2.5%.
"""

from __future__ import annotations

from collections.abc import Sequence

from trainer.data.similar import groups, merged
from trainer.evaluate.arms import Question


def independent_units(questions: Sequence[Question]) -> tuple[int, ...]:
    """The number of each question's unit, from 0 in the order of the units' first questions.

    Two questions are in one unit if they are near-duplicates (`trainer.data.similar`, as for the split), if they name
    the same `group`, or if a chain of such pairs connects them.
    """
    similar = groups([question.asked for question in questions])
    units = [0] * len(questions)
    for number, unit in enumerate(merged(similar, [question.group for question in questions])):
        for index in unit:
            units[index] = number
    return tuple(units)
