"""One real gateway with one real engine for all tests that do not kill it."""

from __future__ import annotations

import base64
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import REPO
from tests.support.gateway import Gateway
from tests.support.judge import ScriptedJudge
from tests.support.retriever import SECRET, Retriever
from tests.support.scheduling import normal_priority

VOICES = ("tidewater", "pemberton")
PRICE_DEVICE_HOUR = 3.6
"""A thousandth a second."""


@pytest.fixture(scope="session")
def voices(base_dir: Path) -> dict[str, Path]:
    """The sample adapters, trained on the spot from trainer/samples and kept under var/."""
    out = REPO / "var" / "samples"
    command = [sys.executable, "-m", "trainer.samples", "--base", str(base_dir), "--out", str(out)]
    subprocess.run(command, check=True, timeout=900, cwd=REPO)
    return {name: out / name for name in VOICES}


@pytest.fixture(scope="session")
def retriever() -> Iterator[Retriever]:
    """The retriever that the gateway's settings name."""
    started = Retriever()
    yield started
    started.close()


@pytest.fixture(scope="session")
def judge() -> Iterator[ScriptedJudge]:
    """The judge that the trainer's settings name."""
    started = ScriptedJudge()
    yield started
    started.close()


@pytest.fixture(scope="session")
def gateway(
    base_dir: Path,
    voices: dict[str, Path],
    retriever: Retriever,
    judge: ScriptedJudge,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Gateway]:
    """A gateway that serves the base and both voices."""
    environment = {"HATRACK_GROUNDING_URL": retriever.url, "HATRACK_GROUNDING_SECRET": SECRET}
    # beside five answers on two cores a search takes its time; tests of a late search set a timeout of their own
    environment["HATRACK_GROUNDING_TIMEOUT_S"] = "30"
    # a flood's last waits for all others, and on a slow machine they take their time, too
    environment["HATRACK_QUEUE_TIMEOUT_S"] = "1000000"
    environment["HATRACK_TRAINER_ENDPOINTS"] = str(judge.write_settings(tmp_path_factory.mktemp("settings")))
    environment["HATRACK_TRAINER_SUITES_LIMIT"] = "20"
    environment["HATRACK_TRAINER_EVALUATE_REPEATS"] = "1"
    # a ninth of the general suite, and budgets that so few items can show to be kept
    environment |= {"HATRACK_TRAINER_FORGET_ITEMS": "60", "HATRACK_TRAINER_FORGET_ACCURACY": "0.25"}
    environment["HATRACK_TRAINER_FORGET_CHAT"] = "0.5"
    environment["HATRACK_PRICE_DEVICE_HOUR"] = str(PRICE_DEVICE_HOUR)
    # nobody listens there: what the operator's webhook cannot be told disturbs nothing
    environment["HATRACK_TRAINER_WEBHOOK_URL"] = "http://127.0.0.1:9/ended"
    environment["HATRACK_TRAINER_WEBHOOK_SECRET"] = f"whsec_{base64.b64encode(b'k' * 32).decode()}"
    home = tmp_path_factory.mktemp("gateway")
    started = Gateway(home=home, base_dir=base_dir, settings=environment, arguments=("--trainer",))
    with normal_priority(lambda: None if started.process is None else started.process.pid):
        started.start()
        for name, directory in voices.items():
            files = {field: directory / f"{field}.json" for field in ("metadata", "settings")}
            pushed = started.push(
                name, directory, **{field: path.read_text() for field, path in files.items() if path.exists()}
            )
            assert pushed.status_code == 201, pushed.text
        yield started
        started.stop()
    assert started.engine_processes() == [], "processes of the engine outlived the gateway"
