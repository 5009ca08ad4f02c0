"""Both ends of a check that is a process of its own.

So the API server loads no model library, and a file that takes too much memory or time ends only its own check. What
the child prints on stdout is its result; where it refuses, its exit code is REFUSED and stdout has
`{"code": …, "message": …, "param": …}`.
"""

from __future__ import annotations

import asyncio
import errno
import json
import shutil
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Final

from trainer.config import worker_environment
from trainer.errors import DataCheckTimeout, DiskFull, InternalError, InvalidField

REFUSED: Final = 3
SCRATCH: Final = ".scratch-"
EARLIER_SCRATCH: Final = (".check-", ".estimate-")
"""The same in earlier releases."""


def refuse(code: str, message: str, *, param: str | None = None) -> int:
    """Say in the child why it refuses; returns its exit code."""
    sys.stdout.write(json.dumps({"code": code, "message": message, "param": param}) + "\n")
    return REFUSED


async def run_child(command: Sequence[str], *, name: str, param: str, timeout_s: float) -> bytes:
    """Run a command and return what it prints; it is killed if it takes longer, or if nobody waits any more.

    Args:
        name: What it is, for messages, such as "data check".
        param: The request's field at fault where the child names none.

    Raises:
        InvalidField: It refuses.
        DataCheckTimeout: It took longer than ``timeout_s``.
        InternalError: It failed.
    """
    child = await asyncio.create_subprocess_exec(
        *command,
        env=worker_environment(),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
    )
    try:
        async with asyncio.timeout(timeout_s):
            output, _ = await child.communicate()
    except TimeoutError:
        raise DataCheckTimeout(f"the {name} exceeded {timeout_s:g} s") from None
    finally:
        with suppress(ProcessLookupError):
            child.kill()
        await child.wait()
    if child.returncode == REFUSED:
        refused: dict[str, Any] = json.loads(output)
        raise InvalidField(refused["message"], param=refused["param"] or param, code=refused["code"])
    if child.returncode != 0:
        raise InternalError(f"the {name} failed (exit code {child.returncode}); see the trainer's log")
    return output


@contextmanager
def scratch_directory(parent: Path) -> Iterator[Path]:
    """An empty directory for what a child reads; it is removed afterwards, or by `remove_scratch` after a crash.

    Raises:
        DiskFull: In place of the OSError of a write in the block.
    """
    try:
        with tempfile.TemporaryDirectory(dir=parent, prefix=SCRATCH) as directory:
            yield Path(directory)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise DiskFull("the trainer's disk is full; nothing was kept") from error
        raise


def remove_scratch(parent: Path) -> None:
    """Remove the directories of children that a killed trainer left, also those of earlier releases. Blocks."""
    for prefix in (SCRATCH, *EARLIER_SCRATCH):
        for leftover in parent.glob(f"{prefix}*"):
            shutil.rmtree(leftover, ignore_errors=True)
