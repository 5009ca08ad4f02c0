"""Weights & Biases, by its package in a process of its own for each job (`wandb_process`).

Its wire is not documented, so the package speaks it. Not in the trainer: it starts threads and a service, and waits for
the network. A process that does not answer in time is killed; the next one goes on with the same run.
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Final

from trainer.errors import TrackerFailed
from trainer.tracking.tracker import Point, TrackedJob

MODULE: Final = "trainer.tracking.wandb_process"
ANSWER_S: Final = 90.0
"""How long a process may take for a message; the package waits up to 60 s for the server at the start."""
STOP_S: Final = 5.0
MAX_LINE_BYTES: Final = 2**20


class WandbTracker:
    """The package, with the operator's key.

    Args:
        directory: Where the package keeps its files; in offline mode they are the result, for `wandb sync`.
        environment: Of the processes, with the package's own variables.
        command: The command line of a process.
    """

    name: ClassVar[str] = "wandb"
    title: ClassVar[str] = "Weights & Biases"

    def __init__(
        self, directory: Path, environment: Mapping[str, str], command: Sequence[str] = (sys.executable, "-m", MODULE)
    ) -> None:
        self._directory = directory
        self._environment = dict(environment)
        self._command = tuple(command)
        self._processes: dict[str, asyncio.subprocess.Process] = {}

    async def open(self, job: TrackedJob) -> str:
        """See Tracker. The run's id is the job's, so that another process goes on with it."""
        await self._process(job)
        return job.id

    async def log(self, job: TrackedJob, run_id: str, points: Sequence[Point]) -> None:
        """See Tracker. The package drops the steps that it has had already."""
        process = await self._process(job)
        rows = [{"step": point.step, "values": dict(point.values)} for point in points]
        await self._ask(job.id, process, {"points": rows})

    async def finish(self, job: TrackedJob, run_id: str) -> None:
        """See Tracker. Waits until the package has sent everything."""
        process = await self._process(job)
        ended = {"results": dict(job.results), "exit_code": 0 if job.status == "succeeded" else 1}
        await self._ask(job.id, process, {"finish": ended})
        await self._end(job.id)

    async def close(self) -> None:
        """See Tracker. A later process goes on with the runs."""
        for job_id in list(self._processes):
            await self._end(job_id)

    async def _process(self, job: TrackedJob) -> asyncio.subprocess.Process:
        """The job's process, started if there is none."""
        process = self._processes.get(job.id)
        if process is not None and process.returncode is None:
            return process
        self._directory.mkdir(parents=True, exist_ok=True)
        process = await asyncio.create_subprocess_exec(
            *self._command,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.DEVNULL,
            env=self._environment,
            limit=MAX_LINE_BYTES,
        )
        self._processes[job.id] = process
        options = job.options
        start = {
            "id": job.id,
            "project": job.place,
            "entity": options.get("entity"),
            "name": job.name,
            "tags": list(options.get("tags") or ()),
            "config": {**job.params, **{f"hatrack.{key}": value for key, value in job.tags.items()}},
            "dir": str(self._directory),
        }
        await self._ask(job.id, process, {"start": start})
        return process

    async def _ask(self, job_id: str, process: asyncio.subprocess.Process, message: dict[str, Any]) -> None:
        """Send a message and wait until it is done. Raises TrackerFailed, and then the process is gone."""
        assert process.stdin is not None and process.stdout is not None  # noqa: S101, PT018  both are pipes
        try:
            async with asyncio.timeout(ANSWER_S):
                process.stdin.write(json.dumps(message).encode() + b"\n")
                await process.stdin.drain()
                line = await process.stdout.readline()
            answer = json.loads(line)
        except (OSError, TimeoutError, ValueError, asyncio.LimitOverrunError) as error:
            await self._end(job_id, kill=True)
            raise TrackerFailed(f"its process did not answer ({type(error).__name__})") from error
        except asyncio.CancelledError:
            process.kill()
            raise
        if answer.get("error") is not None:
            await self._end(job_id, kill=True)
            raise TrackerFailed(str(answer["error"])[:200])

    async def _end(self, job_id: str, *, kill: bool = False) -> None:
        process = self._processes.pop(job_id, None)
        if process is None or process.returncode is not None:
            return
        if not kill and process.stdin is not None:
            process.stdin.close()
            try:
                async with asyncio.timeout(STOP_S):
                    await process.wait()
            except TimeoutError:
                kill = True
        if kill and process.returncode is None:
            process.kill()
            await process.wait()
