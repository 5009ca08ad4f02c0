"""`python -m trainer.finetune.estimating DIRECTORY`: a job's plan, its data and its speed; JSON on stdout.

A process of its own (`trainer.data.child_process`), as a data check is. DIRECTORY has what a job's worker finds:
`spec.json`, `training.jsonl`, `held_out.jsonl`; and `estimate.json`. The data are prepared and the recipe is chosen by
the worker's own code. Where no past job tells the speed of such a recipe, a few steps of it are trained on the data and
thrown away.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final, cast

from adapters.protocol.runs import ParentShape
from trainer.data.child_process import refuse
from trainer.data.formats import read_dataset
from trainer.data.prepare import MIN_EXAMPLES, Prepared
from trainer.errors import TrainerError
from trainer.finetune.pipeline import TrainingPipeline
from trainer.finetune.spec import (
    ESTIMATE,
    TRAINING,
    EstimateOrders,
    JobSpec,
    MeasuredPlan,
    TrainingPlan,
)
from trainer.runs import protocol
from trainer.runs.directory import RunDirectory
from trainer.runs.gateway import Gateway
from trainer.tune.progress import TrainingProgress
from trainer.tune.recipe import Recipe
from trainer.tune.run import choose_device, cores

MIN_STEPS: Final = 3
MAX_STEPS: Final = 20
MIN_MEASURED_S: Final = 10.0


class _Enough(Exception):
    """The short run has measured enough."""


class Estimating(TrainingPipeline):
    """A job's preparation, without a gateway: the parent's shape is told instead of fetched."""

    def __init__(self, job: JobSpec, directory: RunDirectory, orders: EstimateOrders) -> None:
        # everything that would ask the gateway is there already, or about the parent
        super().__init__(job.model_copy(update={"parent": None}), directory, cast(Gateway, None), lambda: None)
        self._orders = orders

    def _load_parent(self) -> ParentShape | None:
        return self._orders.parent_shape

    def measure(self) -> MeasuredPlan:
        """Prepare the data, choose the recipe, and tell its speed.

        Raises:
            TrainerError: The job would fail for its data or its hyperparameters, or for memory.
        """
        began = time.monotonic()
        plan, prepared = self._prepare()
        quantization = plan.recipe.quantization
        speeds = [past.tokens_per_s for past in self._orders.record if past.quantization == quantization]
        preparing_s = time.monotonic() - began
        if speeds:
            pace = statistics.median(speeds)
        else:
            pace, loading_s = self._short_run(plan, prepared)
            preparing_s += loading_s
        return MeasuredPlan(
            plan=plan,
            examples=len(prepared.sequences),
            held_out=len(prepared.held_out),
            tokens_per_s=pace,
            jobs=len(speeds),
            device=str(choose_device(self._job.device)),
            preparing_s=preparing_s,
        )

    def _short_run(self, plan: TrainingPlan, prepared: Prepared) -> tuple[float, float]:
        """Tokens/s of a few steps, and the seconds of loading. The first step, which warms up, is left out."""
        import torch

        from trainer.tune.model import attach_lora, compute_dtype, load_base
        from trainer.tune.train import train

        began = time.monotonic()
        torch.set_num_threads(cores())
        recipe: Recipe = plan.recipe
        device = choose_device(self._job.device)
        longest = max(sequence.longest for sequence in prepared.sequences)
        model = load_base(
            self._job.base_dir,
            dtype=compute_dtype(device),
            device=device,
            longest=longest,
            quantization=recipe.quantization,
        )
        model = attach_lora(model, recipe)
        loading_s = time.monotonic() - began
        total = recipe.epochs * plan.tokens_an_epoch
        marks: list[tuple[float, float]] = []
        """When each step was done, and the tokens that the training had seen by then."""

        def on_progress(now: TrainingProgress) -> None:
            marks.append((time.monotonic(), total - now.seconds_left * now.tokens_per_s))
            steps, measured_s = len(marks) - 1, marks[-1][0] - marks[0][0]
            if steps >= MAX_STEPS or (steps >= MIN_STEPS and measured_s >= MIN_MEASURED_S):
                raise _Enough

        started = time.monotonic()
        with suppress(_Enough):
            train(model, prepared.sequences, recipe, on_progress=on_progress)
        first = marks[0] if len(marks) > 1 else (started, 0.0)
        return (marks[-1][1] - first[1]) / (marks[-1][0] - first[0]), loading_s


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns the exit code."""
    (path,) = map(Path, sys.argv[1:] if arguments is None else arguments)
    try:
        with RunDirectory(path) as directory:
            job = JobSpec.model_validate_json((path / protocol.SPEC).read_bytes())
            content = (path / TRAINING).read_bytes()
            read_dataset(job.training_file.filename, content, min_examples=MIN_EXAMPLES)  # before the import of torch
            orders = EstimateOrders.model_validate_json((path / ESTIMATE).read_bytes())
            sys.stdout.write(Estimating(job, directory, orders).measure().model_dump_json() + "\n")
    except MemoryError:
        return refuse("out_of_memory", "there is too little memory for a few steps of this job")
    except TrainerError as error:
        return refuse(error.code, error.message, param=getattr(error, "param", None))
    return 0


if __name__ == "__main__":
    sys.exit(main())
