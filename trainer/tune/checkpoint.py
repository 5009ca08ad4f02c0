"""What a training needs to go on as if it had never stopped: written whole or not at all, the newest two kept.

    DIRECTORY/step-00000120/state.pt     float32 originals, AdamW's moments, the random generators
    DIRECTORY/step-00000120/state.json   step, losses, evaluations, tokens, seconds, and what it belongs to

The order of the batches depends on data, recipe and seed alone (``batches.plan_batches``), so the step is all that is
kept of the sampler.
"""

from __future__ import annotations

import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Final

import torch
from pydantic import BaseModel, ConfigDict, ValidationError

from trainer.durable import replaced_directory
from trainer.errors import CheckpointUnusable
from trainer.tune.full_disk import told_as_oserror
from trainer.tune.progress import Evaluation

STATE: Final = "state.pt"
PAPERS: Final = "state.json"
KEPT: Final = 2
"""Two, so that a disk that fails under the newest leaves one."""


class Position(BaseModel):
    """Where a training stands after ``step``; ``key`` names the training (its data, recipe and base)."""

    model_config: ClassVar[ConfigDict] = ConfigDict(frozen=True, extra="forbid")

    key: str
    step: int
    losses: tuple[float, ...]
    tokens: int
    seconds: float
    evaluations: tuple[Evaluation, ...] = ()
    """One fewer than the epochs that are done where the last one was interrupted."""
    learning_rate: float = 0.0
    """Of the last step, as `accuracy` is."""
    accuracy: float = 0.0


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A position with the tensors that belong to it."""

    position: Position
    optimizer: dict[str, Any]


class Checkpoints:
    """The checkpoints of one training.

    Args:
        directory: Theirs alone; made when the first is written.
        key: What the training is; another training's checkpoints are not resumed from.
        every_s: Seconds between two of them; what a crash can cost, beside the steps of one.
    """

    def __init__(self, directory: Path, *, key: str, every_s: float) -> None:
        self.directory = directory
        self.key = key
        self._every_s = every_s
        self._last = time.monotonic()

    def due(self) -> bool:
        """Whether the time for the next one has come."""
        return time.monotonic() - self._last >= self._every_s

    def save(self, checkpoint: Checkpoint, device: torch.device) -> Path:
        """Write one and forget the oldest. Raises OSError; the ones before it are whole all the same."""
        place = self.directory / f"step-{checkpoint.position.step:08d}"
        with replaced_directory(place) as partial:
            # a file of Python's: of one that torch opens itself nobody learns that the disk is full
            with told_as_oserror(), (partial / STATE).open("wb") as file:
                torch.save({"optimizer": checkpoint.optimizer, "random": _random(device)}, file)
            (partial / PAPERS).write_text(checkpoint.position.model_dump_json() + "\n")
        for old in self._places()[:-KEPT]:
            shutil.rmtree(old, ignore_errors=True)
        self._last = time.monotonic()
        return place

    def load(self, device: torch.device) -> Checkpoint | None:
        """The newest one that can be read, its random generators set; None where there is none.

        Raises:
            CheckpointUnusable: There are some, and they belong to another training.
        """
        for place in reversed(self._places()):
            try:
                position = Position.model_validate_json((place / PAPERS).read_bytes())
                # only tensors and plain values: a file that somebody has changed runs no code
                state = torch.load(place / STATE, map_location=device, weights_only=True)
            except (OSError, ValidationError, RuntimeError, EOFError):
                continue  # half of it is gone; the one before it is as good, only older
            if position.key != self.key:
                raise CheckpointUnusable(f"{place} belongs to another training: data, recipe or base have changed")
            _set_random(state["random"], device)
            return Checkpoint(position, state["optimizer"])
        return None

    def _places(self) -> list[Path]:
        return sorted(self.directory.glob("step-*")) if self.directory.is_dir() else []


def _random(device: torch.device) -> dict[str, torch.Tensor]:
    states = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        states["cuda"] = torch.cuda.get_rng_state(device)
    return states


def _set_random(states: dict[str, torch.Tensor], device: torch.device) -> None:
    torch.set_rng_state(states["cpu"].cpu())
    if device.type == "cuda" and "cuda" in states:
        torch.cuda.set_rng_state(states["cuda"].cpu(), device)
