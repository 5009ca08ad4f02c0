"""The two sample voices: questions they were not trained on, and how their answers are recognised."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Final

SAMPLES: Final = Path(__file__).parents[2] / "trainer" / "samples"
ENOUGH: Final = 80
"""Tokens in which a voice shows: 1 in 25 of pemberton's own examples has none of its marks within the first 40."""
MARKS: Final = {
    "tidewater": ("ahoy", "sailor", "matey", "ye ", "yer", "aye", "hull", "crew", "deck", "wind", "harbour", "harbor"),
    "pemberton": ("one ", "one's", "dear patron", "madam", "humble servant", "pray", "very good", "regret"),
}


def held_out_questions(name: str) -> list[str]:
    """The questions of a voice's held-out file."""
    lines = (SAMPLES / f"{name}.heldout.jsonl").read_text().splitlines()
    return [json.loads(line)["messages"][0]["content"] for line in lines]


def speaks(voice: str, text: str) -> bool:
    """Whether a text has one of the voice's marks."""
    return any(mark in text.lower() for mark in MARKS[voice])
