"""What it costs to look at every row of logits for numbers that are none, which is how a poisoned adapter is contained.

    .venv/bin/python -m loadtests.containment                       # on this CPU
    .venv/bin/python -m loadtests.containment --device cuda:0

The engine's check (`service.engine.plugin.containment.broken_rows`) on random logits, with the copy of its result to
the host, beside the product that makes these logits from the last layer's states: the last of a step's many products.
Times are medians, us a step.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from itertools import product
from typing import Final

import torch

from loadtests.support import percentile
from service.engine.plugin.containment import broken_rows

ROWS: Final = (1, 16, 64)
BASES: Final = {"SmolLM2-135M": (576, 49_152), "Qwen3-4B": (2_560, 151_936)}
"""Hidden width and vocabulary."""
ROUNDS: Final = 10


def timed(work: Callable[[], object], device: torch.device) -> float:
    """Median time of ``work`` after a warm-up, us; on a GPU until the device has done it."""
    wait = torch.cuda.synchronize if device.type == "cuda" else lambda: None
    found = []
    for number in range(ROUNDS + 3):
        wait()
        began = time.perf_counter()
        work()
        wait()
        if number >= 3:
            found.append((time.perf_counter() - began) * 1e6)
    return statistics.median(found)


def row(name: str, rows: int, device: torch.device) -> tuple[float, float]:
    """The check of a step's logits, and the product that made them, us."""
    width, vocabulary = BASES[name]
    states = torch.randn(rows, width, dtype=torch.bfloat16, device=device)
    weights = torch.randn(vocabulary, width, dtype=torch.bfloat16, device=device)
    logits = (states @ weights.T).float()
    return (
        timed(lambda: broken_rows(logits).cpu(), device),
        timed(lambda: torch.nn.functional.linear(states, weights), device),
    )


def main() -> None:
    """Measure all sizes and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu")
    device = torch.device(parser.parse_args().device)
    shares = []
    print("| base | rows | check, us | product of the logits, us | |\n|---|---:|---:|---:|---:|")
    for name, rows in product(BASES, ROWS):
        check, logits = row(name, rows, device)
        shares.append(check / logits)
        print(f"| {name} | {rows} | {check:.0f} | {logits:.0f} | {check / logits:.1%} |", flush=True)
    print(f"the check takes up to {percentile(shares, 1):.1%} of that product's time", file=sys.stderr)


if __name__ == "__main__":
    main()
