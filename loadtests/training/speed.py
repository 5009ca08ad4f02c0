"""Our loop beside TRL's SFTTrainer: tokens per second, held-out loss, peak memory; same rows, same effective batch.

    .venv/bin/pip install "trl>=1.16" datasets
    .venv/bin/python -m loadtests.training.speed --data banking77/train.csv [--rounds 3] [--rows 160]

Contenders take turns, each in a process of its own; the median of the rounds counts. TRL at its defaults has float32
weights under bfloat16 autocast, gradient checkpointing and a learning rate of 2e-5; by hand: no checkpointing, batches
of 16 grouped by length, our learning rate; and that with bfloat16 weights.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from pathlib import Path

from rich.console import Console
from rich.progress import track

CONTENDERS = ("trl-defaults", "trl-tuned", "trl-tuned-bf16", "hatrack")


def main() -> None:
    """Run all rounds and print a table and JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", type=Path, default=Path("var/base/smollm2-135m-instruct"))
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--rows", type=int, default=160)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    found: dict[str, list[dict[str, float]]] = {name: [] for name in CONTENDERS}
    turns = [name for _ in range(options.rounds) for name in CONTENDERS]
    for name in track(turns, description="training", console=Console(stderr=True)):
        command = [sys.executable, "-m", "loadtests.training.contender", name, "--base", str(options.base)]
        command += ["--data", str(options.data), "--rows", str(options.rows)]
        done = subprocess.run(command, capture_output=True, check=False, text=True)
        if done.returncode:
            sys.exit(f"{name} failed:\n{done.stderr[-2000:]}")
        found[name].append(json.loads(done.stdout.splitlines()[-1]))
    medians = {
        name: {key: statistics.median(run[key] for run in runs) for key in runs[0] if key != "name"}
        for name, runs in found.items()
    }
    own = medians["hatrack"]["tokens_per_s"]
    print("| contender | tokens/s | Hatrack is | held-out loss | peak MiB |\n|---|---|---|---|---|")
    for name, values in medians.items():
        ratio = own / values["tokens_per_s"]
        cells = (
            f"{values['tokens_per_s']:.0f}",
            f"{ratio:.2f}×",
            f"{values['held_out_loss']:.3f}",
            f"{values['peak_mib']:.0f}",
        )
        print(f"| {name} | {' | '.join(cells)} |")
    if options.out:
        options.out.write_text(json.dumps({"medians": medians, "runs": found}, indent=1) + "\n")


if __name__ == "__main__":
    main()
