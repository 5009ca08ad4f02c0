"""Reading held-out files: training data in any of its formats, or questions as a job stores them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from pydantic import ValidationError

from adapters.dataset.lines import LineRefused
from adapters.dataset.tools import read_tool_calls
from adapters.protocol.runs import EvaluationContext
from adapters.validation import faults, message
from trainer.data.format import Example, Message, split_lines
from trainer.data.formats import read_dataset
from trainer.data.trained_examples import (
    MAX_ID_CHARS,
    NormalizedExample,
    TrainedExamples,
    describe_leaks,
    must_be_refused,
)
from trainer.errors import DataInvalid, HeldOutInTraining, Problem
from trainer.evaluate.arms import Question, questions
from trainer.evaluate.evaluations.contamination import normalized_question
from trainer.evaluate.evaluations.spec import EvaluationJob

NO_FILE_NAMED: Final = "its metadata names no training file"


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
            read_tool_calls([*question.reference_calls], "reference_calls")
        except ValidationError as error:
            problems.append(Problem(number, f"not a valid question: {message(faults(error)[0])}"))
            continue
        except LineRefused as refusal:
            problems.append(Problem(number, f"not a valid question: {refusal.reason}"))
            continue
        problems += [Problem(number, reason) for reason in _missing(question)]
        if question.id in questions_by_id:
            problems.append(Problem(number, f"the id {question.id[:40]!r} is used twice"))
        questions_by_id[question.id] = question
    if problems:
        raise DataInvalid(problems)
    return tuple(questions_by_id.values())


def _missing(question: Question) -> list[str]:
    """What a question cannot be asked or judged without, as the reasons for which it is refused."""
    reasons = [] if question.turns else ["`turns` is empty; a question needs at least one message"]
    if not question.reference.strip():
        reasons.append("`reference` is empty; answers are compared with it")
    return reasons


@dataclass(frozen=True, slots=True)
class TrainingFile:
    """A candidate's training file, normalised. ``examples``: each line with every answer in it that is trained.
    ``split_off``: those of them that its job held out, according to the lineage; None if that names none."""

    examples: tuple[NormalizedExample, ...] = ()
    split_off: tuple[NormalizedExample, ...] | None = None


def read_trained(name: str, content: bytes, lineage: Mapping[str, Any] | None) -> TrainingFile:
    """Read a training file. ``lineage``: the candidate's, from its metadata. Raises as `read_held_out`."""
    if _holds_questions(content):
        return TrainingFile(tuple(normalized_question(question) for question in read_held_out(name, content)))
    lines = (lineage or {}).get("split_off")
    examples = {example.line: NormalizedExample.trained(example) for example in read_dataset(name, content)[1].examples}
    split_off = tuple(examples[line] for line in examples if line in lines) if isinstance(lines, list) else ()
    return TrainingFile(tuple(examples.values()), split_off or None)


def unchecked_reason(context: EvaluationContext) -> str | None:
    """Why the gateway gave no training file for the candidate; None if it gave one or the candidate has no weights."""
    if context.candidate is None or not context.has_weights or context.training_files:
        return None
    files = (context.lineage or {}).get("files")
    if not isinstance(files, list) or not files:
        return NO_FILE_NAMED
    return f"its training file {str(files[0])[:MAX_ID_CHARS]!r} is gone, or this key may not read it"


def refuse_trained_on(
    job: EvaluationJob,
    held_out: Sequence[Question],
    training: TrainingFile,
    own_held_out: Sequence[NormalizedExample] | None,
) -> tuple[str, ...]:
    """Refuse held-out examples that the candidate was trained on (`trainer.data.trained_examples`).

    Examples that the candidate's own job held out of its training file do not count as trained on. Earlier versions'
    jobs may have held out a near-duplicate of what they trained on: such examples are left out, not refused.

    Args:
        job: The evaluation.
        held_out: All held-out examples.
        training: The candidate's training file.
        own_held_out: What its job held out of that file, according to its verdict; None if unknown: then its lineage
            decides. No name of a held-out file does, since the client chooses it.

    Returns:
        The ids of the examples to leave out: a few near-duplicates of what the candidate was trained on.

    Raises:
        HeldOutInTraining: A question is in both, or too many are near-duplicates.
    """
    if job.context.candidate is None:
        return ()
    own_held_out = training.split_off if own_held_out is None else own_held_out
    examples = [normalized_question(question) for question in held_out]
    trained = TrainedExamples(training.examples, common=True)
    own = {(example.question, example.answer) for example in trained.remove(own_held_out or ())}
    leaks = trained.leaks(examples)
    foreign = [leak for leak in leaks if (examples[leak.index].question, examples[leak.index].answer) not in own]
    if must_be_refused(foreign, len(held_out)):
        ids = [held_out[leak.index].id for leak in foreign]
        message = describe_leaks(foreign, len(held_out), ids, f"the file that {job.context.candidate} was trained on")
        raise HeldOutInTraining(f"{message}. Remove them, or use the held-out file that its job stored")
    return tuple(held_out[leak.index].id for leak in leaks)


def as_examples(held_out: Sequence[Question]) -> tuple[Example, ...]:
    """Questions as examples with only the reference answer, for functions that look at answers alone."""
    return tuple(Example(number, (_answer(question),)) for number, question in enumerate(held_out, start=1))


def _answer(question: Question) -> Message:
    calls = read_tool_calls([*question.reference_calls], "reference_calls")
    return Message("assistant", "" if calls else question.reference, trained=True, tool_calls=calls)


def _holds_questions(content: bytes) -> bool:
    lines = split_lines(content)
    try:
        first = json.loads(lines[0]) if lines else None
    except (ValueError, RecursionError):
        return False
    return isinstance(first, dict) and {"turns", "reference"} <= first.keys()
