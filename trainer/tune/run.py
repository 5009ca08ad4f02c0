"""From a data file to an exported adapter: the whole of a training in one function, and whether it is needed at all."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from adapters.base import BaseDescription
from trainer.data.format import Dataset
from trainer.durable import replaced_directory
from trainer.tune.lineage import DataSource, Lineage, Metadata, packages, read_lineage
from trainer.tune.progress import Progress
from trainer.tune.recipe import Recipe

SERVING_DTYPE: Final = "bfloat16"
"""What the engine computes in: adapters are saved in it and their proof is measured in it."""


@dataclass(frozen=True, slots=True)
class Order:
    """What is to be trained: `base` is the checkpoint that `description` describes."""

    base: Path
    description: BaseDescription
    data: Dataset
    recipe: Recipe
    system_prompt: str | None = None

    def lineage(self) -> Lineage:
        """The lineage that an adapter made by this order has."""
        return Lineage(
            data=(DataSource(name=self.data.name, sha256=self.data.sha256, examples=len(self.data.examples)),),
            recipe=self.recipe,
            system_prompt=self.system_prompt,
            base_name=self.description.served_name,
            base=self.description.fingerprint,
            packages=packages(),
        )

    def is_done(self, target: Path) -> bool:
        """Whether `target` already holds what this order would make."""
        made = read_lineage(target)
        return made is not None and made.same_training(self.lineage())


def make_adapter(
    order: Order, target: Path, *, on_stage: Callable[[str], None], on_progress: Callable[[Progress], None]
) -> Metadata:
    """Train what `order` says and put the PEFT directory at `target`, in one step and only when it is whole.

    `on_stage` gets a few words before each part of the work, `on_progress` the numbers after each step; an exception
    from either ends it and leaves `target` as it was. Uses every core that this process may run on.

    Raises DataError, TrainingError, BaseModelIncomplete, ExportRefused; OSError for the disk.
    """
    on_stage("loading libraries")
    import torch

    from trainer.data.render import Renderer, stop_tokens
    from trainer.tune import export, proof
    from trainer.tune.model import attach_lora, compute_dtype, load_base, load_generation_config, load_tokenizer
    from trainer.tune.train import train

    torch.set_num_threads(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    on_stage("reading the data")
    tokenizer = load_tokenizer(order.base)
    renderer = Renderer(
        tokenizer,
        stop_tokens=stop_tokens(tokenizer, load_generation_config(order.base)),
        max_length=order.recipe.max_length,
        system_prompt=order.system_prompt,
    )
    sequences = renderer.render_all(order.data.examples)
    on_stage("loading the base model")
    longest = max(len(sequence.tokens) for sequence in sequences)
    base = load_base(order.base, dtype=compute_dtype(device), device=device, longest=longest)
    with torch.random.fork_rng(), replaced_directory(target) as directory:
        torch.manual_seed(order.recipe.seed)
        model = attach_lora(base, order.recipe)
        on_stage("training")
        training = train(model, sequences, order.recipe, on_progress=on_progress)
        record = export.record(training, model)
        on_stage("measuring and writing")
        export.cast_parameters(model, getattr(torch, SERVING_DTYPE))
        metadata = Metadata(lineage=order.lineage(), training=record, proof=proof.measure(model, tokenizer))
        export.export(model, directory, base=order.description, metadata=metadata)
    return metadata
