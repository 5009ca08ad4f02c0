"""The trainer's process: it lives as long as its gateway does, and a leftover is found and ended, nothing else is."""

from __future__ import annotations

import asyncio
import os
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from service.config import Settings, load_settings
from service.config.secret_names import SECRETS
from service.errors import SettingsError
from service.training import process
from service.training.config import TrainerConfig
from service.training.process import TrainerProcess, end_leftover, holder, spawn

STAND_IN = """
import os, signal, sys, threading, time
from pathlib import Path

place, obeys = Path(sys.argv[1]), sys.argv[2]
once = threading.Lock()
def end(how):
    once.acquire()  # asked and left alone at once: the first one ends it
    (place / "ended.part").write_text(how)
    os.replace(place / "ended.part", place / "ended")  # never seen empty
    os._exit(0)
signal.signal(signal.SIGTERM, (lambda *_: end("asked")) if "term" in obeys else signal.SIG_IGN)
(place / "env").write_text("\\n".join(sorted(os.environ)))
(place / "argv").write_text("\\n".join(sys.argv[3:]))
print("the trainer's own words", flush=True)
with (place / "pids").open("a") as pids:  # last: who sees the number knows that all the rest is done
    pids.write(f"{os.getpid()}\\n")
def watch():
    sys.stdin.buffer.read()
    end("alone")
if "stdin" in obeys:
    threading.Thread(target=watch, daemon=True).start()
while True:
    time.sleep(1)
"""

GATEWAY = """
import sys, time
from dataclasses import replace
from pathlib import Path
from service.config import Settings
from service.training.config import TrainerConfig
from service.training.process import spawn

home = Path(sys.argv[1])
config = TrainerConfig.from_settings(Settings(home=home, trainer="on"))
child = spawn(replace(config, program=tuple(sys.argv[2:])))
print(child.pid, flush=True)
time.sleep(60)
"""


def configured(home: Path, obeys: str = "term stdin") -> TrainerConfig:
    config = TrainerConfig.from_settings(Settings(home=home, base_model="tiny", port=8123, trainer="on"))
    return replace(config, program=program(home, obeys))


def program(home: Path, obeys: str) -> tuple[str, ...]:
    return (sys.executable, "-c", STAND_IN, str(home), obeys)


def pids(home: Path) -> list[int]:
    path = home / "pids"
    return [int(line) for line in path.read_text().split()] if path.exists() else []


def alive(pid: int) -> bool:
    """Whether a process runs; one that nobody has buried yet does not."""
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def wait(seen: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not seen():
        assert time.monotonic() < deadline
        time.sleep(0.02)


async def eventually(seen: Callable[[], bool]) -> None:
    await asyncio.to_thread(wait, seen)


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Path]:
    yield tmp_path
    for pid in pids(tmp_path):
        if alive(pid):
            os.kill(pid, signal.SIGKILL)


async def test_it_is_told_what_it_needs_and_none_of_the_gateway_s_keys(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    addresses = {name for name in SECRETS if name.endswith("_DATABASE_URL")}
    secrets = (SECRETS - addresses - {"HATRACK_TRAINER_SECRET"}) | {"HATRACK_KEY", "OPENAI_API_KEY"}
    for name in secrets:
        monkeypatch.setenv(name, "a-secret-of-16-chars")
    monkeypatch.setenv("HATRACK_TRAINER_DEVICE", "cpu")
    config = configured(home)
    trainer = TrainerProcess(config)
    await trainer.start()
    await eventually(lambda: len(pids(home)) == 1)
    await trainer.stop()
    told = (home / "argv").read_text().split("\n")
    assert dict(zip(told[::2], told[1::2], strict=True)) == {
        "--home": str(home),
        "--socket": str(home / "trainer" / "trainer.sock"),
        "--gateway": "http://127.0.0.1:8123",
        "--base": str(home / "base" / "tiny"),
        "--base-name": "tiny",
        "--max-rank": "32",
        "--dtype": Settings().dtype,
        "--context": "2048",
        "--engine-device": "cpu",
        "--engine-memory": "0.85",
    }
    names = (home / "env").read_text().split("\n")
    assert "HATRACK_TRAINER_DEVICE" in names
    assert not secrets.intersection(names)
    assert not [name for name in names if name.endswith("_KEY")]
    assert stat.S_IMODE((home / "trainer").stat().st_mode) == 0o700
    assert config.log.read_text() == "the trainer's own words\n"


async def test_it_is_started_again_when_it_dies(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process, "BACK_OFF_S", (0.01,))
    trainer = TrainerProcess(configured(home))
    await trainer.start()
    for number in (1, 2, 3):
        await eventually(lambda number=number: len(pids(home)) == number)  # type: ignore[misc]
        # its number is there as soon as it runs, which may be before the gateway's own thread goes on
        await eventually(lambda number=number: trainer.starts == number)  # type: ignore[misc]
        os.kill(pids(home)[-1], signal.SIGKILL)
    await eventually(lambda: len(pids(home)) == 4)
    await trainer.stop()
    assert trainer.pid is None
    assert not [pid for pid in pids(home) if alive(pid)]


async def test_one_that_cannot_be_started_harms_nobody_and_is_tried_again(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(process, "BACK_OFF_S", (0.01,))
    there = home / "program"
    trainer = TrainerProcess(replace(configured(home), program=(str(there),), arguments=()))
    await trainer.start()
    await asyncio.sleep(0.1)
    assert trainer.starts == 0
    there.write_text(f"#!/bin/sh\necho $$ >> {home}/pids\nexec sleep 60\n")
    there.chmod(0o755)
    await eventually(lambda: trainer.starts == 1)
    await trainer.stop()


async def test_it_is_asked_to_stop_and_killed_where_it_does_not(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = TrainerProcess(configured(home, "term"))
    await trainer.start()
    await eventually(lambda: len(pids(home)) == 1)
    await trainer.stop()
    assert (home / "ended").read_text() == "asked"
    (home / "ended").unlink()

    monkeypatch.setattr(process, "STOP_TIMEOUT_S", 0.2)
    stubborn = TrainerProcess(configured(home, "nothing"))
    await stubborn.start()
    await eventually(lambda: len(pids(home)) == 2)
    await stubborn.stop()
    assert not alive(pids(home)[-1])
    assert not (home / "ended").exists()


def left_by_a_killed_gateway(home: Path, obeys: str) -> int:
    """A trainer whose gateway was killed -9: its process id."""
    with subprocess.Popen(
        [sys.executable, "-c", GATEWAY, str(home), *program(home, obeys)], stdout=subprocess.PIPE, text=True
    ) as gateway:
        assert gateway.stdout is not None
        pid = int(gateway.stdout.readline())
        wait(lambda: len(pids(home)) == 1)
        gateway.kill()
    return pid


def test_it_notices_by_its_input_that_the_gateway_was_killed(home: Path) -> None:
    left_by_a_killed_gateway(home, "stdin")
    wait((home / "ended").exists)
    assert (home / "ended").read_text() == "alone"
    wait(lambda: holder(home / "trainer" / "supervised.lock") is None)


async def test_a_leftover_is_ended_before_the_next_one_is_started(home: Path) -> None:
    left = await asyncio.to_thread(left_by_a_killed_gateway, home, "term")
    config = configured(home)
    assert holder(config.lock) == left
    with pytest.raises(BlockingIOError):
        spawn(config)
    trainer = TrainerProcess(config)
    await trainer.start()
    await eventually(lambda: len(pids(home)) == 2)
    assert (home / "ended").read_text() == "asked"
    assert not alive(left)
    assert holder(config.lock) == trainer.pid == pids(home)[-1]
    await trainer.stop()
    assert holder(config.lock) is None


def test_a_stubborn_leftover_is_killed(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    left = left_by_a_killed_gateway(home, "nothing")
    monkeypatch.setattr(process, "STOP_TIMEOUT_S", 0.2)
    assert end_leftover(configured(home).lock) == left
    assert not alive(left)


def test_a_number_in_a_lock_that_nobody_holds_is_nobody_s(home: Path) -> None:
    lock = configured(home).lock
    assert end_leftover(lock) is None
    lock.parent.mkdir(parents=True)
    with subprocess.Popen(["sleep", "60"]) as bystander:
        lock.write_text(f"{bystander.pid}\n")
        assert end_leftover(lock) is None
        assert bystander.poll() is None
        bystander.kill()


@pytest.mark.parametrize(
    ("given", "socket", "url", "starts"),
    [
        ({}, "HOME/trainer/trainer.sock", "http://trainer", False),
        ({"trainer": "on"}, "HOME/trainer/trainer.sock", "http://trainer", True),
        ({"trainer": "off"}, "HOME/trainer/trainer.sock", "http://trainer", False),
        ({"trainer": "on", "trainer_url": "unix:/run/t.sock"}, "/run/t.sock", "http://trainer", False),
        ({"trainer_url": "http://trains:9000/", "trainer_secret": "s" * 16}, None, "http://trains:9000", False),
    ],
)
def test_where_the_trainer_is(home: Path, given: dict[str, str], socket: str | None, url: str, starts: bool) -> None:
    config = TrainerConfig.from_settings(load_settings(home=home, **given))
    assert config.socket == (None if socket is None else Path(socket.replace("HOME", str(home))))
    assert (config.url, config.starts) == (url, starts)
    assert config.secret == given.get("trainer_secret")


@pytest.mark.parametrize(
    ("host", "url"),
    [("0.0.0.0", "http://127.0.0.1:8000"), ("::", "http://[::1]:8000"), ("10.0.0.7", "http://10.0.0.7:8000")],  # noqa: S104
)
def test_the_gateway_s_address_as_its_trainer_is_told(host: str, url: str) -> None:
    arguments = TrainerConfig.from_settings(Settings(host=host)).arguments
    assert arguments[arguments.index("--gateway") + 1] == url


def test_a_trainer_beyond_this_machine_s_sockets_needs_a_secret() -> None:
    with pytest.raises(SettingsError, match="HATRACK_TRAINER_SECRET"):
        load_settings(trainer_url="http://trains:9000")
    with pytest.raises(SettingsError) as refused:
        load_settings(trainer_url="http://trains:9000", trainer_secret="too-short")
    assert "HATRACK_TRAINER_SECRET" in str(refused.value)
    assert "too-short" not in str(refused.value)


def test_it_is_told_what_the_engine_computes_in() -> None:
    arguments = TrainerConfig.from_settings(Settings(engine_dtype="float16")).arguments
    assert arguments[arguments.index("--dtype") + 1] == "float16"
    resolved = Settings(engine_dtype="auto")
    arguments = TrainerConfig.from_settings(resolved).arguments
    assert arguments[arguments.index("--dtype") + 1] == resolved.dtype
