"""What is held out, as it is uploaded: training data in any of its formats, or questions as a job keeps them."""

from __future__ import annotations

import json
from collections.abc import Sequence

from pydantic import ValidationError

from trainer.data.format import Example, Message, split_lines
from trainer.data.formats import read_dataset
from trainer.errors import DataInvalid, Problem
from trainer.evaluate.arms import Question, questions


def read_held_out(name: str, content: bytes) -> tuple[Question, ...]:
    """The questions of a file.

    Args:
        name: What the file is called in messages.
        content: Its bytes: UTF-8, one JSON object a line.

    Raises:
        DataInvalid: With every line at fault.
        DataTooSmall: There is none.
    """
    if not _holds_questions(content):
        return questions(read_dataset(name, content)[1].examples)
    found: dict[str, Question] = {}
    problems = []
    for number, line in enumerate(split_lines(content), start=1):
        try:
            question = Question.model_validate_json(line)
        except ValidationError as error:
            problems.append(Problem(number, f"no question: {error.errors()[0]['msg']}"))
            continue
        if question.id in found:
            problems.append(Problem(number, f"the id {question.id[:40]!r} stands twice"))
        found[question.id] = question
    if problems:
        raise DataInvalid(problems)
    return tuple(found.values())


def as_examples(asked: Sequence[Question]) -> tuple[Example, ...]:
    """Questions with their references as examples, for what looks at answers alone."""
    return tuple(
        Example(number, (Message("assistant", question.reference, trained=True),))
        for number, question in enumerate(asked, start=1)
    )


def _holds_questions(content: bytes) -> bool:
    lines = split_lines(content)
    try:
        first = json.loads(lines[0]) if lines else None
    except (ValueError, RecursionError):
        return False
    return isinstance(first, dict) and {"turns", "reference"} <= first.keys()
