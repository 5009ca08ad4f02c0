"""A worker that asks nothing: it keeps the folder's protocol with a real process, in a hundredth of the time.

    python stand_in.py FOLDER

What it does stands in the evaluation's metadata: `hold` (it waits until it is told something), `die` (it kills itself
at its start, so many times), `stuck` (it does so each time, without getting any further).
"""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path

from adapters.protocol.reports import EvaluationProgress
from trainer.errors import RunDirectoryBusy
from trainer.evaluate.evaluations import spec
from trainer.evaluate.evaluations.spec import PAGE, PROGRESS, REPORT, EvaluationJob, EvaluationResult
from trainer.runs import protocol
from trainer.runs.directory import RunDirectory
from trainer.runs.protocol import BUSY, DONE, STOPPED, Control


def main() -> int:
    try:
        with RunDirectory(Path(sys.argv[1])) as folder:
            return work(folder)
    except RunDirectoryBusy:
        return BUSY


def work(folder: RunDirectory) -> int:
    told: list[bool] = []
    signal.signal(signal.SIGTERM, lambda *_: told.append(True))
    job = EvaluationJob.model_validate_json(folder.path(protocol.SPEC).read_bytes())
    wishes = job.body.metadata or {}
    answers = folder.path(spec.ANSWERS)
    tries = len(answers.read_text().splitlines()) if answers.exists() else 0
    if "stuck" in wishes or tries < int(wishes.get("die", "0")):
        if "stuck" not in wishes:
            answers.write_text("answered\n" * (tries + 1))
        os.kill(os.getpid(), signal.SIGKILL)
    folder.write(PROGRESS, EvaluationProgress(stage="asking", done=tries, total=36))
    while "hold" in wishes or told:
        if folder.control() is Control.CANCEL:
            folder.write(protocol.RESULT, EvaluationResult(status="cancelled"))
            return DONE
        if told:
            return STOPPED
        if folder.path("go").exists():
            break
        time.sleep(0.02)
    folder.path(REPORT).write_text('{"verdict": null}')
    folder.path(PAGE).write_text("<!doctype html><title>r</title>")
    result = EvaluationResult(
        status="succeeded",
        verdict="pass",
        sentence="Pass: better.",
        metric="exact_match",
        examples=36,
        files=("file-r",),
    )
    folder.write(protocol.RESULT, result)
    return DONE


if __name__ == "__main__":
    sys.exit(main())
