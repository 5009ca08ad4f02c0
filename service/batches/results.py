"""The results of a batch while it runs: two append-only files, from which a killed gateway goes on.

    HOME/batches/<batch id>/output.jsonl   answers with the status 200
    HOME/batches/<batch id>/error.jsonl    all others, and requests that were not executed

A line is written as soon as its request is answered, so that a killed process loses none, and synced to the disk within
a second of the next one, so that a power cut loses few. The id of a result contains the number of its line in the input
file: which requests have a result is read from the files alone.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import orjson

from adapters.blobs import disk_errors, fsync_directory
from service.batches.records import COUNTS
from service.concurrency import in_thread
from service.errors import DiskFull, HatrackError, TooLarge
from service.files.service import Charge
from service.inference.relay import usage_at

OUTPUT, ERRORS = "output.jsonl", "error.jsonl"
SYNC_S: Final = 1.0
"""Longest time between two syncs while results are written, s."""
DISK_RETRY_S: Final = 5.0
_LINE: Final = rb'\{"id":"%s(\d+)","custom_id":"(?:[^"\\]|\\.)*+","response":(?:null|\{)'
"""How the line of a result begins."""
_DECODER: Final = json.JSONDecoder()


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens of one answer."""

    input: int = 0
    cached: int = 0
    output: int = 0
    reasoning: int = 0


@dataclass(frozen=True, slots=True)
class Result:
    """The result of the request in line ``number`` of the input file."""

    number: int
    succeeded: bool
    parts: tuple[bytes, ...]
    """JSON and a line feed; joined in the thread that writes them, for a part may be large."""
    usage: Usage = Usage()


@dataclass(slots=True)
class Tally:
    """What a batch has done so far."""

    completed: int = 0
    failed: int = 0
    input_tokens: int = 0
    cached_tokens: int = 0
    output_tokens: int = 0
    reasoning_tokens: int = 0
    done: bytearray = field(default_factory=bytearray)
    """By the number of a line: whether its request has a result."""

    def add(self, number: int, succeeded: bool, usage: Usage) -> None:
        """Count one result."""
        if number >= len(self.done):
            self.done.extend(bytes(max(number + 1 - len(self.done), 1024)))
        self.done[number] = 1
        if succeeded:
            self.completed += 1
        else:
            self.failed += 1
        self.input_tokens += usage.input
        self.cached_tokens += usage.cached
        self.output_tokens += usage.output
        self.reasoning_tokens += usage.reasoning

    def has(self, number: int) -> bool:
        """Whether the request of a line has a result."""
        return number < len(self.done) and bool(self.done[number])

    @property
    def columns(self) -> dict[str, int]:
        """The counts, by their columns in the database."""
        return {name: getattr(self, name) for name in COUNTS}


class ResultLog:
    """The two files of one batch. Everything here blocks: run it in a thread, one call at a time.

    Args:
        directory: Of the batch; made where there is none.
        batch_id: ``batch_…``.
    """

    def __init__(self, directory: Path, batch_id: str) -> None:
        self.directory = directory
        self._id_prefix = f"batch_req_{batch_id.removeprefix('batch_')}_"
        self._line = re.compile(_LINE % re.escape(self._id_prefix).encode())
        self.tally = Tally()
        self._sizes: dict[str, int] = {}
        self._unsynced: set[str] = set()
        self._synced_at = 0.0

    def path(self, name: str) -> Path:
        """The path of OUTPUT or ERRORS."""
        return self.directory / name

    def id_of(self, number: int) -> str:
        """The id of the result of a line."""
        return f"{self._id_prefix}{number}"

    def open(self) -> None:
        """Make the files, or read what is in them; what was cut off in the middle of a line is removed."""
        self.directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        self.tally = Tally()
        for name in (OUTPUT, ERRORS):
            descriptor = os.open(self.path(name), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            with os.fdopen(descriptor, "r+b") as file:
                size = 0
                for text in file:
                    if not self._recover(text, succeeded=name == OUTPUT):
                        break
                    size += len(text)
                file.truncate(size)
            self._sizes[name] = size
        fsync_directory(self.directory)
        fsync_directory(self.directory.parent)

    def _recover(self, text: bytes, *, succeeded: bool) -> bool:
        """Count a result that was written earlier; False if it is not whole.

        It is not parsed: a line that was not written to its end lacks it, or has zeros where a page was lost.
        """
        line = self._line.match(text)
        if line is None or not text.endswith(b"}\n") or b"\0" in text:
            return False
        self.tally.add(int(line[1]), succeeded, usage_of(text) if succeeded else Usage())
        return True

    def append(self, results: Iterable[Result]) -> None:
        """Write results, and sync them if the last sync is a second ago. The first result of a line counts.

        Raises:
            DiskFull: There is no room; none of them is written to a file that had none.
        """
        by_file: dict[str, list[Result]] = {}
        numbers: set[int] = set()
        for result in results:
            if result.number in numbers or self.tally.has(result.number):
                continue
            numbers.add(result.number)
            by_file.setdefault(OUTPUT if result.succeeded else ERRORS, []).append(result)
        for name, chosen in by_file.items():
            self._write(name, b"".join(part for result in chosen for part in result.parts))
            for result in chosen:
                self.tally.add(result.number, result.succeeded, result.usage)
        if time.monotonic() - self._synced_at >= SYNC_S:
            self.sync()

    def _write(self, name: str, data: bytes) -> None:
        with disk_errors(_disk_full):
            descriptor = os.open(self.path(name), os.O_WRONLY | os.O_CLOEXEC)
            try:
                written = 0
                while written < len(data):
                    # at its place, so that what a failed write has left is overwritten
                    written += os.pwrite(descriptor, data[written:], self._sizes[name] + written)
            finally:
                os.close(descriptor)
        self._sizes[name] += len(data)
        self._unsynced.add(name)

    def sync(self) -> None:
        """Make everything written durable. Raises DiskFull."""
        with disk_errors(_disk_full):
            for name in tuple(self._unsynced):
                descriptor = os.open(self.path(name), os.O_RDWR | os.O_CLOEXEC)
                try:
                    os.ftruncate(descriptor, self._sizes[name])
                    os.fsync(descriptor)
                finally:
                    os.close(descriptor)
                self._unsynced.discard(name)
        self._synced_at = time.monotonic()

    @property
    def size(self) -> int:
        """Bytes of both files."""
        return sum(self._sizes.values())

    def files(self) -> dict[str, Path]:
        """The files that have results, by their name."""
        return {name: self.path(name) for name, size in self._sizes.items() if size}


class ResultWriter:
    """Writes the results of requests that end at the same time together, off the event loop.

    Args:
        log: Opened.
        on_trouble: Called with the error while a result cannot be written, and with None when it can again.
    """

    def __init__(self, log: ResultLog, on_trouble: Callable[[HatrackError | None], None]) -> None:
        self._log = log
        self._on_trouble = on_trouble
        self._pending: list[Result] = []
        self._lock = asyncio.Lock()
        self._charge: Charge | None = None

    def charge_to(self, charge: Charge) -> None:
        """Charge what the log has, and what comes, to the project's files."""
        charge.add(self._log.size)
        self._charge = charge

    async def add(self, *results: Result) -> None:
        """Write results; they are in the files when this returns. Room is waited for: on the disk, and among the
        project's files."""
        self._pending.extend(results)
        async with self._lock:
            if self._pending:  # else whoever had the lock before has written them
                await self._write()

    async def _write(self) -> None:
        charged = 0
        while True:
            results = tuple(self._pending)
            size = sum(len(part) for result in results for part in result.parts)
            try:
                if self._charge is not None:
                    await self._charge.take(size - charged)
                    charged = size
                await in_thread(self._log.append, results)
            except (DiskFull, TooLarge) as error:
                self._on_trouble(error)
                await asyncio.sleep(DISK_RETRY_S)
                continue
            del self._pending[: len(results)]
            self._on_trouble(None)
            return

    def write_all_the_same(self) -> None:
        """From now on the project's files need no room: the batch ends, and what is left to write is little."""
        self._charge = None

    async def finish(self) -> None:
        """Write what is left, and what is added from now on, all the same; make it durable. Raises DiskFull."""
        self.write_all_the_same()
        async with self._lock:
            await self._write()
            await in_thread(self._log.sync)


def answer_line(
    result_id: str, custom_id: str, status: int, request_id: str, body: bytes
) -> tuple[bytes, bytes, bytes]:
    """The parts of a result's line, in OpenAI's form, for a request that was answered; ``body`` is JSON in one line."""
    head = orjson.dumps({"id": result_id, "custom_id": custom_id})
    response = orjson.dumps({"status_code": status, "request_id": request_id})
    return head[:-1] + b',"response":' + response[:-1] + b',"body":', body, b'},"error":null}\n'


def refused_line(result_id: str, custom_id: str, error: dict[str, Any]) -> bytes:
    """A result's line, in OpenAI's form, for a request that has no response; ``error`` has `code` and `message`."""
    value = {"id": result_id, "custom_id": custom_id, "response": None, "error": error}
    return orjson.dumps(value, option=orjson.OPT_APPEND_NEWLINE)


def usage_of(answer: bytes) -> Usage:
    """The tokens that an answer counts, of whichever endpoint; the answer is searched, not parsed."""
    text = usage_at(answer)
    if text is None:
        return Usage()
    try:
        usage, _ = _DECODER.raw_decode(text.decode(errors="replace"))
    except ValueError:
        return Usage()
    old = "prompt_tokens" in usage
    given, made = ("prompt_tokens", "completion_tokens") if old else ("input_tokens", "output_tokens")
    given_details, made_details = usage.get(f"{given}_details") or {}, usage.get(f"{made}_details") or {}
    return Usage(
        input=_count(usage.get(given)),
        cached=_count(given_details.get("cached_tokens")),
        output=_count(usage.get(made)),
        reasoning=_count(made_details.get("reasoning_tokens")),
    )


def _count(value: Any) -> int:
    return value if type(value) is int and value > 0 else 0


def _disk_full() -> DiskFull:
    return DiskFull("the disk is full; the results of batches wait for room")
