"""Trains the sample adapters that are missing, or outdated by a change of data, recipe or base.

    python -m trainer.samples --base var/base/smollm2-135m-instruct --out var/samples [--only tidewater]

Each becomes a PEFT directory OUT/NAME. The last line of stdout is `{"NAME": "OUT/NAME", …}`; progress goes to stderr.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from filelock import FileLock
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar

from adapters.base import BaseDescription, describe
from adapters.errors import AdapterError
from trainer.base_model import check_complete, slug
from trainer.errors import TrainerError
from trainer.samples import NAMES, RECIPE, sample_data
from trainer.tune.progress import TrainingProgress
from trainer.tune.run import SERVING_DTYPE, TrainingSpec, make_adapter

LOCK_TIMEOUT_S: Final = 3600.0
"""How long to wait for another process that trains the same sample."""

NO_ENGINE: Final = "none"
"""The engine version in the fingerprint: an adapter is trained for a base model, whichever engine serves it."""


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m trainer.samples", description="Train the sample adapters.")
    parser.add_argument("--base", type=Path, required=True, help="the prepared base model's directory")
    parser.add_argument(
        "--out", type=Path, required=True, help="the output directory, with one subdirectory per sample"
    )
    parser.add_argument("--only", choices=NAMES, action="append", help="train only this sample (repeatable)")
    options = parser.parse_args(arguments)
    console = Console(stderr=True)
    # on import it warns about a missing kernel for four-bit inference, which is not used here
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    try:
        paths = make_samples(options.base, options.out, options.only or NAMES, console)
    except (TrainerError, AdapterError) as error:
        console.print(f"[red]{error.code}[/red]: {error.message}", markup=True, highlight=False)
        return 1
    print(json.dumps({name: str(path) for name, path in paths.items()}))
    return 0


def make_samples(base: Path, out: Path, names: Sequence[str], console: Console) -> dict[str, Path]:
    """Train the samples `names` into `out`; returns their paths. Raises TrainerError, AdapterError, OSError."""
    description = describe(
        check_complete(base),
        served_name=slug(str(base)),
        dtype=SERVING_DTYPE,
        quantization=None,
        engine_version=NO_ENGINE,
        cache_dir=out.parent / "base-cache",
    )
    out.mkdir(parents=True, exist_ok=True)
    paths: dict[str, Path] = {}
    for name in names:
        with FileLock(out / f".{name}.lock", timeout=LOCK_TIMEOUT_S):
            paths[name] = _make_sample(name, base, description, out / name, console)
    return paths


def _make_sample(name: str, base: Path, description: BaseDescription, target: Path, console: Console) -> Path:
    spec = TrainingSpec(base=base, description=description, data=sample_data(name), recipe=RECIPE)
    if spec.is_done(target):
        console.print(f"{name}: up to date")
        return target
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[numbers]}"),
        TimeRemainingColumn(),
    )
    with Bar(*columns, console=console) as bar:
        task = bar.add_task(name, total=None, numbers="")

        def on_stage(stage: str) -> None:
            bar.update(task, description=f"{name}: {stage}")

        def on_progress(now: TrainingProgress) -> None:
            numbers = f"loss {now.loss:.2f}, {now.tokens_per_s:.0f} tokens/s"
            bar.update(task, completed=now.step, total=now.steps, numbers=numbers)

        metadata = make_adapter(spec, target, on_stage=on_stage, on_progress=on_progress)
        bar.update(task, description=f"{name}: done")
    training = metadata.training
    console.print(f"{name}: {training.tokens} tokens in {training.seconds:.0f} s, loss {training.final_loss:.2f}")
    return target


if __name__ == "__main__":
    sys.exit(main())
