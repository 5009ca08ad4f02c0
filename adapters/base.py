"""The base model's layers and identity, read from its checkpoint without torch.

A checkpoint is a directory as transformers saves it: config.json, model.safetensors or shards with an index, the
tokenizer's files and the chat template. Hashes and norms of large files are computed once and kept in `cache_dir`.
"""

import hashlib
import json
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Final

from pydantic import BaseModel, ConfigDict

from adapters.basefiles import canonical_json, read_json, template_of, tokenizer_files, weight_files
from adapters.baseshapes import Layer, layers_of, norm_of, obstacle
from adapters.chat_template import served_template
from adapters.errors import BaseInvalid, WeightsError

HASH_LENGTH: Final = 16
"""Hex digits of each hash in a fingerprint: 64 bits suffice for the few bases of one installation."""

_HASH_CHUNK_BYTES: Final = 1 << 20
_CACHE_FORMAT: Final = 1

VOLATILE_CONFIG_KEYS: Final = frozenset({"_name_or_path", "_commit_hash", "transformers_version"})
"""Keys of config.json about who saved it and where, which do not identify the model."""


class Fingerprint(BaseModel):
    """The identity of a base model as it is served, in parts: short hashes, or plain words for the last three."""

    model_config: ClassVar[ConfigDict] = ConfigDict(frozen=True, extra="forbid")

    weights: str
    config: str
    tokenizer: str
    template: str
    dtype: str
    quantization: str
    engine_version: str

    def differences(self, other: "Fingerprint") -> tuple[str, ...]:
        """The names of the parts that differ, in the order above."""
        return tuple(part for part in type(self).model_fields if getattr(self, part) != getattr(other, part))

    def servable_with(self, other: "Fingerprint") -> bool:
        """Whether an adapter proven on one may be served on the other: weights and config are equal."""
        return self.weights == other.weights and self.config == other.config

    def due_against(self, other: "Fingerprint") -> bool:
        """Whether an adapter may be served but should be proven again: a part other than weights and config differs."""
        return self.servable_with(other) and self != other

    @property
    def digest(self) -> str:
        """All parts as one short hash, the key for cached log-probabilities of the base."""
        return _short(canonical_json(self.model_dump()))


@dataclass(frozen=True, slots=True)
class ModuleShape:
    """A linear layer of the base: y = W x, W of shape [out_features, in_features], and its Frobenius norm.

    The features are None if a quantized checkpoint does not show them; the norm is None for any quantized layer.
    """

    out_features: int | None
    in_features: int | None
    norm: float | None


@dataclass(frozen=True, slots=True)
class BaseDescription:
    """A base model: its served name, its fingerprint, and its linear layers by their name in the checkpoint."""

    served_name: str
    fingerprint: Fingerprint
    modules: Mapping[str, ModuleShape]
    embeddings: frozenset[str]
    """Names of layers that map from or to the vocabulary (input and output embedding)."""

    initializer_range: float
    """Standard deviation of a weight before training, used to estimate an unknown norm."""

    @property
    def adaptable(self) -> tuple[str, ...]:
        """The last names of the linear layers to which the engine applies a LoRA, sorted: `q_proj`, …"""
        return tuple(sorted({name.rpartition(".")[2] for name in self.modules if obstacle(name) is None}))

    @property
    def has_obstacles(self) -> bool:
        """Whether the base also has linear layers to which the engine applies none."""
        return any(obstacle(name) is not None for name in self.modules)

    def find(self, module: str) -> str | None:
        """The checkpoint's name for `module`, as PEFT names it, or None.

        Some checkpoints are saved without the prefix of the model inside (`h.0.attn` for `transformer.h.0.attn`).
        """
        if module in self.modules:
            return module
        rest = module.partition(".")[2]
        return rest if rest in self.modules else None


def describe(
    model_dir: Path,
    *,
    served_name: str,
    dtype: str,
    quantization: str | None,
    engine_version: str,
    cache_dir: Path | None = None,
) -> BaseDescription:
    """Read the checkpoint in `model_dir`.

    `dtype` is what the engine computes in (bfloat16, float16, float32); `quantization` its method, where None means
    what the checkpoint says. The first call hashes and reads every weight (seconds per gigabyte); with `cache_dir`
    later calls take milliseconds while the files' sizes and times are unchanged.

    Raises BaseInvalid if the directory is not such a checkpoint.
    """
    try:
        return _describe(model_dir, served_name, dtype, quantization, engine_version, cache_dir)
    except WeightsError as error:
        raise BaseInvalid(f"Cannot read the base's weights in {model_dir}: {error.message}") from error
    except OSError as error:
        raise BaseInvalid(f"Cannot read the base in {model_dir}: {error.strerror or error}.") from error


def _describe(
    model_dir: Path, served_name: str, dtype: str, quantization: str | None, engine_version: str, cache_dir: Path | None
) -> BaseDescription:
    config = read_json(model_dir / "config.json")
    files = weight_files(model_dir)
    hashes = _Cache(cache_dir, "hashes.json")
    weights = _short("\n".join(hashes.file_hash(path) for path in files).encode())
    hashes.save()
    text_config = config.get("text_config")
    layers = layers_of(files, config)
    norms = _Cache(cache_dir, f"norms-{weights}.json")
    modules = {
        name: ModuleShape(layer.out_features, layer.in_features, norms.norm(name, layer))
        for name, layer in layers.items()
        if layer.is_linear
    }
    norms.save()
    return BaseDescription(
        served_name=served_name,
        fingerprint=Fingerprint(
            weights=weights,
            config=_short(canonical_json({k: v for k, v in config.items() if k not in VOLATILE_CONFIG_KEYS})),
            tokenizer=_hash_parts(tokenizer_files(model_dir)),
            template=_hash_parts(_template_parts(model_dir)),
            dtype=dtype.removeprefix("torch."),
            quantization=quantization or _quantization_of(config),
            engine_version=engine_version,
        ),
        modules=modules,
        embeddings=frozenset(name for name, layer in layers.items() if not layer.is_linear),
        initializer_range=_initializer_range(text_config if isinstance(text_config, dict) else config),
    )


def _template_parts(model_dir: Path) -> dict[str, bytes]:
    served = served_template(model_dir)
    return template_of(model_dir) if served is None else {"template": served.encode()}


def _quantization_of(config: Mapping[str, Any]) -> str:
    section = config.get("quantization_config")
    method = section.get("quant_method") if isinstance(section, dict) else None
    return method if isinstance(method, str) else "none"


def _initializer_range(config: Mapping[str, Any]) -> float:
    value = config.get("initializer_range")
    return float(value) if isinstance(value, int | float) and 0 < value < 10 else 0.02


def _short(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:HASH_LENGTH]


def _hash_parts(parts: Mapping[str, bytes]) -> str:
    """One hash over named contents; "none" if there are none."""
    if not parts:
        return "none"
    return _short(b"".join(name.encode() + b"\0" + hashlib.sha256(parts[name]).digest() for name in sorted(parts)))


class _Cache:
    """A JSON file of values that are slow to compute. Starts empty without a directory or if the file is invalid."""

    def __init__(self, directory: Path | None, name: str) -> None:
        self._path = directory / name if directory is not None else None
        self._values: dict[str, Any] = {}
        self._changed = False
        if self._path is not None and self._path.is_file():
            try:
                content = json.loads(self._path.read_bytes())
            except ValueError:
                return
            if isinstance(content, dict) and content.get("format") == _CACHE_FORMAT:
                values = content.get("values")
                self._values = values if isinstance(values, dict) else {}

    def file_hash(self, path: Path) -> str:
        """The sha256 of a file, cached by path, size and mtime."""
        status = path.stat()
        key = f"{path.resolve()}|{status.st_size}|{status.st_mtime_ns}"
        known = self._values.get(key)
        if isinstance(known, str):
            return known
        digest = hashlib.sha256()
        with path.open("rb") as file:
            while chunk := file.read(_HASH_CHUNK_BYTES):
                digest.update(chunk)
        self._values[key] = digest.hexdigest()
        self._changed = True
        return digest.hexdigest()

    def norm(self, name: str, layer: Layer) -> float | None:
        """The Frobenius norm of a layer's weight; None if its values cannot be read."""
        known = self._values.get(name)
        if isinstance(known, float):
            return known
        norm = norm_of(layer)
        if norm is not None:
            self._values[name] = norm
            self._changed = True
        return norm

    def save(self) -> None:
        """Replace the file atomically."""
        if self._path is None or not self._changed:
            return
        self._path.parent.mkdir(parents=True, exist_ok=True)
        draft = self._path.with_name(f".{self._path.name}.{uuid.uuid4().hex}")
        try:
            draft.write_text(json.dumps({"format": _CACHE_FORMAT, "values": self._values}))
            draft.replace(self._path)
        finally:
            draft.unlink(missing_ok=True)
