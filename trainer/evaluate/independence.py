"""Which held-out questions are independent: near-duplicates, and examples of one declared group, count as one.

Ten variants of one question are answered alike, so they are one observation, not ten. Intervals that take them for ten
are too narrow: with 80 questions in 8 groups, equal arms passed in 14% to 28% of cases instead of 2.5%.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from typing import Final

from trainer.data.similar import groups, merged, normalise
from trainer.evaluate.arms import Question

TEMPLATE_SHARE: Final = 0.25
"""A sentence or line that stands in this share of the questions is an instruction, not the question itself. Otherwise
all questions under one long instruction would count as near-duplicates."""
MIN_DISTINCT_CHARS: Final = 12
"""A question that has less than this beside such sentences is compared as a whole."""
_SENTENCES: Final = re.compile(r"[\n.!?:;]+")


def independent_units(questions: Sequence[Question]) -> tuple[int, ...]:
    """The number of each question's unit, from 0 in the order of the units' first questions.

    Two questions are in one unit if they are near-duplicates (`trainer.data.similar`), if they name the same `group`,
    or if a chain of such pairs connects them.
    """
    similar = groups(_without_templates([question.asked for question in questions]))
    units = [0] * len(questions)
    for number, unit in enumerate(merged(similar, [question.group for question in questions])):
        for index in unit:
            units[index] = number
    return tuple(units)


def _without_templates(texts: Sequence[str]) -> list[str]:
    """The texts without the sentences and lines that many of them share."""
    sentences = [[normalise(part) for part in _SENTENCES.split(text)] for text in texts]
    counts = Counter(sentence for each in sentences for sentence in set(each))
    shared = {sentence for sentence, count in counts.items() if count >= max(3.0, TEMPLATE_SHARE * len(texts))}
    distinct = []
    for text, parts in zip(texts, sentences, strict=True):
        rest = " ".join(part for part in parts if part and part not in shared)
        distinct.append(rest if len(rest) >= MIN_DISTINCT_CHARS else text)
    return distinct
