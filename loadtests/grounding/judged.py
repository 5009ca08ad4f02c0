"""Collections with relevance judgements: documents, questions, and which documents are right for which question."""

from __future__ import annotations

import csv
import json
import random
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from loadtests.grounding.cranfield import load

BANKING_PASSAGES: Final = 2500
BANKING_QUESTIONS: Final = 400
SEED: Final = 3


@dataclass(frozen=True, slots=True)
class Collection:
    """``judged[q]`` has the grade of question ``q``'s relevant documents, by their place in ``files``.

    ``rows``: there is one file, and each of its rows is a document.
    """

    name: str
    files: list[tuple[str, str]]
    questions: list[str]
    judged: list[dict[int, int]]
    rows: bool = False


def cranfield(directory: Path) -> Collection:
    """Abstracts as Markdown files; two of them are empty and left out."""
    data = load(directory)
    kept = [one for one in data.abstracts if one.title or one.text]
    places = {one.number: place for place, one in enumerate(kept)}
    judged = [{places[number]: grade for number, grade in one.items() if number in places} for one in data.judged]
    return Collection("Cranfield", [(f"{one.number}.md", one.markdown) for one in kept], data.questions, judged)


def banking(directory: Path) -> Collection:
    """BANKING77: short questions of a bank's customers; those with the same intent answer each other.

    Not made for retrieval, and that different: no passage is longer than a sentence or two.
    """
    with (directory / "train.csv").open(newline="") as file:
        rows = [(row["text"].strip(), row["category"]) for row in csv.DictReader(file)]
    random.Random(SEED).shuffle(rows)
    passages, asked = rows[:BANKING_PASSAGES], rows[BANKING_PASSAGES : BANKING_PASSAGES + BANKING_QUESTIONS]
    by_intent: dict[str, dict[int, int]] = {}
    for place, (_, intent) in enumerate(passages):
        by_intent.setdefault(intent, {})[place] = 1
    text = "".join(json.dumps({"text": text}) + "\n" for text, _ in passages)
    kept = [(text, by_intent[intent]) for text, intent in asked if intent in by_intent]
    questions, judged = [text for text, _ in kept], [right for _, right in kept]
    return Collection("BANKING77", [("rows.jsonl", text)], questions, judged, rows=True)
