"""Reads an answer before it is scored: takes off what a model puts around an answer, for every arm alike.

A base that is right must not lose because it thinks first, puts its JSON into a code fence or says "The answer is X".
Nothing may turn a wrong answer into a right one, so only what stands around one whole answer is taken off, and nothing
is searched for in prose. Of a closed set of labels, a sentence that announces one and no other is read, too
(`trainer.evaluate.announced`). What the author's own answer has (a thinking block, a fence, "Answer:") is part of the
answer and stays.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Final, Literal

from trainer.evaluate.announced import announced_label
from trainer.evaluate.metrics.base import Metric, normalised
from trainer.evaluate.metrics.match import Regex

AnswerForm = Literal["text", "label", "json", "verbatim"]
"""What an answer is: free text, one short answer, JSON, or all that the model said."""

_THINKING: Final = (("<think>", "</think>"), ("<thinking>", "</thinking>"), ("[THINK]", "[/THINK]"))
_FENCE: Final = "```"
_FENCE_NAME: Final = re.compile(r"[\w+.-]*")
_ANSWER_LINE: Final = re.compile(
    r"(?:so,? |therefore,? |thus,? )?(?:the |my )?(?:final |correct |best )?"
    r"(?:answer|label|category|intent|class)(?: is:?|:) *(?P<inside>\S.*)",
    re.IGNORECASE,
)
_BOLD_LINE: Final = re.compile(r"(?P<mark>\*\*|__)(?P<inside>[^*]+)(?P=mark)[.!]?")
_MARKS_AROUND: Final = "*_ \t"


def form_of(metric: Metric) -> AnswerForm:
    """The form of the answers that a metric scores."""
    return form_named(metric.name, metric.pattern if isinstance(metric, Regex) else None)


def form_named(metric: str, pattern: str | None) -> AnswerForm:
    """The same by the metric's name and pattern. A pattern that asks for a thinking block reads all of it."""
    if metric == "exact_match":
        return "label"
    if pattern is not None and "think" in pattern.casefold():
        return "verbatim"
    return "json" if metric.startswith("json_") else "text"


def read_answer(answer: str, reference: str, form: AnswerForm, labels: frozenset[str] = frozenset()) -> str:
    """The answer to score, without what a model puts around it.

    Args:
        answer: What the model answered.
        reference: The author's answer. A part that it has itself is not taken off the answer.
        form: ``text``: only a thinking block at the beginning is taken off. ``json``: also a code fence around the
            whole answer. ``label``: also, the last line decides if it is "Answer: X" or "The answer is X", or X in
            bold. ``verbatim``: nothing is taken off.
        labels: For ``label``: the closed set of answers (`announced.closed_labels`); empty if there is none.

    Returns:
        The answer. Empty if a thinking block never ends: there is no answer then.
    """
    for take_off in _STEPS[form]:
        if take_off(reference) == reference:
            answer = take_off(answer)
    if form != "label":
        return answer
    label = announced_label(answer, labels) if normalised(reference) in labels else None
    return label if label is not None else _last_line_answer(answer, reference)


def _without_thinking(text: str) -> str:
    """The text after `<think>…</think>` or the like at its beginning; the opening tag may be in the prompt."""
    stripped = text.lstrip()
    for start, end in _THINKING:
        before, ended, after = stripped.partition(end)
        if stripped.startswith(start):
            return after.strip() if ended else ""
        if ended and start not in before:
            return after.strip()
    return text


def _without_fence(text: str) -> str:
    """What is in the code fence if the whole text is one fence; otherwise the text."""
    stripped = text.strip()
    if not (stripped.startswith(_FENCE) and stripped.endswith(_FENCE) and stripped.count(_FENCE) == 2):
        return text
    inside = stripped[len(_FENCE) : -len(_FENCE)]
    name, newline, content = inside.partition("\n")
    return content.strip() if newline and _FENCE_NAME.fullmatch(name.strip()) else inside.strip()


def _last_line_answer(answer: str, reference: str) -> str:
    """The last line's answer, unless the reference is such a line itself."""
    return _of_last_line(answer) if _of_last_line(reference) == reference else answer


def _of_last_line(text: str) -> str:
    """X if the last line is "Answer: X", "The answer is X" or X in bold; otherwise the text.

    Several such lines with different answers are a list and not an answer.
    """
    lines = [line.strip() for line in text.strip().splitlines()]
    for pattern in (_ANSWER_LINE, _BOLD_LINE):
        matches = [pattern.fullmatch(line.strip(_MARKS_AROUND) if pattern is _ANSWER_LINE else line) for line in lines]
        answers = [match["inside"].strip(_MARKS_AROUND) for match in matches if match is not None]
        if answers:
            return answers[-1] if matches[-1] is not None and len(set(map(normalised, answers))) == 1 else text
    return text


_STEPS: Final[dict[AnswerForm, tuple[Callable[[str], str], ...]]] = {
    "text": (_without_thinking,),
    "json": (_without_thinking, _without_fence),
    "label": (_without_thinking, _without_fence),
    "verbatim": (),
}
