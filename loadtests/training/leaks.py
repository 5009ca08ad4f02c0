"""What counts as a leak between training and held-out questions: on honest data, on disguised copies, and how fast.

    .venv/bin/python -m loadtests.training.leaks --data banking77/train.csv [--gsm8k gsm8k/test.jsonl]

Needs no server. *Honest* splits are drawn at random from data in which nobody copied a question: what is refused or
left out there are questions that two people asked in (nearly) the same words. *Disguised* files are all 140 questions
of the sample `pemberton`, or 140 of BANKING77, each changed in one way. Prints Markdown tables.
"""

from __future__ import annotations

import argparse
import json
import random
import string
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from loadtests.training.banking import read
from trainer.data.formats import read_dataset
from trainer.data.split import question
from trainer.data.trained_examples import NormalizedExample, Relation, TrainedExamples, must_be_refused
from trainer.samples import data_file, heldout_file

SEEDS = 10
INSTRUCTION = (
    "You are the assistant of a bank. Read the customer's message and name the intent, with exactly one of the known "
    "labels and nothing else. If several fit, name the one that the customer would want to have dealt with first."
)
PREAMBLE = (
    "I have been a customer of yours for many years and was always happy with what you did for me until this week, so "
    "I hope that you will take the time to read my message and to answer it in full."
)
LOOKALIKES = str.maketrans("aceopxyABCEHKMOPTX", "асеорхуАВСЕНКМОРТХ")


def _misspelt(text: str) -> str:
    draw = random.Random(text)
    at = draw.randrange(len(text))
    return text[:at] + draw.choice(string.ascii_lowercase) + text[at + 1 :]


DISGUISES: dict[str, Callable[[str], str]] = {
    "unchanged": lambda text: text,
    '"!" appended': lambda text: f"{text}!",
    "a greeting": lambda text: f"Hello there! {text}",
    "please and thanks": lambda text: f"Please, {text} Thanks in advance.",
    "zero-width spaces": lambda text: "\u200b".join(text),
    "soft hyphens, BOM, bidi marks": lambda text: "\ufeff\u202d" + "\u00ad".join(text),
    "Cyrillic look-alikes": lambda text: text.translate(LOOKALIKES),
    "full width": lambda text: "".join(chr(ord(each) + 0xFEE0) if "!" <= each <= "~" else each for each in text),
    "upper case, double spaces": lambda text: text.upper().replace(" ", "  "),
    "a letter ten times": lambda text: text.replace("e", "e" * 10, 1),
    "accents": lambda text: text.replace("a", "á").replace("e", "ê"),
    "an emoji appended": lambda text: f"{text} \U0001f642",
    "one letter replaced": _misspelt,
    "a word before it": lambda text: f"Actually {text}",
    '"I was wondering: " before it': lambda text: f"I was wondering: {text}",
    '"As a customer, " before it': lambda text: f"As a customer, {text}",
    '"Ticket 4711: " before it': lambda text: f"Ticket 4711: {text}",
    '"My name is Ann." after it': lambda text: f"{text} My name is Ann.",
    "a long sentence before it": lambda text: f"{PREAMBLE} {text}",
    "ignorable code points": lambda text: "\u17b4\u2065\ufff0".join(text),
    "the words in another order": lambda text: " ".join(random.Random(text).sample(text.split(), len(text.split()))),
}


def examples(questions: Sequence[str]) -> list[NormalizedExample]:
    """The questions as examples without a system message."""
    return [NormalizedExample.of([("user", text)], "") for text in questions]


@dataclass(frozen=True)
class Counts:
    """How many held-out questions are the same as a trained one, similar to one, or contain one; ``refused``: whether
    those that are not the same would be refused."""

    same: int
    similar: int
    containing: int
    refused: bool

    def __str__(self) -> str:
        return f"{self.same} / {self.similar} / {self.containing}"


def leaks(training: Sequence[str], held_out: Sequence[str]) -> Counts:
    """Compare the held-out questions with the trained ones."""
    found = TrainedExamples(examples(training)).leaks(examples(held_out))
    counts = Counter(leak.relation for leak in found)
    others = [leak for leak in found if leak.relation is not Relation.SAME]
    refused = must_be_refused(others, len(held_out))
    return Counts(counts[Relation.SAME], counts[Relation.SIMILAR], counts[Relation.CONTAINS], refused)


def honest(name: str, pool: Sequence[str], training: int, held_out: int) -> str:
    """A row: the mean shares over SEEDS draws, in percent, and in how many draws the near-duplicates are refused."""
    draws = []
    for seed in range(SEEDS):
        drawn = random.Random(seed).sample(list(pool), training + held_out)
        draws.append(leaks(drawn[:training], drawn[training:]))
    total = SEEDS * held_out / 100
    return (
        f"| {name} | {training} | {held_out} | {sum(each.same for each in draws) / total:.2f} "
        f"| {sum(each.similar for each in draws) / total:.2f} | {sum(each.containing for each in draws) / total:.2f} "
        f"| {100 * max(each.similar + each.containing for each in draws) / held_out:.1f} "
        f"| {sum(each.refused for each in draws)} of {SEEDS} |"
    )


def sample_questions(path: Path) -> list[str]:
    """The questions of a data file."""
    return [question(example) for example in read_dataset(path.name, path.read_bytes())[1].examples]


def main() -> None:
    """Measure, and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--gsm8k", type=Path)
    options = parser.parse_args()
    banking = [row["prompt"] for row in read(options.data, seed=0)]
    print("| honest data | training | held out | same, % | similar, % | containing, % | most in a draw, % | refused |")
    print("|---|" + "---|" * 7)
    for training, held_out in ((140, 100), (600, 150), (2000, 400), (9000, 1000)):
        print(honest("BANKING77", banking, training, held_out), flush=True)
    print(honest("BANKING77 after an instruction", [f"{INSTRUCTION}\n\n{text}" for text in banking], 600, 150))
    if options.gsm8k is not None:
        sums = [json.loads(line)["question"] for line in options.gsm8k.read_text().splitlines()]
        print(honest("GSM8K", sums, 1000, 300))
    pemberton = sample_questions(data_file("pemberton"))
    for name in ("pemberton", "tidewater"):
        counts = leaks(sample_questions(data_file(name)), sample_questions(heldout_file(name)))
        print(f"sample {name}: held-out examples that are the same / similar / containing: {counts}")
    print("\nsame / similar / containing of 140:\n\n| disguise | pemberton | BANKING77 |\n|---|---|---|")
    for name, disguise in DISGUISES.items():
        cells = []
        for pool in (pemberton, banking[:140]):
            cells.append(str(leaks(pool, [disguise(text) for text in pool])))
        print(f"| {name} | {' | '.join(cells)} |")
    draw = random.Random(0)
    long = list(dict.fromkeys(f"{draw.choice(banking)} {draw.choice(banking)}" for _ in range(51_500)))[:51_000]
    began = time.process_time()
    found = leaks(long[:50_000], [*long[50_000:50_900], *(f"Hi, {text}" for text in long[:100])])
    print(f"\n50,000 training and 1,000 held-out questions: {time.process_time() - began:.1f} s of CPU, {found}")


if __name__ == "__main__":
    main()
