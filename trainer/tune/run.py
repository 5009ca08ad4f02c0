"""From a data file to an exported adapter: the whole of a training in one function, and whether it is needed at all."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from adapters.base import BaseDescription
from trainer.data.format import Dataset
from trainer.data.render import TokenSequence
from trainer.durable import replaced_directory
from trainer.errors import OutOfMemory
from trainer.tune.lineage import DataSource, Lineage, Metadata, packages, read_lineage
from trainer.tune.memory_release import let_go_of_memory
from trainer.tune.progress import Progress, nothing
from trainer.tune.recipe import Recipe

if TYPE_CHECKING:
    from trainer.tune.checkpoint import Checkpoints

SERVING_DTYPE: Final = "bfloat16"
"""What the engine computes in unless it is told otherwise.

Adapters are saved, and their proof is measured, in the dtype of the base's description.
"""

OnStage = Callable[[str], None]
OnProgress = Callable[[Progress], None]


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


@dataclass(frozen=True, slots=True)
class Material:
    """All that a training takes, rendered and decided.

    ``parent`` is the directory of an adapter (PEFT's two files) that is trained on from; ``device`` a torch device's
    name or `auto`; ``price_per_hour`` the device's.
    """

    base: Path
    description: BaseDescription
    sequences: Sequence[TokenSequence]
    recipe: Recipe
    lineage: Lineage
    held_out: Sequence[TokenSequence] = ()
    parent: Path | None = None
    device: str = "auto"
    price_per_hour: float = 0.0


def make_adapter(order: Order, target: Path, *, on_stage: OnStage, on_progress: OnProgress) -> Metadata:
    """Train what `order` says and put the PEFT directory at `target`, in one step and only when it is whole.

    `on_stage` gets a few words before each part of the work, `on_progress` the numbers after each step; an exception
    from either ends it and leaves `target` as it was. Uses every core that this process may run on.

    Raises DataError, TrainingError, BaseModelIncomplete, ExportRefused; OSError for the disk.
    """
    on_stage("loading libraries")
    from trainer.data.render import Renderer, stop_tokens
    from trainer.tune.model import load_generation_config, load_tokenizer

    on_stage("reading the data")
    tokenizer = load_tokenizer(order.base)
    renderer = Renderer(
        tokenizer,
        stop_tokens=stop_tokens(tokenizer, load_generation_config(order.base)),
        max_length=order.recipe.max_length,
        system_prompt=order.system_prompt,
    )
    material = Material(
        base=order.base,
        description=order.description,
        sequences=renderer.render_all(order.data.examples),
        recipe=order.recipe,
        lineage=order.lineage(),
    )
    return train_adapter(material, target, on_stage=on_stage, on_progress=on_progress)


def train_adapter(
    material: Material,
    target: Path,
    *,
    on_stage: OnStage,
    on_progress: OnProgress,
    between: Callable[[], None] = nothing,
    checkpoints: Checkpoints | None = None,
) -> Metadata:
    """Train, measure and write; as `make_adapter`, from where `checkpoints` say that it stood. `between` as in `train`.

    Raises OutOfMemory and CheckpointUnusable, too.
    """
    import torch

    from trainer.tune import export, proof
    from trainer.tune.model import adapter_weights, attach_lora, load_adapter, load_tokenizer
    from trainer.tune.train import train

    torch.set_num_threads(cores())
    device = choose_device(material.device)
    recipe = material.recipe
    on_stage("loading the base model")
    with _told_of_memory(recipe), torch.random.fork_rng(), replaced_directory(target) as directory:
        model = _load(material, device, recipe.quantization)
        torch.manual_seed(recipe.seed)
        model = attach_lora(model, recipe)
        if material.parent is not None:
            load_adapter(model, material.parent)
        on_stage("training")
        training = train(
            model,
            material.sequences,
            recipe,
            on_progress=on_progress,
            between=between,
            held_out=material.held_out,
            checkpoints=checkpoints,
        )
        record = export.record(training, model, price_per_hour=material.price_per_hour)
        on_stage("measuring and writing")
        serving = getattr(torch, material.description.fingerprint.dtype)
        if recipe.quantization != "none" or _is_coarser(next(model.parameters()).dtype, serving):
            weights = adapter_weights(model)
            del model  # there is not room for two bases
            let_go_of_memory()
            model = _on_whole_base(material, weights, device, serving)
        export.cast_parameters(model, serving)
        metadata = Metadata(
            lineage=material.lineage, training=record, proof=proof.measure(model, load_tokenizer(material.base))
        )
        export.export(model, directory, base=material.description, metadata=metadata)
    return metadata


def _load(material: Material, device: Any, quantization: str, dtype: Any = None) -> Any:
    """The base; in ``dtype``, else in the one that is trained in."""
    from trainer.tune.model import compute_dtype, load_base

    longest = max(len(sequence.tokens) for sequence in (*material.sequences, *material.held_out))
    dtype = compute_dtype(device) if dtype is None else dtype
    return load_base(material.base, dtype=dtype, device=device, longest=longest, quantization=quantization)


def _is_coarser(trained: Any, serving: Any) -> bool:
    """Whether a base in the one dtype has lost what it has in the other: cast again, it would not be what serves."""
    import torch

    return trained not in (torch.float32, serving)


@contextmanager
def _told_of_memory(recipe: Recipe) -> Iterator[None]:
    """Whatever runs out of the device's memory, loading and proving too. Raises OutOfMemory."""
    import torch

    try:
        yield
    except torch.OutOfMemoryError as error:
        raise OutOfMemory(
            f"The device ran out of memory with batches of {recipe.batch_size}. A smaller batch_size or max_length, or "
            "quantization nf4, needs less; the base itself must fit whole beside the engine, for the proof."
        ) from error


def _on_whole_base(material: Material, weights: dict[str, Any], device: Any, serving: Any) -> Any:
    """The adapter on the base as it serves: a proof on the four-bit copy would prove something else."""
    from trainer.tune.model import attach_lora, compute_dtype, set_adapter_weights

    dtype = serving if _is_coarser(compute_dtype(device), serving) else None
    whole = attach_lora(_load(material, device, "none", dtype), material.recipe)
    set_adapter_weights(whole, weights)
    return whole


def choose_device(name: str) -> Any:
    """The torch device that `name` stands for; `auto` is the first GPU, else the CPU."""
    import torch

    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return torch.device(name)


def cores() -> int:
    """How many cores this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
