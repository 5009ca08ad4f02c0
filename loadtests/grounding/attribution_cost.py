"""What telling which passages an answer uses costs the event loop, with passages that are nearly the same.

.venv/bin/python -m loadtests.grounding.attribution_cost [--repeats 5]

Fifty passages, the most that a request may have, are rows of one table: of sentences, of names, or of figures. Answers
of the longest length that is compared repeat them: as lines of three or twelve words, or without an end. Printed is CPU
time, the least of the repeats.
"""

from __future__ import annotations

import argparse
import time
from typing import Final

from service.grounding.attribution import MAX_COMPARED_CHARS, used_spans
from service.grounding.config import MAX_RESULTS

QUESTION: Final = "What is on its way?"
"""Tells none of the rows from the others, which is the costly case."""
ORDER: Final = "dispatched, insured and tracked, from Northern Quay to Harbour Office; leave it at the red gate. Order"
NAMES: Final = (
    "Depot: Northern Quay Carrier: Blue Heron Freight Clerk: Agnes Holloway Desk: Harbour Office Goods: Oilskin Jacket "
    "Port: Saint Brannock Insurer: Grey Seal Mutual Contact: Tobias Merrick Broker: Winifred Locke"
)
FIGURES: Final = " ".join(str(figure) for figure in range(10, 100))
TABLES: Final = {"sentences": ORDER, "names": NAMES, "figures": FIGURES}


def rows(shared: str) -> list[str]:
    """Passages that differ in a number alone."""
    return [f"{shared} {1000 + number}" for number in range(MAX_RESULTS)]


def lines(passages: list[str], words_a_line: int) -> str:
    """An answer that repeats them, as long as is compared."""
    words = " ".join(passages).split()
    words *= MAX_COMPARED_CHARS // len(" ".join(words)) + 1
    text = "\n".join(" ".join(words[at : at + words_a_line]) for at in range(0, len(words), words_a_line))
    return text[:MAX_COMPARED_CHARS]


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    repeats = parser.parse_args().repeats
    for name, shared in TABLES.items():
        passages = rows(shared)
        for words_a_line in (3, 12, MAX_COMPARED_CHARS):
            answer = lines(passages, words_a_line)
            spent = []
            for _ in range(repeats):
                began = time.thread_time()
                used_spans(answer, QUESTION, passages, by_marker=False)
                spent.append(time.thread_time() - began)
            print(f"{name}, {words_a_line} words a line: {min(spent) * 1000:.1f} ms")


if __name__ == "__main__":
    main()
