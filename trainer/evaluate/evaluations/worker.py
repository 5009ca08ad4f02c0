"""The worker process of one evaluation: `python -m trainer.evaluate.evaluations.worker DIRECTORY`.

A restarted worker only asks what is not answered yet. See ``trainer.runs.worker``.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from typing import Final

from trainer.config import load_settings
from trainer.evaluate.evaluations.pipeline import EvaluationPipeline
from trainer.evaluate.evaluations.spec import EVALUATE, WORKER, EvaluationJob
from trainer.runs import worker
from trainer.runs.directory import RunDirectory
from trainer.runs.gateway import Gateway
from trainer.runs.priority import NICENESS
from trainer.runs.worker import WorkerKind


def _pipeline(
    job: EvaluationJob, directory: RunDirectory, gateway: Gateway, check: Callable[[], None]
) -> EvaluationPipeline:
    return EvaluationPipeline(job, directory, gateway, check, load_settings())


KIND: Final = WorkerKind(WORKER, (EVALUATE,), lambda: os.nice(NICENESS), EvaluationJob, _pipeline)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns the exit code."""
    return worker.main(KIND, arguments)


if __name__ == "__main__":
    sys.exit(main())
