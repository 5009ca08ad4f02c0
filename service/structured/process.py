"""The way to the trial process: started with the gateway, reached by pipes, killed and replaced where it hangs."""

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
from service.structured.parts import Part
from service.structured.spec import Spec

MEMORY_MIB: Final = 512
"""Memory of one trial beyond that of the process that it is forked from; it holds the engine's compiler to the same."""
START_TIMEOUT_S: Final = 300.0
STOP_TIMEOUT_S: Final = 5.0
RETRY_S: Final = 30.0
"""After a start that failed, so long nothing is compiled on trial."""
SILENCE_FACTOR: Final = 60.0
"""Where the oldest trial has not ended after so many times its CPU time by the clock, the process hangs and is killed,
whether or not a request still waits for it."""
MAX_ANSWER: Final = 1 << 20
_LOG: Final = logging.getLogger("hatrack.structured")


class NoTrial(Exception):
    """Nothing can be compiled on trial now; the message says why."""


@dataclass(frozen=True, slots=True)
class Trial:
    """How a trial ended.

    Attributes:
        outcome: ``ok``, ``invalid`` (xgrammar refuses it), ``slow``, ``memory`` or ``crash`` (it ended in another way).
        cpu_s: CPU time that it took, s.
        reason: xgrammar's, where it is invalid.
        size: Memory of the compiled grammar, bytes.
        token_ms: Mean CPU time of a token's mask, ms.
        worst_ms: CPU time of the dearest mask, ms.
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
        self._trouble = ""
        self.starts = 0
        """How often it was started."""

    @property
    def pid(self) -> int | None:
        """Of the one that runs."""
        return None if self._process is None or self._process.returncode is not None else self._process.pid

    @property
    def ready(self) -> bool:
        """It runs, and has loaded what it needs."""
        return self.pid is not None and self._reading is not None and not self._reading.done()

    async def run(self, spec: Spec, parts: list[Part]) -> Trial:
        """Have a specification compiled. Cancelled, it is compiled no further.

        Raises:
            NoTrial: The process cannot be started, or went away.
        """
        await self.start()
        if self._process is None or self._process.stdin is None:
            raise NoTrial(self._trouble or "it is being started again")
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
        """Have the process ended when its oldest unanswered job is too old."""
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
        _LOG.error("the trial process hangs and is killed", extra={"pid": self.pid, "unanswered": len(self._sent_at)})
        with suppress(ProcessLookupError):
            self._process.kill()  # its output ends with it, and so does whatever waits for an answer

    async def start(self) -> None:
        """Have it running and ready; those who come while it starts wait for the same start.

        Raises:
            NoTrial: It cannot be started.
        """
        if self.ready:
            return
        if time.monotonic() < self._not_before:
            raise NoTrial(self._trouble)
        if self._starting is None or self._starting.done():
            self._starting = asyncio.create_task(self._start(), name="structured-worker")
        await asyncio.shield(self._starting)

    async def close(self) -> None:
        """End it. Returns when it is gone."""
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
                raise NoTrial("it has no output")
            async with asyncio.timeout(START_TIMEOUT_S):
                first = await process.stdout.readline()
            message = orjson.loads(first) if first else {"error": "it ended at once; its last lines are in the log"}
            if not message.get("ready"):
                raise NoTrial(str(message.get("error")))
        except (OSError, TimeoutError, orjson.JSONDecodeError, NoTrial) as error:
            self._trouble = str(error) or type(error).__name__
            self._not_before = time.monotonic() + RETRY_S
            _LOG.error(
                "no trial process: structured outputs are held to a stricter static bound",
                extra={"reason": self._trouble, "next_start_s": RETRY_S},
            )
            await self._end()
            raise NoTrial(self._trouble) from error
        self._trouble = ""
        self._reading = asyncio.create_task(self._read(process.stdout), name="structured-answers")

    async def _read(self, stdout: asyncio.StreamReader) -> None:
        """Hand out answers until the process ends."""
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
                    waiting.set_exception(NoTrial(message["reason"]))
                else:
                    waiting.set_result(Trial(**message))
        self._sent_at.clear()
        self._watch_oldest()
        for answer in self._waiting.values():
            if not answer.done():
                answer.set_exception(NoTrial("the trial process ended"))

    def _send(self, message: dict[str, Any]) -> None:
        if self._process is not None and self._process.stdin is not None and not self._process.stdin.is_closing():
            self._process.stdin.write(orjson.dumps(message) + b"\n")

    async def _end(self) -> None:
        process, self._process = self._process, None
        reading, self._reading = self._reading, None
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
        if reading is not None:
            await asyncio.gather(reading, return_exceptions=True)


def _environment() -> dict[str, str]:
    """The gateway's, without its settings and keys; a library that wants threads of its own gets none."""
    kept = {
        name: value
        for name, value in inherited_environment().items()
        if name in ("PATH", "HOME", "LANG", "PYTHONPATH", "LD_LIBRARY_PATH", "VIRTUAL_ENV")
    }
    return kept | {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
