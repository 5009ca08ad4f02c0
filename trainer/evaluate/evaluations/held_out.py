"""Reading held-out files: training data in any of its formats, or questions as a job stores them."""

from __future__ import annotations

import json
from collections.abc import Sequence

from pydantic import ValidationError

from adapters.protocol.runs import EvaluationContext
from adapters.validation import faults, message
from trainer.data.format import Example, Message, split_lines
from trainer.data.formats import read_dataset
from trainer.data.trained_examples import NormalizedExample, TrainedExamples
from trainer.errors import DataInvalid, HeldOutInTraining, Problem
from trainer.evaluate.arms import Question, questions
from trainer.evaluate.evaluations.contamination import normalized_question
from trainer.evaluate.evaluations.spec import QUESTIONS, EvaluationJob


def read_held_out(name: str, content: bytes) -> tuple[Question, ...]:
    """The questions of a file.

    Args:
        name: The file's name, for messages.
        content: UTF-8, one JSON object per line.

    Raises:
        DataInvalid: Lists every invalid line.
        DataTooSmall: There are no examples.
    """
    if not _holds_questions(content):
        return questions(read_dataset(name, content)[1].examples)
    questions_by_id: dict[str, Question] = {}
    problems = []
    for number, line in enumerate(split_lines(content), start=1):
        try:
            question = Question.model_validate_json(line)
        except ValidationError as error:
            problems.append(Problem(number, f"not a valid question: {message(faults(error)[0])}"))
            continue
        if question.id in questions_by_id:
            problems.append(Problem(number, f"the id {question.id[:40]!r} is used twice"))
        questions_by_id[question.id] = question
    if problems:
        raise DataInvalid(problems)
    return tuple(questions_by_id.values())


def refuse_trained_on(
    job: EvaluationJob,
    held_out: Sequence[Question],
    trained_on: Sequence[Question],
    own_held_out: Sequence[NormalizedExample] | None,
) -> None:
    """Refuse held-out examples that the candidate was trained on.

    Examples that the candidate's own job held out of its training file do not count as trained on.

    Args:
        job: The evaluation.
        held_out: All held-out examples.
        trained_on: The examples of the candidate's training file.
        own_held_out: What its job held out of that file, according to its verdict; None if unknown: then the name of
            the held-out file decides.

    Raises:
        HeldOutInTraining: An example is in both.
    """
    if job.context.candidate is None or (own_held_out is None and is_job_held_out(job.context)):
        return
    trained_questions = (normalized_question(question) for question in trained_on)
    trained = TrainedExamples(trained_questions, common=True).without(own_held_out or ())
    overlap = [question for question in held_out if trained.contains(normalized_question(question))]
    if overlap:
        raise HeldOutInTraining(
            f"{len(overlap)} of {len(held_out)} held-out examples (the first: {overlap[0].id[:40]}) are in the file "
            f"that {job.context.candidate} was trained on; remove them, or use the held-out file that its job stored"
        )


def is_job_held_out(context: EvaluationContext) -> bool:
    """Whether the held-out file is named like the one in which the candidate's job stored its held-out examples."""
    job = (context.lineage or {}).get("job")
    return isinstance(job, str) and context.held_out.filename == f"{job}-{QUESTIONS}"


def as_examples(held_out: Sequence[Question]) -> tuple[Example, ...]:
    """Questions as examples with only the reference answer, for functions that look at answers alone."""
    return tuple(
        Example(number, (Message("assistant", question.reference, trained=True),))
        for number, question in enumerate(held_out, start=1)
    )


def _holds_questions(content: bytes) -> bool:
    lines = split_lines(content)
    try:
        first = json.loads(lines[0]) if lines else None
    except (ValueError, RecursionError):
        return False
    return isinstance(first, dict) and {"turns", "reference"} <= first.keys()
