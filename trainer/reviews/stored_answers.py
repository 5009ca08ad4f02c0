"""Pairs to review from the answers that a run has left in its directory: a candidate's and its strongest base's.

Evaluations and jobs keep their answers for `HATRACK_TRAINER_KEEP_DAYS`; the report, which names the arms, stays.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from pydantic import BaseModel, TypeAdapter, ValidationError

from trainer.evaluate.announced import closed_labels
from trainer.evaluate.answers import Answer
from trainer.evaluate.arms import Question
from trainer.evaluate.evaluations.spec import ANSWERS, EXAMPLE_SCORES, QUESTIONS, REPORT
from trainer.evaluate.pairs import ReviewPair, Side, draw_pairs
from trainer.evaluate.reading import form_named, read_answer
from trainer.reviews.errors import NothingToReview

_ANSWER: Final = TypeAdapter(Answer)


class _Arm(BaseModel):
    label: str


class _Metric(BaseModel):
    name: str
    pattern: str | None = None


class _Scores(BaseModel):
    """The part of `VerdictScores` that is needed here, in any of its versions."""

    metric: _Metric
    candidate: _Arm
    base: _Arm
    units: tuple[int, ...] | None = None


@dataclass(frozen=True, slots=True)
class DrawnPairs:
    """Pairs that were drawn. ``differing``: how many questions have different answers; ``alike``: the same twice."""

    pairs: tuple[ReviewPair, ...]
    differing: int
    alike: int


def draw_from(directory: Path, run_id: str, count: int) -> DrawnPairs:
    """Draw up to ``count`` pairs, with a seed of the run and its questions: the same again for the same run. Blocks.

    Answers are those of the first run as they were scored, as a judge sees them.

    Raises:
        NothingToReview: The run has no verdict of a candidate over a base, its answers are deleted, or all are alike.
    """
    scores = _scores(directory, run_id)
    questions, texts = _questions(directory, run_id), _answers(directory, run_id, scores)
    labels: dict[Side, str] = {"candidate": scores.candidate.label, "base": scores.base.label}
    if any((label, question.id) not in texts for label in labels.values() for question in questions):
        raise _deleted(run_id)
    form = form_named(scores.metric.name, scores.metric.pattern)
    closed = closed_labels([question.reference for question in questions])
    answers = {
        side: [read_answer(texts[label, question.id], question.reference, form, closed) for question in questions]
        for side, label in labels.items()
    }
    sides = zip(answers["candidate"], answers["base"], strict=True)
    differing = [index for index, (candidate, base) in enumerate(sides) if candidate.strip() != base.strip()]
    if not differing:
        raise NothingToReview(
            f"candidate and base gave the same answer to each of the {len(questions)} questions of `{run_id}`",
            param="evaluation",
        )
    units = scores.units if scores.units is not None and len(scores.units) == len(questions) else None
    seed = json.dumps([run_id, scores.candidate.label, [questions[index].id for index in differing]])
    pairs = []
    for index, first in draw_pairs(differing, count, seed):
        second: Side = "base" if first == "candidate" else "candidate"
        question = questions[index]
        pairs.append(
            ReviewPair(
                example=question.id,
                turns=question.turns,
                reference=question.reference,
                first=answers[first][index],
                second=answers[second][index],
                first_is=first,
                candidate=scores.candidate.label,
                base=scores.base.label,
                unit=index if units is None else units[index],
            )
        )
    return DrawnPairs(tuple(pairs), len(differing), len(questions) - len(differing))


def _scores(directory: Path, run_id: str) -> _Scores:
    """The verdict's arms and metric. Raises NothingToReview if there is no verdict."""
    if not (directory / REPORT).exists():
        raise NothingToReview(
            f"`{run_id}` has no evaluation report: it did not get as far, or had nothing held out", param="evaluation"
        )
    try:
        return _Scores.model_validate_json((directory / EXAMPLE_SCORES).read_bytes())
    except (OSError, ValidationError):
        raise NothingToReview(
            f"`{run_id}` has no verdict: people compare a candidate with a base. Send `candidate` and `bases` when you "
            "create an evaluation of `arms`",
            param="evaluation",
        ) from None


def _questions(directory: Path, run_id: str) -> tuple[Question, ...]:
    try:
        return tuple(Question.model_validate_json(line) for line in _lines(directory / QUESTIONS))
    except (OSError, ValidationError):
        raise _deleted(run_id) from None


def _answers(directory: Path, run_id: str, scores: _Scores) -> dict[tuple[str, str], str]:
    """The texts of both arms' first runs by arm and question; of several with the same key the last counts."""
    arms, texts = (scores.candidate.label, scores.base.label), dict[tuple[str, str], str]()
    try:
        for answer in _valid(_lines(directory / ANSWERS)):
            if answer.arm in arms and answer.repeat == 0:
                texts[answer.arm, answer.example] = answer.text
    except OSError:
        raise _deleted(run_id) from None
    return texts


def _valid(lines: Iterable[bytes]) -> Iterator[Answer]:
    """Without lines that are no answers, as the worker's own `RecordFile` skips them."""
    for line in lines:
        try:
            yield _ANSWER.validate_json(line)
        except ValidationError:
            continue


def _lines(path: Path) -> list[bytes]:
    """A JSONL file's lines. Raises OSError."""
    return path.read_bytes().splitlines()


def _deleted(run_id: str) -> NothingToReview:
    return NothingToReview(
        f"the answers of `{run_id}` are no longer stored: a run's answers are kept for HATRACK_TRAINER_KEEP_DAYS days "
        "after its end. Create the evaluation again",
        param="evaluation",
    )
