"""Documents are read in a process that is killed when it takes too long: what strangers wrote may hang a parser."""

from __future__ import annotations

import asyncio
import sys
from asyncio.subprocess import DEVNULL, PIPE, Process
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

import orjson

from service.knowledge.documents.blocks import MAX_TEXT, Block, DocumentError, invalid
from service.knowledge.documents.read import kind_of

READ_TIMEOUT_S: Final = 120.0
START_TIMEOUT_S: Final = 30.0
MAX_ANSWER: Final = 8 * MAX_TEXT
DOCUMENTS_PER_READER: Final = 200
"""A reader is replaced after so many: what a library leaks goes with it."""


class ReaderEnded(Exception):
    """The reader process ended over a document: a parser crashed, or somebody killed the process."""


class DocumentReader:
    """Reads documents, one at a time.

    Args:
        timeout_s: Longest time for one document, s.
        program: What runs a reader.
    """

    def __init__(
        self,
        *,
        timeout_s: float = READ_TIMEOUT_S,
        program: Sequence[str] = (sys.executable, "-m", "service.knowledge.documents"),
    ) -> None:
        self._timeout_s = timeout_s
        self._program = tuple(program)
        self._process: Process | None = None
        self._documents = 0
        self._turn = asyncio.Lock()

    @property
    def pid(self) -> int | None:
        """The reader's process id; None if none runs."""
        return self._process.pid if self._process is not None and self._process.returncode is None else None

    async def blocks(self, path: Path, filename: str) -> list[Block]:
        """The blocks of a document.

        Raises:
            DocumentError: It cannot be read, or not within the bounds.
            ReaderEnded: The reader process ended before its answer was complete.
        """
        request = orjson.dumps({"path": str(path), "kind": kind_of(filename)}) + b"\n"
        async with self._turn:
            try:
                async with asyncio.timeout(self._timeout_s):
                    line = await self._ask(request)
            except TimeoutError:
                await self.close()
                raise invalid(f"reading the document took longer than {self._timeout_s:g} s") from None
            except BaseException:
                await self.close()  # its answer would be taken for that to the next question
                raise
        if not line.endswith(b"\n"):
            await self.close()
            raise ReaderEnded("the process that reads the document ended before it was done")
        reply = await asyncio.to_thread(orjson.loads, line)
        if "error" in reply:
            raise DocumentError(*reply["error"])
        return await asyncio.to_thread(_blocks, reply["blocks"])

    async def close(self) -> None:
        """Kill the reader process, if one runs."""
        process, self._process = self._process, None
        if process is not None:
            with suppress(ProcessLookupError):
                process.kill()
            async with asyncio.timeout(START_TIMEOUT_S):
                await process.wait()

    async def _ask(self, request: bytes) -> bytes:
        if self._process is None or self._process.returncode is not None or self._documents >= DOCUMENTS_PER_READER:
            await self.close()
            self._documents = 0
            self._process = await asyncio.create_subprocess_exec(
                *self._program, stdin=PIPE, stdout=PIPE, stderr=DEVNULL, limit=MAX_ANSWER
            )
        self._documents += 1
        if self._process.stdin is None or self._process.stdout is None:
            raise ConnectionError("the reader process has no pipes")
        with suppress(ConnectionError):  # where it ended, its output ends too
            self._process.stdin.write(request)
            await self._process.stdin.drain()
        try:
            return await self._process.stdout.readline()
        except ValueError as error:
            raise invalid(f"its text takes more than {MAX_ANSWER} bytes, the maximum; split it") from error


def _blocks(packed: Sequence[Sequence[Any]]) -> list[Block]:
    return [Block(*fields) for fields in packed]
