"""Where an adapter comes from: the schema of metadata.json, and whether a training needs to be done again.

Imports no torch: a cached adapter is recognised in milliseconds.
"""

from __future__ import annotations

import platform
from datetime import datetime
from importlib.metadata import version
from pathlib import Path
from typing import ClassVar, Final

from pydantic import BaseModel, ConfigDict, ValidationError

from adapters.base import Fingerprint
from adapters.proof import Proof
from trainer.tune.recipe import Recipe

CONFIG_FILE: Final = "adapter_config.json"
WEIGHTS_FILE: Final = "adapter_model.safetensors"
METADATA_FILE: Final = "metadata.json"
SETTINGS_FILE: Final = "settings.json"

PACKAGES: Final = ("torch", "transformers", "peft", "safetensors", "tokenizers")
"""Whose versions decide what a training gives."""


BESIDE: Final = {"python", "packages", "job", "files", "held_out", "drop_long"}
"""Fields of a lineage that decide no weights, or that others tell already."""


class _Frozen(BaseModel):
    model_config: ClassVar[ConfigDict] = ConfigDict(frozen=True, extra="forbid")


class DataSource(_Frozen):
    """A data file that was trained on: its name, the SHA-256 of its bytes, and how many examples it holds."""

    name: str
    sha256: str
    examples: int


class Lineage(_Frozen):
    """All that decides an adapter's weights."""

    data: tuple[DataSource, ...]
    recipe: Recipe
    system_prompt: str | None = None
    held_out: DataSource | None = None
    """The data file that was named to be held out; none where the held-out part is of the training file."""
    drop_long: bool = False
    """Whether examples above `max_length` were left out: ``data`` counts those that were trained on."""
    base_name: str
    base: Fingerprint
    parent: str | None = None
    """`name@version` that was trained on from, or a digest."""
    job: str | None = None
    files: tuple[str, ...] = ()
    """The gateway's ids of the data files: it keeps them as long as the version lives."""
    python: str = platform.python_version()
    packages: dict[str, str] = {}

    def same_training(self, other: Lineage) -> bool:
        """Whether the other would train the same adapter: data, recipe, prompt, parent and base alike."""
        return self.model_dump(exclude=BESIDE) == other.model_dump(exclude=BESIDE)


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
    held_out_loss: float | None = None
    """After the last epoch, where something was held out."""
    cost: float | None = None
    """In the operator's currency: seconds of the device by its price."""


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
