"""What is looked for in examples that can be read: each check gives findings and changes nothing."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from typing import Final, Literal

from trainer.data.format import Example
from trainer.data.personal import Finder
from trainer.data.report import SHOWN_LINES, Finding
from trainer.data.similar import groups
from trainer.data.split import answer, question
from trainer.data.taught import Said, Taught

DOMINANT: Final = 0.5
"""Share of one answer above which a closed set is called imbalanced."""
RARE: Final = 3
"""Examples below which an answer of a closed set is called rare."""
CLOSED_MOST_CHARS: Final = 80
CLOSED_REPEATS: Final = 3
"""Answers are a closed set where they are short and each stands CLOSED_REPEATS times or more on average."""

File = Literal["training", "held_out"]


def finding(
    code: str, message: str, lines: Iterable[int], *, refused: bool = False, file: File = "training"
) -> Finding:
    """A finding over these lines."""
    found = sorted(set(lines))
    severity: Literal["refused", "warning"] = "refused" if refused else "warning"
    return Finding(
        code=code, severity=severity, message=message, file=file, count=len(found), lines=tuple(found[:SHOWN_LINES])
    )


def duplicates(examples: Sequence[Example]) -> list[Finding]:
    """Examples that say nearly the same, and questions that are answered in two ways."""
    found: list[Finding] = []
    same: list[int] = []
    for group in groups([f"{question(example)}\n{answer(example)}" for example in examples]):
        same += [examples[index].line for index in group[1:]]
    if same:
        found.append(
            finding(
                "near_duplicates",
                f"{len(same)} examples are nearly the same as an earlier one: they weigh more and teach nothing new",
                same,
            )
        )
    asked: dict[tuple[str | None, str], list[tuple[str, int]]] = defaultdict(list)
    for example in examples:
        said = Said.example(example)
        asked[said.system, said.question].append((said.answer, example.line))
    against = [line for several in asked.values() if len({text for text, _ in several}) > 1 for _, line in several]
    if against:
        found.append(
            finding(
                "contradictions",
                f"{len(against)} examples ask the same and answer differently: the model can only learn to guess",
                against,
            )
        )
    return found


def overlap(training: Sequence[Example], held_out: Sequence[Example]) -> list[Finding]:
    """The same example on both sides is refused: what was learnt by heart would count as understood. Under two system
    messages it is two examples.

    A question that is nearly the same as one trained on is warned of.
    """
    taught = Taught(Said.example(example) for example in training)
    same = [example.line for example in held_out if taught.holds(Said.example(example))]
    found: list[Finding] = []
    if same:
        message = f"{len(same)} held-out examples stand in the training file too: take them out of one of the two"
        found.append(finding("held_out_in_training", message, same, refused=True, file="held_out"))
    border = len(training)
    near = [
        held_out[index - border].line
        for group in groups([question(example) for example in (*training, *held_out)])
        if group[0] < border
        for index in group
        if index >= border
    ]
    near = sorted(set(near) - set(same))
    if near:
        message = f"{len(near)} held-out questions are nearly the same as one trained on: the measurement will flatter"
        found.append(finding("held_out_near_training", message, near, file="held_out"))
    return found


def personal(examples: Sequence[Example], file: File = "training") -> list[Finding]:
    """Personal data and secrets, a finding for each kind."""
    finder = Finder()
    lines: dict[str, list[int]] = defaultdict(list)
    for example in examples:
        for message in example.messages:
            for kind in finder.find(message.content):
                lines[kind].append(example.line)
    return [
        finding(
            "personal_data" if kind[0].islower() else "secret",
            f"{len(set(at))} examples hold what looks like: {kind}. A model gives back what it was taught",
            at,
            file=file,
        )
        for kind, at in sorted(lines.items())
    ]


def balance(examples: Sequence[Example], counts: Counter[str]) -> list[Finding]:
    """For a closed set of answers: one that stands for most examples, and those too rare to be learnt."""
    found: list[Finding] = []
    most, times = counts.most_common(1)[0]
    share = times / len(examples)
    if len(counts) > 1 and share > max(DOMINANT, 1.5 / len(counts)):
        lines = [example.line for example in examples if answer(example).strip() == most]
        message = f"the answer {most[:40]!r} stands in {share:.0%} of the examples: saying always that would look good"
        found.append(finding("imbalance", message, lines))
    rare = {text for text, count in counts.items() if count < RARE}
    if rare:
        lines = [example.line for example in examples if answer(example).strip() in rare]
        message = f"{len(rare)} of {len(counts)} answers stand in fewer than {RARE} examples"
        found.append(finding("rare_answers", message, lines))
    return found


def closed_answers(examples: Sequence[Example]) -> Counter[str] | None:
    """How often each answer stands there, where the answers are a closed set (labels); else None."""
    counts = Counter(answer(example).strip() for example in examples)
    short = all(len(text) <= CLOSED_MOST_CHARS for text in counts)
    return counts if short and len(examples) >= CLOSED_REPEATS * len(counts) else None


def common_system_prompt(examples: Sequence[Example]) -> str | None:
    """The system message that every example has; None where one has none or another."""
    prompts = {example.messages[0].content if example.messages[0].role == "system" else None for example in examples}
    return prompts.pop() if len(prompts) == 1 else None
