"""Whether a training fits into the device's memory beside the engine, told with the numbers before it starts.

Imports no torch: a GPU's memory is asked of its driver.
"""

from __future__ import annotations

import logging
import subprocess
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import psutil

from adapters.basefiles import read_json, weight_files
from adapters.baseshapes import layers_of
from adapters.protocol.runs import ParentShape
from trainer.config import Installation, gpu_seen, visible_gpus
from trainer.tune import auto
from trainer.tune.memory import EAGER_MAX_TOKENS, Need, Shape, estimate, read_shape
from trainer.tune.recipe import Recipe
from trainer.tune.wish import Wish

DRIVER_TIMEOUT_S: Final = 10.0
SHORT_TOKENS: Final = 256
"""How long the longest example is taken to be before anybody has seen the data, where no `max_length` was asked for."""
FEWEST_EXAMPLES: Final = 10
CGROUP: Final = Path("/sys/fs/cgroup")
CPUINFO: Final = Path("/proc/cpuinfo")
SHORT_NUMBERS: Final = frozenset({"avx512_bf16", "amx_bf16", "bf16"})
"""Flags of CPUs that multiply in bfloat16, as the kernel tells them; `model.compute_dtype` asks torch for the same."""
MIB: Final = 2**20
_LOG = logging.getLogger("hatrack.trainer.capacity")


@dataclass(frozen=True, slots=True)
class Base:
    """What of the base model decides whether a job can be done: its shape, its width, and its linear layers' names."""

    shape: Shape
    positions: int
    modules: frozenset[str]

    @classmethod
    def read(cls, directory: Path) -> Base:
        """From a checkpoint's config and headers. Raises AdapterError, OSError, KeyError, ValueError."""
        config = read_json(directory / "config.json")
        layers = layers_of(weight_files(directory), config)
        return cls(
            shape=read_shape(directory),
            positions=int(config.get("text_config", config)["max_position_embeddings"]),
            modules=frozenset(name for name, layer in layers.items() if layer.is_linear),
        )

    def unknown(self, targets: Collection[str]) -> list[str]:
        """Those of `targets` that are the end of no linear layer's name, as PEFT matches them."""
        return [
            target
            for target in targets
            if not any(name == target or name.endswith(f".{target}") for name in self.modules)
        ]

    def matching(self, targets: Collection[str]) -> list[str]:
        """The linear layers that a LoRA on `targets` is put on, as PEFT matches them."""
        ends = tuple(f".{target}" for target in targets)
        return [name for name in self.modules if name in targets or name.endswith(ends)]

    def endings(self) -> list[str]:
        """The last part of each linear layer's name."""
        return sorted({name.rpartition(".")[2] for name in self.modules})


@dataclass(frozen=True, slots=True)
class Room:
    """Bytes that a training may take on `device`, and in words why no more."""

    device: str
    bytes: int
    why: str


@dataclass(frozen=True, slots=True)
class Fit:
    """A training's need against the room for it."""

    need: Need
    room: Room

    @property
    def fits(self) -> bool:
        return self.need.total <= self.room.bytes

    def words(self) -> str:
        """The numbers."""
        free = f"{self.room.bytes / 2**30:.1f} GiB"
        return f"it needs about {self.need.words()} on {self.room.device}, where {free} are to be had ({self.room.why})"


def at_least(
    wish: Wish,
    base: Base,
    *,
    max_rank: int,
    length: int,
    file_bytes: int,
    on_gpu: bool,
    parent: ParentShape | None = None,
) -> Recipe:
    """The least that a wish can become: with `auto` for the shortest of files, and activations computed again.

    Raises WishRefused.
    """
    few = auto.Seen(examples=FEWEST_EXAMPLES, tokens=FEWEST_EXAMPLES, longest=min(SHORT_TOKENS, file_bytes))
    recipe, _ = auto.choose(
        wish, few, hidden_size=base.shape.hidden, max_rank=max_rank, length=length, seed=0, on_gpu=on_gpu, parent=parent
    )
    return recipe.model_copy(update={"gradient_checkpointing": True})


def need(recipe: Recipe, base: Base, *, longest: int, on_gpu: bool) -> Need:
    """What `recipe` takes with examples of up to `longest` tokens."""
    fused = on_gpu or longest > EAGER_MAX_TOKENS
    return estimate(base.shape, recipe, longest=longest, fused=fused, number_bytes=number_bytes(on_gpu=on_gpu))


def number_bytes(*, on_gpu: bool) -> int:
    """Bytes of a number that a training computes with: 2 on a GPU, as all since 2020 do, and on CPUs that can."""
    if on_gpu:
        return 2
    try:
        told = CPUINFO.read_text()
    except OSError:
        return 4
    flags = (line.partition(":")[2].split() for line in told.splitlines() if line.startswith(("flags", "Features")))
    return 2 if SHORT_NUMBERS & set(next(flags, [])) else 4


def kind(device: str) -> str:
    """`cpu` or `cuda`, `auto` resolved as the worker will resolve it."""
    if device == "auto":
        return "cuda" if gpu_seen() and visible_gpus() != () else "cpu"
    return device.partition(":")[0]


def room(device: str, engine: Installation, working: Collection[int] = ()) -> Room:
    """What there is on `device` for one training.

    Args:
        device: As the settings say it.
        engine: Who holds its share of the first GPU, where it runs on one.
        working: Process ids of workers: what they hold will be free when it is the next one's turn.
    """
    if kind(device) == "cpu":
        return _host_room(working)
    index = int(device.partition(":")[2] or 0)
    found = _gpu_memory(index)
    if found is None:
        return Room(f"cuda:{index}", 2**63 - 1, "the driver does not tell how much is free")
    free, total = found
    shared = engine.engine_device == "cuda" and index == 0
    left = int(total * (1 - engine.engine_memory)) if shared else total
    why = f"the engine has {engine.engine_memory:.0%} of {total / 2**30:.1f} GiB" if shared else "free now"
    return Room(f"cuda:{index}", left if working else min(left, free), why)


def _host_room(working: Collection[int]) -> Room:
    available, why = psutil.virtual_memory().available, "free now"
    limit = _cgroup_left()
    if limit is not None and limit < available:
        available, why = limit, "left of the container's limit"
    return Room("cpu", available + sum(_resident(pid) for pid in working), why)


def _resident(pid: int) -> int:
    try:
        return int(psutil.Process(pid).memory_info().rss)
    except psutil.Error:
        return 0


def _cgroup_left() -> int | None:
    """Bytes left of the memory limit of this process's control group (version 2); None where there is no limit."""
    try:
        most = (CGROUP / "memory.max").read_text().strip()
        used = int((CGROUP / "memory.current").read_text())
        stat = dict(line.split() for line in (CGROUP / "memory.stat").read_text().splitlines())
    except (OSError, ValueError):
        return None
    # the page cache counts as used and is given back when somebody needs the room
    return None if most == "max" else max(0, int(most) - used + int(stat.get("inactive_file", 0)))


def _gpu_memory(index: int) -> tuple[int, int] | None:
    """Free and total bytes of a GPU, from its driver."""
    gpus = visible_gpus()
    if gpus is not None and index >= len(gpus):
        return 0, 0
    command = [
        "nvidia-smi",
        "--query-gpu=memory.free,memory.total",
        "--format=csv,noheader,nounits",
        "-i",
        gpus[index] if gpus is not None else str(index),
    ]
    try:
        told = subprocess.run(command, capture_output=True, check=True, timeout=DRIVER_TIMEOUT_S, text=True).stdout
        free, total = (int(part) * MIB for part in told.strip().splitlines()[0].split(","))
    except (OSError, ValueError, IndexError, subprocess.SubprocessError) as error:
        _LOG.warning("the driver did not tell the GPU's memory: %s", type(error).__name__)
        return None
    return free, total
