"""The settings of the engine, a part of ``service.config.Settings``: the one that is started, or an external one."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Final, Literal

from pydantic import Field, SecretStr, field_validator
from pydantic_settings import BaseSettings, NoDecode

CPU_STEP_TOKENS: Final = 256
"""Most tokens of one step of an engine on a CPU: 0.6 s on one core with a base of 135M, where vLLM's 2,048 take 4.6."""
CPU_CHUNK_TOKENS: Final = 128
"""Most tokens of one prompt in such a step while there are other requests: a long prompt holds up nobody."""
VLLM_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)


class EngineSettings(BaseSettings):
    """vLLM's options, how long it may take, and how it is watched."""

    engines: Path | None = Field(
        None,
        description="TOML file with several engines, of one base or of several (`deploy/ENGINES.md`). Unset: one.",
    )
    engine_device: Literal["auto", "cpu", "cuda"] = Field("auto", description="Device that the engine runs on.")
    engine_devices: str = Field(
        "",
        pattern=r"^[0-9][0-9,-]*$|^(GPU|MIG)-[\w,-]+$|^$",
        description="GPUs that the engine sees (`CUDA_VISIBLE_DEVICES`), or on a CPU the cores that it computes on, "
        "such as `0-7`. Unset: all.",
    )
    engine_slots: int = Field(8, ge=1, le=512, description="Adapters in one batch (vLLM's `max_loras`).")
    engine_max_rank: int = Field(32, description="Largest LoRA rank served (vLLM's `max_lora_rank`).")
    engine_resident: int = Field(
        256, ge=1, description="Adapters kept in the engine's host memory (vLLM's `max_cpu_loras`); at least the slots."
    )
    engine_resident_gib: float | None = Field(
        None,
        gt=0,
        description="Host memory that these adapters may take together, GiB: beyond it the least recently used leave, "
        "but as many as slots stay. Unset: an eighth of the machine's memory.",
    )
    engine_context: int | None = Field(
        None,
        ge=128,
        description="Context length in tokens, at most the model's own. Unset: the model's own, on a CPU at most 2048.",
    )
    engine_kv_gib: int = Field(1, ge=1, description="KV cache on a CPU, GiB.")
    engine_memory: float = Field(0.85, gt=0, le=1, description="Fraction of GPU memory that the engine uses.")
    engine_dtype: Literal["auto", "bfloat16", "float16", "float32"] = Field(
        "auto",
        description="The base model's data type in the engine. `auto`: bfloat16, or float32 on a CPU that has no "
        "instructions for bfloat16 (on x86: neither AVX-512 BF16 nor AMX).",
    )
    engine_max_seqs: int = Field(64, ge=1, description="Sequences that decode at once (vLLM's `max_num_seqs`).")
    engine_tool_parser: str = Field("hermes", description="vLLM's tool-call parser; empty switches tool calls off.")
    engine_args: Annotated[tuple[str, ...], NoDecode] = Field(
        (), description="Extra vLLM flags, separated by spaces; flags that Hatrack sets itself are refused."
    )
    engine_start_timeout_s: float = Field(900, gt=0, description="Time limit for the engine to start, s.")
    engine_stall_s: float = Field(
        60,
        gt=0,
        description="Restart the engine if requests wait for it, but for this long (s, at least 5; 60 while it "
        "computes) no token was generated and its own metrics did not change.",
    )
    engine_canary_s: float = Field(15, gt=0, description="Seconds between canary requests while the engine is idle.")
    keep_engine: bool = Field(
        False,
        description="Leave the engine running when the gateway stops (`--keep-engine`); the next start adopts it.",
    )
    engine_url: str = Field(
        "",
        description=(
            "An external engine (`hatrack engine`) that uses the same adapter store: `http://host:port` or "
            "`unix:/path`. Unset: the gateway starts its own."
        ),
    )
    engine_key: SecretStr | None = Field(
        None, description="API key of the engine at `engine_url`; `hatrack engine` requires the same key."
    )
    engine_agent: str = Field(
        "",
        description=(
            "The agent that runs the engine (`hatrack agent`, `deploy/AGENTS.md`): `http://host:port`, `unix:/path`, "
            "or `announced`: the agent says where it is. Unset: the gateway runs it, or uses the one at `engine_url`."
        ),
    )

    @property
    def engine_is_elsewhere(self) -> bool:
        """Whether the engine is not this gateway's to start."""
        return bool(self.engine_url or self.engine_agent)

    @field_validator("engine_args", mode="before")
    @classmethod
    def _split(cls, value: object) -> object:
        return tuple(value.split()) if isinstance(value, str) else value

    @field_validator("engine_max_rank")
    @classmethod
    def _rank(cls, value: int) -> int:
        if value not in VLLM_RANKS:
            raise ValueError(f"must be one of {', '.join(map(str, VLLM_RANKS))}")
        return value
