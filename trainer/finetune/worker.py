"""The worker process of a fine-tuning job: `python -m trainer.finetune.worker DIRECTORY --stage validate|train`.

See ``trainer.runs.worker``; the exit codes are in ``trainer.runs.protocol``.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Final

from trainer.finetune.pipeline import TrainingPipeline
from trainer.finetune.spec import TRAIN, VALIDATE, WORKER, JobSpec
from trainer.runs import worker
from trainer.runs.priority import lower_priority
from trainer.runs.worker import WorkerKind

KIND: Final = WorkerKind(WORKER, (VALIDATE, TRAIN), lambda: lower_priority(), JobSpec, TrainingPipeline)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns the exit code."""
    return worker.main(KIND, arguments)


if __name__ == "__main__":
    sys.exit(main())
