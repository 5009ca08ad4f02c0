"""Which passages count as used: by answers that state their facts, and by answers that were given without them.

.venv/bin/python -m loadtests.grounding.attribution

The first are the sample voices' grounded examples, each beside all facts of its shop. The second are the replies of
models and people to the example shop's held-out tickets (`trainer/samples/marlow/`), each beside the passages of that
shop's documents that the ticket finds; their writers had seen none. Tickets with odd numbers are for choosing the rule.
"""

from __future__ import annotations

import asyncio
import json
import tempfile
from collections import Counter
from pathlib import Path
from typing import Final

from loadtests.grounding.quality import embed
from loadtests.grounding.threshold import MARLOW, grounded_pairs, marlow, vectors_of
from service.config import Settings
from service.grounding.attribution import used_spans
from service.grounding.config import DEFAULT_RESULTS
from service.knowledge.index.ranking import DEFAULT_VECTOR_WEIGHT, Question, rank
from service.knowledge.terms import Analyzer
from service.knowledge.types import DEFAULT_CHUNKING
from trainer.samples import NAMES

PEOPLE: Final = "people"


def stated() -> Counter[str]:
    """Passages that count as used beside answers that state one of them."""
    counts: Counter[str] = Counter()
    for name in NAMES:
        pairs = grounded_pairs(name)
        facts = list(dict.fromkeys(text for passages, *_ in pairs for text in passages))
        for passages, question, answer, number in pairs:
            right = None if number is None else passages[number]
            for fact, span in zip(facts, used_spans(answer, question, facts, by_marker=False), strict=True):
                is_right = right is not None and (fact.endswith(right) or right.endswith(fact))
                kind = "stated" if is_right else "not stated"
                counts[kind] += 1
                counts[f"{kind}, used"] += span is not None
    return counts


async def found() -> list[tuple[str, str, list[str]]]:
    """The held-out tickets, the replies of people, and the passages that a prompt would have."""
    lines = [json.loads(line)["messages"] for line in (MARLOW / "heldout.jsonl").read_text().splitlines()]
    tickets = [next(message["content"] for message in line if message["role"] == "user") for line in lines]
    with tempfile.TemporaryDirectory() as directory:
        store = await embed(marlow(), DEFAULT_CHUNKING, Path(directory))
        vectors = await vectors_of(tickets, Path(directory))
    analyzer = Analyzer()
    least = Settings.model_fields["grounding_min_score"].default
    results = []
    for ticket, vector, line in zip(tickets, vectors, lines, strict=True):
        terms = tuple(dict.fromkeys(analyzer.terms(ticket)))
        hits = rank([store.part], Question(terms, vector, DEFAULT_VECTOR_WEIGHT, DEFAULT_RESULTS, least))
        results.append((ticket, line[-1]["content"], [store.passages[hit.row].whole for hit in hits]))
    return results


def unseen(tickets: list[tuple[str, str, list[str]]]) -> Counter[str]:
    """Passages that count as used beside answers that were given without them."""
    counts: Counter[str] = Counter()
    for line in (MARLOW / "replies.jsonl").read_text().splitlines():
        replies = json.loads(line)
        number = replies.pop("ticket")
        ticket, reply, passages = tickets[number - 1]
        for author, answer in [*replies.items(), (PEOPLE, reply)]:
            half = "to choose on" if number % 2 else "other half"
            kind = f"{'people' if author == PEOPLE else 'models'}, {half}"
            counts[kind] += len(passages)
            counts[f"{kind}, used"] += sum(
                span is not None for span in used_spans(answer, ticket, passages, by_marker=False)
            )
    return counts


def main() -> None:
    """Run the command."""
    counts = stated() + unseen(asyncio.run(found()))
    for kind in [kind for kind in counts if not kind.endswith(", used")]:
        print(f"{kind}: {counts[f'{kind}, used']} of {counts[kind]} passages count as used")


if __name__ == "__main__":
    main()
