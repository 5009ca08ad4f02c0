"""Client of the trial process: started with the gateway, reached by pipes, killed and replaced if it hangs."""

from __future__ import annotations

import asyncio
import logging
import sys
import time
from asyncio.subprocess import PIPE, Process
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import orjson

from service.config import inherited_environment
from service.structured.parts import GrammarPart
from service.structured.spec import Spec

MEMORY_MIB: Final = 512
"""Memory limit of one trial beyond its parent process; the engine's compiler has the same limit."""
START_TIMEOUT_S: Final = 300.0
STOP_TIMEOUT_S: Final = 5.0
RETRY_S: Final = 30.0
"""Pause after a failed start, without trials, s."""
SILENCE_FACTOR: Final = 60.0
"""If the oldest trial has not ended after this many times its CPU time limit in wall time, the process is considered
hung and killed, whether or not a request still waits for it."""
MAX_ANSWER: Final = 1 << 20
_LOG: Final = logging.getLogger("hatrack.structured")


class TrialUnavailable(Exception):
    """No trial can run now; the message says why."""


@dataclass(frozen=True, slots=True)
class Trial:
    """How a trial ended.

    Attributes:
        outcome: ``ok``, ``invalid`` (xgrammar refuses it), ``slow``, ``memory`` or ``crash`` (it ended in another way).
        cpu_s: Its CPU time, s.
        reason: xgrammar's message, if it is invalid.
        size: Memory of the compiled grammar, bytes.
        token_ms: Mean CPU time of a token's mask, ms.
        worst_ms: CPU time of the most expensive mask, ms.
    """

    outcome: str
    cpu_s: float = 0.0
    reason: str = ""
    size: int = 0
    token_ms: float = 0.0
    worst_ms: float = 0.0


class TrialProcess:
    """One process for all trials.

    Args:
        base: Directory of the base model, for its vocabulary.
        cpu_s: CPU time of one trial, s.
    """

    def __init__(self, base: Path, cpu_s: float) -> None:
        self._base = base
        self._cpu_s = cpu_s
        self._process: Process | None = None
        self._reading: asyncio.Task[None] | None = None
        self._starting: asyncio.Task[None] | None = None
        self._waiting: dict[int, asyncio.Future[Trial]] = {}
        self._sent_at: dict[int, float] = {}
        """Jobs that the process has not answered yet, cancelled ones as well, oldest first; on the loop's clock."""
        self._watch: asyncio.TimerHandle | None = None
        self._jobs = 0
        self._not_before = 0.0
        self._failure = ""
        self.starts = 0
        """How many times the process was started."""

    @property
    def pid(self) -> int | None:
        """The running process's id; None if it is not running."""
        return None if self._process is None or self._process.returncode is not None else self._process.pid

    @property
    def ready(self) -> bool:
        """Whether the process runs and has loaded the vocabulary."""
        return self.pid is not None and self._reading is not None and not self._reading.done()

    async def run(self, spec: Spec, parts: list[GrammarPart]) -> Trial:
        """Try a specification. Cancelling ends the trial.

        Raises:
            TrialUnavailable: The process cannot be started, or ended.
        """
        await self.start()
        if self._process is None or self._process.stdin is None:
            raise TrialUnavailable(self._failure or "the trial process is being restarted")
        self._jobs += 1
        job, loop = self._jobs, asyncio.get_running_loop()
        answer: asyncio.Future[Trial] = loop.create_future()
        self._waiting[job] = answer
        wholes = list(dict.fromkeys(part.within for part in parts))
        message = {
            "id": job,
            "kind": spec.kind,
            "text": spec.text,
            "parts": [[part.kind, part.text, wholes.index(part.within)] for part in parts],
            "wholes": wholes,
        }
        self._sent_at[job] = loop.time()
        self._watch_oldest()
        try:
            self._send(message)
            return await answer
        except asyncio.CancelledError:
            self._send({"cancel": job})  # answered as well: until then the job is unanswered
            raise
        finally:
            self._waiting.pop(job, None)

    def _watch_oldest(self) -> None:
        """Schedule the kill of the process for when its oldest unanswered job times out."""
        if self._watch is not None:
            self._watch.cancel()
            self._watch = None
        if self._sent_at:
            due = next(iter(self._sent_at.values())) + self._cpu_s * SILENCE_FACTOR
            self._watch = asyncio.get_running_loop().call_at(due, self._kill_hanging)

    def _kill_hanging(self) -> None:
        self._watch = None
        if self._process is None or self._process.returncode is not None:
            return
        _LOG.error(
            "the trial process does not respond and is killed",
            extra={"pid": self.pid, "unanswered": len(self._sent_at)},
        )
        with suppress(ProcessLookupError):
            self._process.kill()  # its output ends with it, and so does whatever waits for an answer

    async def start(self) -> None:
        """Start the process and wait until it is ready; concurrent callers share one start.

        Raises:
            TrialUnavailable: It cannot be started.
        """
        if self.ready:
            return
        if time.monotonic() < self._not_before:
            raise TrialUnavailable(self._failure)
        if self._starting is None or self._starting.done():
            self._starting = asyncio.create_task(self._start(), name="structured-worker")
        await asyncio.shield(self._starting)

    async def close(self) -> None:
        """End the process and wait for its exit."""
        if self._starting is not None:
            self._starting.cancel()
            await asyncio.gather(self._starting, return_exceptions=True)
        await self._end()

    async def _start(self) -> None:
        await self._end()
        argv = [sys.executable, "-m", "service.structured.worker", "--base", str(self._base)]
        argv += ["--cpu-s", str(self._cpu_s), "--memory-mib", str(MEMORY_MIB)]
        self.starts += 1
        try:
            process = self._process = await asyncio.create_subprocess_exec(
                *argv,
                stdin=PIPE,
                stdout=PIPE,
                env=_environment(),
                limit=MAX_ANSWER,
                start_new_session=True,  # a terminal's Ctrl-C is for the gateway, which ends this
            )
            if process.stdout is None:
                raise TrialUnavailable("the trial process has no output pipe")
            async with asyncio.timeout(START_TIMEOUT_S):
                first = await process.stdout.readline()
            message = (
                orjson.loads(first)
                if first
                else {"error": "the trial process ended at start; see its last lines in the log"}
            )
            if not message.get("ready"):
                raise TrialUnavailable(str(message.get("error")))
        except (OSError, TimeoutError, orjson.JSONDecodeError, TrialUnavailable) as error:
            self._failure = str(error) or type(error).__name__
            self._not_before = time.monotonic() + RETRY_S
            _LOG.error(
                "the trial process cannot be started; the stricter static bounds apply to structured outputs",
                extra={"reason": self._failure, "next_start_s": RETRY_S},
            )
            await self._end()
            raise TrialUnavailable(self._failure) from error
        self._failure = ""
        self._reading = asyncio.create_task(self._read(process.stdout), name="structured-answers")

    async def _read(self, stdout: asyncio.StreamReader) -> None:
        """Dispatch answers until the process ends."""
        with suppress(ValueError, orjson.JSONDecodeError, KeyError):  # none of ours: as good as ended
            while line := await stdout.readline():
                message: dict[str, Any] = orjson.loads(line)
                job = message.pop("id")
                self._sent_at.pop(job, None)
                self._watch_oldest()
                waiting = self._waiting.get(job)
                if waiting is None or waiting.done():
                    continue
                if message["outcome"] == "unavailable":
                    waiting.set_exception(TrialUnavailable(message["reason"]))
                else:
                    waiting.set_result(Trial(**message))
        self._sent_at.clear()
        self._watch_oldest()
        for answer in self._waiting.values():
            if not answer.done():
                answer.set_exception(TrialUnavailable("the trial process ended"))

    def _send(self, message: dict[str, Any]) -> None:
        if self._process is not None and self._process.stdin is not None and not self._process.stdin.is_closing():
            self._process.stdin.write(orjson.dumps(message) + b"\n")

    async def _end(self) -> None:
        process, reading = self._process, self._reading
        if process is not None:
            if process.stdin is not None:
                process.stdin.close()
            try:
                async with asyncio.timeout(STOP_TIMEOUT_S):
                    await process.wait()
            except TimeoutError:
                with suppress(ProcessLookupError):
                    process.kill()
                await process.wait()
        self._process = self._reading = None  # only now: whoever is cancelled before leaves it to the next to end it
        if reading is not None:
            await asyncio.gather(reading, return_exceptions=True)


def _environment() -> dict[str, str]:
    """The gateway's environment without its settings and keys; libraries are limited to one thread."""
    environment = {
        name: value
        for name, value in inherited_environment().items()
        if name in ("PATH", "HOME", "LANG", "PYTHONPATH", "LD_LIBRARY_PATH", "VIRTUAL_ENV")
    }
    return environment | {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
