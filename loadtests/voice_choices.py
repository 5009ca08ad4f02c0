"""Whether the measure `voice` tells a voice from what only looks like it, and agrees with blind choices.

    .venv/bin/python -m loadtests.voice_choices          # the tables of trainer/evaluate/VOICE.md, in seconds
    .venv/bin/python -m loadtests.voice_choices --ask    # first asks a gateway at HATRACK_URL again for the replies

Uses the held-out tickets of the example, `replies.jsonl` (what models answered to them) and `voice_choices.jsonl`
beside them. The models are the base, the base with `instructions.txt`, and the two sample voices, as `hatrack up`
serves them.
"""

from __future__ import annotations

import argparse
import json
import os
import random
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final, NamedTuple

import httpx
import numpy as np

from trainer.data.format import read_chat
from trainer.evaluate.arms import Arm, Question, questions
from trainer.evaluate.compare import ArmResult, Comparison
from trainer.evaluate.metrics.similarity import Similarity
from trainer.evaluate.statistics.agreement import Agreement, agreement
from trainer.evaluate.voice_scores import VoiceScores, voice_scores
from trainer.samples import MARLOW, NAMES

REPLIES: Final = MARLOW / "replies.jsonl"
CHOICES: Final = MARLOW / "voice_choices.jsonl"
SIGN_OFF: Final = "\n— the bench at Marlow & Thrush"
BASE: Final = "base"
INSTRUCTED: Final = "base with instructions"
MAX_TOKENS: Final = 120
OTHERS_EVERY: Final = 2
"""Of every second ticket the replies of others than the base are kept."""
CONCURRENCY: Final = 8
TIE: Final = 0.1
"""Scores that differ by less count as a tie."""
PIECE_WORDS: Final = 3
CONFIDENCE: Final = 0.95


class Choice(NamedTuple):
    """A pair of `voice_choices.jsonl`."""

    ticket: int
    part: str
    first: str
    second: str
    first_is: str
    second_is: str
    choice: str


def held_out() -> tuple[Question, ...]:
    """The held-out tickets, in the order of their file."""
    return questions(read_chat(MARLOW / "heldout.jsonl").examples)


def authored() -> list[str]:
    """The author's replies in the training data."""
    return [example.judged.answer for example in read_chat(MARLOW / "training.jsonl").examples]


def replies() -> dict[str, tuple[str, ...]]:
    """Each model's replies to the held-out tickets; empty where none is kept."""
    rows = [json.loads(line) for line in REPLIES.read_text("utf-8").splitlines()]
    return {name: tuple(row.get(name, "") for row in rows) for name in (BASE, INSTRUCTED, *NAMES)}


def choices() -> list[Choice]:
    """The blind choices."""
    return [Choice(**json.loads(line)) for line in CHOICES.read_text("utf-8").splitlines()]


def scored(arms: Mapping[str, Sequence[str]]) -> VoiceScores:
    """The measure `voice`, as an evaluation has it, of the base's replies and these ``arms`` of one for each ticket."""
    asked = held_out()
    results = [
        ArmResult(arm=Arm(label=label, model=label), answers=tuple(answers), runs=((0.0,) * len(asked),))
        for label, answers in ({BASE: replies()[BASE]} | dict(arms)).items()
    ]
    comparison = Comparison(metric=Similarity.name, binary=False, questions=asked, results=tuple(results))
    scores = voice_scores(comparison, BASE, authored())
    assert scores is not None
    return scores


def look_alikes() -> dict[str, Sequence[str]]:
    """Replies of which it is known what they have of the voice, by a name for the table."""
    references, taught = [question.reference for question in held_out()], authored()
    rng = random.Random(0)
    return {
        "the author's, a half of each": [_half(reference) for reference in references],
        "the author's, to other questions": rng.sample(taught, len(references)),
        "the author's, in pieces of three words": [
            " ".join(_pieces(rng, taught, len(text.split()))) for text in references
        ],
        **{f"{name}'s adapter" if name in NAMES else name: given for name, given in replies().items() if name != BASE},
    }


def _half(text: str) -> str:
    words = text.removesuffix(SIGN_OFF).split()
    return " ".join(words[: (len(words) + 1) // 2])


def _pieces(rng: random.Random, texts: Sequence[str], words: int) -> Iterator[str]:
    for _ in range(max(1, words // PIECE_WORDS)):
        of = rng.choice(texts).removesuffix(SIGN_OFF).split()
        start = rng.randrange(max(1, len(of) - PIECE_WORDS + 1))
        yield " ".join(of[start : start + PIECE_WORDS])


def table() -> str:
    """Markdown: the mean score of each kind of reply."""
    arms = look_alikes()
    result = scored(arms)
    voice = result.voice
    rows = {
        "the author's own": voice.author,
        "the base's": voice.base,
        "the base's behind three sentences of the author's": voice.phrases,
        "the author's words in random order": voice.shuffled,
    }
    for name, texts in arms.items():
        rows[name] = float(np.mean([score for score, text in zip(result.scores[name], texts, strict=True) if text]))
    lines = [
        "| replies | voice, of 100 |",
        "|---|---:|",
        *(f"| {name} | {100 * mean:.0f} |" for name, mean in rows.items()),
    ]
    told = f"The author's own reply scores higher on {100 * voice.told_apart:.0f}% of the tickets or more."
    return "\n".join([*lines, "", told])


def votes(pairs: Sequence[Choice]) -> list[str]:
    """What the measure would choose: the first, the second, or a tie."""
    places = {question.id: at for at, question in enumerate(held_out())}
    arms: dict[str, list[str]] = {}
    of_pair = []
    for pair in pairs:
        at, side = places[str(pair.ticket)], f"{pair.part}"
        for name, text in (("first", pair.first), ("second", pair.second)):
            arms.setdefault(f"{side} {name}", [""] * len(places))[at] = text
        of_pair.append((side, at))
    given = scored(arms).scores
    differences = [given[f"{side} first"][at] - given[f"{side} second"][at] for side, at in of_pair]
    return ["tie" if abs(each) < TIE else "first" if each > 0 else "second" for each in differences]


def agreements() -> str:
    """Markdown: how the measure agrees with the choices, by the part of the file and the kinds of replies."""
    pairs = choices()
    voted = votes(pairs)
    lines = ["| pairs | number | same | κ | its 95% interval | same, where neither says tie |"]
    lines.append("|---|---:|---:|---:|---|---|")
    for part in dict.fromkeys(pair.part for pair in pairs):
        of_part = [(vote, pair.choice) for vote, pair in zip(voted, pairs, strict=True) if pair.part == part]
        lines.append(_row(part, of_part))
    lines += ["", "| kinds | same | opposite | one of them a tie |", "|---|---:|---:|---:|"]
    kinds: dict[str, Counter[str]] = {}
    for vote, pair in zip(voted, pairs, strict=True):
        kind = " and ".join(sorted((pair.first_is, pair.second_is)))
        outcome = "same" if vote == pair.choice else "tie" if "tie" in (vote, pair.choice) else "opposite"
        kinds.setdefault(kind, Counter())[outcome] += 1
    lines += [
        f"| {kind} | {found['same']} | {found['opposite']} | {found['tie']} |" for kind, found in sorted(kinds.items())
    ]
    return "\n".join(lines)


def _row(part: str, votes_and_choices: Sequence[tuple[str, str]]) -> str:
    found: Agreement = agreement(*zip(*votes_and_choices, strict=True), confidence=CONFIDENCE)
    chose = [vote == choice for vote, choice in votes_and_choices if "tie" not in (vote, choice)]
    interval = "–" if found.low is None or found.high is None else f"{found.low:.2f} to {found.high:.2f}"
    kappa = "–" if found.kappa is None else f"{found.kappa:.2f}"
    same = f"{sum(chose)} of {len(chose)}"
    return f"| {part} | {found.pairs} | {found.observed:.0%} | {kappa} | {interval} | {same} |"


def ask() -> None:
    """Write `replies.jsonl` anew, with what the gateway at HATRACK_URL answers (greedy)."""
    key, url = os.environ["HATRACK_KEY"], os.environ["HATRACK_URL"]
    instructions = (MARLOW / "instructions.txt").read_text("utf-8").strip()
    with httpx.Client(base_url=url, headers={"authorization": f"Bearer {key}"}, timeout=600) as client:
        base = client.get("/v1/models").json()["data"][0]["id"]

        def answer(model: str, system: str | None, ticket: Question) -> str:
            messages = [{"role": "system", "content": system}] if system else []
            messages += [turn.sent() for turn in ticket.turns]
            body: dict[str, Any] = {"model": model, "messages": messages, "max_tokens": MAX_TOKENS, "temperature": 0}
            response = client.post("/v1/chat/completions", json=body)
            response.raise_for_status()
            return str(response.json()["choices"][0]["message"]["content"]).strip()

        models = {BASE: (base, None), INSTRUCTED: (base, instructions)} | {name: (name, None) for name in NAMES}
        asked = [
            (at, name, ticket)
            for at, ticket in enumerate(held_out())
            for name in models
            if name == BASE or at % OTHERS_EVERY == 0
        ]
        with ThreadPoolExecutor(CONCURRENCY) as pool:
            answers = list(pool.map(lambda each: answer(*models[each[1]], each[2]), asked))
    rows: list[dict[str, Any]] = [{"ticket": int(ticket.id)} for ticket in held_out()]
    for (at, name, _), text in zip(asked, answers, strict=True):
        rows[at][name] = text
    REPLIES.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), "utf-8")


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ask", action="store_true", help="ask the gateway again for the models' replies")
    if parser.parse_args().ask:
        ask()
    print(table(), end="\n\n")
    print(agreements())


if __name__ == "__main__":
    main()
