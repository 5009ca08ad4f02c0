"""What is held out, as it is uploaded: training data in any of its formats, or questions as a job keeps them."""

from __future__ import annotations

import json
from collections.abc import Sequence

from pydantic import ValidationError

from adapters.protocol.runs import EvaluationContext
from adapters.validation import faults, message
from trainer.data.format import Example, Message, split_lines
from trainer.data.formats import read_dataset
from trainer.data.trained_examples import NormalizedExample, TrainedExamples
from trainer.errors import DataInvalid, HeldOutTaught, Problem
from trainer.evaluate.arms import Question, questions
from trainer.evaluate.evaluations.contamination import as_said
from trainer.evaluate.evaluations.spec import QUESTIONS, EvaluationJob


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
            problems.append(Problem(number, f"no question: {message(faults(error)[0])}"))
            continue
        if question.id in found:
            problems.append(Problem(number, f"the id {question.id[:40]!r} stands twice"))
        found[question.id] = question
    if problems:
        raise DataInvalid(problems)
    return tuple(found.values())


def refuse_taught(
    job: EvaluationJob,
    held_out: Sequence[Question],
    taught: Sequence[Question],
    own: Sequence[NormalizedExample] | None,
) -> None:
    """Refuse what the candidate was trained on: what it learnt by heart would count as understood.

    What its own job held out of the training file stands in that file, too, and was not trained on.

    Args:
        job: What was asked for.
        held_out: All that it would be judged by.
        taught: The file that it was trained on.
        own: What its job held out of that, as its verdict says; None where none says it: then the file's name does.

    Raises:
        HeldOutTaught: An example stands in both.
    """
    if job.context.candidate is None or (own is None and kept_by_its_job(job.context)):
        return
    known = TrainedExamples((as_said(question) for question in taught), common=True).without(own or ())
    same = [question for question in held_out if known.contains(as_said(question))]
    if same:
        raise HeldOutTaught(
            f"{len(same)} of {len(held_out)} held-out examples (the first: {same[0].id[:40]}) stand in the file that "
            f"{job.context.candidate} was trained on: take them out, or name the held-out file that its job kept"
        )


def kept_by_its_job(context: EvaluationContext) -> bool:
    """Whether what is held out is called as the file that the candidate's job kept of what it did not train on."""
    job = (context.lineage or {}).get("job")
    return isinstance(job, str) and context.held_out.filename == f"{job}-{QUESTIONS}"


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
