"""Structured logs: one JSON object a line on stderr, never a prompt, an answer or a key.

On a terminal the same records are a short line for people.
"""

from __future__ import annotations

import logging
import sys
import time
import traceback
from collections.abc import Iterator, Mapping
from contextlib import nullcontext
from typing import BinaryIO, Final, TextIO, cast

import aiohttp
import orjson

_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName", "color_message"}
FIELDS: Final = "hatrack_fields"
"""Attribute of a record that was made by hand, with all of its extra fields; none of them is None."""
_ROOTS: Final = ("hatrack", "service", "adapters", "uvicorn")

SPEAKING: Final = (
    OSError,
    TypeError,
    AttributeError,
    NameError,
    ImportError,
    AssertionError,
    ArithmeticError,
    RecursionError,
    MemoryError,
    aiohttp.ClientConnectionError,
)
"""Exceptions whose messages name code, files and sockets. Those of others (ValueError, KeyError, pydantic's,
SQLAlchemy's) quote what they were given, which may be a prompt or a key: of them the log has the type and the place."""


class JsonFormatter(logging.Formatter):
    """One JSON object a line: time (RFC 3339, UTC), level, logger, message and the record's extra fields."""

    def __init__(self) -> None:
        super().__init__()
        self._second = -1
        self._written = ""

    def format(self, record: logging.LogRecord) -> str:
        line = self.start(record.created, record.levelname.lower(), record.name, record.getMessage())
        line.update(extra_fields(record))
        if record.exc_info and record.exc_info[1] is not None:
            line["exception"] = describe(record.exc_info[1])
        return orjson.dumps(line, default=str).decode()

    def start(self, created: float, level: str, logger: str, message: str) -> dict[str, object]:
        """What every line begins with. ``created`` is in Unix seconds."""
        second = int(created)
        if second != self._second:
            self._second, self._written = second, time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(second))
        milliseconds = int((created - second) * 1000)
        return {
            "time": f"{self._written}.{milliseconds:03d}Z",
            "level": level,
            "logger": logger,
            "message": message,
        }


class JsonHandler(logging.StreamHandler[TextIO]):
    """Writes records as JSON lines to a text stream. The line of each request need not become a record for that."""

    def __init__(self, stream: TextIO) -> None:
        super().__init__(stream)
        self._json = JsonFormatter()
        self.setFormatter(self._json)

    def binary(self) -> BinaryIO | None:
        """What the stream writes its bytes to; None: it does not show, or would write other bytes than UTF-8."""
        if (getattr(self.stream, "encoding", None) or "").lower() not in ("utf-8", "utf8"):
            return None
        return getattr(self.stream, "buffer", None)

    def write_line(self, binary: BinaryIO, logger: str, message: str, fields: Mapping[str, object]) -> None:
        """Write a line at the level `info`, as a record with these fields would be written.

        Args:
            binary: What `binary` returned.
        """
        try:
            line = self._json.start(time.time(), "info", logger, message)
            line.update(fields)
            data = orjson.dumps(line, default=str, option=orjson.OPT_APPEND_NEWLINE)
            with self.lock or nullcontext():
                self.stream.flush()  # what was written before, as text
                binary.write(data)
                binary.flush()
        except Exception:
            self.handleError(logging.LogRecord(logger, logging.INFO, "", 0, message, None, None))


def only_handler(logger: logging.Logger) -> JsonHandler | None:
    """The handler that alone writes a logger's records at the level `info`, and all of them; None: it is not so."""
    if logger.filters or logger.disabled:
        return None
    handlers = logger.handlers
    while not handlers and logger.propagate and logger.parent is not None:
        logger = logger.parent
        handlers = logger.handlers
    if len(handlers) != 1 or (logger.propagate and logger.parent is not None):
        return None
    handler = handlers[0]
    is_plain = type(handler) is JsonHandler and not handler.filters and handler.level <= logging.INFO
    return cast("JsonHandler", handler) if is_plain else None


class TerminalFormatter(logging.Formatter):
    """A line for a person: time, level where it is not information, message, extra fields as key=value."""

    def format(self, record: logging.LogRecord) -> str:
        level = "" if record.levelno == logging.INFO else f"{record.levelname.lower()}: "
        extras = "".join(f" {key}={value}" for key, value in extra_fields(record).items())
        text = f"{time.strftime('%H:%M:%S', time.localtime(record.created))} {level}{record.getMessage()}{extras}"
        failed = record.exc_info[1] if record.exc_info else None
        return text + (f"\n{describe(failed)}" if failed is not None else "")


def extra_fields(record: logging.LogRecord) -> dict[str, object]:
    """The fields that a log call passed as ``extra``, or as a whole under FIELDS."""
    fields: dict[str, object] | None = record.__dict__.get(FIELDS)
    if fields is not None:
        return fields
    return {key: value for key, value in vars(record).items() if key not in _STANDARD and value is not None}


def describe(error: BaseException) -> str:
    """An exception and its causes: where each was raised, its type, its message where that cannot quote a client."""
    return "\n".join(_parts(error, set()))


def _parts(error: BaseException, visited: set[int]) -> Iterator[str]:
    visited.add(id(error))
    earlier = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    if earlier is not None and id(earlier) not in visited:
        yield from _parts(earlier, visited)
        yield "which led to"
    yield "".join(traceback.format_tb(error.__traceback__)).rstrip()
    kind = type(error)
    name = kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"
    yield f"{name}: {error}" if isinstance(error, SPEAKING) else name
    if isinstance(error, BaseExceptionGroup):
        for inner in error.exceptions:
            if id(inner) not in visited:
                yield "in which"
                yield from _parts(inner, visited)


def configure_logs(level: str) -> None:
    """Send the service's and the server's records of at least ``level``, and libraries' warnings, to stderr."""
    # no line shows these, and every record would look them up
    logging.logThreads = logging.logMultiprocessing = logging.logProcesses = False
    handler: logging.Handler
    if sys.stderr.isatty():
        handler = logging.StreamHandler(sys.stderr)
        handler.setFormatter(TerminalFormatter())
    else:
        handler = JsonHandler(sys.stderr)
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.WARNING)
    for name in _ROOTS:
        logger = logging.getLogger(name)
        logger.handlers[:] = [handler]
        logger.setLevel(level.upper())
        logger.propagate = False
    logging.getLogger("uvicorn.access").disabled = True
    logging.getLogger("uvicorn.error").setLevel(logging.WARNING)
