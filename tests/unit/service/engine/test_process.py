"""Processes of an engine are found again and ended, however they look by then."""

import os
import secrets
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import orjson
import pytest

from service.engine.config import process_title
from service.engine.contract import TOKEN_VARIABLE
from service.engine.process import end, end_leftovers, first_error, members

TOKEN = secrets.token_hex(16)
"""Its own in each test process: what carries it is looked for on the whole machine, and ended."""
SLEEP = "import time; print(flush=True); time.sleep(60)"
DEAF = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print(flush=True); time.sleep(60)"


@pytest.fixture
def started() -> Iterator[list[subprocess.Popen[bytes]]]:
    processes: list[subprocess.Popen[bytes]] = []
    yield processes
    for process in processes:
        process.kill()
        process.wait(60)
        assert process.stdout is not None
        process.stdout.close()


def start(
    started: list[subprocess.Popen[bytes]], code: str, *, title: str | None = None, token: str | None = None
) -> int:
    """A child that is known by its environment (`token`) or only by its command line (`title`)."""
    environment = {"PATH": os.environ["PATH"]} | ({TOKEN_VARIABLE: token} if token else {})
    process = subprocess.Popen(
        [title or sys.executable, "-c", code],
        executable=sys.executable,
        env=environment,
        stdout=subprocess.PIPE,
        start_new_session=True,
    )
    started.append(process)
    assert process.stdout is not None
    process.stdout.readline()  # until it runs
    return process.pid


def test_a_process_is_known_by_its_environment_or_its_title(started: list[subprocess.Popen[bytes]]) -> None:
    ours = {
        start(started, SLEEP, token=TOKEN),
        start(started, SLEEP, title=f"{process_title(TOKEN)}::EngineCore"),
    }
    start(started, SLEEP, token="another")
    start(started, SLEEP)
    assert {process.pid for process in members(TOKEN)} == ours


def test_end_ends_all_of_them_and_nobody_else(started: list[subprocess.Popen[bytes]]) -> None:
    ours = [start(started, SLEEP, token=TOKEN), start(started, SLEEP, title=f"{process_title(TOKEN)}::Worker")]
    other = start(started, SLEEP)
    assert end(TOKEN) == sorted(ours)
    assert members(TOKEN) == []
    os.kill(other, 0)


def test_what_does_not_hear_sigterm_is_killed(
    started: list[subprocess.Popen[bytes]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("service.engine.process.TERM_TIMEOUT_S", 0.2)
    start(started, DEAF, token=TOKEN)
    end(TOKEN)
    assert started[0].wait(60) == -signal.SIGKILL


def test_leftovers_on_record_are_ended(started: list[subprocess.Popen[bytes]], tmp_path: Path) -> None:
    pid = start(started, SLEEP, token=TOKEN)
    (tmp_path / "engine.json").write_bytes(orjson.dumps({"token": TOKEN, "argv": []}))
    assert end_leftovers(tmp_path) == [pid]
    assert not (tmp_path / "engine.json").exists()
    assert end_leftovers(tmp_path) == []


@pytest.mark.parametrize("content", [b"", b"{}", b"[]", b"not json"])
def test_a_record_that_says_nothing_ends_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: bytes
) -> None:
    def look(token: str) -> list[int]:
        raise AssertionError(f"{token!r} was looked for")

    monkeypatch.setattr("service.engine.process.members", look)
    (tmp_path / "engine.json").write_bytes(content)
    assert end_leftovers(tmp_path) == []


@pytest.mark.parametrize(
    ("lines", "error"),
    [
        ("INFO starting\nValueError: X does not support LoRA yet.\n", "ValueError: X does not support LoRA yet."),
        (
            "(EngineCore pid=7) ERROR 11-27 19:37:52 [core.py:12] ValueError: X does not support LoRA yet.\n"
            "RuntimeError: Engine core initialization failed. See root cause above.\n",
            "ValueError: X does not support LoRA yet.",
        ),
        (
            "(Worker pid=7) service.engine.plugin.guard.PluginError: vLLM 0.40 is not supported\n",
            "PluginError: vLLM 0.40 is not supported",
        ),
        (
            "pydantic_core._pydantic_core.ValidationError: 1 validation error for ModelConfig\n"
            "  Value error, max_model_len (4096) is greater than the derived one [type=value_error]\n",
            "ValidationError: max_model_len (4096) is greater than the derived one [type=value_error]",
        ),
        ("WARNING a ValueError: in the middle of a line\nall is well\n", None),
    ],
)
def test_the_first_error_of_an_engines_log_says_why_it_exited(tmp_path: Path, lines: str, error: str | None) -> None:
    log = tmp_path / "engine.log"
    before = "RuntimeError: of the engine before\n"
    log.write_text(before + lines)
    assert first_error(log, len(before)) == error
    assert first_error(tmp_path / "none", 0) is None
