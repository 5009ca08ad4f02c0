"""Both ends of a check that is a process of its own.

So the API server loads no model library, and a file that takes too much memory or time ends only its own check. What
the child prints on stdout is its result; where it refuses, its exit code is REFUSED and stdout has
`{"code": …, "message": …, "param": …}`.
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Sequence
from contextlib import suppress
from typing import Any, Final

from trainer.config import worker_environment
from trainer.errors import DataCheckTimeout, InternalError, InvalidField

REFUSED: Final = 3


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
