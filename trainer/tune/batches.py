"""The order of examples, and the micro-batches of a step. Imports no torch."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Final

GROUP_BATCHES: Final = 16
"""With `group_by_length`, batches that are sorted by length together."""

WIDTH_MULTIPLE: Final = 8
"""Widths and prefixes are multiples of this, so that there are fewer shapes: CPU kernels are rebuilt for each new one.
That 8 is the best multiple has not been measured."""

MAX_PADDING: Final = 64
"""Tokens of padding in a micro-batch above which another one is begun. A choice: at what padding another pass costs
less depends on model and device, and has not been measured."""


def plan_batches(
    lengths: Sequence[int], *, batch_size: int, epochs: int, seed: int, group_by_length: bool = False
) -> list[list[int]]:
    """The examples of each optimizer step, as indices into `lengths`; each epoch has every example exactly once.

    A step's examples are drawn at random. With `group_by_length` they have similar lengths instead. Depends on the
    arguments alone, so that a resumed training gets the same steps.
    """
    batches: list[list[int]] = []
    for epoch in range(epochs):
        order = list(range(len(lengths)))
        shuffler = random.Random(f"{seed}/{epoch}")  # noqa: S311 - the order of examples is no secret
        shuffler.shuffle(order)
        if not group_by_length:
            batches += [order[at : at + batch_size] for at in range(0, len(order), batch_size)]
            continue
        epoch_batches: list[list[int]] = []
        window = batch_size * GROUP_BATCHES
        for start in range(0, len(order), window):
            group = sorted(order[start : start + window], key=lambda index: lengths[index])
            epoch_batches += [group[at : at + batch_size] for at in range(0, len(group), batch_size)]
        shuffler.shuffle(epoch_batches)
        batches += epoch_batches
    return batches


def packed_micro_batches(lengths: Sequence[int], *, max_tokens: int, prefix: int = 0) -> list[list[int]]:
    """Divide a step into rows of at most `max_tokens` tokens, or of one example; as indices into `lengths`.

    `prefix` tokens of each example are counted once per micro-batch.
    """
    parts: list[list[int]] = []
    tokens = 0
    for index in sorted(range(len(lengths)), key=lambda index: lengths[index]):
        own = lengths[index] - prefix
        if not parts or tokens + own > max_tokens:
            parts.append([])
            tokens = prefix
        parts[-1].append(index)
        tokens += own
    return parts


def padded_micro_batches(
    lengths: Sequence[int], *, max_tokens: int, max_padding: int | None = MAX_PADDING
) -> list[list[int]]:
    """The same with padded rows, of similar lengths unless `max_padding` is None."""
    parts: list[list[int]] = []
    for index in sorted(range(len(lengths)), key=lambda index: lengths[index]):
        rows = parts[-1] if parts else []
        width = padded(lengths[index])
        padding = sum(width - lengths[row] for row in rows)
        if not rows or (len(rows) + 1) * width > max_tokens or (max_padding is not None and padding > max_padding):
            parts.append([])
        parts[-1].append(index)
    return parts


def padded(length: int) -> int:
    """The smallest multiple of WIDTH_MULTIPLE that is at least `length`."""
    return -(-length // WIDTH_MULTIPLE) * WIDTH_MULTIPLE


def shared_prefix(rows: Sequence[Sequence[int]], limit: int) -> int:
    """The length of the common prefix of all `rows`, at most `limit`."""
    first, *others = rows
    for position in range(min([limit, *map(len, rows)])):
        if any(row[position] != first[position] for row in others):
            return position
    return min([limit, *map(len, rows)])
