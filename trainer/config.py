"""The trainer's settings: frozen, checked at start, read from ``HATRACK_TRAINER_*`` in one place.

Nothing else in ``trainer`` reads the environment. Every field's description is its line in the settings table of
``trainer/SETTINGS.md``; a test fails where the two part.
"""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from pydantic import Field, SecretStr, ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict

from adapters.validation import settings_message
from trainer.errors import SettingsError

PREFIX: Final = "HATRACK_TRAINER_"
SECRETS: Final = frozenset({"HATRACK_TRAINER_SECRET"})
"""Variables whose value stands in no message, and which no worker inherits."""
NOT_INHERITED: Final = (*SECRETS, "HATRACK_ADMIN_KEY", "HATRACK_ENGINE_KEY", "HATRACK_METRICS_KEY", "HATRACK_KEY")


class Settings(BaseSettings):
    """All settings of the trainer."""

    model_config = SettingsConfigDict(env_prefix=PREFIX, frozen=True, extra="ignore", env_ignore_empty=True)

    secret: SecretStr | None = Field(
        None,
        min_length=16,
        description=(
            "What gateway and trainer know each other by, 16 characters or more; needed where the trainer listens on "
            "a port."
        ),
    )
    device: str = Field(
        "auto",
        pattern=r"^(auto|cpu|cuda(:[0-9]{1,3})?)$",
        description="What jobs train on, one at a time: `cpu`, `cuda`, `cuda:1` …; `auto` is a GPU where there is one.",
    )
    price_per_hour: float = Field(
        0, ge=0, description="Price of the device for an hour, in your currency: what a job cost is in its record."
    )
    checkpoint_s: float = Field(
        60, ge=0, description="Seconds between two checkpoints of a job: what a crash can cost, beside one step."
    )
    yield_above: int = Field(
        0,
        ge=0,
        description="A job stands still while more callers' requests than this are waiting or being answered …",
    )
    yield_most_s: float = Field(30, ge=0, description="… for at most this long at a time, s; then it works as long.")
    max_queued: int = Field(
        100,
        ge=1,
        description="Most jobs, and most evaluations, of one project that are not over; one more is answered 429.",
    )
    keep_days: float = Field(
        7,
        ge=0,
        description="Days after its end that a job's data, checkpoints, adapter, answers and log stay in its folder.",
    )
    max_file_mib: float = Field(512, gt=0, description="Largest file of a data check, MiB.")
    check_timeout_s: float = Field(300, gt=0, description="Longest time that a data check may take, s.")
    check_memory_gib: float = Field(
        16, ge=2, description="Most address space that a data check may take, GiB; libraries alone reserve some."
    )
    stop_s: float = Field(
        15, gt=0, description="How long a trainer that is stopped waits for its jobs' checkpoints, s; they go on alone."
    )
    min_examples: int = Field(
        30, ge=2, description="Held-out examples below which no verdict is a pass (`trainer/evaluate/EVALUATION.md`)."
    )
    smallest_difference: float = Field(
        0.02, ge=0, lt=1, description="Smallest difference from the base that matters: a pass lies wholly above it."
    )
    live_margin: float | None = Field(
        None,
        ge=0,
        lt=1,
        description="How much worse than `live` a pass may truly be: its interval lies wholly above minus this. Unset: "
        "0.05, and 0.02 where the metric counts words in common.",
    )
    forget_accuracy: float = Field(
        0.05,
        ge=0,
        le=1,
        description="Forgetting budget: share of right answers to general questions that may be lost …",
    )
    forget_perplexity: float = Field(
        1, ge=0, description="… and how far the perplexity of general texts may rise, relatively: 1 is twice as high."
    )
    evaluate_max: int = Field(
        300, ge=10, description="Most held-out examples that are asked, drawn with the job's seed; the report says so."
    )
    evaluate_concurrency: int = Field(
        8, ge=1, le=256, description="Requests of an evaluation at once; the gateway lets callers' go first."
    )
    evaluate_repeats: int = Field(
        2, ge=1, le=5, description="How often some of the questions are asked: from 2 on, noise between runs counts."
    )
    endpoints: Path | None = Field(
        None,
        description=(
            "TOML file of outside endpoints and judges (`trainer/evaluate/JUDGES.md`); no request carries a URL."
        ),
    )
    suites_dir: Path | None = Field(
        None, description="Directory with the data of the suites `mmlu` and `gsm8k` (`trainer/evaluate/SUITES.md`)."
    )
    suites_hub: str | None = Field(
        None,
        pattern=r"^https?://[^\s@]+$",
        description="URL of a hub to fetch them from where the directory lacks them; unset: nothing is fetched.",
    )
    suites_limit: int = Field(
        200, ge=20, le=20_000, description="Most questions of `mmlu`, `gsm8k` or `humaneval`, drawn with a fixed seed."
    )
    sandbox: Literal["off", "on"] = Field(
        "off",
        description="`on`: the suite `humaneval` runs what models write, in a sandbox, or refuses where none holds.",
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field("info", description="Least level that is logged.")


@dataclass(frozen=True, slots=True)
class Installation:
    """What the gateway says at the start: where everything is, and what the engine serves.

    ``dtype`` is what the engine computes in; ``engine_memory`` is the share of its GPU's memory that it takes, where
    ``engine_device`` is cuda.
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

    @property
    def directory(self) -> Path:
        """The trainer's own part of home."""
        return self.home / "trainer"

    @property
    def jobs(self) -> Path:
        """A folder a job."""
        return self.directory / "jobs"


def load_settings(**overrides: object) -> Settings:
    """Read the settings from the environment.

    Raises:
        SettingsError: A variable's value is not allowed; the message names each one, what was found and why.
    """
    try:
        return Settings(**overrides)  # type: ignore[arg-type]
    except ValidationError as error:
        raise SettingsError(settings_message(error, prefix=PREFIX, secrets=SECRETS)) from error


def worker_environment() -> dict[str, str]:
    """What a worker inherits: all but the secrets of trainer and gateway. It has a key of its job's own."""
    return {name: value for name, value in os.environ.items() if name not in NOT_INHERITED}


def secret_from_environment(name: str) -> str | None:
    """The value of a variable that the endpoints file names as the place of a key; None where it is unset or empty."""
    return os.environ.get(name) or None


def visible_gpus() -> tuple[str, ...] | None:
    """The driver's names of the GPUs that `cuda:0`, `cuda:1` … are; None where they are all of the machine's."""
    listed = os.environ.get("CUDA_VISIBLE_DEVICES")
    return None if listed is None else tuple(part.strip() for part in listed.split(",") if part.strip())


def has_gpu() -> bool:
    """True where an NVIDIA driver answers on this machine; decided without importing torch."""
    return shutil.which("nvidia-smi") is not None and Path("/proc/driver/nvidia/version").exists()
