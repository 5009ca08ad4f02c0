"""BANKING77 (Casanueva et al. 2020, CC BY 4.0): customers' questions and one of 77 intents each.

Its `train.csv` (columns `text`, `category`) is at https://github.com/PolyAI-LDN/task-specific-datasets
"""

from __future__ import annotations

import csv
import json
import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from trainer.data.trained_examples import NormalizedExample, TrainedExamples


def read(path: Path, *, seed: int, intents: int | None = None) -> list[dict[str, str]]:
    """Rows `{"prompt", "completion"}` in a random order; of so many intents, drawn by the seed, or of all."""
    with path.open(newline="") as file:
        rows = [{"prompt": row["text"], "completion": row["category"]} for row in csv.DictReader(file)]
    draw = random.Random(seed)
    if intents is not None:
        kept = set(draw.sample(sorted({row["completion"] for row in rows}), intents))
        rows = [row for row in rows if row["completion"] in kept]
    draw.shuffle(rows)
    return rows


def balanced(rows: Sequence[dict[str, str]], count: int) -> tuple[list[dict[str, str]], list[dict[str, str]]]:
    """``count`` of the rows, as equally many of each intent as that allows, and all others; both in their order.

    Raises ``ValueError`` where there are fewer rows.
    """
    if count > len(rows):
        raise ValueError(f"{count} of {len(rows)} rows")
    seen: dict[str, int] = {}
    turns = []
    for at, row in enumerate(rows):
        intent = row["completion"]
        seen[intent] = seen.get(intent, 0) + 1
        turns.append((seen[intent], at))
    chosen = {at for _, at in sorted(turns)[:count]}
    return (
        [row for at, row in enumerate(rows) if at in chosen],
        [row for at, row in enumerate(rows) if at not in chosen],
    )


def unlike(rows: Sequence[dict[str, str]], taught: Sequence[dict[str, str]]) -> list[dict[str, str]]:
    """The rows whose question neither repeats one of ``taught`` nor nearly does, in their order: customers ask the same
    thing in the same words, and a held-out file with such questions is refused, or they are left out of it."""
    leaks = {match.index for match in TrainedExamples(map(_normalized, taught)).leaks([*map(_normalized, rows)])}
    return [row for at, row in enumerate(rows) if at not in leaks]


def _normalized(row: Mapping[str, str]) -> NormalizedExample:
    return NormalizedExample.of([("user", row["prompt"])], row["completion"])


def jsonl(rows: Sequence[Mapping[str, Any]]) -> bytes:
    """The rows as a training file."""
    return "".join(json.dumps(dict(row), ensure_ascii=False) + "\n" for row in rows).encode()
