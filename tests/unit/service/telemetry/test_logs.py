"""Logs are JSON lines with request ids, and hold no prompt, no answer and no key, whatever goes wrong."""

from __future__ import annotations

import asyncio
import io
import logging
import sys
from collections.abc import Callable, Iterator

import orjson
import pytest
from pydantic import BaseModel

from service.access.authentication import Authenticator
from service.errors import BadGateway
from service.inference.dispatch import Dispatch
from service.inference.pipeline import Pipeline
from service.inference.routes import InferenceApp
from service.telemetry.logs import JsonFormatter, TerminalFormatter, configure_logs, describe
from service.telemetry.record import LogAccount
from tests.unit.service.inference.fakes import BASE, DONE, KEY, World, catalog, completion, token

MARK = "xyzzy-tell-nobody"


@pytest.fixture
def log(monkeypatch: pytest.MonkeyPatch) -> Iterator[io.StringIO]:
    """What a gateway at the level `debug` writes to stderr; pytest's own handlers come back afterwards."""
    written = io.StringIO()
    names = ("", "hatrack", "service", "adapters", "uvicorn", "uvicorn.error", "uvicorn.access")
    loggers = [logging.getLogger(name) for name in names]
    before = [(logger.handlers[:], logger.level, logger.propagate, logger.disabled) for logger in loggers]
    monkeypatch.setattr(sys, "stderr", written)
    configure_logs("debug")
    yield written
    for logger, (handlers, level, propagate, disabled) in zip(loggers, before, strict=True):
        logger.handlers[:], logger.propagate, logger.disabled = handlers, propagate, disabled
        logger.setLevel(level)


def nothing() -> None:
    """Sees tokens and says nothing."""


def quote() -> None:
    """Sees tokens, and fails with words that a client has sent."""
    raise ValueError(f"cannot make sense of {MARK}")


def world(key: str = KEY, saw_tokens: Callable[[], None] = nothing) -> World:
    made = World(Authenticator(key))
    dispatch = Dispatch(made.settings, made.engine, BASE, saw_tokens=saw_tokens)
    pipeline = Pipeline(made.settings, Authenticator(key), catalog(), dispatch, account=LogAccount())
    made.app = InferenceApp(made.settings, pipeline)
    return made


async def ask(asked: World, body: object, key: str = KEY) -> int:
    headers = {"authorization": f"Bearer {key}", "x-request-id": "the-id-of-the-test"}
    return (await asked.ask("/v1/chat/completions", body, headers=headers)).status


async def test_no_line_holds_a_prompt_an_answer_or_a_key(log: io.StringIO) -> None:
    asked = world(f"key-{MARK}")
    key = f"key-{MARK}"
    said = {"model": "voice", "messages": [{"role": "user", "content": MARK}]}
    asked.engine.chunks = [completion(MARK)]
    assert await ask(asked, said, key) == 200
    asked.engine.chunks = [token(MARK), DONE]
    assert await ask(asked, said | {"stream": True}, key) == 200
    asked.engine.chunks = [token(MARK), BadGateway(f"the engine said {MARK}")]
    assert await ask(asked, said | {"stream": True}, key) == 200
    asked.engine.chunks, asked.engine.status = [b'{"error":{"message":"%s"}}' % MARK.encode()], 500
    assert await ask(asked, said, key) == 502
    assert await ask(asked, said | {"model": MARK}, key) == 404
    assert await ask(asked, said | {MARK: 1}, key) == 400
    assert await ask(asked, f'{{"model": "{MARK}'.encode(), key) == 400
    assert await ask(asked, said, f"wrong-{MARK}") == 401
    lines = [orjson.loads(line) for line in log.getvalue().splitlines()]
    assert len(lines) >= 8
    assert {line["request_id"] for line in lines} == {"the-id-of-the-test"}
    assert MARK not in log.getvalue()


async def test_an_unexpected_failure_is_logged_with_its_place_and_without_its_words(log: io.StringIO) -> None:
    asked = world(saw_tokens=quote)
    asked.engine.chunks = [completion("Ahoy")]
    assert await ask(asked, {"model": "voice", "messages": [{"role": "user", "content": MARK}]}) == 500
    text = log.getvalue()
    assert MARK not in text
    [failure] = [line for line in map(orjson.loads, text.splitlines()) if "exception" in line]
    assert failure["request_id"] == "the-id-of-the-test"
    assert "in quote" in failure["exception"]
    assert failure["exception"].endswith("ValueError")


class Shape(BaseModel):
    count: int


def failures() -> list[BaseException]:
    """Exceptions that quote what they were given, on their own, as a cause and in a group."""
    found: list[BaseException] = []

    def catch(raiser: object) -> None:
        try:
            raiser()  # type: ignore[operator]
        except BaseException as error:
            found.append(error)

    def group() -> None:
        raise ExceptionGroup(MARK, [KeyError(MARK), ValueError(MARK)])

    def chain() -> None:
        try:
            raise KeyError(MARK)
        except KeyError as error:
            raise RuntimeError(MARK) from error

    catch(lambda: Shape.model_validate({"count": MARK}))
    catch(lambda: orjson.loads(MARK))
    catch(lambda: int(MARK))
    catch(lambda: {}[MARK])
    catch(lambda: MARK.encode("utf-16").decode("ascii"))
    catch(group)
    catch(chain)
    return found


def test_descriptions_of_failures_quote_nobody() -> None:
    for error in failures():
        text = describe(error)
        assert MARK not in text
        assert type(error).__name__ in text
        assert "test_logs.py" in text
    assert "KeyError" in describe(failures()[-1]), "the cause is named, too"


def test_failures_that_name_code_and_files_keep_their_words() -> None:
    assert describe(FileNotFoundError(2, "No such file", "/var/x")).endswith("'/var/x'")
    assert describe(AttributeError("no attribute `x`")).endswith("no attribute `x`")


def test_a_failure_that_is_its_own_context_ends() -> None:
    first, second = ValueError("a"), ValueError("b")
    first.__context__, second.__context__ = second, first
    assert describe(first).count("ValueError") == 2


def test_both_forms_say_the_same() -> None:
    made = logging.makeLogRecord({"msg": "it %s", "args": ("works",), "levelname": "WARNING", "levelno": 30, "n": 3})
    line = orjson.loads(JsonFormatter().format(made))
    assert (line["message"], line["level"], line["n"]) == ("it works", "warning", 3)
    assert TerminalFormatter().format(made).endswith("warning: it works n=3")


async def test_warnings_of_libraries_are_lines_too(log: io.StringIO) -> None:
    asyncio.get_running_loop().call_exception_handler({"message": "a task was lost", "exception": ValueError(MARK)})
    [line] = [orjson.loads(line) for line in log.getvalue().splitlines()]
    assert (line["logger"], line["level"]) == ("asyncio", "error")
    assert MARK not in log.getvalue()
