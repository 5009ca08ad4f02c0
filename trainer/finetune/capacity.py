"""Checks before it starts whether a training fits into the device's memory beside the engine.

Imports no torch: the driver reports a GPU's memory.
"""

from __future__ import annotations

import logging
import subprocess
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Literal

import psutil

from adapters.basefiles import read_json, weight_files
from adapters.baseshapes import EXPERT_NAMES, has_experts, layers_of, obstacle
from adapters.processor import multiplies_bfloat16
from adapters.protocol.runs import ParentShape
from trainer.config import has_gpu, visible_gpus
from trainer.installation import Installation
from trainer.tune import auto
from trainer.tune.hyperparameters import HyperparameterRequest
from trainer.tune.memory import EAGER_MAX_TOKENS, MemoryEstimate, ModelShape, estimate, read_shape
from trainer.tune.recipe import Recipe

DRIVER_TIMEOUT_S: Final = 10.0
ASSUMED_LONGEST: Final = 256
"""Assumed length of the longest example before the data are read, if the request has no `max_length`."""
MIN_EXAMPLES: Final = 10
CGROUP: Final = Path("/sys/fs/cgroup")
MIB: Final = 2**20
_LOG = logging.getLogger("hatrack.trainer.capacity")


@dataclass(frozen=True, slots=True)
class BaseModelInfo:
    """The properties of the base model that decide whether a job is possible.

    ``positions`` is its maximum context in tokens; ``modules`` are the names of the linear layers that a LoRA can be
    trained for and served on, ``obstacles`` those of the others, each with what it is.
    """

    shape: ModelShape
    positions: int
    modules: frozenset[str]
    obstacles: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def read(cls, directory: Path) -> BaseModelInfo:
        """Read them from a checkpoint's config and safetensors headers.

        Raises:
            AdapterError, OSError, KeyError, ValueError: The directory is not a usable checkpoint.
        """
        config = read_json(directory / "config.json")
        layers = layers_of(weight_files(directory), config)
        linear = {name: obstacle(name) for name, layer in layers.items() if layer.is_linear}
        if has_experts(linear):
            linear |= {
                name: "named like the experts, for which PEFT takes it"
                for name, kind in linear.items()
                if kind is None and name.rpartition(".")[2] in EXPERT_NAMES
            }
        return cls(
            shape=read_shape(directory),
            positions=int(config.get("text_config", config)["max_position_embeddings"]),
            modules=frozenset(name for name, kind in linear.items() if kind is None),
            obstacles={name: kind for name, kind in linear.items() if kind is not None},
        )

    def unknown_targets(self, targets: Collection[str]) -> list[str]:
        """Those of `targets` that match none of `modules` by PEFT's rule (equal to its name, or to the end of it)."""
        return [target for target in targets if not _matching(self.modules, target)]

    def describe_unknown(self, targets: Collection[str]) -> str:
        """A clause for messages that says of each of `unknown_targets` what is wrong with it, and what is allowed."""
        reasons = []
        for target in targets:
            matching = _matching(self.obstacles, target)
            reasons.append(
                f"{target!r} cannot be adapted: {matching[0]} is {self.obstacles[matching[0]]}"
                if matching
                else f"no such linear layer: {target!r}"
            )
        return f"{'; '.join(reasons)}; the base has {', '.join(self.module_suffixes())}"

    def matching_layers(self, targets: Collection[str]) -> list[str]:
        """The names of the linear layers that a LoRA on `targets` adapts, by PEFT's rule."""
        suffixes = tuple(f".{target}" for target in targets)
        return [name for name in self.modules if name in targets or name.endswith(suffixes)]

    def module_suffixes(self) -> list[str]:
        """The distinct last parts of the linear layers' names, sorted: `q_proj`, …"""
        return sorted({name.rpartition(".")[2] for name in self.modules})


def _matching(names: Iterable[str], target: str) -> list[str]:
    return sorted(name for name in names if name == target or name.endswith(f".{target}"))


@dataclass(frozen=True, slots=True)
class AvailableMemory:
    """Bytes that a training may use on `device`, and the reason for that limit."""

    device: str
    bytes: int
    why: str


@dataclass(frozen=True, slots=True)
class CapacityCheck:
    """The memory that a training needs against the memory that is available."""

    needed: MemoryEstimate
    available: AvailableMemory

    @property
    def fits(self) -> bool:
        """Whether the estimated peak is at most the available memory."""
        return self.needed.total <= self.available.bytes

    def describe(self) -> str:
        """Both numbers, as a clause for messages."""
        free = f"{self.available.bytes / 2**30:.1f} GiB"
        return (
            f"it needs about {self.needed.describe()} on {self.available.device}, where {free} are available "
            f"({self.available.why})"
        )


def minimal_recipe(
    wish: HyperparameterRequest,
    base: BaseModelInfo,
    *,
    max_rank: int,
    length: int,
    file_bytes: int,
    on_gpu: bool,
    parent: ParentShape | None = None,
    objective: Literal["supervised", "dpo"] = "supervised",
) -> Recipe:
    """The recipe of lowest memory use that a request allows: `auto` for a tiny file, gradient checkpointing, and one
    example at a time.

    Raises InvalidHyperparameter.
    """
    stats = auto.DatasetStats(examples=MIN_EXAMPLES, tokens=MIN_EXAMPLES, longest=min(ASSUMED_LONGEST, file_bytes))
    recipe, _ = auto.choose(
        wish,
        stats,
        objective=objective,
        hidden_size=base.shape.hidden,
        max_rank=max_rank,
        length=length,
        seed=0,
        on_gpu=on_gpu,
        parent=parent,
    )
    return recipe.model_copy(update={"gradient_checkpointing": True, "micro_batch_tokens": 1})


def fit_memory(
    recipe: Recipe, base: BaseModelInfo, available: AvailableMemory, *, longest: int, on_gpu: bool
) -> tuple[Recipe, CapacityCheck]:
    """The recipe with micro-batches that fit into `available`: halved down to one example of `longest` tokens, and only
    if that does not fit, with gradient checkpointing. The check of the last one tried, which may not fit either."""
    for recompute in sorted({recipe.gradient_checkpointing, True}):
        tokens = recipe.micro_batch_tokens
        while True:
            fitted = recipe.model_copy(update={"gradient_checkpointing": recompute, "micro_batch_tokens": tokens})
            check = CapacityCheck(required_memory(fitted, base, longest=longest, on_gpu=on_gpu), available)
            if check.fits or tokens <= longest:
                break
            tokens = max(longest, tokens // 2)
        if check.fits:
            break
    return fitted, check


def required_memory(recipe: Recipe, base: BaseModelInfo, *, longest: int, on_gpu: bool) -> MemoryEstimate:
    """The memory that `recipe` needs with examples of up to `longest` tokens."""
    fused = on_gpu or longest > EAGER_MAX_TOKENS
    return estimate(base.shape, recipe, longest=longest, fused=fused, number_bytes=number_bytes(on_gpu=on_gpu))


def number_bytes(*, on_gpu: bool) -> int:
    """Bytes per number in a training: 2 on a GPU (all since 2020 have bfloat16) and on CPUs with bfloat16, else 4."""
    return 2 if on_gpu or multiplies_bfloat16() else 4


def device_type(device: str) -> str:
    """`cpu` or `cuda`; `auto` is resolved as the worker resolves it."""
    if device == "auto":
        return "cuda" if has_gpu() and visible_gpus() != () else "cpu"
    return device.partition(":")[0]


def available_memory(device: str, engine: Installation, working: Collection[int] = ()) -> AvailableMemory:
    """The memory that is available on `device` for one training.

    Args:
        device: The value of the setting.
        engine: Reserves its share of the first GPU if it runs on a GPU.
        working: Process ids of workers, whose memory will be free by the time this training starts.
    """
    if device_type(device) == "cpu":
        return _host_room(working)
    index = int(device.partition(":")[2] or 0)
    memory = _gpu_memory(index)
    if memory is None:
        return AvailableMemory(f"cuda:{index}", 2**63 - 1, "the driver does not report free memory")
    free, total = memory
    shared = engine.engine_device == "cuda" and index == 0
    left = int(total * (1 - engine.engine_memory)) if shared else total
    why = f"the engine has {engine.engine_memory:.0%} of {total / 2**30:.1f} GiB" if shared else "free now"
    return AvailableMemory(f"cuda:{index}", left if working else min(left, free), why)


def _host_room(working: Collection[int]) -> AvailableMemory:
    available, why = psutil.virtual_memory().available, "free now"
    limit = _cgroup_left()
    if limit is not None and limit < available:
        available, why = limit, "left of the container's memory limit"
    return AvailableMemory("cpu", available + sum(_resident(pid) for pid in working), why)


def _resident(pid: int) -> int:
    try:
        return int(psutil.Process(pid).memory_info().rss)
    except psutil.Error:
        return 0


def _cgroup_left() -> int | None:
    """Bytes left of the memory limit of this process's control group (v2); None if there is no limit."""
    try:
        limit = (CGROUP / "memory.max").read_text().strip()
        used = int((CGROUP / "memory.current").read_text())
        stat = dict(line.split() for line in (CGROUP / "memory.stat").read_text().splitlines())
    except (OSError, ValueError):
        return None
    # the page cache counts as used, but the kernel reclaims it on demand
    return None if limit == "max" else max(0, int(limit) - used + int(stat.get("inactive_file", 0)))


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
        output = subprocess.run(command, capture_output=True, check=True, timeout=DRIVER_TIMEOUT_S, text=True).stdout
        free, total = (int(part) * MIB for part in output.strip().splitlines()[0].split(","))
    except (OSError, ValueError, IndexError, subprocess.SubprocessError) as error:
        _LOG.warning("nvidia-smi did not report the GPU's memory: %s", type(error).__name__)
        return None
    return free, total
