"""The line of a request: the same bytes, whether it becomes a record of `logging` or goes to stderr without that."""

from __future__ import annotations

import io
import logging
import sys
import time
from collections.abc import Callable

import orjson
import pytest

from service.access.caller import Caller, Scope
from service.http.stream import TokenUsage
from service.registry.catalog import Target
from service.telemetry.logs import JsonFormatter, JsonHandler
from service.telemetry.record import LogAccount, Record

VOICE = Target("voice", "d" * 64, adapter="voice", version=3, digest="d" * 64)
CALLER = Caller("key-1", "team", frozenset({Scope.INFER}))
RECORDS = [
    Record("r1", "/v1/chat/completions"),
    Record(
        "r2", "/v1/completions", CALLER, VOICE, True, 200, "ok", None, TokenUsage(3, 4, 1), 0.125, 0.5, engine_s=0.25
    ),
    Record("r3", "/v1/é\u2028\U0001f600", CALLER, Target("smol", "smol"), False, 404, "refused", "model_not_found"),
    Record("r4", "/v1/messages", CALLER, VOICE, status=499, outcome="left", usage=TokenUsage(0, 2, exact=False)),
]
MakeHandler = Callable[[io.TextIOWrapper], logging.Handler]


def formatted(stream: io.TextIOWrapper) -> logging.Handler:
    """Writes what records become."""
    handler = logging.StreamHandler(stream)
    handler.setFormatter(JsonFormatter())
    return handler


def account_to(handler: logging.Handler, name: str = "hatrack.inference") -> LogAccount:
    """An account whose lines go to one handler only, by a logger's parent."""
    parent = logging.Logger("parent", logging.INFO)
    parent.propagate = False
    parent.addHandler(handler)
    logger = logging.Logger(name, logging.INFO)
    logger.parent = parent
    return LogAccount(logger)


def written(make: MakeHandler, encoding: str = "utf-8") -> bytes:
    stream = io.TextIOWrapper(io.BytesIO(), encoding, "backslashreplace")
    account = account_to(make(stream))
    for record in RECORDS:
        account(record)
    return stream.buffer.getvalue()  # type: ignore[attr-defined, no-any-return]


@pytest.fixture
def no_records(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logging, "LogRecord", lambda *_: pytest.fail("a record was made"))


@pytest.fixture
def at_one_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time, "time", lambda: 1_700_000_000.25)
    monkeypatch.setattr(time, "time_ns", lambda: 1_700_000_000_250_000_000)


@pytest.mark.usefixtures("at_one_time")
def test_both_ways_write_the_same_bytes(request: pytest.FixtureRequest) -> None:
    by_records = written(formatted)
    request.getfixturevalue("no_records")
    assert written(JsonHandler) == by_records
    lines = [orjson.loads(line) for line in by_records.splitlines()]
    assert [line["request_id"] for line in lines] == ["r1", "r2", "r3", "r4"]
    assert lines[0] == {
        "time": "2023-11-14T22:13:20.250Z",
        "level": "info",
        "logger": "hatrack.inference",
        "message": "inference request",
        "request_id": "r1",
        "route": "/v1/chat/completions",
        "stream": False,
        "status": 0,
        "outcome": "ok",
        "total_s": 0.0,
        "engine_s": 0.0,
    }
    assert lines[1]["usage_exact"] is True
    assert lines[2]["code"] == "model_not_found"
    assert None not in [value for line in lines for value in line.values()]


@pytest.mark.usefixtures("at_one_time")
def test_a_stream_of_another_encoding_gets_its_own_bytes() -> None:
    assert written(JsonHandler, "latin-1") == written(formatted, "latin-1") != written(JsonHandler)


@pytest.mark.usefixtures("no_records")
def test_what_was_written_before_as_text_stays_before() -> None:
    stream = io.TextIOWrapper(io.BytesIO(), "utf-8")
    account = account_to(JsonHandler(stream))
    stream.write("before\n")
    account(RECORDS[0])
    stream.write("after\n")
    stream.flush()
    lines = stream.buffer.getvalue().splitlines()  # type: ignore[attr-defined]
    assert (lines[0], lines[2]) == (b"before", b"after")


def test_other_handlers_and_filters_get_a_record() -> None:
    stream = io.TextIOWrapper(io.BytesIO(), "utf-8")
    for change in ("handler", "filter of the logger", "filter of the handler", "level of the handler", "subclass"):
        seen: list[logging.LogRecord] = []

        class Seeing(logging.Handler):
            def emit(self, record: logging.LogRecord, seen: list[logging.LogRecord] = seen) -> None:
                seen.append(record)

        class SeeingJson(JsonHandler):
            def emit(self, record: logging.LogRecord, seen: list[logging.LogRecord] = seen) -> None:
                seen.append(record)

        def see(record: logging.LogRecord, seen: list[logging.LogRecord] = seen) -> bool:
            seen.append(record)
            return False

        handler = SeeingJson(stream) if change == "subclass" else JsonHandler(stream)
        account = account_to(handler)
        parent = account._log.parent
        assert parent is not None
        if change == "handler":
            account._log.addHandler(Seeing())
        elif change == "filter of the logger":
            account._log.addFilter(see)
        elif change == "filter of the handler":
            handler.addFilter(see)
        elif change == "level of the handler":
            handler.setLevel(logging.WARNING)
            parent.addHandler(Seeing())
        account(RECORDS[0])
        assert [record.getMessage() for record in seen] == ["inference request"], change
    quiet = account_to(JsonHandler(stream))
    quiet._log.disabled = True
    size = len(stream.buffer.getvalue())  # type: ignore[attr-defined]
    quiet(RECORDS[0])
    quiet._log.disabled = False
    quiet._log.setLevel(logging.WARNING)
    quiet(RECORDS[0])
    assert len(stream.buffer.getvalue()) == size  # type: ignore[attr-defined]


def test_a_stream_without_bytes_gets_text() -> None:
    stream = io.StringIO()
    account_to(JsonHandler(stream))(RECORDS[1])
    assert orjson.loads(stream.getvalue())["request_id"] == "r2"


def test_a_stream_that_cannot_be_written_ends_no_request(monkeypatch: pytest.MonkeyPatch) -> None:
    class Full(io.RawIOBase):
        def writable(self) -> bool:
            return True

        def write(self, _data: object) -> int:
            raise OSError(28, "No space left on device")

    reports = io.StringIO()
    monkeypatch.setattr(sys, "stderr", reports)
    account_to(JsonHandler(io.TextIOWrapper(io.BufferedWriter(Full()), "utf-8")))(RECORDS[0])
    assert "No space left on device" in reports.getvalue()
