"""Five trainings and what becomes of them, through a running Hatrack and the `openai` client.

    .venv/bin/hatrack serve --trainer                                       # in another terminal, or `make up`
    .venv/bin/python -m loadtests.training.verdicts --data banking77/train.csv
    .venv/bin/python -m loadtests.training.verdicts --data banking77/train.csv --runs ten,voice

| run | what is trained | how it should end |
|---|---|---|
| `good` | BANKING77, a held-out part of its training file beside it | `pass`, and live by itself |
| `shuffled` | the same questions with their answers mixed up | not `pass`, and never live |
| `ten` | the same as `good`, judged on ten examples | `not_enough_evidence` |
| `forgot` | five intents, with a learning rate at which a model loses what it knew | `fail`, for forgetting |
| `voice` | the sample voice of a sailor, a third of its examples held out | as its numbers say |

Everything that is not given is `auto`. Prints a Markdown table; `--json` keeps the jobs and their reports.
"""

from __future__ import annotations

import argparse
import json
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import openai

from loadtests.training.banking import jsonl, read, unlike
from service.client.addresses import without_v1
from service.client.settings import ClientSettings
from trainer.samples import data_file, heldout_file

POLL_S = 2.0
RUNS = ("good", "shuffled", "ten", "forgot", "voice")
FEW_INTENTS, FEW = 5, 100
FORGETFUL_RATE = 5e-3
"""So few intents and so large a rate: the task is learnt, and little else is left."""
TEN = 10
VOICE = 110
"""Examples of the voice that are taught; the other fifty are held out."""


@dataclass
class Run:
    """One training: its data and what is not left to chance."""

    name: str
    training: bytes
    held_out: bytes
    hyperparameters: dict[str, Any] = field(default_factory=dict)


def main() -> None:
    """Train, wait, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--runs", default=",".join(RUNS))
    parser.add_argument("--examples", type=int, default=600)
    parser.add_argument("--questions", type=int, default=150)
    parser.add_argument("--epochs", type=int)
    parser.add_argument("--learning-rate", type=float)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    settings = ClientSettings()
    url = without_v1(settings.gateway_url)
    client = openai.OpenAI(base_url=f"{url}/v1", api_key=settings.gateway_key(url))
    base = str(httpx.get(f"{url}/readyz").json()["base"])
    lines = [
        "| run | examples | held out | adapter | base at its best | forgot | verdict | live | took |",
        "|---|" + "---|" * 8,
    ]
    for run in _runs(options):
        job = _train(client, base, run, options.seed)
        report = json.loads(client.files.content(job["result_files"][-3]).text)
        if options.json is not None:
            with options.json.open("a") as file:
                file.write(json.dumps({"run": run.name, "job": job, "report": report}) + "\n")
        lines.append(_row(run, job, report))
        print(lines[-1], flush=True)
    print("\n" + "\n".join(lines))


def _runs(options: Any) -> list[Run]:
    rows = read(options.data, seed=options.seed)
    taught = rows[: options.examples]
    unseen = unlike(rows[options.examples :], taught)[: options.questions]
    answers = [row["completion"] for row in taught]
    random.Random(options.seed).shuffle(answers)
    mixed = [{**row, "completion": answer} for row, answer in zip(taught, answers, strict=True)]
    wanted = {"n_epochs": options.epochs, "learning_rate": options.learning_rate}
    chosen = {name: value for name, value in wanted.items() if value is not None}
    voice = [line for path in (data_file("tidewater"), heldout_file("tidewater")) for line in path.open("rb")]
    few = read(options.data, seed=options.seed, intents=FEW_INTENTS)
    there = [
        Run("good", jsonl(taught), jsonl(unseen), chosen),
        Run("shuffled", jsonl(mixed), jsonl(unseen), chosen),
        Run("ten", jsonl(taught), jsonl(unseen[:TEN]), chosen),
        Run("forgot", jsonl(few[:FEW]), jsonl(few[FEW:][:FEW]), {"n_epochs": 2, "learning_rate": FORGETFUL_RATE}),
        Run("voice", _lines(voice[:VOICE]), _lines(voice[VOICE:]), {"n_epochs": 2}),
    ]
    return [run for run in there if run.name in options.runs.split(",")]


def _lines(found: Sequence[bytes]) -> bytes:
    return b"".join(found)


def _train(client: openai.OpenAI, base: str, run: Run, seed: int) -> dict[str, Any]:
    """Make a job of a run and wait for its end; the job object."""
    training = client.files.create(file=(f"{run.name}.jsonl", run.training), purpose="fine-tune")
    held_out = client.files.create(file=(f"{run.name}-held-out.jsonl", run.held_out), purpose="fine-tune")
    job = client.fine_tuning.jobs.create(
        model=base,
        training_file=training.id,
        validation_file=held_out.id,
        suffix=f"{run.name}-{int(time.time())}",
        seed=seed,
        method={"type": "supervised", "supervised": {"hyperparameters": run.hyperparameters}},  # type: ignore[typeddict-item]
    )
    while True:
        time.sleep(POLL_S)
        now = client.fine_tuning.jobs.retrieve(job.id)
        last = client.fine_tuning.jobs.list_events(job.id, limit=1).data
        print(f"\r{run.name}, {now.status}: {last[0].message if last else ''}"[:118].ljust(118), end="", flush=True)
        if now.status in ("succeeded", "failed", "cancelled"):
            print()
            if now.status != "succeeded" or not (now.metadata or {}).get("hatrack_verdict"):
                raise SystemExit(f"{run.name} was not judged: the job {now.status}, {now.error}")
            found: dict[str, Any] = now.model_dump()
            return found


def _row(run: Run, job: dict[str, Any], report: dict[str, Any]) -> str:
    verdict = report["verdict"]
    gap, lost = verdict["against_base"], verdict["forgetting"]
    scores = {mean["label"]: 100 * mean["mean"] for mean in verdict["means"]}
    forgot = (
        f"{100 * lost['accuracy']['loss']:+.0f} points, perplexity {lost['perplexity']['base']:.0f} → "
        f"{lost['perplexity']['candidate']:.0f}"
    )
    cells: Sequence[str] = (
        f"`{run.name}`",
        str(len(run.training.splitlines())),
        str(verdict["examples"]),
        f"{scores[verdict['candidate']]:.0f}",
        f"{scores[verdict['base']]:.0f} ({100 * gap['low']:+.0f} to {100 * gap['high']:+.0f})",
        forgot,
        f"`{verdict['word']}`",
        "yes" if job["hatrack"]["verdict"]["live"] else "no",
        f"{job['hatrack']['seconds']:.0f} + {report['cost']['evaluation_s']:.0f} s",
    )
    return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    main()
