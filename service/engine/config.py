"""What the engine is started with: from our settings to vLLM's flags and environment."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

import orjson
import psutil

from adapters.base import BaseDescription, Fingerprint
from adapters.chat_template import served_template
from service.config import GIB, Settings
from service.config.engine import CPU_CHUNK_TOKENS, CPU_STEP_TOKENS
from service.config.engines import SOCKET, NamedEngineSettings
from service.engine.contract import (
    BASE_VARIABLE,
    PLUGIN_NAME,
    RESIDENT_BYTES_VARIABLE,
    STORE_VARIABLE,
    TOKEN_VARIABLE,
)
from service.errors import SettingsError

RESERVED_FLAGS = (
    "--model",
    "--served-model-name",
    "--uds",
    "--host",
    "--port",
    "--api-key",
    "--enable-lora",
    "--max-loras",
    "--max-lora-rank",
    "--max-cpu-loras",
    "--lora-modules",
    "--lora-target-modules",
    "--middleware",
    "--chat-template",
    "--trust-request-chat-template",
    "--allowed-local-media-path",
    "--api-server-count",
    "--root-path",
    "--otlp-traces-endpoint",
)
"""Flags that the operator's own may not repeat: they would undo what the rest of Hatrack relies on."""

NOT_INHERITED = ("HATRACK_", "VLLM_API_KEY", "VLLM_SERVER_DEV_MODE", "VLLM_LORA_RESOLVER", "VLLM_RAISE_ON_LOGIT_NANS")
"""Beginnings of variables that the engine is not given: our keys, and what would undo what we set."""


RENDERER_THREADS = 4
"""Threads in which the engine renders and tokenizes prompts: with vLLM's one, all wait behind the longest."""

CGROUP_MEMORY = Path("/sys/fs/cgroup/memory.max")
"""The limit of a container's memory, bytes, or `max`."""

RECORD = "engine.json"
KEEP_REQUEST = "keep"


def require_vllm() -> None:
    """Raise SettingsError if no vLLM is installed."""
    if find_spec("vllm") is None:
        raise SettingsError("vLLM is not installed; `make setup` installs the build for this machine")


@dataclass(frozen=True, slots=True)
class EngineConfig:
    """Everything that decides how the engine runs.

    ``resident_bytes`` bounds the host memory of all resident adapters, ``context`` is in tokens, ``kv_gib`` in GiB (CPU
    only), ``memory`` a share of the GPU's memory, times in seconds.
    """

    directory: Path
    store: Path
    model: Path
    base_name: str
    device: Literal["cpu", "cuda"]
    slots: int
    max_rank: int
    resident: int
    resident_bytes: int
    context: int | None
    kv_gib: int
    memory: float
    dtype: str
    max_seqs: int
    max_logprobs: int
    tool_parser: str
    extra: tuple[str, ...]
    start_timeout_s: float
    stall_s: float
    canary_s: float
    name: str | None = None
    """Which of several engines it is; None: the only one."""
    devices: str = ""
    """GPUs, or on a CPU cores, that the engine may use; empty: all."""
    lora_targets: tuple[str, ...] = ()
    """Last names of the layers that the engine prepares for LoRA; empty: all that it can."""
    chat_template: str | None = None
    """Text of the chat template to use instead of the checkpoint's own."""
    otlp_traces: str = ""
    """URL that takes the engine's traces (OTLP over HTTP, protobuf); empty: none."""

    @classmethod
    def from_settings(cls, settings: Settings, base: BaseDescription | None = None) -> EngineConfig:
        """Extract the engine's settings from the gateway's.

        Args:
            base: The base model; if it has layers that the engine cannot adapt (on a CPU vLLM does not start where it
                would have to prepare experts for LoRA), it is told which it can.

        Raises:
            SettingsError: An extra flag repeats one that Hatrack sets, or no vLLM is installed to run an engine with.
        """
        for flag in settings.engine_args:
            if flag.split("=", 1)[0] in RESERVED_FLAGS:
                raise SettingsError(f"HATRACK_ENGINE_ARGS contains {flag!r}, which Hatrack sets itself; remove it")
        if not settings.engine_is_elsewhere:
            require_vllm()
        return cls(
            directory=settings.engine_dir,
            store=settings.store_dir,
            model=settings.base_dir,
            base_name=settings.base_served_name,
            device=settings.device,
            slots=settings.engine_slots,
            max_rank=settings.engine_max_rank,
            resident=settings.engine_resident,
            resident_bytes=resident_bytes(settings),
            context=settings.context,
            kv_gib=settings.engine_kv_gib,
            memory=settings.engine_memory,
            dtype=settings.dtype,
            max_seqs=settings.engine_max_seqs,
            max_logprobs=settings.max_logprobs,
            tool_parser=settings.engine_tool_parser,
            extra=settings.engine_args,
            start_timeout_s=settings.engine_start_timeout_s,
            stall_s=settings.engine_stall_s,
            canary_s=settings.engine_canary_s,
            name=settings.engine_name if isinstance(settings, NamedEngineSettings) else None,
            devices=settings.engine_devices,
            lora_targets=base.adaptable if base is not None and base.has_obstacles else (),
            chat_template=served_template(settings.base_dir),
            otlp_traces=settings.otlp_traces,
        )

    @property
    def socket(self) -> Path:
        """Path of the Unix socket that vLLM listens on; only this user may enter its directory."""
        return self.directory / SOCKET

    @property
    def log(self) -> Path:
        return self.directory / "engine.log"

    @property
    def record(self) -> Path:
        """Path of the record of the running engine, by which it is ended or adopted."""
        return self.directory / RECORD

    @property
    def keep_request(self) -> Path:
        """Path of the file that asks the gateway to leave the engine running when it stops this time."""
        return self.directory / KEEP_REQUEST

    @property
    def template_file(self) -> Path:
        """Path of `chat_template`, which the engine reads at start."""
        return self.directory / "chat_template.jinja"

    def write_template(self) -> None:
        """Write `chat_template`, if there is one, where the command line says. Raises OSError."""
        if self.chat_template is not None:
            self.directory.mkdir(parents=True, exist_ok=True)
            self.template_file.write_text(self.chat_template, "utf-8")

    def argv(self, listen: Sequence[str] | None = None) -> list[str]:
        """The command line. It runs vLLM's module, because the `vllm` command does not start from the CPU build.

        Args:
            listen: vLLM's flags of where it listens; our socket by default.
        """
        arguments = [sys.executable, "-m", "vllm.entrypoints.openai.api_server"]
        arguments += ["--model", str(self.model), "--served-model-name", self.base_name]
        arguments += listen or ["--uds", str(self.socket)]
        arguments += ["--enable-lora", "--max-loras", str(self.slots), "--max-lora-rank", str(self.max_rank)]
        arguments += ["--max-cpu-loras", str(self.resident), "--dtype", self.dtype]
        arguments += ["--max-num-seqs", str(self.max_seqs), "--max-logprobs", str(self.max_logprobs)]
        arguments += ["--generation-config", "vllm"]  # defaults of sampling come from a version's settings alone
        arguments += ["--renderer-num-workers", str(RENDERER_THREADS)]
        arguments += ["--enable-prompt-tokens-details"]  # or no usage says how much of a prompt was cached
        if self.context is not None:
            arguments += ["--max-model-len", str(self.context)]
        if self.lora_targets:
            arguments += ["--lora-target-modules", *self.lora_targets]
        if self.chat_template is not None:
            arguments += ["--chat-template", str(self.template_file)]
        if self.device == "cpu":
            arguments += ["--max-num-batched-tokens", str(max(CPU_STEP_TOKENS, self.max_seqs))]
            arguments += [
                "--long-prefill-token-threshold",
                str(min(CPU_CHUNK_TOKENS, self.context or CPU_CHUNK_TOKENS)),
            ]
        if self.device == "cuda":
            arguments += ["--gpu-memory-utilization", str(self.memory)]
        if self.tool_parser:
            arguments += ["--enable-auto-tool-choice", "--tool-call-parser", self.tool_parser]
        if self.otlp_traces:
            arguments += ["--otlp-traces-endpoint", self.otlp_traces]
        return [*arguments, "--disable-uvicorn-access-log", *self.extra]

    def environment(
        self, token: str, inherited: Mapping[str, str], *, base: Fingerprint | None = None
    ) -> dict[str, str]:
        """The engine's environment: what it inherits except our settings and keys, plus our own variables.

        Args:
            token: The mark of this engine's processes.
            inherited: The gateway's own environment.
            base: The base model's identity, for the plugin to repeat.
        """
        inherited_kept = {name: value for name, value in inherited.items() if not name.startswith(NOT_INHERITED)}
        ours = {
            "VLLM_PLUGINS": PLUGIN_NAME,
            "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "1",  # resolvers are asked only with this
            "VLLM_COMPUTE_NANS_IN_LOGITS": "1",
            "VLLM_PROCESS_NAME_PREFIX": process_title(token),
            # by the clock; a grammar that compiles beside other work takes longer than the CPU time it was allowed
            "VLLM_REGEX_COMPILATION_TIMEOUT_S": "120",
            # far longer than we keep an idle connection: one must not be closed in the moment of a request
            "VLLM_HTTP_TIMEOUT_KEEP_ALIVE": "120",
            "VLLM_NO_USAGE_STATS": "1",
            "VLLM_DO_NOT_TRACK": "1",
            "TOKENIZERS_PARALLELISM": "false",
            STORE_VARIABLE: str(self.store),
            RESIDENT_BYTES_VARIABLE: str(self.resident_bytes),
            TOKEN_VARIABLE: token,
        }
        if self.device == "cpu":
            ours["VLLM_CPU_KVCACHE_SPACE"] = str(self.kv_gib)
        if self.devices:
            ours["CUDA_VISIBLE_DEVICES" if self.device == "cuda" else "VLLM_CPU_OMP_THREADS_BIND"] = self.devices
        if self.otlp_traces:
            ours |= {"OTEL_EXPORTER_OTLP_TRACES_PROTOCOL": "http/protobuf", "OTEL_SERVICE_NAME": "hatrack-engine"}
        if base is not None:
            ours[BASE_VARIABLE] = orjson.dumps(base.model_dump()).decode()
        return inherited_kept | ours


def resident_bytes(settings: Settings) -> int:
    """Host memory that resident adapters may take, bytes: as set, or an eighth of what this process may use."""
    if settings.engine_resident_gib is not None:
        return int(settings.engine_resident_gib * GIB)
    memory = psutil.virtual_memory().total
    with suppress(OSError, ValueError):  # no control groups of version 2, or no limit ("max")
        memory = min(memory, int(CGROUP_MEMORY.read_text()))
    return memory // 8


def process_title(token: str) -> str:
    """The beginning of the titles of the engine's child processes, which overwrites their environment."""
    return f"hatrack-{token}"
