"""Runs batches and kills itself: ``python -m tests.unit.service.batches.killed_gateway HOME ASKED RECORDED``.

It does so with signal 9 in the thread that writes, right after the results whose number reaches RECORDED. The
questions that its engine was asked are added to the file ASKED, a line each, as they come.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import Iterable
from pathlib import Path

from service.batches.results import Result, ResultLog
from tests.unit.service.batches.batches_app import BatchesApp


def note_in(path: Path, question: str) -> None:
    with path.open("a") as file:
        file.write(f"{question}\n")


async def main(home: Path, asked: Path, recorded: int) -> None:
    append = ResultLog.append

    def append_and_die(self: ResultLog, results: Iterable[Result]) -> None:
        append(self, results)
        if self.tally.completed >= recorded:
            os.kill(os.getpid(), signal.SIGKILL)

    ResultLog.append = append_and_die  # type: ignore[method-assign]
    gateway = BatchesApp(home)
    gateway.engine.on_asked = lambda question: note_in(asked, question)
    async with gateway.run():
        await asyncio.sleep(120)
    sys.exit("it was to be killed before")


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])))
