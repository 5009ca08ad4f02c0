"""The process that does one run: `python -m <the kind's worker> DIRECTORY [--stage STAGE]`.

The directory holds the input and receives the output (``trainer.runs.protocol``, which also lists the exit codes). A
restarted worker resumes after the last completed step.
"""

from __future__ import annotations

import argparse
import logging
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Generic, TypeVar

from trainer.errors import RunDirectoryBusy
from trainer.runs import protocol
from trainer.runs.control import Interrupted, WorkerControl
from trainer.runs.directory import RunDirectory
from trainer.runs.failures import explain, is_full
from trainer.runs.gateway import Gateway
from trainer.runs.protocol import BUSY, DONE, FAILED, FULL, PAUSED, Failure, RunResult
from trainer.runs.spec import RunSpec

R = TypeVar("R", bound=RunResult)
_LOG = logging.getLogger("hatrack.trainer.worker")


class Pipeline(ABC, Generic[R]):
    """The steps of a worker of one kind."""

    result: type[R]

    @abstractmethod
    def run(self, stage: str) -> R | None:
        """Do the run up to the end of `stage`, resuming where it stands; None if another stage follows.

        Raises Interrupted, and any exception that makes the run fail.
        """

    def cancelled(self) -> tuple[R, str]:
        """The result of a cancelled run, and the message of its last event."""
        return self.result(status="cancelled"), "cancelled"

    def failed(self, failure: Failure) -> tuple[R, str]:
        """The result of a failed run, and the message of its last event."""
        return self.result(status="failed", error=failure), failure.message

    def explain(self, error: Exception) -> Failure:
        """The run's `error` for an exception."""
        return explain(error)


@dataclass(frozen=True, slots=True)
class WorkerKind:
    """What the worker process needs to know about a kind.

    Attributes:
        module: The module on the worker's command line.
        stages: Their names; `--stage` is optional if there is only one.
        lower_priority: Called first, so that serving gets the cores before training.
        spec: The schema of spec.json.
        pipeline: Creates the pipeline from the spec, the directory, the gateway client, and a check that raises
            Interrupted if the worker should exit.
    """

    module: str
    stages: tuple[str, ...]
    lower_priority: Callable[[], object]
    spec: type[RunSpec]
    pipeline: Callable[[Any, RunDirectory, Gateway, Callable[[], None]], Pipeline[Any]]


def main(kind: WorkerKind, arguments: Sequence[str] | None = None) -> int:
    """The command; returns the exit code."""
    parser = argparse.ArgumentParser(prog=f"python -m {kind.module}")
    parser.add_argument("directory", type=Path)
    default = kind.stages[0] if len(kind.stages) == 1 else None
    parser.add_argument("--stage", choices=kind.stages, required=default is None, default=default)
    options = parser.parse_args(arguments)
    logging.basicConfig(stream=sys.stderr, level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    logging.getLogger("httpx").setLevel(logging.WARNING)  # a line for every poll of the load would be 35 MB a day
    try:
        with RunDirectory(options.directory) as directory:
            kind.lower_priority()
            return work(kind, directory, options.stage)
    except RunDirectoryBusy as error:
        _LOG.error(error.message)
        return BUSY
    except OSError as error:
        if not is_full(error):
            raise
        _LOG.exception("the disk is full")
        return FULL


def work(kind: WorkerKind, directory: RunDirectory, stage: str) -> int:
    """Do the run of `directory` up to the end of `stage`; returns the exit code."""
    spec = kind.spec.model_validate_json(directory.path(protocol.SPEC).read_bytes())
    control = WorkerControl(directory)
    gateway = Gateway(
        spec.gateway,
        directory.path(protocol.KEY).read_text().strip(),
        wait=control.wait,
        on_outage=partial(_tell_of_outage, directory),
    )
    pipeline = kind.pipeline(spec, directory, gateway, control.check)
    if directory.read(protocol.RESULT, pipeline.result) is not None:
        gateway.close()
        return DONE
    try:
        control.check()
        result = pipeline.run(stage)
        if result is None:
            return DONE
    except Interrupted as interrupted:
        if interrupted.code is not None:
            paused = interrupted.code == PAUSED
            with suppress(OSError):  # a full disk must not turn a stop into a failure
                directory.emit_event("paused" if paused else "interrupted; it will resume from here")
            return interrupted.code
        result, message = pipeline.cancelled()
        directory.emit_event(message)
    except Exception as error:
        _LOG.exception("the run failed")
        failure = pipeline.explain(error)
        result, message = pipeline.failed(failure)
        with suppress(OSError):  # a full disk takes no event either; writing the result below reports it
            directory.emit_event(message, level="error", code=failure.code)
    finally:
        gateway.close()
    try:
        directory.write(protocol.RESULT, result)
    except OSError as error:
        _LOG.exception("could not write the result")
        return FULL if is_full(error) else FAILED
    return DONE


def _tell_of_outage(directory: RunDirectory, reason: str | None) -> None:
    """Emit an event when the gateway stops answering, and when it answers again."""
    with suppress(OSError):  # a full disk must not end the wait
        if reason is None:
            directory.emit_event("the gateway answers again")
        else:
            directory.emit_event(f"waiting for the gateway: {reason}", waits_for="gateway")
