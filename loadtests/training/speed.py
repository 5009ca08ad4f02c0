"""Our loop beside TRL's SFTTrainer: tokens per second, held-out loss, peak memory; same rows, same effective batch.

    .venv/bin/pip install "trl>=1.16" datasets
    .venv/bin/python -m loadtests.training.speed --data banking77/train.csv [--rounds 3] [--rows 160]

Contenders take turns, each in a process of its own; the median of the rounds counts. TRL at its defaults has float32
weights under bfloat16 autocast, gradient checkpointing and a learning rate of 2e-5; by hand: no checkpointing, batches
of 16 grouped by length and padded to a multiple of 8, our learning rate and schedule; and that with bfloat16 weights.
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
    parser.add_argument("--held-out", type=int, default=64)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    found: dict[str, list[dict[str, float]]] = {name: [] for name in CONTENDERS}
    turns = [name for _ in range(options.rounds) for name in CONTENDERS]
    console = Console(stderr=True)
    for name in track(turns, description="training", console=console):
        run = turn(name, options)
        console.print(name, run)
        found[name].append(run)
    medians = {
        name: {key: statistics.median(run[key] for run in runs) for key in runs[0]} for name, runs in found.items()
    }
    print(table(medians))
    if options.out:
        options.out.write_text(json.dumps({"medians": medians, "runs": found}, indent=1) + "\n")


def turn(name: str, options: argparse.Namespace) -> dict[str, float]:
    """One training of ``name`` in a process of its own: what it printed."""
    command = [sys.executable, "-m", "loadtests.training.contender", name, "--base", str(options.base)]
    command += ["--data", str(options.data), "--rows", str(options.rows), "--held-out", str(options.held_out)]
    done = subprocess.run(command, capture_output=True, check=False, text=True)
    if done.returncode:
        sys.exit(f"{name} failed:\n{done.stderr[-2000:]}")
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    del found["name"]
    return found


def table(medians: dict[str, dict[str, float]]) -> str:
    """The medians in Markdown; `others` is what the rest of the machine worked meanwhile, in cores."""
    own = medians["hatrack"]["tokens_per_s"]
    lines = ["| contender | tokens/s | Hatrack is | held-out loss | peak MiB | others |", "|---|---|---|---|---|---|"]
    for name, values in medians.items():
        cells = (
            name,
            f"{values['tokens_per_s']:.0f}",
            f"{own / values['tokens_per_s']:.2f}×",
            f"{values['held_out_loss']:.3f}",
            f"{values['peak_mib']:.0f}",
            f"{values['others_cores']:.2f}",
        )
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
