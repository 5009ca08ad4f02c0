"""The label of a closed set that an answer announces, where it announces one and no other.

An instruction-tuned base explains itself: "The answer is card lost because …", a heading "### Answer", `\\boxed{…}`.
With a closed set such an answer can be read without guessing: what is announced must be one of the labels, and no other
label may stand beside it. Anything else is left to the stricter reading of `trainer.evaluate.reading`.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Sequence
from functools import lru_cache
from typing import Final

from trainer.data.report import MAX_CLOSED_ANSWER_CHARS
from trainer.evaluate.metrics.base import normalised

CLOSED_SHARE: Final = 0.5
"""References are a closed set if this share of them or more are the answer to several questions, and all are short."""

_QUALIFIER: Final = r"(?:(?:final|correct|best|right|appropriate|most (?:appropriate|likely|fitting|suitable)) )?"
_SUBJECT: Final = (
    rf"(?:(?:so|therefore|thus|hence),? )?(?:(?:the|my) )?{_QUALIFIER}(?:answer|label|category|intent|class)"
)
_MARKS: Final = r"[\s\"'“”‘’`*_]*+"
_ANNOUNCES: Final = re.compile(
    rf"{_MARKS}{_SUBJECT}(?: (?:for|of) (?:this|the) [\w' ]{{1,40}}?)?{_MARKS}(?:\bis\b:?|:)(?P<rest>.*)", re.IGNORECASE
)
_HEADING: Final = re.compile(rf"(?:#{{1,6}} *)?{_MARKS}{_SUBJECT}{_MARKS}:?{_MARKS}", re.IGNORECASE)
_REASON: Final = r",?\s*+\b(?:because|since|as(?! well)|due to|given that|based on)\b"
_BOXED: Final = re.compile(r"\$*+\\boxed\{(?:\\text\{)?([^{}]*)\}?\}\$*+")
_SENTENCE_END: Final = re.compile(r"(?<=[.!?])\s+")


def closed_labels(references: Sequence[str]) -> frozenset[str]:
    """The `normalised` references if they are a closed set, else empty."""
    counts = Counter(map(normalised, references))
    shared = sum(count for count in counts.values() if count > 1)
    # the asterisk of a grade, `A*`, cannot be told from Markdown's
    readable = all(label and len(label) <= MAX_CLOSED_ANSWER_CHARS and label[-1] != "*" for label in counts)
    return frozenset(counts) if readable and 0 < shared >= CLOSED_SHARE * len(references) else frozenset()


def announced_label(answer: str, labels: frozenset[str]) -> str | None:
    """The label that the answer's end announces; None if it announces none, or several.

    Args:
        answer: Without thinking and fence.
        labels: The closed set, `normalised`.
    """
    lines = [line.strip() for line in unicodedata.normalize("NFKC", answer).splitlines() if line.strip()]
    if not labels or not lines:
        return None
    patterns, end = _patterns(labels), len(lines) - 1
    announced = [(at, label) for at, line in enumerate(lines) for label in _announced_in(line, patterns)]
    headings = [at for at, line in enumerate(lines[:-1]) if _HEADING.fullmatch(line)]
    announced += [(at + 1, label) for at in headings if (label := _short(lines[at + 1])) in labels]
    # a label on a line of its own announces nothing, but two different ones are no answer
    every = {label for _, label in announced} | ({_short(line) for line in lines} & labels)
    return every.pop() if len(every) == 1 and every <= labels and end in {at for at, _ in announced} else None


def _short(text: str) -> str:
    """The text as a label would be compared, `normalised`; empty if it is too long for one."""
    return normalised(text) if len(text) <= 2 * MAX_CLOSED_ANSWER_CHARS else ""


class _Patterns:
    """Finds labels in text: the longest where several begin at one place."""

    def __init__(self, labels: frozenset[str]) -> None:
        longest_first = sorted(labels, key=lambda label: (-len(label), label))
        choice = "|".join(re.escape(label).replace(r"\ ", r"\s+") for label in longest_first)
        self._anywhere = re.compile(rf"(?<!\w)(?:{choice})(?!\w)", re.IGNORECASE)
        self._at_start = re.compile(
            rf"{_MARKS}(?P<label>{choice})(?!\w){_MARKS}(?:[.!]?{_MARKS}$|{_REASON})", re.IGNORECASE
        )

    def of(self, text: str) -> set[str]:
        """The labels in the text."""
        return {normalised(match[0]) for match in self._anywhere.finditer(text)}

    def at_start(self, text: str) -> re.Match[str] | None:
        """A label at the start, with nothing behind it or a `reason`."""
        return self._at_start.match(text)


@lru_cache(maxsize=8)
def _patterns(labels: frozenset[str]) -> _Patterns:
    return _Patterns(labels)


def _announced_in(line: str, patterns: _Patterns) -> list[str]:
    """What a line announces; an empty text for what cannot be read as one label."""
    boxes = [_short(content.replace(r"\_", "_")) for content in _BOXED.findall(line)]
    if boxes and patterns.of(_BOXED.sub(" ", line)) - set(boxes):
        return [""]
    line = _BOXED.sub(r"\1", line)
    starts = [0, *(match.end() for match in _SENTENCE_END.finditer(line))]
    announces = filter(None, (_ANNOUNCES.fullmatch(line[start:]) for start in starts if not _HEADING.fullmatch(line)))
    return [*boxes, *(_only_label(match["rest"], patterns) for match in announces)]


def _only_label(text: str, patterns: _Patterns) -> str:
    """The label at the start of a text that has nothing else but a reason without another label; else empty."""
    match = patterns.at_start(text)
    if match is None:
        return ""
    label = normalised(match["label"])
    return label if patterns.of(text) == {label} else ""
