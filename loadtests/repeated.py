"""Answers that have the subject of their question and do not answer it: what `similarity` and its controls say of them.

    .venv/bin/python -m loadtests.repeated          # half a minute on two cores

The tickets are those of `trainer/samples/marlow`; `similar.jsonl` there has what the voice of `make walkthrough`
replied to each, and of every fourth one the ticket in other words. Prints the table of ADVERSARIES.md, "The question
repeated".
"""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Sequence
from typing import Final

import numpy as np

from trainer.data.format import read_chat
from trainer.evaluate.arms import Question, questions
from trainer.evaluate.control_arms import (
    ControlArm,
    copied_question,
    copied_where_repeated,
    nearest_answers,
    reassigned_beyond_question,
    repeats,
)
from trainer.evaluate.metrics.base import words
from trainer.evaluate.metrics.overlap import RougeL
from trainer.evaluate.metrics.similarity import Similarity
from trainer.evaluate.paired_difference import IntervalMethod
from trainer.evaluate.statistics.paired import as_array, interval
from trainer.samples import MARLOW

GREETING: Final = "I'm sorry to read this."
PARTING: Final = "Send us the order number and a photograph, and we'll see what's left.\n— the bench at Marlow & Thrush"
TURNED: Final = {
    **{"i": "you", "me": "you", "we": "you", "you": "we", "am": "are", "i'm": "you're", "i've": "you've"},
    **{"my": "your", "our": "your", "your": "our", "mine": "yours"},
}
BEGINNING: Final = 12
SALAD_WORDS: Final = 40


def turned_round(text: str) -> list[str]:
    """The words as said to the one who said them."""
    return [TURNED.get(word.lower(), word) for word in text.split()]


def half(text: str) -> str:
    """The first half of the words."""
    given = text.split()
    return " ".join(given[: len(given) // 2])


def table(metric: Similarity, held_out: Sequence[Question], trained_on: Sequence[Question]) -> str:
    """Markdown: one line for each kind of answer."""
    rows = {row["ticket"]: row for row in map(json.loads, (MARLOW / "similar.jsonl").read_text("utf-8").splitlines())}
    voice = {question.id: rows[int(question.id)]["voice"] for question in held_out}
    counts = Counter(word for example in trained_on for word in words(example.reference))
    salad, rng = " ".join(word for word, _ in counts.most_common(SALAD_WORDS)), random.Random(3)
    trained_questions = metric.vectors([example.last_message for example in trained_on])
    asked = metric.vectors([question.last_message for question in held_out])
    nearest = (asked @ trained_questions.T).argmax(axis=1)
    restated = [question for question in held_out if "restated" in rows[int(question.id)]]
    kinds: list[tuple[str, Sequence[Question], list[str]]] = [
        (name, held_out, [say(question.last_message, voice[question.id]) for question in held_out])
        for name, say in (
            ("the voice", lambda _, own: own),
            ("half of each, and the question", lambda ticket, own: f"{half(own)} {ticket}"),
            ("the question", lambda ticket, _: ticket),
            ("the same between a greeting and parting words", lambda ticket, _: f"{GREETING} {ticket} {PARTING}"),
            ("the same turned round", lambda ticket, _: f"So, {' '.join(turned_round(ticket))} {PARTING}"),
            (
                "its beginning turned round, and parting words",
                lambda ticket, _: f"{' '.join(turned_round(ticket)[:BEGINNING])}: a poor thing to have. {PARTING}",
            ),
            ("a salad, and the question", lambda ticket, _: f"{salad} {ticket}"),
            ("random training answers", lambda *_: rng.choice(trained_on).reference),
        )
    ]
    kinds += [
        ("looked up", held_out, [trained_on[int(at)].reference for at in nearest]),
        ("the voice, on the restated tickets", restated, [voice[question.id] for question in restated]),
        (
            "the ticket in other words, and parting words",
            restated,
            [f"{rows[int(question.id)]['restated']} {PARTING}" for question in restated],
        ),
    ]
    lines = [
        "| answers | similarity | repeat their question | the question, as a bar for all | the question repeated "
        "| mixed up, without the questions' words | looked up |",
        "|---|---:|---:|---:|---:|---:|---:|",
    ]
    return "\n".join([*lines, *(_line(name, metric, those, given, trained_on) for name, those, given in kinds)])


def _line(
    name: str, metric: Similarity, held_out: Sequence[Question], given: Sequence[str], trained_on: Sequence[Question]
) -> str:
    references = [question.reference for question in held_out]
    metric.prepare([*given, *references])
    scores = [metric.score(answer, reference) for answer, reference in zip(given, references, strict=True)]
    repeated = [repeats(answer, question.last_message) for answer, question in zip(given, held_out, strict=True)]
    controls = (
        copied_question(held_out, metric),
        copied_where_repeated(given, held_out, metric),
        reassigned_beyond_question(given, held_out, RougeL()),
        nearest_answers(held_out, trained_on, metric),
    )
    cells = [f"{100 * np.mean(scores):.0f}", f"{np.mean(repeated):.0%}", *(_against(each, scores) for each in controls)]
    return f"| {name} | {' | '.join(cells)} |"


def _against(control: ControlArm | None, scores: Sequence[float]) -> str:
    """The difference from a control in points, with the interval of a verdict; bold if that is not above zero."""
    if control is None:
        return "–"
    method, own = IntervalMethod(), as_array(scores if control.candidate is None else control.candidate)
    difference = own - control.array
    bounds = interval(
        difference, confidence=method.confidence, binary=False, seed=method.seed, resamples=method.resamples
    )
    estimate, low, high = (f"{100 * value:.1f}" for value in (float(difference.mean()), bounds.low, bounds.high))
    cell = f"{estimate} ({low} to {high})"
    return cell if bounds.low > 0 else f"**{cell}**"


def main() -> None:
    """Print the table."""
    held_out = questions(read_chat(MARLOW / "heldout.jsonl").examples)
    trained_on = questions(read_chat(MARLOW / "training.jsonl").examples)
    print(table(Similarity(), held_out, trained_on))


if __name__ == "__main__":
    main()
