"""`hatrack engine`: what it would run, and where it may listen. `hatrack down`: what it ends."""

from __future__ import annotations

import os
import secrets
import socket
import subprocess
import sys
from pathlib import Path

import orjson
import pytest
from typer.testing import CliRunner

from adapters.store import no_engine
from service.cli.engine import command
from service.cli.main import app
from service.config import Settings
from service.engine.assemble import describe_base
from service.engine.config import EngineConfig
from service.engine.contract import TOKEN_VARIABLE
from service.engine.record import EngineRecord


def settings_for(home: Path, base_dir: Path) -> Settings:
    return Settings(
        home=home,
        base_model=str(base_dir),
        engine_device="cpu",
        engine_url="http://engine:8001",
        engine_key="the-key-of-the-engine",  # type: ignore[arg-type]  # pydantic makes a SecretStr of it
        admin_key="the-key-of-the-admin",  # type: ignore[arg-type]
    )


def test_it_has_the_flags_of_a_gateways_own_engine_and_listens_where_it_is_told(base_dir: Path, tmp_path: Path) -> None:
    settings = settings_for(tmp_path, base_dir)
    argv, environment = command(settings, ["--host", "0.0.0.0", "--port", "8001"])  # noqa: S104
    own = EngineConfig.from_settings(settings).argv()
    assert [flag for flag in own if flag not in argv] == ["--uds", str(tmp_path / "engine" / "engine.sock")]
    assert argv[argv.index("--host") : argv.index("--host") + 4] == ["--host", "0.0.0.0", "--port", "8001"]  # noqa: S104
    assert "the-key-of-the-engine" not in argv, "everybody on the machine can read a command line"
    assert environment["VLLM_API_KEY"] == "the-key-of-the-engine"
    assert "the-key-of-the-admin" not in environment.values()
    assert orjson.loads(environment["HATRACK_ENGINE_BASE"]) == describe_base(settings).fingerprint.model_dump()
    assert (tmp_path / "adapters").is_dir()


def test_no_two_of_them_have_the_same_mark(base_dir: Path, tmp_path: Path) -> None:
    settings = settings_for(tmp_path, base_dir)
    marks = {command(settings, [])[1]["HATRACK_ENGINE_TOKEN"] for _ in range(2)}
    assert len(marks) == 2


NAMED = """
from service.cli import engine

engine.prepare_base = lambda settings: None
engine.command = lambda settings, listen: (
    ["/bin/echo", settings.base_served_name, str(settings.engine_slots), settings.engine_dir.name], {}
)
engine.engine(name="b")
"""
ENTRIES = """
[[engine]]
name = "a"
base = "base"
[[engine]]
name = "b"
base = "base"
slots = 3
"""


def test_of_several_engines_it_is_the_one_that_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "engines.toml").write_text(ENTRIES)
    (tmp_path / "adapters").mkdir()
    monkeypatch.setenv("HATRACK_HOME", str(tmp_path))
    monkeypatch.setenv("HATRACK_ENGINES", str(tmp_path / "engines.toml"))
    monkeypatch.setenv("HATRACK_ENGINE_DEVICE", "cpu")
    started = subprocess.run([sys.executable, "-c", NAMED], capture_output=True, text=True, timeout=120)
    assert started.stdout.split() == ["base", "3", "b"], started.stderr
    assert "has no `url`" in " ".join(started.stderr.split())
    for arguments, given in ((["engine"], "none"), (["engine", "--name", "c"], "'c'")):
        refused = CliRunner().invoke(app, arguments)
        assert refused.exit_code == 1
        assert f"one of its engines, a, b; got {given}" in " ".join(refused.output.split())
    monkeypatch.delenv("HATRACK_ENGINES")
    refused = CliRunner().invoke(app, ["engine", "--name", "b"])
    assert (refused.exit_code, "HATRACK_ENGINES, which is not set" in " ".join(refused.output.split())) == (1, True)


ENGINE = """
import sys
from service.cli import engine

engine.prepare_base = lambda settings: None
engine.command = lambda settings, listen: (["/bin/sh", "-c", "echo loaded; exec sleep 600"], {})
engine.engine(port=8001)
"""


def test_as_long_as_it_lives_it_holds_the_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The process that has become vLLM does: the lock outlives the execve."""
    monkeypatch.setenv("HATRACK_HOME", str(tmp_path))
    monkeypatch.setenv("HATRACK_BASE_MODEL", str(tmp_path))
    store = tmp_path / "adapters"
    store.mkdir()
    with subprocess.Popen([sys.executable, "-c", ENGINE], stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == b"loaded\n"
            with no_engine(store) as is_alone:
                assert not is_alone
        finally:
            process.kill()
    with no_engine(store) as is_alone:
        assert is_alone


def test_it_does_not_take_the_place_of_a_file_or_of_one_that_runs(
    base_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HATRACK_HOME", str(tmp_path))
    monkeypatch.setenv("HATRACK_BASE_MODEL", str(base_dir))
    (tmp_path / "notes.txt").write_text("not a socket")
    refused = CliRunner().invoke(app, ["engine", "--uds", str(tmp_path / "notes.txt")])
    assert refused.exit_code == 1
    assert (tmp_path / "notes.txt").read_text() == "not a socket"
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(tmp_path / "e.sock"))
        listening.listen()
        assert CliRunner().invoke(app, ["engine", "--uds", str(tmp_path / "e.sock")]).exit_code == 1
        assert (tmp_path / "e.sock").is_socket()


def test_down_ends_an_engine_that_was_kept_unless_it_is_told_to_leave_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HATRACK_HOME", str(tmp_path))
    token = secrets.token_hex(16)  # what carries it is looked for on the whole machine
    with subprocess.Popen(
        [sys.executable, "-c", "import time; print(flush=True); time.sleep(60)"],
        env={"PATH": os.environ["PATH"], TOKEN_VARIABLE: token},
        stdout=subprocess.PIPE,
    ) as kept:
        assert kept.stdout is not None
        kept.stdout.readline()
        EngineRecord(token, kept.pid).write(tmp_path / "engine" / "engine.json")
        left = CliRunner().invoke(app, ["down", "--keep-engine"])
        assert (left.exit_code, kept.poll()) == (0, None)
        assert not (tmp_path / "engine" / "keep").exists(), "there is no gateway that it would be meant for"
        assert CliRunner().invoke(app, ["down"]).exit_code == 0
        assert kept.wait(60) < 0
    assert not (tmp_path / "engine" / "engine.json").exists()
