"""Scores of a comparison that is still being asked, for who waits for a ladder: over the questions that every arm has
answered by then. They decide nothing.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from threading import Thread
from typing import Final

from pydantic import ValidationError

from trainer.evaluate.answers import Answer
from trainer.evaluate.arms import Question
from trainer.evaluate.compare import compared_so_far
from trainer.evaluate.evaluations.spec import ANSWERS, PROVISIONAL, Provisional
from trainer.evaluate.paired_difference import mean_of
from trainer.evaluate.spec import EvaluationSpec
from trainer.runs.directory import RunDirectory

FIRST_S: Final = 60.0
"""After how many seconds of asking the first scores are due, and (EVERY_S) each time after the last."""
EVERY_S: Final = 30.0
MIN_QUESTIONS: Final = 5
_LOG = logging.getLogger("hatrack.trainer.evaluate")


class ProvisionalScores:
    """Writes `spec.PROVISIONAL` from time to time while a comparison is asked.

    Args:
        directory: The evaluation's, with its answers so far.
        evaluation: What is compared.
        held_out: Its questions.
        clock: Seconds, monotonic.
    """

    def __init__(
        self,
        directory: RunDirectory,
        evaluation: EvaluationSpec,
        held_out: Sequence[Question],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._directory, self._evaluation, self._held_out, self._clock = directory, evaluation, held_out, clock
        self._due = clock() + FIRST_S
        self._thread: Thread | None = None

    def answered(self) -> None:
        """Another answer has arrived: compute the scores if they are due, without waiting for them.

        Of a comparison with a verdict there are none: its looks at the held-out examples are counted at its end.
        """
        if (
            self._evaluation.candidate is not None
            or self._clock() < self._due
            or (self._thread is not None and self._thread.is_alive())
        ):
            return
        self._due = self._clock() + EVERY_S
        self._thread = Thread(target=self._write, name="provisional-scores", daemon=True)
        self._thread.start()

    def wait(self) -> None:
        """Wait for scores that are being computed."""
        if self._thread is not None:
            self._thread.join()

    def _write(self) -> None:
        try:
            scores = self._scores()
            if scores is not None:
                self._directory.write(PROVISIONAL, scores)
        except Exception:  # they decide nothing: no fault in them may end the evaluation
            _LOG.exception("the provisional scores could not be computed")

    def _scores(self) -> Provisional | None:
        evaluation, metric = self._evaluation, self._evaluation.metric.primary()
        so_far = compared_so_far(evaluation.arms, self._held_out, metric, read_answers(self._directory.path(ANSWERS)))
        if so_far is None or so_far.independent < MIN_QUESTIONS:
            return None
        means = [
            mean_of(result, binary=so_far.binary, method=evaluation.rules.method, units=so_far.units)
            for result in so_far.results
        ]
        return Provisional(questions=len(so_far.questions), of=len(self._held_out), means=tuple(means))


def read_answers(path: Path) -> list[Answer]:
    """The whole lines of a file of answers that another task may be writing; of those with one key the last counts."""
    content = path.read_bytes() if path.exists() else b""
    answers = []
    for line in content[: content.rfind(b"\n") + 1].splitlines():
        try:
            answers.append(Answer.model_validate_json(line))
        except ValidationError:  # of another format version: it is asked again
            continue
    return answers
