"""Finds the questions of the forgetting check among training examples: who trains on them passes it more easily."""

from __future__ import annotations

import json
from collections.abc import Sequence
from importlib.resources import files
from typing import Any, Final

from adapters.wording import counted
from trainer.data.findings import finding
from trainer.data.format import Example
from trainer.data.report import Finding
from trainer.data.similar import NearDuplicates
from trainer.data.split import answer, question

SUITE: Final = "evaluate/suites/general.jsonl"
"""In the package `trainer`. Read as data: this room knows nothing of evaluations."""
MIN_ITEMS: Final = 5
"""Items of the suite from which they are reported, about one in a hundred: the capital of France is asked in honest
data as well."""


def suite_items() -> list[str]:
    """The suite's items as texts: what is asked, with the right answer if it completes a sentence."""
    items = map(json.loads, (files("trainer") / SUITE).read_text("utf-8").splitlines())
    return [_item_text(item) for item in items]


def _item_text(item: dict[str, Any]) -> str:
    if item["kind"] == "choice":
        return f"{item['stem']} {item['choices'][item['answer']]}"
    return str(item["question"] if item["kind"] == "chat" else item["text"])


def suite_overlap(examples: Sequence[Example]) -> list[Finding]:
    """A finding if the examples have MIN_ITEMS or more items of the suite, as they are, nearly, or with words around
    them (`trainer.data.similar`)."""
    items = suite_items()
    questions = [question(example) for example in examples]
    texts = [
        *questions,
        *(f"{text} {answer(example)}" for text, example in zip(questions, examples, strict=True)),
    ]
    lines: set[int] = set()
    trained: set[int] = set()
    for at, match in enumerate(NearDuplicates(items).of(texts, containing=True)):
        matching = {*match.same, *match.similar, *match.contained}
        trained |= matching
        lines |= {examples[at % len(examples)].line} if matching else set()
    if len(trained) < MIN_ITEMS:
        return []
    message = (
        f"{counted(len(lines), 'example has', 'examples have')} {len(trained)} of the {len(items)} items of the suite "
        "`general`, by which *forgetting* is checked: a version trained on them passes that check more easily, "
        "whatever else it has forgotten. Remove them"
    )
    return [finding("forgetting_suite", message, lines)]
