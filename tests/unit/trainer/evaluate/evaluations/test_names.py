"""The names of an evaluation's files, which stand here a second time so that the trainer loads no statistics."""

from __future__ import annotations

import subprocess
import sys

from trainer.evaluate import factory, judge
from trainer.evaluate import spec as evaluate_spec
from trainer.evaluate.evaluations import schemas, spec


def test_constants_defined_twice_are_equal() -> None:
    assert (spec.QUESTIONS, spec.REPORT, spec.PAGE) == (
        evaluate_spec.QUESTIONS,
        evaluate_spec.REPORT,
        evaluate_spec.PAGE,
    )
    assert (spec.ANSWERS, spec.SCORES) == (evaluate_spec.ANSWERS, evaluate_spec.SCORES)
    assert (spec.SUITE_ANSWERS, spec.JUDGEMENTS) == (factory.SUITE_ANSWERS, judge.JUDGEMENTS)
    assert (schemas.GENERAL, schemas.MAX_SUITES) == (evaluate_spec.GENERAL, evaluate_spec.MAX_SUITES)
    assert schemas.MAX_ARMS + 4 == evaluate_spec.MAX_ARMS  # the base at its best and what serves may be put beside them


def test_the_trainer_s_own_process_loads_no_statistics() -> None:
    code = "import sys, trainer.app; print(sorted({'scipy', 'statsmodels', 'torch'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=240)
    assert done.stdout.strip() == "[]"
