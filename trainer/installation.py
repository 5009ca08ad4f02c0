"""What the gateway passes to the trainer at its start: where everything is, and the bases that it serves."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from trainer.errors import InvalidField, TrainerError


class BaseGone(TrainerError):
    """A run is for a base that the gateway no longer serves."""

    code = "base_gone"

    def __init__(self, base_name: str, served: Iterable[str]) -> None:
        names = ", ".join(f"`{name}`" for name in served)
        super().__init__(
            f"The base `{base_name}` is no longer served; the gateway serves {names}. Serve it again and create the "
            "run again, or create it for another base."
        )


@dataclass(frozen=True, slots=True)
class OtherBase:
    """A base beside the default, as `Installation` has it."""

    base: Path
    base_name: str
    max_rank: int
    context: int | None = None
    dtype: str = "bfloat16"

    @classmethod
    def parse(cls, text: str) -> OtherBase:
        """From the JSON of a command-line argument. Raises ValueError, TypeError."""
        values = json.loads(text)
        return cls(**(values | {"base": Path(values["base"]).absolute()}))


@dataclass(frozen=True, slots=True)
class Installation:
    """What the gateway passes at start: paths, and what the engine serves.

    ``dtype`` is the engine's data type. ``engine_memory`` is the fraction of GPU memory that the engine uses if
    ``engine_device`` is cuda. ``others`` are further bases that the gateway serves.
    """

    home: Path
    gateway: str
    base: Path
    base_name: str
    max_rank: int
    context: int | None = None
    dtype: str = "bfloat16"
    engine_device: Literal["cpu", "cuda"] = "cpu"
    engine_memory: float = 0.85
    others: tuple[OtherBase, ...] = ()

    def on(self, base_name: str | None) -> Installation:
        """The same for another base of the gateway, by its served name; None: the default.

        Raises:
            InvalidField: The gateway serves a base that this trainer was not started with.
        """
        if base_name is None or base_name == self.base_name:
            return self
        for other in self.others:
            if other.base_name == base_name:
                return replace(self, **dataclasses.asdict(other))
        known = ", ".join(f"`{name}`" for name in self.base_names)
        raise InvalidField(
            f"`model`: the trainer does not know the base `{base_name}`; it was started with {known}", param="model"
        )

    def of_run(self, base_name: str | None, directory: Path) -> Installation:
        """The same for the base that a run was created for: of that name, or renamed since, in that directory.

        Raises:
            BaseGone: It is not served any more.
        """
        if base_name is None:  # of an earlier release: there was one
            return self
        if base_name in self.base_names:
            return self.on(base_name)
        for name in self.base_names:
            if self.on(name).base == directory:
                return self.on(name)
        raise BaseGone(base_name, self.base_names)

    @property
    def base_names(self) -> tuple[str, ...]:
        """The served names of all bases, the default first."""
        return (self.base_name, *(other.base_name for other in self.others))

    @property
    def directory(self) -> Path:
        """The trainer's directory under home."""
        return self.home / "trainer"

    @property
    def jobs(self) -> Path:
        """Parent of the jobs' directories."""
        return self.directory / "jobs"
