"""The origin of an adapter: the schema of metadata.json, and whether a training needs to be repeated.

Imports no torch, so that a cached adapter is recognised in milliseconds.
"""

from __future__ import annotations

import hashlib
import platform
from datetime import datetime
from importlib.metadata import version
from pathlib import Path
from typing import ClassVar, Final

from pydantic import BaseModel, ConfigDict, ValidationError

from adapters.base import Fingerprint
from adapters.proof import Proof
from adapters.protocol.requests import Overflow
from trainer.tune.recipe import Recipe, RecordedRecipe

CONFIG_FILE: Final = "adapter_config.json"
WEIGHTS_FILE: Final = "adapter_model.safetensors"
METADATA_FILE: Final = "metadata.json"
SETTINGS_FILE: Final = "settings.json"

PACKAGES: Final = ("torch", "transformers", "peft", "safetensors", "tokenizers")
"""Packages whose versions may change the result of a training."""


NOT_COMPARED: Final = {
    "python",
    "packages",
    "job",
    "files",
    "datasets",
    "held_out",
    "split_off",
    "drop_long",
    "overflow",
}
"""Fields of a lineage that do not decide the weights, or that follow from others."""


LATER_FIELDS: Final = ("objective", "beta", "patience")


class _Frozen(BaseModel):
    model_config: ClassVar[ConfigDict] = ConfigDict(frozen=True, extra="forbid")


class DataSource(_Frozen):
    """A data file: its name, the SHA-256 of its bytes, and its number of examples."""

    name: str
    sha256: str
    examples: int


class Lineage(_Frozen):
    """Everything that determines an adapter's weights."""

    data: tuple[DataSource, ...]
    recipe: RecordedRecipe
    system_prompt: str | None = None
    held_out: DataSource | None = None
    """The held-out file; None if the held-out examples were split off the training file."""
    split_off: tuple[int, ...] = ()
    """Lines of the training file that were split off as held-out examples and not trained on."""
    drop_long: bool = False
    """Whether examples above `max_length` were dropped; ``data`` counts the examples trained on."""
    overflow: Overflow | None = None
    """What became of them, in lineages of releases that have a choice."""
    validation: tuple[int, ...] = ()
    """Lines of the training file that chose the best epoch and were not trained on."""
    base_name: str
    base: Fingerprint
    parent: str | None = None
    """The version that the training started from: `name@version` or a digest."""
    job: str | None = None
    files: tuple[str, ...] = ()
    """The gateway's ids of the data files, which it keeps as long as the version exists."""
    datasets: dict[str, str] = {}
    """The datasets that the files were versions of, as `name@version`, by `training_file` and `validation_file`."""
    python: str = platform.python_version()
    packages: dict[str, str] = {}

    def same_training(self, other: Lineage) -> bool:
        """Whether both trainings give the same adapter: same data, recipe, prompt, parent and base."""
        return self._decisive() == other._decisive()

    def key(self) -> str:
        """A digest of all that decides the weights, for checkpoints. Releases before `group_by_length` give the same
        for a recipe of theirs, so that their jobs resume."""
        return hashlib.sha256(self._decisive().encode()).hexdigest()

    def _decisive(self) -> str:
        recipe = {"micro_batch_tokens"} | (set() if not self.recipe.group_by_length else {"group_by_length"})
        # fields of later releases, where they say what earlier ones did
        recipe |= {name for name in LATER_FIELDS if getattr(self.recipe, name) == Recipe.model_fields[name].default}
        skipped = NOT_COMPARED if self.validation else {*NOT_COMPARED, "validation"}
        return self.model_dump_json(exclude={**dict.fromkeys(skipped, True), "recipe": recipe})


class TrainingRecord(_Frozen):
    """Cost and outcome of a training. Losses are in nats per trained token, times in seconds."""

    finished_at: datetime
    seconds: float
    steps: int
    tokens: int
    trained_tokens: int
    tokens_per_s: float
    final_loss: float
    device: str
    dtype: str
    held_out_loss: float | None = None
    """Of the exported weights; None without held-out examples."""
    validation_loss: float | None = None
    """Of the exported weights, on the validation part; None without one."""
    best_step: int | None = None
    """The step whose weights were exported, if a validation part chose it."""
    stopped_early: bool = False
    checkpoint_step: int | None = None
    """Of a checkpoint: the weights and the losses are those after this step; all else is the whole training's."""
    cost: float | None = None
    """In the operator's currency: the training's seconds multiplied by the device's price."""

    @property
    def exported_step(self) -> int:
        """The step after which the weights were as they are exported."""
        return self.checkpoint_step or self.best_step or self.steps


class Metadata(_Frozen):
    """The content of metadata.json, which an upload sends as `metadata`."""

    format: int = 1
    lineage: Lineage
    training: TrainingRecord
    proof: Proof


def read_lineage(adapter: Path) -> Lineage | None:
    """The lineage of an exported directory; None if there is none, or it is incomplete or of another format."""
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
