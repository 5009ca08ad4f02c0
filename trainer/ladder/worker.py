"""The worker process of a ladder: `python -m trainer.ladder.worker DIRECTORY --stage climb|label|conclude`."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import Final

from trainer.ladder.pipeline import LadderPipeline
from trainer.ladder.spec import CLIMB, CONCLUDE, LABEL, WORKER, LadderSpec
from trainer.runs import worker
from trainer.runs.priority import NICENESS
from trainer.runs.worker import WorkerKind

KIND: Final = WorkerKind(WORKER, (CLIMB, LABEL, CONCLUDE), lambda: os.nice(NICENESS), LadderSpec, LadderPipeline)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns the exit code."""
    return worker.main(KIND, arguments)


if __name__ == "__main__":
    sys.exit(main())
