"""What became of the labelling: the training file, what was set aside and why, and a sample for people to look at."""

from __future__ import annotations

import json
import os
import random
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from html import escape
from pathlib import Path
from typing import Any, Final

from adapters.dataset.refusals import refuses
from adapters.labelling.asking import LENGTH, Journal, Reply, SpentTokens, Teacher
from adapters.labelling.prompts import Prompt

CONFIDENCE: Final = 0.95
CONTENT_FILTER: Final = "content_filter"


class Outcome(StrEnum):
    """What a reply is used for."""

    ANSWERED = "answered"
    REFUSED = "refused"
    TRUNCATED = "truncated"


@dataclass(frozen=True, slots=True)
class LabelledPrompt:
    """A prompt with its reply. ``reason``: why the reply was set aside; empty if it was not."""

    prompt: Prompt
    reply: Reply
    outcome: Outcome
    reason: str = ""

    def training_row(self) -> dict[str, Any]:
        """A line of the training file."""
        prompt = self.prompt
        # what was said before is context: only the teacher's own answer is learned
        before = [
            {**message, "weight": 0} if message["role"] == "assistant" else message for message in prompt.messages
        ]
        row: dict[str, Any] = {"messages": [*before, {"role": "assistant", "content": self.reply.text}]}
        row |= {} if prompt.group is None else {"group": prompt.group}
        return row | ({"filters": dict(prompt.filters)} if prompt.filters else {})

    def row_set_aside(self) -> dict[str, Any]:
        """A line of the files of what was set aside."""
        prompt = self.prompt
        return {"line": prompt.line, "reason": self.reason, "messages": prompt.messages, "answer": self.reply.text}


@dataclass(frozen=True, slots=True)
class Labelled:
    """All prompts that have a reply, in the order of the file, and how many have none yet. ``spent``: over all runs,
    answers that were cut and asked again included."""

    prompts: tuple[LabelledPrompt, ...]
    unanswered: int = 0
    spent: SpentTokens = field(default_factory=SpentTokens)
    served_by: Mapping[str, int] = field(init=False)
    """Number of replies by the version or model that served them."""

    def __post_init__(self) -> None:
        replies = [labelled.reply for labelled in self.prompts]
        object.__setattr__(self, "served_by", Counter(reply.served_by for reply in replies if reply.served_by))

    def of(self, outcome: Outcome) -> list[LabelledPrompt]:
        """Those with this outcome."""
        return [labelled for labelled in self.prompts if labelled.outcome is outcome]


def sort_replies(prompts: Sequence[Prompt], teacher: Teacher, journal: Journal) -> Labelled:
    """What each reply of the journal is used for."""
    labelled, spent = [], SpentTokens()
    for prompt in prompts:
        key = teacher.key(prompt)
        if key in journal.replies:
            reply = journal.replies[key]
            labelled.append(LabelledPrompt(prompt, reply, *_outcome(reply)))
            spent += journal.spent[key]
    return Labelled(tuple(labelled), len(prompts) - len(labelled), spent)


def _outcome(reply: Reply) -> tuple[Outcome, str]:
    if reply.refusal is not None:
        return Outcome.REFUSED, reply.refusal
    if reply.finish_reason == CONTENT_FILTER:
        return Outcome.REFUSED, "the teacher's content filter stopped the answer"
    if reply.finish_reason == LENGTH:
        return Outcome.TRUNCATED, f"longer than {reply.max_tokens} tokens"
    if not reply.text.strip():
        return Outcome.REFUSED, "the answer is empty"
    if refuses(reply.text):
        return Outcome.REFUSED, "the answer reads as a refusal"
    return Outcome.ANSWERED, ""


@dataclass(frozen=True, slots=True)
class LabelFiles:
    """Where everything goes: the training file, and beside it what belongs to it."""

    training: Path

    @property
    def all(self) -> tuple[Path, ...]:
        """The five files, the training file first."""
        return self.training, self.journal, self.refused, self.truncated, self.sample

    def _beside(self, ending: str) -> Path:
        return self.training.with_name(f"{self.training.name.removesuffix('.jsonl')}.{ending}")

    @property
    def journal(self) -> Path:
        """The replies so far; a run goes on from it."""
        return self._beside("labels.jsonl")

    @property
    def refused(self) -> Path:
        """Prompts that were refused, and answers that refuse."""
        return self._beside("refused.jsonl")

    @property
    def truncated(self) -> Path:
        """Answers that were cut."""
        return self._beside("truncated.jsonl")

    @property
    def sample(self) -> Path:
        """A page with a random sample of the answers."""
        return self._beside("sample.html")

    def write(self, labelled: Labelled, teacher: Teacher, sample_size: int) -> None:
        """Write all files but the journal, each at once; one that would be empty is removed, but for the training
        file, which is left as it is while nothing is answered. Raises OSError."""
        answered = labelled.of(Outcome.ANSWERED)
        if answered:
            _write_lines(self.training, (each.training_row() for each in answered))
        _write_lines(self.refused, (each.row_set_aside() for each in labelled.of(Outcome.REFUSED)))
        _write_lines(self.truncated, (each.row_set_aside() for each in labelled.of(Outcome.TRUNCATED)))
        sample = draw(answered, sample_size)
        _write(self.sample, sample_page(sample, len(answered), teacher) if sample else "")


def draw(answered: Sequence[LabelledPrompt], size: int) -> list[LabelledPrompt]:
    """A random sample, in the order of the file; of the same answers always the same."""
    if size >= len(answered):
        return list(answered)
    generator = random.Random("".join(each.prompt.digest for each in answered))  # noqa: S311 - no secret
    return [answered[index] for index in sorted(generator.sample(range(len(answered)), size))]


def undetected_share(size: int) -> float:
    """The share of wrong answers that a sample of ``size`` without any leaves possible: 1 − 0.05^(1/size), the exact
    one-sided bound of 95% (Clopper and Pearson, 1934)."""
    return float(1 - (1 - CONFIDENCE) ** (1 / size))


def sample_page(sample: Sequence[LabelledPrompt], answers: int, teacher: Teacher) -> str:
    """The sample as an HTML page that loads nothing."""
    size = len(sample)
    rest = (
        f"If you find none wrong, at most {undetected_share(size):.1%} of all {answers} are, with {CONFIDENCE:.0%} "
        "confidence."
        if size < answers
        else "These are all of them."
    )
    items = "\n".join(map(_item, sample))
    return _PAGE.format(teacher=escape(teacher.name), size=size, answers=answers, rest=rest, items=items)


def _item(labelled: LabelledPrompt) -> str:
    turns = "".join(
        f'<p class="turn"><b>{escape(str(message["role"]))}</b> {escape(str(message["content"]))}</p>'
        for message in labelled.prompt.messages
    )
    answer = f'<p class="turn answer"><b>answer</b> {escape(labelled.reply.text)}</p>'
    return f'<li><span class="line">line {labelled.prompt.line}</span>{turns}{answer}</li>'


_PAGE: Final = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>Sample of labels</title>
<style>
body {{ font: 16px/1.5 system-ui, sans-serif; max-width: 46rem; margin: 2rem auto; padding: 0 1rem }}
:root {{ color-scheme: light dark }}
ol {{ list-style: none; padding: 0 }}
li {{ border: 1px solid #8886; border-radius: 6px; padding: .5rem 1rem; margin: 1rem 0 }}
.turn {{ white-space: pre-wrap; overflow-wrap: anywhere; margin: .5rem 0 }}
.answer {{ border-left: 3px solid #2a7; padding-left: .75rem }}
.line, b {{ font-size: .8rem; font-weight: 600; opacity: .7 }}
</style></head><body>
<h1>Answers of {teacher}</h1>
<p>{size} of {answers} answers, drawn at random. Read them before you train on the rest. {rest}</p>
<ol>
{items}
</ol>
</body></html>
"""


def _write_lines(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    _write(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def _write(path: Path, text: str) -> None:
    """Write a file at once; remove it if there is nothing to write."""
    if not text:
        path.unlink(missing_ok=True)
        return
    part = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        part.write_text(text, "utf-8")
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
