"""A whole training in one function, from a data file to an exported adapter, and whether it is needed at all."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from adapters.base import BaseDescription
from adapters.proof import Proof
from trainer.data.format import Dataset
from trainer.data.render import TokenSequence
from trainer.durable import replaced_directory
from trainer.errors import BaseModelIncomplete, ExportRefused, OutOfMemory
from trainer.tune.lineage import DataSource, Lineage, Metadata, TrainingRecord, packages, read_lineage
from trainer.tune.memory_release import release_memory
from trainer.tune.progress import TrainingProgress, no_op
from trainer.tune.recipe import Recipe

if TYPE_CHECKING:
    from trainer.tune.checkpoint import Checkpoints

SERVING_DTYPE: Final = "bfloat16"
"""The engine's default dtype.

Adapters are saved, and their proof is measured, in the dtype of the base's description.
"""

OnStage = Callable[[str], None]
OnProgress = Callable[[TrainingProgress], None]


@dataclass(frozen=True, slots=True)
class TrainingSpec:
    """What to train: `base` is the checkpoint that `description` describes."""

    base: Path
    description: BaseDescription
    data: Dataset
    recipe: Recipe
    system_prompt: str | None = None

    def lineage(self) -> Lineage:
        """The lineage of the adapter that this spec gives."""
        return Lineage(
            data=(DataSource(name=self.data.name, sha256=self.data.sha256, examples=len(self.data.examples)),),
            recipe=self.recipe,
            system_prompt=self.system_prompt,
            base_name=self.description.served_name,
            base=self.description.fingerprint,
            packages=packages(),
        )

    def is_done(self, target: Path) -> bool:
        """Whether `target` already holds the adapter that this spec gives."""
        lineage = read_lineage(target)
        return lineage is not None and lineage.same_training(self.lineage())


@dataclass(frozen=True, slots=True)
class TrainingInputs:
    """The inputs of a training, tokenized and with a complete recipe.

    ``parent`` is the directory of an adapter (PEFT's two files) to train further; ``device`` is the name of a torch
    device or `auto`; ``price_per_hour`` is the device's.
    """

    base: Path
    description: BaseDescription
    sequences: Sequence[TokenSequence]
    recipe: Recipe
    lineage: Lineage
    held_out: Sequence[TokenSequence] = ()
    validation: Sequence[TokenSequence] = ()
    parent: Path | None = None
    device: str = "auto"
    price_per_hour: float = 0.0


def make_adapter(spec: TrainingSpec, target: Path, *, on_stage: OnStage, on_progress: OnProgress) -> Metadata:
    """Train an adapter by `spec` and atomically put its PEFT directory at `target`.

    `on_stage` is called with the name of each stage as it starts, `on_progress` after each step; an exception from
    either ends the training and leaves `target` as it was. Uses every core that this process may run on.

    Raises DataError, TrainingError, BaseModelIncomplete, ExportRefused; OSError.
    """
    on_stage("loading libraries")
    from trainer.data.render import Renderer, stop_tokens
    from trainer.tune.model import load_generation_config, load_tokenizer

    on_stage("reading the data")
    tokenizer = load_tokenizer(spec.base)
    renderer = Renderer(
        tokenizer,
        stop_tokens=stop_tokens(tokenizer, load_generation_config(spec.base)),
        max_length=spec.recipe.max_length,
        system_prompt=spec.system_prompt,
    )
    inputs = TrainingInputs(
        base=spec.base,
        description=spec.description,
        sequences=renderer.render_all(spec.data.examples),
        recipe=spec.recipe,
        lineage=spec.lineage(),
    )
    return train_adapter(inputs, target, on_stage=on_stage, on_progress=on_progress)


def train_adapter(
    inputs: TrainingInputs,
    target: Path,
    *,
    on_stage: OnStage,
    on_progress: OnProgress,
    before_batch: Callable[[], None] = no_op,
    checkpoints: Checkpoints | None = None,
) -> Metadata:
    """Train, measure and export like `make_adapter`, resuming from `checkpoints`. `before_batch` is as in `train`.

    Raises the same, and OutOfMemory and CheckpointUnusable.
    """
    import torch
    from safetensors.torch import load_file

    from trainer.tune import export
    from trainer.tune.model import adapter_weights, attach_lora, load_adapter, set_adapter_weights
    from trainer.tune.train import train

    torch.set_num_threads(cores())
    device = choose_device(inputs.device)
    recipe = inputs.recipe
    on_stage("loading the base model")
    with _explain_out_of_memory(recipe), torch.random.fork_rng(), replaced_directory(target) as directory:
        model = _load(inputs, device, recipe.quantization)
        torch.manual_seed(recipe.seed)
        model = attach_lora(model, recipe)
        if inputs.parent is not None:
            load_adapter(model, inputs.parent)
        on_stage("training")
        training = train(
            model,
            inputs.sequences,
            recipe,
            on_progress=on_progress,
            before_batch=before_batch,
            held_out=inputs.held_out,
            validation=inputs.validation,
            checkpoints=checkpoints,
            on_event=on_stage,
        )
        record = export.training_record(training, model, price_per_hour=inputs.price_per_hour)
        on_stage("measuring and writing")
        serving = getattr(torch, inputs.description.fingerprint.dtype)
        if recipe.quantization != "none" or _is_coarser(next(model.parameters()).dtype, serving):
            weights = adapter_weights(model)
            del model  # the base is needed again, in another dtype
            release_memory()
            model = _on_serving_base(inputs, weights, device, serving)
        metadata = _prove_and_export(inputs, model, record, directory)
        for step, path in ({} if checkpoints is None else checkpoints.epochs()).items():
            if step != record.exported_step:
                on_stage(f"measuring and writing the checkpoint of step {step}")
                set_adapter_weights(model, load_file(path), device)
                of_step = export.checkpoint_record(record, training, step)
                target_of_step = export.checkpoint_directory(directory, step)
                _export_checkpoint(inputs, model, of_step, target_of_step, metadata.proof, on_stage)
    return metadata


def _export_checkpoint(
    inputs: TrainingInputs, model: Any, record: TrainingRecord, directory: Path, result: Proof, on_stage: OnStage
) -> None:
    """`_prove_and_export` into a new directory; a checkpoint that could not be served is left out."""
    directory.mkdir(parents=True)
    try:
        _prove_and_export(inputs, model, record, directory, same_base=result)
    except ExportRefused as refused:
        shutil.rmtree(directory)
        on_stage(f"the checkpoint of step {record.checkpoint_step} is left out: {refused.message}")


def _prove_and_export(
    inputs: TrainingInputs, model: Any, record: TrainingRecord, directory: Path, *, same_base: Proof | None = None
) -> Metadata:
    """Measure the effect of `model`'s adapter in the serving dtype, and write it into `directory`."""
    import torch

    from trainer.tune import export, proof
    from trainer.tune.model import load_tokenizer

    export.cast_parameters(model, getattr(torch, inputs.description.fingerprint.dtype))
    measured = proof.measure(model, load_tokenizer(inputs.base), same_base=same_base)
    metadata = Metadata(lineage=inputs.lineage, training=record, proof=measured)
    export.export(model, directory, base=inputs.description, metadata=metadata)
    return metadata


def _load(inputs: TrainingInputs, device: Any, quantization: str, dtype: Any = None) -> Any:
    """The base model in ``dtype``, by default in the training dtype."""
    from trainer.tune.model import compute_dtype, load_base

    dtype = compute_dtype(device) if dtype is None else dtype
    return load_base(inputs.base, dtype=dtype, device=device, longest=_longest(inputs), quantization=quantization)


def _longest(inputs: TrainingInputs) -> int:
    """The tokens of the longest example."""
    return max(sequence.longest for sequence in (*inputs.sequences, *inputs.held_out, *inputs.validation))


def _is_coarser(trained: Any, serving: Any) -> bool:
    """Whether a base in the training dtype has lost precision that the serving dtype has."""
    import torch

    return trained not in (torch.float32, serving)


@contextmanager
def _explain_out_of_memory(recipe: Recipe) -> Iterator[None]:
    """Turn torch's OutOfMemoryError into OutOfMemory, during loading and proving as well."""
    import torch

    try:
        yield
    except torch.OutOfMemoryError as error:
        raise OutOfMemory(
            "The device ran out of memory while it loaded or proved the model. Use a smaller max_length or lora_rank"
            f"{'' if recipe.quantization == 'nf4' else ', or quantization nf4'}."
        ) from error


def _on_serving_base(inputs: TrainingInputs, weights: dict[str, Any], device: Any, serving: Any) -> Any:
    """The adapter on the base in the serving dtype: a proof on a four-bit copy would not describe what is served.

    The base is streamed, one layer at a time; one whose checkpoint has other names than the model is loaded as a whole.
    """
    from trainer.tune.memory import read_shape
    from trainer.tune.model import attach_lora, attention, compute_dtype, set_adapter_weights
    from trainer.tune.streaming import stream_base

    base = None
    if read_shape(inputs.base).streams:
        with suppress(BaseModelIncomplete):
            kernel = attention(device, _longest(inputs))
            base = stream_base(inputs.base, dtype=serving, device=device, attention=kernel)
    if base is None:
        base = _load(inputs, device, "none", serving if _is_coarser(compute_dtype(device), serving) else None)
    model = attach_lora(base, inputs.recipe)
    set_adapter_weights(model, weights, device)
    return model


def choose_device(name: str) -> Any:
    """The torch device called `name`; `auto` is the first GPU, or the CPU if there is none."""
    import torch

    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return torch.device(name)


def cores() -> int:
    """The number of cores that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
