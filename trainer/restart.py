"""Turns a worker of an earlier release into one of this release: the same process, resumed from its directory."""

from __future__ import annotations

import os
import sys
from typing import Final, NoReturn

WORKER: Final = "trainer.jobs.worker"


def restart() -> NoReturn:
    """Re-execute this worker's command line; its lock and its files are closed by that.

    Raises:
        ImportError: The process is not such a worker.
    """
    if WORKER not in sys.orig_argv:
        raise ImportError("this module has moved to trainer.finetune")
    os.execv(sys.executable, sys.orig_argv)  # noqa: S606 (the command line that this process was started with)
