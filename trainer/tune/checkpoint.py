"""Checkpoints from which a training resumes bit for bit: written atomically, the newest two are kept.

    DIRECTORY/step-00000120/state.pt     float32 master weights, AdamW's moments, the states of the random generators,
                                         the parameters at the best measured point
    DIRECTORY/step-00000120/state.json   TrainingState
    DIRECTORY/reference.json             of DPO: the pairs' log-probabilities before the first step
    DIRECTORY/epoch-00000120.safetensors the adapter's parameters at the end of an epoch, of the last epochs

The order of the batches depends on data, recipe and seed alone (``batches.plan_batches``), so the sampler's only state
is the step.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Final

import torch
from pydantic import BaseModel, ConfigDict, ValidationError
from safetensors.torch import save

from trainer.durable import replaced_directory, replaced_file
from trainer.errors import CheckpointUnusable
from trainer.tune.os_errors import reraise_as_oserror
from trainer.tune.progress import Evaluation

STATE_TENSORS: Final = "state.pt"
STATE_JSON: Final = "state.json"
REFERENCE_JSON: Final = "reference.json"
EPOCH_PREFIX: Final = "epoch-"
MAX_CHECKPOINTS: Final = 2
"""Two, so that one is left if the newest turns out to be corrupt."""


class TrainingState(BaseModel):
    """The progress of a training after ``step``; ``key`` identifies the training (its data, recipe and base)."""

    model_config: ClassVar[ConfigDict] = ConfigDict(frozen=True, extra="forbid")

    key: str
    step: int
    losses: tuple[float, ...]
    tokens: int
    seconds: float
    evaluations: tuple[Evaluation, ...] = ()
    """One per measured point; one fewer if the last evaluation was interrupted."""
    learning_rate: float = 0.0
    """Of the last step, like `accuracy`."""
    accuracy: float = 0.0


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A training state, the optimizer's state that belongs to it, and the adapter's parameters at the best of the
    measured points, by name; None before the first."""

    state: TrainingState
    optimizer: dict[str, Any]
    best: dict[str, torch.Tensor] | None = None


class _Reference(BaseModel):
    key: str
    values: tuple[tuple[float, float], ...]


class Checkpoints:
    """The checkpoints of one training.

    Args:
        directory: Used for nothing else; created with the first checkpoint.
        key: Identifies the training; checkpoints with another key are refused.
        every_s: Seconds between two checkpoints, and so about the most work that a crash can cost.
        keep_epochs: Of how many of the last epochs the adapter is kept: some megabytes each, without the optimizer.
    """

    def __init__(self, directory: Path, *, key: str, every_s: float, keep_epochs: int = 0) -> None:
        self.directory = directory
        self.key = key
        self._every_s = every_s
        self._keep_epochs = keep_epochs
        self._last = time.monotonic()

    def due(self) -> bool:
        """Whether it is time for the next checkpoint."""
        return time.monotonic() - self._last >= self._every_s

    def save(self, checkpoint: Checkpoint, device: torch.device) -> Path:
        """Write a checkpoint and delete the oldest; returns its path. After an OSError the earlier ones are intact."""
        path = self.directory / f"step-{checkpoint.state.step:08d}"
        with replaced_directory(path) as partial:
            # a Python file: if torch opens the file itself, a full disk goes unnoticed
            with reraise_as_oserror(), (partial / STATE_TENSORS).open("wb") as file:
                tensors = {"optimizer": checkpoint.optimizer, "random": random_states(device), "best": checkpoint.best}
                torch.save(tensors, file)
            (partial / STATE_JSON).write_text(checkpoint.state.model_dump_json() + "\n")
        for old in self._paths()[:-MAX_CHECKPOINTS]:
            shutil.rmtree(old, ignore_errors=True)
        self._last = time.monotonic()
        return path

    def load(self, device: torch.device) -> Checkpoint | None:
        """The newest readable checkpoint, after restoring its random generators; None if there is none.

        Raises:
            CheckpointUnusable: The newest readable checkpoint belongs to another training.
        """
        for path in reversed(self._paths()):
            try:
                state = TrainingState.model_validate_json((path / STATE_JSON).read_bytes())
                # weights_only: a manipulated file cannot run code
                tensors = torch.load(path / STATE_TENSORS, map_location=device, weights_only=True)
            except (OSError, ValidationError, RuntimeError, EOFError):
                continue  # incomplete; the one before it is as good, only older
            if state.key != self.key:
                raise CheckpointUnusable(f"{path} belongs to another training: the data, recipe or base have changed")
            set_random_states(tensors["random"], device)
            return Checkpoint(state, tensors["optimizer"], tensors.get("best"))
        return None

    def save_epoch(self, step: int, weights: Callable[[], dict[str, torch.Tensor]]) -> None:
        """Write the adapter's parameters after `step`, the last of an epoch, and delete those of epochs too far back.
        After an OSError the earlier ones are intact."""
        if not self._keep_epochs:
            return
        self.directory.mkdir(parents=True, exist_ok=True)
        with replaced_file(self.directory / f"{EPOCH_PREFIX}{step:08d}.safetensors") as file:
            file.write(save(weights()))
        for old in list(self.epochs().values())[: -self._keep_epochs]:
            old.unlink(missing_ok=True)

    def epochs(self) -> dict[int, Path]:
        """The files of `save_epoch` by step, in order; `safetensors.torch.load_file` reads them."""
        paths = sorted(self.directory.glob(f"{EPOCH_PREFIX}*.safetensors")) if self.directory.is_dir() else []
        return {int(path.stem.removeprefix(EPOCH_PREFIX)): path for path in paths}

    def save_reference(self, values: Sequence[tuple[float, float]]) -> None:
        """Write the pairs' log-probabilities before the training, which no resumed training can measure any more."""
        content = _Reference(key=self.key, values=tuple(values)).model_dump_json()
        self.directory.mkdir(parents=True, exist_ok=True)
        with replaced_file(self.directory / REFERENCE_JSON) as file:
            file.write(content.encode())

    def load_reference(self) -> list[tuple[float, float]] | None:
        """A result of `save_reference` of the same training; None if there is none."""
        try:
            reference = _Reference.model_validate_json((self.directory / REFERENCE_JSON).read_bytes())
        except (OSError, ValidationError):
            return None
        return list(reference.values) if reference.key == self.key else None

    def _paths(self) -> list[Path]:
        return sorted(self.directory.glob("step-*")) if self.directory.is_dir() else []


def random_states(device: torch.device) -> dict[str, torch.Tensor]:
    """The states of the random generators that a training on `device` uses."""
    states = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        states["cuda"] = torch.cuda.get_rng_state(device)
    return states


def set_random_states(states: dict[str, torch.Tensor], device: torch.device) -> None:
    """Restore a result of `random_states`."""
    torch.set_rng_state(states["cpu"].cpu())
    if device.type == "cuda" and "cuda" in states:
        torch.cuda.set_rng_state(states["cuda"].cpu(), device)
