"""How a worker of an earlier release becomes one of this: as the same process, from what its directory holds."""

from __future__ import annotations

import os
import sys
from typing import Final, NoReturn

WORKER: Final = "trainer.jobs.worker"


def restart() -> NoReturn:
    """Start this worker's program anew; its lock and its files are let go of as it does.

    Raises:
        ImportError: The process is no such worker.
    """
    if WORKER not in sys.orig_argv:
        raise ImportError("this module has moved to trainer.finetune")
    os.execv(sys.executable, sys.orig_argv)  # noqa: S606 (the command line that this process was started with)
