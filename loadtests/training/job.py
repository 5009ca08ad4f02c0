"""One job through the product, from a file to its verdict: the memory that it took beside the estimate.

    .venv/bin/python -m loadtests.training.job                          # QLoRA: a base in four bits, on a GPU
    .venv/bin/python -m loadtests.training.job --quantization none      # also without one

Starts a gateway of its own with engine and trainer, and has it train the sample voice. The peak is the largest of the
job's `metrics` events (on a GPU what torch has allocated, otherwise the resident memory); the estimate is that by which
a job is refused, for the job's recipe and examples of the most tokens that it admits. Prints a line of JSON.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any, Final

import openai

from loadtests.support import KEY, Running, gateway
from trainer.finetune.capacity import number_bytes
from trainer.tune.memory import EAGER_MAX_TOKENS, estimate, read_shape
from trainer.tune.recipe import Recipe

REPO: Final = Path(__file__).resolve().parents[2]
VOICE: Final = REPO / "trainer" / "samples" / "tidewater.jsonl"
MAX_LENGTH: Final = 512
POLL_S: Final = 2.0


def main() -> None:
    """Train, wait, print; exit code 1 if the job fails or takes more than the estimate."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", type=Path, default=REPO / "var" / "base" / "smollm2-135m-instruct")
    parser.add_argument("--home", type=Path, default=REPO / "var" / "loadtests" / "job")
    parser.add_argument("--quantization", choices=("nf4", "none"), default="nf4")
    parser.add_argument("--epochs", type=int, default=1)
    options = parser.parse_args()
    with gateway(options.home.resolve(), options.base.resolve(), {}, "--trainer") as running:
        found = measured(running, options)
    print(json.dumps(found))
    raise SystemExit(found["peak_bytes"] > found["estimate_bytes"])


def measured(running: Running, options: argparse.Namespace) -> dict[str, Any]:
    """What the job took. Raises SystemExit if it fails."""
    client = openai.OpenAI(base_url=f"{running.url}/v1", api_key=KEY)
    job, events = train(client, options)
    details = job["hatrack"]
    recipe = details["plan"]["recipe"]
    if recipe["quantization"] != options.quantization:
        raise SystemExit(f"asked for quantization {options.quantization}, the job took {recipe['quantization']}")
    on_gpu = str(details["device"]).startswith("cuda")
    needed = estimate(
        read_shape(options.base),
        Recipe.model_validate(recipe),
        longest=MAX_LENGTH,
        fused=on_gpu or MAX_LENGTH > EAGER_MAX_TOKENS,
        number_bytes=number_bytes(on_gpu=on_gpu),
    )
    return {
        "device": details["device"],
        "quantization": recipe["quantization"],
        "peak_bytes": max(int(event["data"].get("memory_bytes", 0)) for event in events),
        "estimate_bytes": needed.total,
        "estimate": needed.describe(),
        "seconds": details["seconds"],
        "fine_tuned_model": job["fine_tuned_model"],
        "verdict": job["metadata"].get("hatrack_verdict"),
    }


def train(client: openai.OpenAI, options: argparse.Namespace) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The job once it has ended, and its events of metrics."""
    hyperparameters: Any = {
        "n_epochs": options.epochs,
        "quantization": options.quantization,
        "max_length": MAX_LENGTH,
    }
    job = client.fine_tuning.jobs.create(
        model=next(iter(client.models.list())).id,
        training_file=client.files.create(file=VOICE, purpose="fine-tune").id,
        suffix=f"memory-{options.quantization}-{int(time.time())}",
        method={"type": "supervised", "supervised": {"hyperparameters": hyperparameters}},
    )
    while (now := client.fine_tuning.jobs.retrieve(job.id)).status not in ("succeeded", "failed", "cancelled"):
        last = client.fine_tuning.jobs.list_events(job.id, limit=1).data
        print(f"\r{now.status}: {last[0].message if last else ''}"[:118].ljust(118), end="", flush=True)
        time.sleep(POLL_S)
    print()
    if now.status != "succeeded":
        raise SystemExit(f"the job {now.status}: {now.error}")
    every = [event.model_dump() for event in client.fine_tuning.jobs.list_events(job.id)]
    return now.model_dump(), [event for event in every if event["type"] == "metrics"]


if __name__ == "__main__":
    main()
