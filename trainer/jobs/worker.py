"""The process that does one job: `python -m trainer.jobs.worker FOLDER --stage validate|train`.

It finds in the folder what is to be done (``trainer.jobs.spec``) and leaves there what came of it. Whatever has been
done stays done: started again, it goes on from the last checkpoint.

Exit codes: 0 done (see result.json; after `validate`, plan.json) · 4 paused · 5 told to stop (SIGTERM), to be started
again · 6 another worker is at it · 1 it could not even write its result.
"""

from __future__ import annotations

import argparse
import errno
import logging
import os
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from adapters.errors import AdapterError
from trainer.errors import DataError, FolderBusy, GatewayRefused, TrainerError, WishRefused
from trainer.jobs import spec
from trainer.jobs.folder import Folder
from trainer.jobs.gateway import Gateway
from trainer.jobs.spec import BUSY, DONE, FAILED, PAUSED, STOPPED, Control, Failure, JobSpec, Result, Stage
from trainer.jobs.work import Work

NICENESS: Final = 10
KEY_UNKNOWN: Final = 401
_LOG = logging.getLogger("hatrack.trainer.worker")


class Interrupted(Exception):
    """The trainer wants the worker to end; ``code`` is the exit code, None a cancelled job."""

    def __init__(self, code: int | None) -> None:
        super().__init__()
        self.code = code


class Orders:
    """What the trainer wants, by the control file and by SIGTERM; looked at before every step and in every wait."""

    def __init__(self, folder: Folder) -> None:
        self._folder = folder
        self._term = False
        signal.signal(signal.SIGTERM, self._on_term)

    def _on_term(self, _signal: int, _frame: object) -> None:
        self._term = True

    def check(self) -> None:
        """Raise Interrupted where the worker is to end."""
        wanted = self._folder.control()
        if wanted is Control.CANCEL:
            raise Interrupted(None)
        if self._term:
            raise Interrupted(STOPPED)
        if wanted is Control.PAUSE:
            raise Interrupted(PAUSED)

    def wait(self, seconds: float) -> None:
        """Sleep, and look."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            self.check()
            time.sleep(min(0.2, max(0.0, end - time.monotonic())))


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m trainer.jobs.worker")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--stage", type=Stage, choices=list(Stage), required=True)
    options = parser.parse_args(arguments)
    logging.basicConfig(stream=sys.stderr, level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    try:
        with Folder(options.folder) as folder:
            os.nice(NICENESS)  # serving comes first, whoever else is at the cores
            return work(folder, options.stage)
    except FolderBusy as error:
        _LOG.error(error.message)
        return BUSY


def work(folder: Folder, stage: Stage) -> int:
    """Do the job of `folder` up to the end of `stage`; returns the exit code."""
    job = JobSpec.model_validate_json(folder.path(spec.SPEC).read_bytes())
    if folder.read(spec.RESULT, Result) is not None:
        return DONE
    orders = Orders(folder)
    gateway = Gateway(job.gateway, folder.path(spec.KEY).read_text().strip(), wait=orders.wait)
    doing = Work(job, folder, gateway, orders.check)
    try:
        orders.check()
        if stage is Stage.VALIDATE:
            doing.validate()
            return DONE
        result = doing.train()
    except Interrupted as interrupted:
        if interrupted.code is not None:
            folder.say("paused" if interrupted.code == PAUSED else "interrupted; it goes on from here")
            return interrupted.code
        result = Result(status="cancelled")
        folder.say("cancelled")
    except Exception as error:
        _LOG.exception("the job failed")
        failure = explain(error)
        result = Result(status="failed", error=failure)
        folder.say(failure.message, level="error", code=failure.code)
    finally:
        gateway.close()
    try:
        folder.write(spec.RESULT, result)
    except OSError:
        _LOG.exception("the result could not be written")
        return FAILED
    return DONE


def explain(error: Exception) -> Failure:
    """What a job's `error` says: a code, and what to do about it."""
    if isinstance(error, DataError):
        return Failure(code="invalid_training_file", message=error.message, param="training_file")
    if isinstance(error, WishRefused):
        return Failure(code=error.code, message=error.message, param=f"hyperparameters.{error.param}")
    if isinstance(error, GatewayRefused) and error.status == KEY_UNKNOWN:
        revoked = "The job's key is no longer valid: the key of whoever made the job was revoked. Make it with another."
        return Failure(code="key_revoked", message=revoked)
    if isinstance(error, (TrainerError, AdapterError)):
        return Failure(code=error.code, message=error.message)
    if isinstance(error, MemoryError):
        return Failure(
            code="out_of_memory", message="The memory did not reach: a smaller batch_size or max_length helps."
        )
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return Failure(code="disk_full", message="The trainer's disk is full: make room and start the job again.")
    failed = f"The worker failed ({type(error).__name__}); its log in the job's folder says why."
    return Failure(code="internal_error", message=failed)


if __name__ == "__main__":
    sys.exit(main())
