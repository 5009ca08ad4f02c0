"""Data checks: the quality report of an uploaded file, made by a subprocess with limits on time and memory.

The file is kept for the duration of the check only.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from adapters.protocol.requests import Overflow
from trainer.config import Settings
from trainer.data.child_process import remove_scratch, run_child, scratch_directory
from trainer.data.report import Report
from trainer.errors import BodyTooLarge, InvalidField, TooManyRequests
from trainer.installation import Installation

MAX_WAITING: Final = 8
MAX_CONCURRENT: Final = 1
IDLE_TIMEOUT_S: Final = 60.0


@dataclass(frozen=True, slots=True)
class CheckOptions:
    """The options of a data check."""

    max_length: int | None
    strict: bool
    overflow: Overflow


class DataChecks:
    """Checks data files, one at a time; up to MAX_WAITING requests may wait."""

    def __init__(self, settings: Settings, installation: Installation) -> None:
        self._settings = settings
        self._installation = installation
        self._slot = asyncio.Semaphore(MAX_CONCURRENT)
        self._pending = 0

    @property
    def max_bytes(self) -> int:
        """The maximum size of a file, in bytes."""
        return int(self._settings.max_file_mib * 2**20)

    async def open(self) -> None:
        """Remove what checks and estimates left of clients' data when the trainer was killed."""
        await asyncio.to_thread(remove_scratch, self._installation.directory)

    async def check(self, name: str, content: AsyncIterator[bytes], options: CheckOptions) -> dict[str, Any]:
        """The report as JSON, with `refused`: whether a job would refuse the data.

        Raises:
            InvalidField: The file is invalid; the message lists the lines and their problems.
            BodyTooLarge, TooManyRequests, DataCheckTimeout, DiskFull, InternalError.
        """
        if self._pending >= MAX_WAITING:
            raise TooManyRequests(f"{MAX_WAITING} data checks are running or waiting, the maximum", retry_after_s=30)
        self._pending += 1
        try:
            with scratch_directory(self._installation.directory) as directory:
                path = directory / "data"
                await self._receive(path, content)
                async with self._slot:
                    return await self._run_check(path, name, options)
        finally:
            self._pending -= 1

    async def _receive(self, path: Path, content: AsyncIterator[bytes]) -> None:
        total = 0
        chunks = aiter(content)
        with path.open("wb") as file:
            while True:
                try:
                    async with asyncio.timeout(IDLE_TIMEOUT_S):
                        chunk = await anext(chunks)
                except StopAsyncIteration:
                    break
                except TimeoutError:
                    raise InvalidField(f"the upload stalled: no data for {IDLE_TIMEOUT_S:g} s") from None
                total += len(chunk)
                if total > self.max_bytes:
                    raise BodyTooLarge(f"the file exceeds {self._settings.max_file_mib:g} MiB")
                await asyncio.to_thread(file.write, chunk)
        if total == 0:
            raise InvalidField("the file is empty", param="file")

    async def _run_check(self, path: Path, name: str, options: CheckOptions) -> dict[str, Any]:
        output = await run_child(
            self._command(path, name, options),
            name="data check",
            param="file",
            timeout_s=self._settings.check_timeout_s,
        )
        report = Report.model_validate_json(output)
        return report.model_dump(mode="json") | {"refused": report.refused}

    def _command(self, path: Path, name: str, options: CheckOptions) -> list[str]:
        installation = self._installation
        shown = "".join(letter if letter.isprintable() else "?" for letter in name)
        command = [sys.executable, "-m", "trainer.data.check", str(path), f"--name={shown}"]
        command += ["--base", str(installation.base), "--memory-gib", str(self._settings.check_memory_gib)]
        command += ["--min-held-out", str(self._settings.min_examples)]
        if installation.context is not None:
            command += ["--context", str(installation.context)]
        if options.max_length is not None:
            command += ["--max-length", str(options.max_length)]
        return [*command, "--overflow", options.overflow, *["--strict"] * options.strict]
