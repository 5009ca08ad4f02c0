"""The checks of readable examples: each returns findings and changes nothing."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Final, Literal, NamedTuple

from adapters.dataset.formats import IgnoredKey
from adapters.dataset.lines import show
from adapters.wording import counted
from trainer.data.format import Dataset, Example
from trainer.data.personal import PersonalDataDetector
from trainer.data.report import MAX_CLOSED_ANSWER_CHARS, SHOWN_LINES, Finding
from trainer.data.similar import groups
from trainer.data.split import answer, question
from trainer.data.trained_examples import NormalizedExample, Relation, TrainedExamples, describe_leaks, must_be_refused

DOMINANT: Final = 0.5
"""Share of the most frequent answer above which a closed set counts as imbalanced."""
RARE: Final = 3
"""Number of examples below which an answer of a closed set counts as rare."""
CLOSED_REPEATS: Final = 3
"""Answers are a closed set if they are short and each occurs CLOSED_REPEATS times or more on average."""

File = Literal["training", "held_out"]


def finding(
    code: str, message: str, lines: Iterable[int] = (), *, refused: bool = False, file: File = "training"
) -> Finding:
    """A finding about these lines, or about the whole file."""
    distinct = sorted(set(lines))
    severity: Literal["refused", "warning"] = "refused" if refused else "warning"
    return Finding(
        code=code,
        severity=severity,
        message=message,
        file=file,
        count=len(distinct),
        lines=tuple(distinct[:SHOWN_LINES]),
    ).about(tuple(distinct))


def ignored_keys(data: Dataset, file: File = "training") -> list[Finding]:
    """A note for each key that the lines of a file have and that is not used."""
    return [
        Finding(
            code="ignored_keys",
            severity="note",
            message=(
                f"the key {show(key.name)} is not used; {_rows_have(key)} it, the first in line {key.lines[0]}"
                if key.name is not None
                else f"more keys are not used; {_rows_have(key)} one, the first in line {key.lines[0]}"
            ),
            file=file,
            count=key.count,
            lines=tuple(key.lines[:SHOWN_LINES]),
        )
        for key in data.ignored_keys
    ]


def _rows_have(key: IgnoredKey) -> str:
    return counted(key.count, "row has", "rows have")


def split_turns(sequences: Mapping[int, int]) -> list[Finding]:
    """A note if examples are trained as several sequences (`Renderer.render`); `sequences`: how many, by line."""
    lines = sorted(line for line, number in sequences.items() if number > 1)
    if not lines:
        return []
    total = sum(sequences[line] for line in lines)
    examples = "one example" if len(lines) == 1 else f"{len(lines)} examples"
    message = (
        "the base's chat template renders earlier answers differently once later messages follow (Qwen3's drops their "
        f"thinking): each such answer is trained in a sequence of its own, as the engine will be asked for it; "
        f"{examples} with several answers trained as {total} sequences"
    )
    return [
        Finding(
            code="split_turns", severity="note", message=message, count=len(lines), lines=tuple(lines[:SHOWN_LINES])
        )
    ]


def duplicates(examples: Sequence[Example]) -> list[Finding]:
    """Near-duplicate examples, and questions with contradictory answers."""
    findings: list[Finding] = []
    same: list[int] = []
    for group in groups([f"{question(example)}\n{answer(example)}" for example in examples]):
        same += [examples[index].line for index in group[1:]]
    if same:
        they_are = counted(len(same), "example is a near-duplicate", "examples are near-duplicates")
        they_add = "it adds" if len(same) == 1 else "they add"
        message = f"{they_are} of an earlier one: {they_add} weight but nothing to learn"
        findings.append(finding("near_duplicates", message, same))
    answers: dict[tuple[str | None, str], list[tuple[str, int]]] = defaultdict(list)
    for example in examples:
        normalized = NormalizedExample.example(example)
        answers[normalized.system, normalized.question].append((normalized.answer, example.line))
    contradicting = [line for given in answers.values() if len({text for text, _ in given}) > 1 for _, line in given]
    if contradicting:
        findings.append(
            finding(
                "contradictions",
                f"{len(contradicting)} examples have the same question but different answers: the model can only guess",
                contradicting,
            )
        )
    return findings


class Overlap(NamedTuple):
    """Findings about held-out examples that were trained on, and the lines of those to leave out of the evaluation."""

    findings: list[Finding]
    left_out: frozenset[int]


def overlap(training: Sequence[Example], held_out: Sequence[Example]) -> Overlap:
    """Compare a held-out file with the training file, by the rules of an evaluation (`trainer.data.trained_examples`).

    Held-out questions that were trained on are refused. A few near-duplicates are left out, with a warning, and so are
    questions under another system message. Where the training file's answers depend on that, they are other examples; a
    warning says that such examples are easier.
    """
    trained = TrainedExamples(map(NormalizedExample.trained, training), common=True)
    matches = trained.matches([NormalizedExample.example(example) for example in held_out])
    by_system = trained.by_system
    leaks = [match for match in matches if match.relation is not Relation.OTHER_SYSTEM or not by_system]
    lines = [held_out[leak.index].line for leak in leaks]
    findings: list[Finding] = []
    if must_be_refused(leaks, len(held_out)):
        message = describe_leaks(leaks, len(held_out), [f"line {line}" for line in lines], "the training file")
        message += ". Remove them from one of the two files"
        findings.append(finding("held_out_in_training", message, lines, refused=True, file="held_out"))
    elif leaks:
        message = (
            f"{len(leaks)} held-out questions are near-duplicates of trained ones or contain one, and are left out of "
            f"the evaluation: {leaks[0]}"
        )
        findings.append(finding("held_out_near_training", message, lines, file="held_out"))
    persona = [held_out[match.index].line for match in matches if match not in leaks]
    if persona:
        message = (
            f"{len(persona)} held-out questions were trained on under another system message: the evaluation will be "
            "too optimistic"
        )
        findings.append(finding("held_out_near_training", message, persona, file="held_out"))
    return Overlap(findings, frozenset(lines))


def personal(examples: Sequence[Example], file: File = "training") -> list[Finding]:
    """One finding for each kind of personal data and secrets."""
    detector = PersonalDataDetector()
    lines: dict[str, list[int]] = defaultdict(list)
    for example in examples:
        for message in (*example.messages, *([] if example.rejected is None else [example.rejected])):
            for kind in detector.find(message.text):
                lines[kind].append(example.line)
    return [
        finding(
            "personal_data" if kind[0].islower() else "secret",
            f"{counted(len(set(at)), 'example seems', 'examples seem')} to contain: {kind}. "
            "A trained model can reproduce it",
            at,
            file=file,
        )
        for kind, at in sorted(lines.items())
    ]


def balance(examples: Sequence[Example], counts: Counter[str]) -> list[Finding]:
    """For a closed set of answers: a dominant answer, and answers too rare to be learned."""
    findings: list[Finding] = []
    top, times = counts.most_common(1)[0]
    share = times / len(examples)
    if len(counts) > 1 and share > max(DOMINANT, 1.5 / len(counts)):
        lines = [example.line for example in examples if answer(example).strip() == top]
        message = (
            f"the answer {top[:40]!r} is in {share:.0%} of the examples: a model that always gives it would score well"
        )
        findings.append(finding("imbalance", message, lines))
    rare = {text for text, count in counts.items() if count < RARE}
    if rare:
        lines = [example.line for example in examples if answer(example).strip() in rare]
        message = f"{len(rare)} of {len(counts)} answers are in fewer than {RARE} examples each"
        findings.append(finding("rare_answers", message, lines))
    return findings


def closed_answers(examples: Sequence[Example]) -> Counter[str] | None:
    """The count of each answer if the answers are a closed set (labels); else None."""
    counts = Counter(answer(example).strip() for example in examples)
    short = all(len(text) <= MAX_CLOSED_ANSWER_CHARS for text in counts)
    return counts if short and len(examples) >= CLOSED_REPEATS * len(counts) else None


def common_system_prompt(examples: Sequence[Example]) -> str | None:
    """The system message that all examples share; None if they differ or one has none."""
    prompts = {example.messages[0].content if example.messages[0].role == "system" else None for example in examples}
    return prompts.pop() if len(prompts) == 1 else None
