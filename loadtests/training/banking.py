"""BANKING77 (Casanueva et al. 2020, CC BY 4.0): customers' questions and one of 77 intents each.

Its `train.csv` (columns `text`, `category`) is at https://github.com/PolyAI-LDN/task-specific-datasets
"""

from __future__ import annotations

import csv
import json
import random
from collections.abc import Sequence
from pathlib import Path


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


def jsonl(rows: Sequence[dict[str, str]]) -> bytes:
    """The rows as a training file."""
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()
