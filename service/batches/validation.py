"""Checks the whole input file of a batch before any of its requests is asked."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final

import orjson

from service.batches.lines import InputLine, InputLines, LineRequest, parse_line
from service.concurrency import in_thread
from service.errors import HatrackError

MAX_REPORTED: Final = 500
"""Invalid lines that are named one by one."""

CheckBody = Callable[[bytes], str]
"""Takes the body of a request, JSON; returns the name of its model. Raises HatrackError if it would be refused."""


@dataclass
class CheckedInput:
    """What a check found: the number of requests, their models, and every fault as the API's ``BatchError``."""

    total: int = 0
    models: set[str] = field(default_factory=set)
    errors: list[dict[str, Any]] = field(default_factory=list)
    unreported: int = 0

    @property
    def model(self) -> str | None:
        """The model of all requests; None if they differ."""
        return next(iter(self.models)) if len(self.models) == 1 else None

    def refuse(self, code: str | None, message: str, *, param: str | None = None, line: int | None = None) -> None:
        """Note a fault."""
        if len(self.errors) >= MAX_REPORTED:
            self.unreported += 1
            return
        self.errors.append({"code": code or "invalid_value", "message": message, "param": param, "line": line})


async def check_input(lines: InputLines, endpoint: str, max_requests: int, check_body: CheckBody) -> CheckedInput:
    """Check every line of an input file: its form, that its `custom_id` is unique, and its body.

    Lines are parsed in a thread and bodies are checked on the event loop, about 64 KiB at a time.

    Args:
        max_requests: The check ends at more of them.
        check_body: Called for every body. What it raises, but for HatrackError, passes.
    """
    found = CheckedInput()
    seen: dict[bytes, int] = {}
    while part := await in_thread(_parse_part, lines, endpoint):
        for number, parsed in part:
            found.total += 1
            if found.total > max_requests:
                found.refuse(
                    "too_many_requests",
                    f"the file has more than {max_requests} requests (HATRACK_BATCH_REQUESTS); split it",
                    line=number,
                )
                return _complete(found)
            if isinstance(parsed, HatrackError):
                found.refuse(parsed.code, parsed.message, param=parsed.param, line=number)
                continue
            _check_unique(found, seen, parsed)
            try:
                model = check_body(orjson.dumps(parsed.body))
            except HatrackError as error:
                param = "body" if error.param is None else f"body.{error.param}"
                found.refuse(error.code, error.message, param=param, line=number)
            else:
                if len(found.models) < 2:
                    found.models.add(model)
    if found.total == 0:
        found.refuse("empty_file", "the file has no requests")
    return _complete(found)


def _parse_part(lines: InputLines, endpoint: str) -> list[tuple[int, LineRequest | HatrackError]]:
    return [(line.number, _parsed(line, endpoint)) for line in lines.next_part()]


def _parsed(line: InputLine, endpoint: str) -> LineRequest | HatrackError:
    try:
        return parse_line(line, endpoint)
    except HatrackError as error:
        return error


def _check_unique(found: CheckedInput, seen: dict[bytes, int], request: LineRequest) -> None:
    digest = hashlib.blake2b(request.custom_id.encode("utf-8", "surrogatepass"), digest_size=16).digest()
    first = seen.setdefault(digest, request.number)
    if first != request.number:
        found.refuse(
            "duplicate_custom_id",
            f"`custom_id` {request.custom_id[:80]!r} is that of line {first}, too; it must be unique in the file",
            param="custom_id",
            line=request.number,
        )


def _complete(found: CheckedInput) -> CheckedInput:
    if found.unreported:
        count = found.unreported
        found.errors.append(
            {
                "code": "too_many_errors",
                "message": f"{count} more faults are not listed; the first {MAX_REPORTED} are",
                "param": None,
                "line": None,
            }
        )
    return found
