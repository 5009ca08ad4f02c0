"""The process that does one job: `python -m trainer.jobs.worker FOLDER --stage validate|train`.

It finds in the folder what is to be done (``trainer.jobs.spec``) and leaves there what came of it. Whatever has been
done stays done: started again, it goes on from the last checkpoint.

Exit codes: 0 done (see result.json; after `validate`, plan.json) · 4 paused · 5 told to stop (SIGTERM), to be started
again · 6 another worker is at it · 7 the disk is so full that it could not write its result · 1 nor for another reason.
"""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from trainer.errors import FolderBusy
from trainer.jobs import spec
from trainer.jobs.failures import explain, is_full
from trainer.jobs.folder import Folder
from trainer.jobs.gateway import Gateway
from trainer.jobs.orders import Interrupted, Orders
from trainer.jobs.priority import step_back
from trainer.jobs.spec import BUSY, DONE, FAILED, FULL, PAUSED, JobSpec, Result, Stage
from trainer.jobs.work import Work

_LOG = logging.getLogger("hatrack.trainer.worker")


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m trainer.jobs.worker")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--stage", type=Stage, choices=list(Stage), required=True)
    options = parser.parse_args(arguments)
    logging.basicConfig(stream=sys.stderr, level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    logging.getLogger("httpx").setLevel(logging.WARNING)  # a line for every look at the load would be 35 MB a day
    try:
        with Folder(options.folder) as folder:
            step_back()  # serving comes first, whoever else is at the cores
            return work(folder, options.stage)
    except FolderBusy as error:
        _LOG.error(error.message)
        return BUSY
    except OSError as error:
        if not is_full(error):
            raise
        _LOG.exception("the disk is full")
        return FULL


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
        # a version that is there already is no cancelled one: it has no verdict, and nothing moves
        result = folder.read(spec.PUSHED, Result) or Result(status="cancelled")
        folder.say("cancelled" if result.status == "cancelled" else "cancelled before it was judged; nothing was moved")
    except Exception as error:
        _LOG.exception("the job failed")
        failure = explain(error)
        result = folder.read(spec.PUSHED, Result) or Result(status="failed", error=failure)
        unjudged = "" if result.error is not None else f"{result.fine_tuned_model} is there, without a verdict. "
        with suppress(OSError):  # a disk that is full takes no event either, and what follows says so
            folder.say(f"{unjudged}{failure.message}", level="error", code=failure.code)
    finally:
        gateway.close()
    try:
        folder.write(spec.RESULT, result)
    except OSError as error:
        _LOG.exception("the result could not be written")
        return FULL if is_full(error) else FAILED
    return DONE


if __name__ == "__main__":
    sys.exit(main())
