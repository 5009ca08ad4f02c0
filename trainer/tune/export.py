"""Writes what training made as a directory that the registry takes: PEFT's two files, metadata and settings.

adapter_config.json, adapter_model.safetensors   as PEFT saves them, in the dtype that serves
metadata.json   {"format", "lineage", "training", "proof"}: where the adapter comes from and what it does to the probes
settings.json   what it must be served with (a system prompt)

Nothing is written that `adapters/` would refuse: the same checks that an upload meets run here.
"""

from __future__ import annotations

import json
import platform
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any, ClassVar, Final

from pydantic import BaseModel, ConfigDict, ValidationError

from adapters.base import BaseDescription, Fingerprint
from adapters.errors import AdapterError
from adapters.inspect import inspect_weights
from adapters.manifest import Manifest
from adapters.proof import Proof
from trainer.errors import ExportRefused
from trainer.tune.recipe import Recipe
from trainer.tune.train import Training

CONFIG_FILE: Final = "adapter_config.json"
WEIGHTS_FILE: Final = "adapter_model.safetensors"
METADATA_FILE: Final = "metadata.json"
SETTINGS_FILE: Final = "settings.json"

PACKAGES: Final = ("torch", "transformers", "peft", "safetensors", "tokenizers")
"""Whose versions decide what a training gives."""


class _Frozen(BaseModel):
    model_config: ClassVar[ConfigDict] = ConfigDict(frozen=True, extra="forbid")


class DataSource(_Frozen):
    """A data file that was trained on: its name, the SHA-256 of its bytes, and how many examples it holds."""

    name: str
    sha256: str
    examples: int


class Lineage(_Frozen):
    """All that decides an adapter's weights. Equal lineages but for `packages` and `python` mean: no need to train again."""

    data: tuple[DataSource, ...]
    recipe: Recipe
    system_prompt: str | None = None
    base_name: str
    base: Fingerprint
    parent: str | None = None
    python: str = platform.python_version()
    packages: dict[str, str] = {}

    def same_training(self, other: Lineage) -> bool:
        """Whether the other would train the same adapter: data, recipe, prompt, parent and base alike."""
        environment = {"python", "packages"}
        return self.model_dump(exclude=environment) == other.model_dump(exclude=environment)


class TrainingRecord(_Frozen):
    """What the training cost and came to. Losses are in nats per trained token, times in seconds."""

    finished_at: datetime
    seconds: float
    steps: int
    tokens: int
    trained_tokens: int
    tokens_per_s: float
    final_loss: float
    device: str
    dtype: str


class Metadata(_Frozen):
    """metadata.json: what an upload's `metadata` carries."""

    format: int = 1
    lineage: Lineage
    training: TrainingRecord
    proof: Proof


def read_lineage(adapter: Path) -> Lineage | None:
    """The lineage of an exported directory; None where there is none, or it is not whole or of another format."""
    files = (CONFIG_FILE, WEIGHTS_FILE, METADATA_FILE, SETTINGS_FILE)
    if not all((adapter / name).is_file() for name in files):
        return None
    try:
        return Metadata.model_validate_json((adapter / METADATA_FILE).read_bytes()).lineage
    except ValidationError:
        return None


def packages() -> dict[str, str]:
    """The installed versions of PACKAGES."""
    return {name: version(name) for name in PACKAGES}


def record(training: Training, model: Any) -> TrainingRecord:
    """The record of a training that has just ended on `model`."""
    parameter = next(model.parameters())
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
    )


def export(model: Any, directory: Path, *, base: BaseDescription, metadata: Metadata) -> None:
    """Write `model`'s adapter and its papers into `directory`, which exists and is empty.

    Raises ExportRefused if `adapters/` finds fault with it, or if it changes nothing.
    """
    config = model.peft_config["default"]
    config.base_model_name_or_path = base.served_name  # not the place on this machine's disk
    config.inference_mode = True
    model.save_pretrained(directory)
    (directory / "README.md").unlink(missing_ok=True)  # PEFT's form with every field left open
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
        raise ExportRefused("The trained adapter changes nothing: B·A is zero in every module.")
