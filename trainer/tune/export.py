"""Exports a trained adapter as a directory that the registry accepts: PEFT's two files, metadata and settings.

adapter_config.json, adapter_model.safetensors   as PEFT saves them, in the serving dtype
metadata.json   {"format", "lineage", "training", "proof"}: the adapter's origin and its effect on the probes
settings.json   the settings that it must be served with (a system prompt)
checkpoints/step-00000120/   the same four files, of the adapter at the end of an epoch

The export runs the same checks as an upload, so that the registry does not refuse its result.
"""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from adapters.base import BaseDescription
from adapters.errors import AdapterError
from adapters.inspect import inspect_weights
from adapters.manifest import Manifest
from trainer.errors import ExportRefused
from trainer.tune.lineage import CONFIG_FILE, METADATA_FILE, SETTINGS_FILE, WEIGHTS_FILE, Metadata, TrainingRecord
from trainer.tune.os_errors import reraise_as_oserror
from trainer.tune.progress import Training

CHECKPOINTS: Final = "checkpoints"


def training_record(training: Training, model: Any, *, price_per_hour: float = 0.0) -> TrainingRecord:
    """The record of a finished training of `model`. `price_per_hour` is the device's."""
    parameter = next(model.parameters())
    last = training.evaluations[-1] if training.evaluations and training.best is None else None
    held_out = training.held_out or last
    return TrainingRecord(
        finished_at=datetime.now(UTC),
        seconds=round(training.seconds, 3),
        steps=training.steps,
        tokens=training.tokens,
        trained_tokens=training.trained_tokens,
        tokens_per_s=round(training.tokens / training.seconds, 1),
        final_loss=training.final_loss,
        device=parameter.device.type,
        dtype=str(parameter.dtype).removeprefix("torch."),
        held_out_loss=None if held_out is None else held_out.loss,
        validation_loss=None if training.best is None else training.best.loss,
        best_step=None if training.best is None else training.best.step,
        stopped_early=training.stopped_early,
        cost=round(training.seconds * price_per_hour / 3600, 6) if price_per_hour else None,
    )


def checkpoint_record(record: TrainingRecord, training: Training, step: int) -> TrainingRecord:
    """The record of the weights after `step`, given that of the whole training."""
    measured = next((evaluation.loss for evaluation in training.evaluations if evaluation.step == step), None)
    chosen_by = "held_out_loss" if training.best is None else "validation_loss"
    losses = {"held_out_loss": None, "validation_loss": None} | {chosen_by: measured}
    own = {"final_loss": training.losses[step - 1], "best_step": None, "checkpoint_step": step}
    return record.model_copy(update=losses | own)


def exported_checkpoints(directory: Path) -> dict[int, Path]:
    """The checkpoints that were exported beside the adapter in `directory`, by step, in order."""
    paths = sorted((directory / CHECKPOINTS).glob("step-*"))
    return {int(path.name.removeprefix("step-")): path for path in paths}


def checkpoint_directory(directory: Path, step: int) -> Path:
    """Where a checkpoint is exported beside the adapter in `directory`."""
    return directory / CHECKPOINTS / f"step-{step:08d}"


def cast_parameters(model: Any, dtype: Any) -> None:
    """Cast every parameter to `dtype` (a torch.dtype), in place.

    Buffers are left alone: rotary frequencies are float32 in a bfloat16 model. `model.to(dtype)` would round them,
    which moved the base's log-probabilities by 0.04 nats a token, as much as a different software stack does.
    """
    for parameter in model.parameters():
        parameter.data = parameter.data.to(dtype)


def export(model: Any, directory: Path, *, base: BaseDescription, metadata: Metadata) -> None:
    """Write `model`'s adapter, metadata and settings into `directory`, which must exist and be empty.

    Raises:
        ExportRefused: The registry would refuse the adapter, or it has no effect.
        OSError: For instance, the disk is full.
    """
    config = model.peft_config["default"]
    config.base_model_name_or_path = base.served_name  # not a path on this machine
    config.target_modules = sorted(config.target_modules)  # PEFT keeps a set, whose order differs between runs
    config.inference_mode = True
    with reraise_as_oserror():
        model.save_pretrained(directory, save_embedding_layers=False)  # "auto" would ask the hub for the base's config
    (directory / "README.md").unlink(missing_ok=True)  # PEFT's model card template
    _inspect(directory, base, max_rank=config.r)
    system_prompt = metadata.lineage.system_prompt
    settings = {} if system_prompt is None else {"system_prompt": system_prompt}
    (directory / METADATA_FILE).write_text(metadata.model_dump_json(indent=1) + "\n")
    (directory / SETTINGS_FILE).write_text(json.dumps(settings, ensure_ascii=False, indent=1) + "\n")


def _inspect(directory: Path, base: BaseDescription, *, max_rank: int) -> None:
    try:
        manifest = Manifest.parse((directory / CONFIG_FILE).read_bytes(), max_rank=max_rank, base_name=base.served_name)
        inspection = inspect_weights(directory / WEIGHTS_FILE, manifest, base)
    except AdapterError as error:
        raise ExportRefused(f"The trained adapter could not be served: {error.message} ({error.code})") from error
    if inspection.effect_is_zero:
        raise ExportRefused("The trained adapter has no effect: B·A is zero in every module.")
