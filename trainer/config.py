"""The trainer's settings: immutable, validated at start, read from ``HATRACK_TRAINER_*``.

No other module of ``trainer`` reads the environment. Each field's description is its row in ``trainer/SETTINGS.md``; a
test compares the two.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Annotated, Any, Final, Literal, Self

from pydantic import Field, SecretStr, ValidationError, field_validator, model_validator
from pydantic_settings import (
    BaseSettings,
    EnvSettingsSource,
    NoDecode,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
)

from adapters.costs import CostSettings, Prices
from adapters.database.urls import is_postgresql
from adapters.protocol.webhooks import signing_key
from adapters.validation import settings_message
from trainer.errors import SettingsError

PREFIX: Final = "HATRACK_TRAINER_"
DATABASE_URL: Final = "HATRACK_TRAINER_DATABASE_URL"
SHARED_PREFIX: Final = "HATRACK_"
"""Of the settings that the gateway has, too: prices and rhythm (`CostSettings`)."""
SECRETS: Final = frozenset(
    {
        *(DATABASE_URL, "HATRACK_TRAINER_SECRET", "HATRACK_TRAINER_WEBHOOK_SECRET", "HATRACK_TRAINER_WEBHOOK_URL"),
        *("HATRACK_TRAINER_MLFLOW_TOKEN", "HATRACK_TRAINER_WANDB_KEY"),
    }
)
"""Variables whose value is never shown in a message and never inherited by a worker. Many services' webhook URLs are
secrets themselves."""
NOT_INHERITED: Final = (
    *SECRETS,
    # the gateway's, which a trainer in an environment of its own may have, too
    *("HATRACK_ADMIN_KEY", "HATRACK_DATABASE_URL", "HATRACK_ENGINE_KEY", "HATRACK_METRICS_KEY", "HATRACK_KEY"),
    *("HATRACK_AGENT_KEY", "HATRACK_FRONT_KEY", "HATRACK_EMBEDDINGS_KEY", "HATRACK_GROUNDING_SECRET"),
    "HATRACK_HUB_TOKEN",
)


class SharedSettingsSource(EnvSettingsSource):
    """The settings that the trainer shares with the gateway, from the gateway's variables."""

    def __call__(self) -> dict[str, Any]:
        """Their values, without those of the gateway's other settings."""
        return {name: value for name, value in super().__call__().items() if name in CostSettings.model_fields}


class Settings(CostSettings, BaseSettings):
    """The settings, from HATRACK_TRAINER_*; prices and rhythm from HATRACK_*, as the gateway reads them.

    `load_settings` reads them and words their errors. HATRACK_TRAINER_ before a shared setting's name, as in earlier
    releases, holds for the trainer alone.
    """

    model_config = SettingsConfigDict(env_prefix=PREFIX, frozen=True, extra="ignore", env_ignore_empty=True)

    secret: SecretStr | None = Field(
        None,
        min_length=16,
        description=(
            "Shared secret of gateway and trainer, at least 16 characters; required if the trainer listens on a port."
        ),
    )
    database_url: SecretStr | None = Field(
        None,
        description="A PostgreSQL database for what `jobs.db` holds: `postgresql://user:password@host:5432/database`; "
        "it may be the gateway's (`deploy/POSTGRESQL.md`). Unset: SQLite, in `trainer/jobs.db` under home.",
    )
    device: str = Field(
        "auto",
        pattern=r"^(auto|cpu|cuda(:[0-9]{1,3})?)$",
        description="Device for training, one job at a time: `cpu`, `cuda`, `cuda:1` …; `auto`: a GPU if there is one.",
    )
    price_per_hour: float | None = Field(
        None,
        ge=0,
        description="Earlier name of `HATRACK_PRICE_DEVICE_HOUR`, which takes precedence; only the trainer reads it.",
    )
    checkpoint_s: float = Field(
        60, ge=0, description="Seconds between a job's checkpoints; a crash loses at most this much, plus one step."
    )
    checkpoint_versions: int = Field(
        3,
        ge=0,
        le=100,
        description="Of how many of a job's last epochs the checkpoint answers as a model; those that are not the "
        "job's result are versions of their own, for `HATRACK_TRAINER_KEEP_DAYS`. 0: none.",
    )
    yield_above: int = Field(
        0,
        ge=0,
        description="Pause training while more than this many requests from callers are queued or running …",
    )
    yield_most_s: float = Field(
        30, ge=0, description="… for at most this long at a time, s; then training runs for the same time."
    )
    max_queued: int = Field(
        100,
        ge=1,
        description="Maximum number of unfinished jobs, and of unfinished evaluations, of one project; then 429.",
    )
    keep_days: float = Field(
        7,
        ge=0,
        description="Days for which a finished job's data, checkpoints, adapter, answers and log are kept. With 0 no "
        "checkpoint answers as a model.",
    )
    events_days: float | None = Field(
        None,
        ge=1,
        description="Days after a run's end for which its events are kept, but for its last metrics. Unset: for ever.",
    )
    evaluations_days: float | None = Field(
        None,
        ge=32,
        description="Days after an evaluation's end for which it is kept, with its report. What endpoints outside "
        "charged for it stays in the costs, without its adapter. "
        "Those in which a person has chosen an answer, and those of a ladder, stay. Unset: for ever.",
    )
    max_file_mib: float = Field(512, gt=0, description="Maximum file size of a data check, MiB.")
    check_timeout_s: float = Field(300, gt=0, description="Time limit for a data check, s.")
    check_memory_gib: float = Field(
        16, ge=2, description="Address space limit for a data check, GiB; the libraries alone reserve some."
    )
    stop_s: float = Field(
        15,
        gt=0,
        description="How long a stopping trainer waits for its jobs to checkpoint, s; slower ones finish on their own.",
    )
    min_examples: int = Field(
        30,
        ge=2,
        description="Minimum number of held-out examples for the verdict `pass` (`trainer/evaluate/EVALUATION.md`).",
    )
    smallest_difference: float = Field(
        0.02,
        ge=0,
        lt=1,
        description="Smallest improvement over the base that matters; for a pass, the whole interval must be above it.",
    )
    live_margin: float | None = Field(
        None,
        ge=0,
        lt=1,
        description="Non-inferiority margin to `live`: for a pass, the whole interval of the difference must be "
        "above minus this. Unset: 0.05, 0.02 for overlap metrics, 0.03 for `similarity`.",
    )
    forget_accuracy: float = Field(
        0.05,
        ge=0,
        le=1,
        description="Forgetting budget: for a pass, the whole interval of the loss of accuracy on general questions "
        "must lie within it …",
    )
    forget_chat: float = Field(
        0.1, ge=0, le=1, description="… that of the loss on general questions in a chat within this …"
    )
    forget_perplexity: float | None = Field(
        None,
        ge=0,
        description="… and that of the relative rise of the perplexity of general texts within this; 1 means twice as "
        "high. Unset: half of what the order of the words tells the base.",
    )
    forget_items: int | None = Field(
        None,
        ge=20,
        description="Number of multiple-choice items of the suite `general` that are asked, spread over its areas. "
        "Fewer items give wider intervals: a pass then needs a wider budget. Unset: all of them.",
    )
    evaluate_max: int = Field(
        300,
        ge=10,
        description="Maximum number of held-out examples evaluated, drawn by a hash of the question; the report says "
        "so.",
    )
    evaluate_concurrency: int = Field(
        16,
        ge=1,
        le=256,
        description="Concurrent requests of an evaluation; the gateway gives requests from callers priority.",
    )
    evaluate_repeats: int = Field(
        2,
        ge=1,
        le=5,
        description="Number of runs over some of the questions; with 2 or more, noise between runs is included.",
    )
    endpoints: Path | None = Field(
        None,
        description=(
            "TOML file with external endpoints and judges (`trainer/evaluate/JUDGES.md`); requests cannot name URLs."
        ),
    )
    suites_dir: Path | None = Field(
        None, description="Directory with the data of the suites `mmlu` and `gsm8k` (`trainer/evaluate/SUITES.md`)."
    )
    suites_hub: str | None = Field(
        None,
        pattern=r"^https?://[^\s@]+$",
        description="URL of a hub from which missing suite data are downloaded. Unset: nothing is downloaded.",
    )
    suites_limit: int = Field(
        400,
        ge=20,
        le=20_000,
        description="Maximum number of questions from `mmlu`, `gsm8k` or `humaneval`, sampled with a fixed seed.",
    )
    sandbox: Literal["off", "on"] = Field(
        "off",
        description="`on`: the suite `humaneval` runs model-written code in a sandbox, or fails if none works.",
    )
    webhook_url: str | None = Field(
        None,
        pattern=r"^https?://[^\s@]+$",
        repr=False,
        description="Address that is told when a job, an evaluation, a revalidation or a ladder has ended "
        "(`trainer/webhook/WEBHOOK.md`).",
    )
    webhook_secret: SecretStr | None = Field(
        None,
        min_length=16,
        description="Secret that signs what is sent there, at least 16 characters, or `whsec_` and base64; required "
        "with `HATRACK_TRAINER_WEBHOOK_URL`.",
    )
    mlflow_url: str | None = Field(
        None,
        pattern=r"^https?://[^\s@]+$",
        description="MLflow tracking server that jobs may name in `integrations` (`trainer/tracking/TRACKING.md`).",
    )
    mlflow_token: SecretStr | None = Field(
        None, description="Bearer token for it; with a colon, `user:password` of MLflow's basic authentication."
    )
    wandb_key: SecretStr | None = Field(
        None, description="API key of Weights & Biases, which jobs may then name in `integrations`."
    )
    wandb_url: str | None = Field(
        None, pattern=r"^https?://[^\s@]+$", description="Its server, if it is not the public one."
    )
    wandb_mode: Literal["online", "offline"] = Field(
        "online",
        description="`offline`: runs are written to `var/trainer/wandb`, for `wandb sync`; nothing is sent, and no key "
        "is needed.",
    )
    wandb_entities: Annotated[tuple[str, ...], NoDecode] = Field(
        (),
        description="Users and teams of Weights & Biases that jobs may name as `entity`, separated by spaces. Unset: "
        "none; runs appear under the key's own.",
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field("info", description="Minimum level that is logged.")

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """The arguments, then the trainer's own variables, then those that it shares with the gateway."""
        shared = SharedSettingsSource(settings_cls, env_prefix=SHARED_PREFIX, env_ignore_empty=True)
        return init_settings, env_settings, shared

    @property
    def prices(self) -> Prices:
        """The prices, for the formulas."""
        prices = super().prices
        if prices.device_hour is None and self.price_per_hour:  # 0 was its default, and stood for no price
            return prices.model_copy(update={"device_hour": self.price_per_hour})
        return prices

    @model_validator(mode="after")
    def _webhook_is_whole(self) -> Self:
        if self.webhook_url is not None and self.webhook_secret is None:
            raise ValueError("HATRACK_TRAINER_WEBHOOK_URL requires HATRACK_TRAINER_WEBHOOK_SECRET")
        if self.webhook_secret is not None:
            try:
                signing_key(self.webhook_secret.get_secret_value())
            except ValueError as error:
                raise ValueError(f"HATRACK_TRAINER_WEBHOOK_SECRET: {error}") from None
        return self

    @field_validator("wandb_entities", mode="before")
    @classmethod
    def _words_of(cls, value: object) -> object:
        return tuple(value.split()) if isinstance(value, str) else value

    @field_validator("database_url")
    @classmethod
    def _postgresql(cls, value: SecretStr | None) -> SecretStr | None:
        if value is not None and not is_postgresql(value.get_secret_value()):
            raise ValueError(
                "must be postgresql://user:password@host:port/database, the password without a bare `@` or `/`"
            )
        return value

    @property
    def database_address(self) -> str | None:
        """The URL of the database, with its password; None: the file."""
        return None if self.database_url is None else self.database_url.get_secret_value()

    def webhook(self) -> tuple[str, bytes] | None:
        """The webhook's URL and the key that signs; None if there is none."""
        if self.webhook_url is None or self.webhook_secret is None:
            return None
        return self.webhook_url, signing_key(self.webhook_secret.get_secret_value())


def load_settings(**overrides: object) -> Settings:
    """Read the settings from the environment.

    Raises:
        SettingsError: A value is not allowed; the message names each variable, its value and what is allowed.
    """
    try:
        return Settings(**overrides)  # type: ignore[arg-type]
    except ValidationError as error:
        names = {name: variable_of(name) for name in CostSettings.model_fields}
        raise SettingsError(settings_message(error, prefix=PREFIX, secrets=SECRETS, names=names)) from error


def variable_of(name: str) -> str:
    """The variable that a setting is read from."""
    own = PREFIX + name.upper()
    return SHARED_PREFIX + name.upper() if name in CostSettings.model_fields and not os.environ.get(own) else own


def worker_environment() -> dict[str, str]:
    """A worker's environment: everything except the secrets of trainer and gateway. It has its job's own key."""
    return {name: value for name, value in os.environ.items() if name not in NOT_INHERITED}


def run_environment() -> dict[str, str]:
    """The environment of a run's worker: it records the looks at held-out examples in the trainer's database itself."""
    address = database_from_environment()
    return worker_environment() | ({} if address is None else {DATABASE_URL: address})


def database_from_environment() -> str | None:
    """The URL of the trainer's database, for a worker, which reads no other setting; None: the file."""
    return os.environ.get(DATABASE_URL) or None


def secret_from_environment(name: str) -> str | None:
    """The value of a variable that the endpoints file names for a key; None if it is unset or empty."""
    return os.environ.get(name) or None


def visible_gpus() -> tuple[str, ...] | None:
    """The driver's names of `cuda:0`, `cuda:1` …, from CUDA_VISIBLE_DEVICES; None if all GPUs are visible."""
    devices = os.environ.get("CUDA_VISIBLE_DEVICES")
    return None if devices is None else tuple(part.strip() for part in devices.split(",") if part.strip())


def has_gpu() -> bool:
    """Whether this machine has an NVIDIA driver; decided without importing torch."""
    return shutil.which("nvidia-smi") is not None and Path("/proc/driver/nvidia/version").exists()
