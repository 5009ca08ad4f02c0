"""The reader: a process of its own for documents that strangers wrote, with bounds on its memory and no way back.

    python -m service.knowledge.documents

It reads one request a line on its standard input, ``{"path", "kind"}``, and answers each with one line of JSON:
``{"blocks": [[text, kind, level, attributes], …]}`` or ``{"error": [code, message]}``. Whoever asked kills it when an
answer takes too long.
"""

from __future__ import annotations

import logging
import os
import resource
import sys
from pathlib import Path
from typing import Any, Final

import orjson

from service.knowledge.documents.blocks import DocumentError
from service.knowledge.documents.read import read

MEMORY_BYTES: Final = 2 * 1024 * 1024 * 1024
"""Address space; what needs more fails with a MemoryError."""

NICE: Final = 10
"""How much it gives way to everything else on the machine."""


def answer(line: bytes) -> dict[str, Any]:
    """The answer to one request."""
    request = orjson.loads(line)
    try:
        return {"blocks": [block.packed() for block in read(Path(request["path"]), request["kind"])]}
    except DocumentError as error:
        return {"error": [error.code, error.message]}
    except OSError as error:
        return {"error": ["invalid_file", f"its bytes cannot be read ({type(error).__name__})"]}
    except MemoryError:
        return {"error": ["invalid_file", f"reading it takes more than {MEMORY_BYTES >> 20} MiB of memory"]}


def main() -> None:
    """Answer until standard input ends."""
    os.nice(NICE)
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    logging.disable(logging.CRITICAL)  # pypdf has a line to say about every fault of a file
    out = os.fdopen(os.dup(sys.stdout.fileno()), "wb")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # whatever a library prints is no answer
    for line in sys.stdin.buffer:
        out.write(orjson.dumps(answer(line)) + b"\n")
        out.flush()


if __name__ == "__main__":
    main()
