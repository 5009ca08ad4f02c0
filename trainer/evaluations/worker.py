"""The process that does one evaluation: `python -m trainer.evaluations.worker FOLDER`.

It finds in the folder what is to be done (``trainer.evaluations.spec``) and leaves there what came of it. Whatever was
answered stays answered: started again, it asks for the rest.

Exit codes: 0 done (see result.json) · 5 told to stop (SIGTERM), to be started again · 6 another worker is at it · 1 it
could not even write its result.
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from trainer.config import Settings, load_settings
from trainer.errors import FolderBusy, SettingsError
from trainer.evaluations.evaluating import Evaluating
from trainer.evaluations.spec import EvaluationJob, EvaluationResult
from trainer.jobs import spec
from trainer.jobs.failures import explain
from trainer.jobs.folder import Folder
from trainer.jobs.gateway import Gateway
from trainer.jobs.orders import Interrupted, Orders
from trainer.jobs.priority import NICENESS
from trainer.jobs.spec import BUSY, DONE, FAILED, STOPPED, Failure

_LOG = logging.getLogger("hatrack.trainer.worker")


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m trainer.evaluations.worker")
    parser.add_argument("folder", type=Path)
    options = parser.parse_args(arguments)
    logging.basicConfig(stream=sys.stderr, level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    logging.getLogger("httpx").setLevel(logging.WARNING)
    try:
        with Folder(options.folder) as folder:
            os.nice(NICENESS)  # serving comes first, whoever else is at the cores
            return work(folder, load_settings())
    except FolderBusy as error:
        _LOG.error(error.message)
        return BUSY


def work(folder: Folder, settings: Settings) -> int:
    """Do the evaluation of `folder`; returns the exit code."""
    job = EvaluationJob.model_validate_json(folder.path(spec.SPEC).read_bytes())
    if folder.read(spec.RESULT, EvaluationResult) is not None:
        return DONE
    orders = Orders(folder)
    gateway = Gateway(job.gateway, folder.path(spec.KEY).read_text().strip(), wait=orders.wait)
    try:
        orders.check()
        result = Evaluating(job, folder, gateway, settings, orders.check).run()
    except Interrupted as interrupted:
        if interrupted.code is not None:
            folder.say("interrupted; it goes on from here")
            return STOPPED
        result = EvaluationResult(status="cancelled")
        folder.say("cancelled")
    except Exception as error:
        _LOG.exception("the evaluation failed")
        failure = _explained(error)
        result = EvaluationResult(status="failed", error=failure)
        folder.say(failure.message, level="error", code=failure.code)
    finally:
        gateway.close()
    try:
        folder.write(spec.RESULT, result)
    except OSError:
        _LOG.exception("the result could not be written")
        return FAILED
    return DONE


def _explained(error: Exception) -> Failure:
    """What an evaluation's error says; a file at fault is the held-out's."""
    if isinstance(error, SettingsError):
        return Failure(code="settings_changed", message=str(error))
    failure = explain(error)
    if failure.code == "invalid_training_file":
        return Failure(code="invalid_held_out_file", message=failure.message, param="held_out")
    return failure


if __name__ == "__main__":
    sys.exit(main())
