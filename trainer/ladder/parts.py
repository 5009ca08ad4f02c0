"""Divides the data of a ladder into parts that share no near-duplicate, and the training part into those of a curve."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Final

from adapters.wording import counted
from trainer.data.format import Example
from trainer.data.report import Report
from trainer.data.similar import merged
from trainer.data.split import answer, group_questions, split
from trainer.errors import DataTooSmall
from trainer.ladder.spec import HELD_OUT_SHARE, MAX_HELD_OUT, MIN_EXAMPLES

MIN_HELD_OUT_WANTED: Final = 60
QUICK_HELD_OUT: Final = 80
QUICK_TRAINING: Final = 600
"""The most examples of a quick ladder, whose texts are short."""
QUICK_ANSWERS_CHARS: Final = 12_000
"""Of longer answers fewer are held out, so that all together are about as long: what asking takes grows with it."""
QUICK_TRAINING_CHARS: Final = 150_000
"""The same for the texts to learn from."""
MIN_QUICK_HELD_OUT: Final = 48
"""Well above the independent examples without which nothing can be told."""
MIN_QUICK_TRAINING: Final = 200
MIN_CURVE: Final = 200
"""Training examples below which there is no learning curve: a quarter of fewer teaches nothing."""
CHOOSING: Final = 40
"""Examples on which the instructions are chosen."""
CHOOSING_SEED: Final = 1
ABOUT_ALL: Final = frozenset({"imbalance", "rare_answers", "unrelated_labels"})
"""Findings about the set: their lines name no example that would be better left out."""


@dataclass(frozen=True, slots=True)
class Limits:
    """The most examples of each part."""

    held_out: int
    choosing: int
    training: int | None


def limits_of(examples: Sequence[Example], *, quick: bool) -> Limits:
    """The limits by the length of the examples: what a quick ladder takes grows with its texts."""
    if not quick:
        return Limits(MAX_HELD_OUT, CHOOSING, None)
    by_answers = QUICK_ANSWERS_CHARS / max(1.0, fmean(len(answer(example)) for example in examples))
    by_texts = QUICK_TRAINING_CHARS / max(1.0, fmean(len(text_of(example)) for example in examples))
    held_out = min(QUICK_HELD_OUT, max(MIN_QUICK_HELD_OUT, int(by_answers)))
    return Limits(
        held_out=held_out,
        choosing=CHOOSING * held_out // QUICK_HELD_OUT,
        training=min(QUICK_TRAINING, max(MIN_QUICK_TRAINING, int(by_texts))),
    )


def divide(
    examples: Sequence[Example], *, quick: bool
) -> tuple[tuple[Example, ...], tuple[Example, ...], tuple[Example, ...], list[str]]:
    """The held-out, choosing and training parts, and notes. No part has a near-duplicate of another's question.

    Raises:
        DataTooSmall: There are too few examples to compare on.
    """
    limits = limits_of(examples, quick=quick)
    target = min(limits.held_out, max(MIN_HELD_OUT_WANTED, round(HELD_OUT_SHARE * len(examples))))
    divided = split(examples, share=min(0.5, target / len(examples)), question_groups=group_questions(examples))
    held_out = [examples[index] for index in divided.held_out]
    if len(held_out) < MIN_EXAMPLES:
        raise DataTooSmall(
            f"{counted(len(examples), 'example is', 'examples are')} too few to advise on: {len(held_out)} of them can "
            f"be held out, and at least {MIN_EXAMPLES} are needed for an interval that says anything. "
            f"Bring {2 * MIN_EXAMPLES} or more."
        )
    rest = [examples[index] for index in divided.training]
    again = split(rest, seed=CHOOSING_SEED, share=min(0.25, limits.choosing / len(rest)))
    choosing = [rest[index] for index in again.held_out]
    training = [rest[index] for index in again.training]
    notes: list[str] = []
    if limits.training is not None and len(training) > limits.training:
        notes.append(f"quick: {limits.training} of {len(training)} training examples are used")
        training = _spread(training, limits.training)
    return tuple(held_out), tuple(choosing), tuple(training), notes


def learning_subsets(training: Sequence[Example], faults: Mapping[int, int]) -> dict[str, Sequence[Example]]:
    """A random half and a quarter of the training part, the quarter within the half, and the half with the fewest
    faults; none if there are too few examples.

    Among examples with equally many faults the same hash decides as in the random half, so that the two halves differ
    only where the data report tells examples apart.

    Args:
        faults: The number of findings about an example, by its line.
    """
    if len(training) < MIN_CURVE:
        return {}
    return {
        "half": tuple(_spread(training, len(training) // 2)),
        "quarter": tuple(_spread(training, len(training) // 4)),
        "cleanest_half": tuple(_spread(training, len(training) // 2, faults)),
    }


def faults(report: Report) -> Counter[int]:
    """The number of findings about each example of a report that was just made, by its line. Notes, and what is said of
    the set as a whole, count against no example."""
    counts: Counter[int] = Counter()
    for finding in report.findings:
        if finding.severity != "note" and finding.file == "training" and finding.code not in ABOUT_ALL:
            counts.update(finding.every_line)
    return counts


def groups_of(examples: Sequence[Example]) -> dict[int, str]:
    """By line, the group of each example, its near-duplicates and all of the same `group`, directly or through others.
    A store that has the groups as attributes need not show an example its own answer."""
    groups: dict[int, str] = {}
    for alike in merged(group_questions(examples), [example.group for example in examples]):
        own = next((examples[index].group for index in alike if examples[index].group is not None), None)
        name = f"alike-{examples[alike[0]].line}" if own is None else own
        groups |= {examples[index].line: name for index in alike}
    return groups


def _spread(examples: Sequence[Example], wanted: int, faults: Mapping[int, int] | None = None) -> list[Example]:
    """A sample in the order of the file, drawn by a hash of each example: the same in every file. ``faults``: by line;
    examples with fewer are drawn first."""
    many = faults or {}

    def rank(example: Example) -> tuple[int, bytes]:
        return many.get(example.line, 0), hashlib.sha256(text_of(example).encode()).digest()

    lines = lines_of(sorted(examples, key=rank)[:wanted])
    return [example for example in examples if example.line in lines]


def lines_of(examples: Sequence[Example]) -> set[int]:
    """The examples' lines."""
    return {example.line for example in examples}


def text_of(example: Example) -> str:
    """All that is said in an example."""
    return "\n".join(message.content for message in example.messages)
