"""A job knows which held-out examples it has beside those that it asks."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.unit.trainer.finetune.conftest import rows
from tests.unit.trainer.finetune.test_judging import HELD_OUT, _no_signals, job, trained
from tests.unit.trainer.finetune.test_worker import run
from trainer.evaluate.evaluations.evaluator import Evaluator
from trainer.runs.protocol import DONE

__all__ = ["_no_signals", "job", "trained"]


def test_examples_that_are_not_drawn_are_not_missing(job: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """Or a version whose held-out file has grown above the limit would seem to leave some out."""
    given: list[set[str]] = []
    ask = Evaluator.ask

    def spy(self: Evaluator, evaluation: Any, questions: Any, trained_on: Any, undrawn: Any) -> Any:
        given.extend({question.text for question in each} for each in (questions, undrawn))
        return ask(self, evaluation, questions, trained_on, undrawn)

    monkeypatch.setattr(Evaluator, "ask", spy)
    assert run(job(most_examples=10, min_examples=10, repeats=1)) == DONE
    drawn, others = given
    assert (len(drawn), len(others)) == (10, HELD_OUT - 10)
    assert drawn | others == {row["prompt"] for row in rows(24 + HELD_OUT)[24:]}
