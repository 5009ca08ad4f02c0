"""The three people whom Hatrack is for reach their aims, each in the console alone and in the command alone.

In the command the trainer is in test_training.py and the one who decides in test_ladder.py.

What their steps take, the trainings, proofs and evaluations that they wait for left out, is printed and not judged: it
depends on the machine (`pytest -s`).
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from tests.integration.console.conftest import JOB_S, WITH_RUNS, go, live_version, picture
from tests.integration.test_ladder import labelled, rung_to_ship
from tests.support.browser import Browser
from tests.support.gateway import Gateway
from trainer.samples import data_file

pytestmark = [pytest.mark.engine, pytest.mark.slow, WITH_RUNS]
OPERATED, TAUGHT, DECIDED = "people-shop", "people-butler", "people-desk"
TYPED = "people-shop-typed"
"""The command's adapter beside the console's: a name that was deleted does not begin at 1 again."""
PROOF_S = 300.0
EXAMPLES = 40
HYPERPARAMETERS = {"n_epochs": "1", "learning_rate": "0.002", "suites": "none"}


class Stopwatch:
    """How long somebody acts; what they wait for is left out."""

    def __init__(self) -> None:
        self._began = time.monotonic()
        self._waited = 0.0

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Leave out the time of what runs in it."""
        began = time.monotonic()
        yield
        self._waited += time.monotonic() - began

    @property
    def acting_s(self) -> float:
        return time.monotonic() - self._began - self._waited


@pytest.fixture
def watch(request: pytest.FixtureRequest) -> Iterator[Stopwatch]:
    """A stopwatch that is read at the end."""
    stopwatch = Stopwatch()
    yield stopwatch
    print(f"\n{request.node.name}: {stopwatch.acting_s:.1f} s without what was waited for")


@pytest.fixture(autouse=True)
def _nothing_is_left(client: httpx.Client) -> Iterator[None]:
    yield
    for ladder in client.get("/v1/ladders").json()["data"]:
        if ladder["adapter"].startswith(DECIDED) and ladder["vector_store_id"]:
            client.delete(f"/v1/vector_stores/{ladder['vector_store_id']}")
    for name in (OPERATED, TYPED, TAUGHT, DECIDED):
        client.delete(f"/v1/adapters/{name}", params={"force": "true"})


@pytest.fixture
def butler(tmp_path: Path) -> Path:
    """The first examples of a voice: too few for a pass, and enough to train on."""
    file = tmp_path / "butler.jsonl"
    file.write_text("\n".join(data_file("pemberton").read_text().splitlines()[:EXAMPLES]) + "\n")
    return file


class Command:
    """`hatrack` in an empty folder, with nothing but what `hatrack login` has saved.

    Args:
        gateway: Its address and key are what the person has.
        folder: The working directory, with the configuration below it.
    """

    def __init__(self, gateway: Gateway, folder: Path) -> None:
        kept = {name: value for name, value in gateway.environment.items() if not name.startswith("HATRACK_")}
        root = str(Path(__file__).parents[3])
        self._environment = kept | {"XDG_CONFIG_HOME": str(folder / "config"), "PYTHONPATH": root}
        self._folder = folder
        self("login", gateway.url, stdin=f"{gateway.key}\n")

    def __call__(self, *arguments: str, stdin: str | None = None) -> str:
        """What it prints. Fails where its exit code is not 0."""
        done = subprocess.run(
            [sys.executable, "-m", "service.cli", *arguments],
            input=stdin,
            env=self._environment,
            capture_output=True,
            text=True,
            cwd=self._folder,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout


@pytest.fixture
def hatrack(gateway: Gateway, tmp_path: Path) -> Command:
    """The command, logged in."""
    return Command(gateway, tmp_path)


# ops: push, promote, split, roll back


def test_ops_in_the_console(page: Browser, client: httpx.Client, voices: dict[str, Path], watch: Stopwatch) -> None:
    page.click("Upload an adapter")
    page.fill("dialog input", OPERATED)
    upload(page, voices["tidewater"], f"{OPERATED}@1 is ready", watch)
    page.click("Add a version")
    upload(page, voices["pemberton"], f"{OPERATED}@2 is ready", watch)
    assert live_version(client, OPERATED) == 1

    page.click("Promote …")
    page.wait_for_text("never judged")
    picture(page, "promotion")
    page.click("Point live to @2", "dialog")
    page.wait("!document.querySelector('dialog')")
    assert live_version(client, OPERATED) == 2

    page.click("Split …")
    page.fill("input[aria-label='Weight of version 1']", "10")
    page.fill("input[aria-label='Weight of version 2']", "90")
    picture(page, "split")
    page.click("Split the traffic", "dialog")
    page.wait("!document.querySelector('dialog')")
    assert client.get(f"/v1/adapters/{OPERATED}").json()["splits"] == {"live": {"1": 10, "2": 90}}
    picture(page, "adapter-split")

    page.click("Roll back …")
    page.wait("document.querySelector('dialog .change')?.innerText.includes('@2')")
    picture(page, "rollback")
    page.click("Roll back", "dialog")
    page.wait("!document.querySelector('dialog')")
    assert live_version(client, OPERATED) == 2


def upload(page: Browser, folder: Path, until: str, watch: Stopwatch) -> None:
    """Upload a folder in the dialog that is open, and show what came of it."""
    page.attach("dialog input[type=file]", folder)
    page.wait_for_text("adapter_model.safetensors")
    page.click("Upload and prove", "dialog")
    with watch.waiting():
        page.wait_for_text(until, within_s=PROOF_S)
    page.click("Show it", "dialog")
    page.wait_for_text("LoRA, rank")
    page.wait("!document.querySelector('dialog')")


def test_ops_in_the_command(hatrack: Command, client: httpx.Client, voices: dict[str, Path], watch: Stopwatch) -> None:
    for voice in ("tidewater", "pemberton"):
        with watch.waiting():
            hatrack("push", TYPED, str(voices[voice]))
    assert live_version(client, TYPED) == 1
    hatrack("promote", f"{TYPED}@2")
    assert live_version(client, TYPED) == 2
    hatrack("split", TYPED, "1=10", "2=90")
    assert client.get(f"/v1/adapters/{TYPED}").json()["splits"] == {"live": {"1": 10, "2": 90}}
    assert "live→1:10+2:90" in hatrack("ls")
    hatrack("rollback", TYPED)
    assert live_version(client, TYPED) == 2


# the trainer: a file, its report, a job, the verdict, live


def test_a_trainer_in_the_console(page: Browser, client: httpx.Client, butler: Path, watch: Stopwatch) -> None:
    go(page, "train")
    page.click("Train from a file")
    page.wait("document.querySelector('.drop input')")
    page.attach(".drop input", butler)
    with watch.waiting():
        page.wait_for_text("The job", within_s=PROOF_S)
    page.fill(".job-form input", TAUGHT)
    page.click("Hyperparameters: the trainer chooses what is left empty, and says why")
    for name, value in HYPERPARAMETERS.items():
        page.fill_labelled(name, value)
    picture(page, "data-report")
    page.click("Start the job")
    with watch.waiting():
        page.wait("document.querySelector('.chart polyline')", within_s=JOB_S)
        picture(page, "job-training")
        page.wait("document.querySelector('section[aria-label=Judging] progress')", within_s=JOB_S)
        picture(page, "job-judging")
        page.wait_for_text("Verdict: not enough evidence", within_s=JOB_S)
        page.wait_for_text("Scores by", within_s=JOB_S)
    assert page.run("document.querySelectorAll('section[aria-label=Report] .bar .value').length") >= 2
    picture(page, "job-finished")

    assert live_version(client, TAUGHT) is None
    page.click(f"Promote {TAUGHT}@1 …")
    page.wait_for_text("Its verdict is “not enough evidence”")
    page.click("Point live to @1", "dialog")
    page.wait("!document.querySelector('dialog')")
    page.wait_for_text(f"{TAUGHT}@1 is live")
    assert live_version(client, TAUGHT) == 1
    go(page, f"adapters/{TAUGHT}")
    page.wait_for_text("judged on")
    picture(page, "adapter-judged")


# the one who decides: advice, the cost of a year, a rung that is promoted


def test_who_decides_in_the_console(page: Browser, client: httpx.Client, tmp_path: Path, watch: Stopwatch) -> None:
    go(page, "train")
    page.click("Is training worth it?")
    page.wait("document.querySelector('.drop input')")
    page.attach(".drop input", labelled(tmp_path / "desk.jsonl"))
    with watch.waiting():
        page.wait_for_text("Measure it", within_s=PROOF_S)
    page.fill_labelled("Adapter", DECIDED)
    page.fill_labelled("Requests a month", "30000")
    label = "[...document.querySelectorAll('.job-form label')].find((each) => each.innerText.includes('Train a LoRA'))"
    page.run(f"{label}.control.click()")
    picture(page, "advice-form")
    page.click("Measure it")
    page.wait_for_text(f"Is fine-tuning {DECIDED} worth it?")
    with watch.waiting():
        page.wait("document.querySelector('section[aria-label=Rungs] tbody tr')", within_s=JOB_S)
        picture(page, "advice-running")
        page.wait("document.querySelector('section[aria-label=Costs]')", within_s=JOB_S)
    picture(page, "advice-finished")
    ladder = page.run("location.hash").rpartition("/")[2]
    report = client.get(f"/v1/ladders/{ladder}/report").json()
    years = page.run("[...document.querySelectorAll('td[data-label=\"A year\"]')].map((each) => each.innerText)")
    assert years == [f"{each['year']['device_hours']:.1f} h" for each in report["rungs"]] * 2
    assert report["requests_per_month"] == 30_000

    chosen = rung_to_ship(report)
    page.click_labelled(f"Promote {chosen}")
    page.wait_for_text("A year of it:")
    page.click(f"Point live to @{chosen.partition('@')[2]}", "dialog")
    page.wait("!document.querySelector('dialog')")
    assert live_version(client, DECIDED) == int(chosen.partition("@")[2])
    go(page, f"adapters/{DECIDED}")
    page.click("What a year costs")
    page.wait_for_text("of the device")
    picture(page, "year")
