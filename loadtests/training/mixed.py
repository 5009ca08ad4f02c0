"""Short labels and long answers in one file: steps of random examples beside steps grouped by length.

    .venv/bin/python -m loadtests.training.mixed --short banking77/train.csv --long gsm8k/test.jsonl
    .venv/bin/python -m loadtests.training.mixed --short banking77/train.csv --examples 160 --batch-size 16

Grouped steps are what releases before micro-batches did (`group_by_length`, a whole step in one pass). Both train the
same examples with the same seed, recipe and number of steps. *Weight* is how much more a trained token of a label
counts in the gradients than one of a long answer, over all steps; *computed* are the tokens that go through the model,
padding and prefixes included. Seconds are of CPU time, all threads together, so that other work on the machine counts
little.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import torch

from loadtests.training.banking import read
from trainer.data.format import parse_chat
from trainer.data.render import Renderer, TokenSequence, stop_tokens
from trainer.errors import DataInvalid
from trainer.tune import objectives
from trainer.tune import train as training
from trainer.tune.batches import plan_batches
from trainer.tune.loss import Batch, batch_loss
from trainer.tune.model import attach_lora, compute_dtype, load_base, load_generation_config, load_tokenizer
from trainer.tune.recipe import Recipe

CPU = torch.device("cpu")
LENGTH, HELD_OUT = 512, 24
RANK = 16


@dataclass
class Data:
    """Examples of one kind."""

    trained: list[TokenSequence]
    held_out: list[TokenSequence]


def main() -> None:
    """Train twice and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", type=Path, default=Path("var/base/smollm2-135m-instruct"))
    parser.add_argument("--short", type=Path, required=True, help="BANKING77's train.csv")
    parser.add_argument("--long", type=Path, help="GSM8K's test.jsonl; without it, labels only")
    parser.add_argument("--examples", type=int, default=64, help="of each kind")
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--learning-rate", type=float, default=1.3e-3)
    parser.add_argument("--seeds", type=int, default=1, help="trainings of each kind, whose mean is printed")
    options = parser.parse_args()
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    tokenizer = load_tokenizer(options.base)
    stops = stop_tokens(tokenizer, load_generation_config(options.base))
    renderer = Renderer(tokenizer, stop_tokens=stops, max_length=LENGTH)
    short = render([(row["prompt"], row["completion"]) for row in read(options.short, seed=1)], renderer, options)
    problems = [json.loads(line) for line in options.long.read_text().splitlines()] if options.long else []
    long = render([(problem["question"], problem["answer"]) for problem in problems], renderer, options)
    print("| steps | weight | labels' loss | long answers' loss | steps' tokens | computed | CPU s |")
    print("|---|---:|---:|---:|---:|---:|---:|", flush=True)
    for grouped in (True, False):
        runs = [run(options, short, long, grouped=grouped, seed=seed) for seed in range(options.seeds)]
        cells = [f"{fmean(values):.3f}" for values in zip(*runs, strict=True)]
        print(f"| {'grouped by length' if grouped else 'random'} | {' | '.join(cells)} |", flush=True)


def render(pairs: Sequence[tuple[str, str]], renderer: Renderer, options: Any) -> Data:
    """The first pairs that fit, to train on, and the next to hold out."""
    rows: list[TokenSequence] = []
    for asked, answer in pairs:
        line = json.dumps({"messages": [{"role": "user", "content": asked}, {"role": "assistant", "content": answer}]})
        with suppress(DataInvalid):  # too long
            rows += renderer.render_all(parse_chat(line.encode()))
        if len(rows) == options.examples + HELD_OUT:
            break
    return Data(rows[: options.examples], rows[options.examples :])


def run(options: Any, short: Data, long: Data, *, grouped: bool, seed: int) -> tuple[float, ...]:
    """Train once; the numbers of a row of the table."""
    recipe = Recipe(
        rank=RANK,
        alpha=2 * RANK,
        learning_rate=options.learning_rate,
        batch_size=options.batch_size,
        epochs=options.epochs,
        max_length=LENGTH,
        seed=seed,
        group_by_length=grouped,
        **({"micro_batch_tokens": options.batch_size * LENGTH} if grouped else {}),
    )
    rows = [*short.trained, *long.trained]
    computed: list[int] = []

    def counted(model: Any, batch: Batch, **arguments: Any) -> Any:
        if arguments["step_tokens"] > 1:  # not an evaluation
            computed.append(batch.prefix + batch.tokens.shape[0] * (batch.tokens.shape[1] - batch.prefix))
        return batch_loss(model, batch, **arguments)

    objectives.batch_loss = counted
    base = load_base(options.base, dtype=compute_dtype(CPU), device=CPU, longest=max(len(row.tokens) for row in rows))
    torch.manual_seed(seed)
    model = attach_lora(base, recipe)
    began = time.process_time()
    done = training.train(model, rows, recipe, on_progress=lambda _: None)
    seconds = time.process_time() - began
    held_out = [data.held_out for data in (short, long)]
    losses = [training.evaluate(model, rows, recipe).loss if rows else math.nan for rows in held_out]
    factor = weight(rows, set(map(id, short.trained)), recipe) if long.trained else math.nan
    return factor, *losses, done.tokens, sum(computed), seconds


def weight(rows: Sequence[TokenSequence], labels: set[int], recipe: Recipe) -> float:
    """How much a trained token of `labels` (ids of rows) counts, as a multiple of the others."""
    parts: dict[bool, list[float]] = {True: [], False: []}
    lengths = [len(row.tokens) for row in rows]
    for step in plan_batches(
        lengths,
        batch_size=recipe.batch_size,
        epochs=recipe.epochs,
        seed=recipe.seed,
        group_by_length=recipe.group_by_length,
    ):
        tokens = sum(sum(rows[index].trained) for index in step)
        for index in step:
            parts[id(rows[index]) in labels] += [1 / tokens] * sum(rows[index].trained)
    return fmean(parts[True]) / fmean(parts[False])


if __name__ == "__main__":
    main()
