"""The order of examples: shuffled by seed and epoch, grouped by length to reduce padding."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Final

GROUP_BATCHES: Final = 16
"""Batches that are sorted by length together: enough for little padding, few enough to keep the order random."""


def plan_batches(lengths: Sequence[int], *, batch_size: int, epochs: int, seed: int) -> list[list[int]]:
    """All batches of a training in order, as indices into `lengths`; each epoch has every example exactly once.

    Depends on the arguments alone, so that a resumed training gets the same batches.
    """
    batches: list[list[int]] = []
    for epoch in range(epochs):
        order = list(range(len(lengths)))
        shuffler = random.Random(f"{seed}/{epoch}")  # noqa: S311 - the order of examples is no secret
        shuffler.shuffle(order)
        epoch_batches: list[list[int]] = []
        window = batch_size * GROUP_BATCHES
        for start in range(0, len(order), window):
            group = sorted(order[start : start + window], key=lambda index: lengths[index])
            epoch_batches += [group[at : at + batch_size] for at in range(0, len(group), batch_size)]
        shuffler.shuffle(epoch_batches)
        batches += epoch_batches
    return batches


def shared_prefix(rows: Sequence[Sequence[int]], limit: int) -> int:
    """The length of the common prefix of all `rows`, at most `limit`."""
    first, *others = rows
    for position in range(min([limit, *map(len, rows)])):
        if any(row[position] != first[position] for row in others):
            return position
    return min([limit, *map(len, rows)])
