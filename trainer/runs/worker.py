"""The process that does one run: `python -m <the kind's worker> DIRECTORY [--stage STAGE]`.

It finds in the directory what is to be done (``trainer.runs.protocol``) and leaves there what came of it. Whatever has
been done stays done: started again, it goes on from there. Exit codes stand in ``trainer.runs.protocol``.
"""

from __future__ import annotations

import argparse
import logging
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

from pydantic import BaseModel

from trainer.errors import FolderBusy
from trainer.runs import protocol
from trainer.runs.control import Interrupted, WorkerControl
from trainer.runs.directory import RunDirectory
from trainer.runs.failures import explain, is_full
from trainer.runs.gateway import Gateway
from trainer.runs.protocol import BUSY, DONE, FAILED, FULL, PAUSED, Failure, RunResult

R = TypeVar("R", bound=RunResult)
_LOG = logging.getLogger("hatrack.trainer.worker")


class Pipeline(ABC, Generic[R]):
    """What a worker of one kind does, in order."""

    result: type[R]

    @abstractmethod
    def run(self, stage: str) -> R | None:
        """Do the run up to the end of the stage, from wherever it stands; None where another stage comes after it.

        Raises whatever keeps it from being done, and Interrupted.
        """

    @abstractmethod
    def cancelled(self) -> tuple[R, str]:
        """How a run ends that was cancelled, and what its last event says."""

    @abstractmethod
    def failed(self, failure: Failure) -> tuple[R, str]:
        """How a run ends that could not be done, and what its last event says."""

    def explain(self, error: Exception) -> Failure:
        """What an error says to whoever asked for the run."""
        return explain(error)


@dataclass(frozen=True, slots=True)
class WorkerKind:
    """What the worker's process must know of a kind.

    Attributes:
        module: That starts it, as it is named on a command line.
        stages: Their names; where there is one, the command line need not name it.
        lower_priority: Called before anything is done: serving comes first, whoever else is at the cores.
        spec: What its runs are to do.
        pipeline: Makes what does it: of the spec, the directory, the way to the gateway, and what raises where the
            worker is to end.
    """

    module: str
    stages: tuple[str, ...]
    lower_priority: Callable[[], object]
    spec: type[BaseModel]
    pipeline: Callable[[Any, RunDirectory, Gateway, Callable[[], None]], Pipeline[Any]]


def main(kind: WorkerKind, arguments: Sequence[str] | None = None) -> int:
    """The command; returns the exit code."""
    parser = argparse.ArgumentParser(prog=f"python -m {kind.module}")
    parser.add_argument("directory", type=Path)
    one = len(kind.stages) == 1
    parser.add_argument("--stage", choices=kind.stages, required=not one, default=kind.stages[0] if one else None)
    options = parser.parse_args(arguments)
    logging.basicConfig(stream=sys.stderr, level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    logging.getLogger("httpx").setLevel(logging.WARNING)  # a line for every look at the load would be 35 MB a day
    try:
        with RunDirectory(options.directory) as directory:
            kind.lower_priority()
            return work(kind, directory, options.stage)
    except FolderBusy as error:
        _LOG.error(error.message)
        return BUSY
    except OSError as error:
        if not is_full(error):
            raise
        _LOG.exception("the disk is full")
        return FULL


def work(kind: WorkerKind, directory: RunDirectory, stage: str) -> int:
    """Do the run of `directory` up to the end of `stage`; returns the exit code."""
    spec: Any = kind.spec.model_validate_json(directory.path(protocol.SPEC).read_bytes())
    control = WorkerControl(directory)
    gateway = Gateway(spec.gateway, directory.path(protocol.KEY).read_text().strip(), wait=control.wait)
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
            with suppress(OSError):  # a disk that is full must not make a failure of a stop
                directory.emit_event("paused" if paused else "interrupted; it goes on from here")
            return interrupted.code
        result, message = pipeline.cancelled()
        directory.emit_event(message)
    except Exception as error:
        _LOG.exception("the run failed")
        failure = pipeline.explain(error)
        result, message = pipeline.failed(failure)
        with suppress(OSError):  # a disk that is full takes no event either, and what follows says so
            directory.emit_event(message, level="error", code=failure.code)
    finally:
        gateway.close()
    try:
        directory.write(protocol.RESULT, result)
    except OSError as error:
        _LOG.exception("the result could not be written")
        return FULL if is_full(error) else FAILED
    return DONE
