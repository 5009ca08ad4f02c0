"""The quality report of a file that is sent for it: kept for as long as the check takes, looked at by a process of its
own that is bounded in time and memory."""

from __future__ import annotations

import asyncio
import json
import sys
import tempfile
from collections.abc import AsyncIterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from trainer.config import Installation, Settings, worker_environment
from trainer.data.report import Report
from trainer.errors import BodyTooLarge, Broken, CheckTimedOut, Invalid, TooMany

REFUSED: Final = 3
"""`trainer.data.check` says so of a file that cannot be read."""
WAITING_MOST: Final = 8
AT_ONCE: Final = 1
IDLE_TIMEOUT_S: Final = 60.0


@dataclass(frozen=True, slots=True)
class CheckWish:
    """How a file is to be looked at."""

    max_length: int | None
    strict: bool
    drop_long: bool


class DataChecks:
    """Looks at data files, one at a time; a few may wait."""

    def __init__(self, settings: Settings, installation: Installation) -> None:
        self._settings = settings
        self._installation = installation
        self._turn = asyncio.Semaphore(AT_ONCE)
        self._there = 0

    @property
    def most_bytes(self) -> int:
        """Of a file."""
        return int(self._settings.max_file_mib * 2**20)

    async def check(self, name: str, content: AsyncIterator[bytes], wish: CheckWish) -> dict[str, Any]:
        """The report as JSON, and under `refused` whether a job would refuse the data.

        Raises:
            Invalid: The file cannot be read; the message has the lines and what is wrong with them.
            BodyTooLarge, TooMany, CheckTimedOut, Broken.
        """
        if self._there >= WAITING_MOST:
            raise TooMany("too many files are being looked at already", retry_after_s=30)
        self._there += 1
        try:
            with tempfile.TemporaryDirectory(dir=self._installation.directory, prefix=".check-") as directory:
                path = Path(directory, "data")
                await self._receive(path, content)
                async with self._turn:
                    return await self._look(path, name, wish)
        finally:
            self._there -= 1

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
                    raise Invalid(f"nothing came for {IDLE_TIMEOUT_S:g} s in the middle of the file") from None
                total += len(chunk)
                if total > self.most_bytes:
                    raise BodyTooLarge(f"the file has more than {self._settings.max_file_mib:g} MiB")
                await asyncio.to_thread(file.write, chunk)
        if total == 0:
            raise Invalid("the file is empty", param="file")

    async def _look(self, path: Path, name: str, wish: CheckWish) -> dict[str, Any]:
        child = await asyncio.create_subprocess_exec(
            *self._command(path, name, wish),
            env=worker_environment(),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
        )
        try:
            async with asyncio.timeout(self._settings.check_timeout_s):
                told, _ = await child.communicate()
        except TimeoutError:
            raise CheckTimedOut(f"the check took more than {self._settings.check_timeout_s:g} s") from None
        finally:
            with suppress(ProcessLookupError):
                child.kill()
            await child.wait()
        if child.returncode == REFUSED:
            refused = json.loads(told)
            raise _refusal(refused["code"], refused["message"], refused["param"] or "file")
        if child.returncode != 0:
            raise Broken(f"the check failed (exit code {child.returncode}); the trainer's log has the reason")
        report = Report.model_validate_json(told)
        return report.model_dump(mode="json") | {"refused": report.refused}

    def _command(self, path: Path, name: str, wish: CheckWish) -> list[str]:
        installation = self._installation
        shown = "".join(letter if letter.isprintable() else "?" for letter in name)
        command = [sys.executable, "-m", "trainer.data.check", str(path), f"--name={shown}"]
        command += ["--base", str(installation.base), "--memory-gib", str(self._settings.check_memory_gib)]
        command += ["--min-held-out", str(self._settings.min_examples)]
        if installation.context is not None:
            command += ["--context", str(installation.context)]
        if wish.max_length is not None:
            command += ["--max-length", str(wish.max_length)]
        return command + ["--strict"] * wish.strict + ["--drop-long"] * wish.drop_long


def _refusal(code: str, message: str, param: str) -> Invalid:
    return Invalid(message, param=param, code=code)
