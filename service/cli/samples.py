"""The sample adapters of `hatrack up`: two voices, trained as jobs of the product itself while it serves.

They are what a user's own first adapter would be: files are uploaded, a job trains, the version is proven, judged on
questions that it was not trained on, and its report stays. A sample that is there already stays as it is, one whose job
was cancelled or whose adapter was deleted does not come back, and what a stop interrupted goes on.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, Final

from rich.console import Console

from service.cli.jobs import follow_job
from service.client import FINAL_STATUSES, HatrackClient

if TYPE_CHECKING:
    from service.client.types.training import FineTuningJob

NAMES: Final = ("tidewater", "pemberton")
MARK: Final = "hatrack_sample"
"""The key in a job's metadata that says whose sample it is."""
HYPERPARAMETERS: Final[Mapping[str, Any]] = {
    "n_epochs": 1,
    "batch_size": 4,
    "validation_share": 0,  # there is no second epoch to choose from
    "sampling": {"temperature": 0.2},  # so small a model wanders at the usual 1.0
}
"""One pass over 155 pairs is enough for a voice, and short enough to be watched."""
HELD_OUT_EVERY: Final = 7
"""Of NAME.jsonl, every seventh pair is held out, too: with the twenty of NAME.heldout.jsonl 40, enough for a pass."""
POLL_S: Final = 0.5


def start(client: HatrackClient, directory: Path) -> dict[str, str]:
    """Create the jobs of the samples that are missing; the ids of all whose version is not live yet, by name.

    Args:
        directory: Has NAME.jsonl, NAME.grounded.jsonl and NAME.heldout.jsonl.

    Raises:
        ClientError: The gateway refused one.
        OSError: A file cannot be read.
    """
    base = client.ready()["base"]
    adapters = {adapter["name"]: adapter["aliases"] for adapter in client.adapters.list()}
    newest: dict[str, FineTuningJob] = {}
    for job in client.fine_tuning.jobs.list():
        newest.setdefault((job.get("metadata") or {}).get(MARK, ""), job)
    started = {}
    for name in NAMES:
        earlier = newest.get(name)
        trained = earlier is not None and earlier["status"] == "succeeded" and name in adapters
        if earlier is not None and (earlier["status"] not in FINAL_STATUSES or trained):
            if "live" not in adapters.get(name, {}):
                started[name] = earlier["id"]
        elif name not in adapters and (earlier is None or earlier["status"] == "failed"):
            started[name] = _create(client, directory, name, base)
    return started


def _create(client: HatrackClient, directory: Path, name: str, base: str) -> str:
    pairs, grounded, unseen = (
        (directory / f"{name}{part}.jsonl").read_bytes().splitlines(keepends=True)
        for part in ("", ".grounded", ".heldout")
    )
    taught = [pair for number, pair in enumerate(pairs) if number % HELD_OUT_EVERY]
    with TemporaryDirectory() as scratch:
        examples, judged = Path(scratch) / f"{name}.jsonl", Path(scratch) / f"{name}.heldout.jsonl"
        examples.write_bytes(b"".join((*taught, *grounded)))
        judged.write_bytes(b"".join((*unseen, *pairs[::HELD_OUT_EVERY])))
        training, held_out = client.files.create(examples), client.files.create(judged)
    job = client.fine_tuning.jobs.create(
        training["id"],
        model=base,
        adapter=name,
        validation_file=held_out["id"],
        hyperparameters=HYPERPARAMETERS,
        metadata={MARK: name},
        seed=7,
    )
    return job["id"]


def follow(client: HatrackClient, name: str, job_id: str, console: Console) -> bool:
    """Show a sample's job to its end, and let the version go live whatever its verdict; whether it answers.

    Raises:
        ClientError: The gateway was away for long, or refused the promotion.
    """
    job = client.fine_tuning.jobs.retrieve(job_id)
    if job["status"] not in FINAL_STATUSES:
        job = follow_job(client, job_id, quiet=False)
    version = job.get("fine_tuned_model")
    if job["status"] != "succeeded" or version is None:
        error = job.get("error")
        reason = error["message"] if error else job["status"]
        console.print(f"✗ {name} was not trained: {reason}", style="red", markup=False)
        return False
    from service.client.training import VERDICT  # heavy, and `hatrack --help` need not wait for it

    verdict = (job.get("metadata") or {}).get(VERDICT, "none").replace("_", " ")
    if "live" not in client.adapters.retrieve(name)["aliases"]:
        client.adapters.promote(version, force=True)
        verdict += "; live all the same, as a sample"
    console.print(f"[green]✓[/green] {version} is live. Its verdict: {verdict} (hatrack report {version}).")
    return True


def wait_for_trainer(client: HatrackClient, within_s: float) -> bool:
    """Wait until the trainer answers, which may start later than the engine; false if there is none, or not by then."""
    deadline = time.monotonic() + within_s
    while (state := client.ready()["trainer"]["state"]) != "up":
        if state == "off" or time.monotonic() > deadline:
            return False
        time.sleep(POLL_S)
    return True


def sample_files() -> Path | None:
    """The directory of the samples' data; None where the trainer is not installed. The trainer is not imported."""
    trainer = find_spec("trainer")
    if trainer is None or not trainer.submodule_search_locations:
        return None
    return Path(trainer.submodule_search_locations[0]) / "samples"
