"""Merges an adapter into its base: a checkpoint of the base's own layout, with W + scaling·B·A in place of each W.

Shards are copied tensor by tensor under their own headers, so names, dtypes, tied weights and the index stay as they
are, and memory is bounded by a block of rows and one module's A, whatever the model's size. The sum is computed in
float32 (float64 for a float64 base) and rounded once, to nearest even, to the base's dtype. No torch.
"""

import hashlib
import os
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Final

import numpy as np
from numpy.typing import NDArray

from adapters.base import BaseDescription
from adapters.basefiles import read_json, weight_files
from adapters.baseshapes import Layer, layers_of
from adapters.errors import BaseInvalid, NotFinite
from adapters.inspect import inspect_weights, modules_in
from adapters.manifest import Manifest
from adapters.store import CONFIG_FILE, WEIGHTS_FILE
from adapters.tensorfile import CHUNK_ELEMENTS, FLOATS, Tensor, open_matrix, read_header

COPY_BYTES: Final = 8 * 1024 * 1024
MAX_SIDE_BYTES: Final = 256 * 1024 * 1024
"""Largest other file that is copied: the tokenizer's and the config's are far smaller."""
TRANSPOSED_TYPES: Final = frozenset({"gpt2", "imagegpt", "openai-gpt", "decision_transformer"})
"""Model types whose linear layers are stored as [in, out]."""
_SIDE_SUFFIXES: Final = frozenset({".json", ".jinja", ".txt", ".model", ".tiktoken", ".py"})
_LEGAL: Final = re.compile(r"(licen[cs]e|notice|use_policy|copying)([._-].*)?", re.IGNORECASE)
_NOT_COPIED: Final = frozenset({"prepared.json"})
"""Hatrack's own note beside a base that it has prepared."""
OnBytes = Callable[[int], None]


@dataclass(frozen=True, slots=True)
class MergedFile:
    """A weights file that was written."""

    name: str
    bytes: int
    sha256: str


@dataclass(frozen=True, slots=True)
class Merge:
    """The result: the files, the names of the merged layers in the checkpoint, and the largest ‖scaling·BA‖ / ‖W‖."""

    files: tuple[MergedFile, ...]
    modules: tuple[str, ...]
    update_ratio: float


@dataclass(frozen=True, slots=True)
class _Update:
    """scaling·B·A of one layer: A [r, in] and B [out, r] in the adapter's file."""

    path: Path
    a: Tensor
    b: Tensor
    scaling: float


def side_files(base_dir: Path) -> list[Path]:
    """The files of a checkpoint besides its weights that a copy needs: config, tokenizer, template, code, licence."""
    weights = {path.name for path in weight_files(base_dir)}
    return [
        path
        for path in sorted(base_dir.iterdir())
        if path.is_file()
        and path.name not in weights | _NOT_COPIED
        and not path.name.startswith(".")
        and (path.suffix in _SIDE_SUFFIXES or _LEGAL.fullmatch(path.name))
        and path.stat().st_size <= MAX_SIDE_BYTES
    ]


def licence_files(base_dir: Path) -> list[str]:
    """The names of a checkpoint's licence, notice and policy files."""
    return [path.name for path in side_files(base_dir) if _LEGAL.fullmatch(path.name)]


def merged_bytes(base_dir: Path) -> int:
    """The size of a merged checkpoint in bytes: that of the base."""
    return sum(path.stat().st_size for path in [*weight_files(base_dir), *side_files(base_dir)])


def merge(
    base_dir: Path, adapter_dir: Path, target: Path, *, base: BaseDescription, on_bytes: OnBytes | None = None
) -> Merge:
    """Write base and adapter, merged, into `target`, an existing empty directory. Blocks: minutes for a large model.

    The adapter is inspected as an upload is. Everything is flushed to the disk when this returns.

    Args:
        base: The description of `base_dir`.
        on_bytes: Called with the number of bytes written since its last call.

    Raises:
        BaseInvalid: The base is quantized, or its layers are stored in a form that cannot be merged.
        NotFinite: A merged value does not fit the base's dtype.
        AdapterError: The adapter's files are invalid, or do not fit the base.
        OSError: A file cannot be read or written.
    """
    config = read_json(base_dir / "config.json")
    _refuse_unmergeable(config)
    files = weight_files(base_dir)
    weights = adapter_dir / WEIGHTS_FILE
    manifest = Manifest.parse((adapter_dir / CONFIG_FILE).read_bytes(), max_rank=2**31)
    inspection = inspect_weights(weights, manifest, base)
    updates = _updates(weights, inspection.manifest, base, layers_of(files, config))
    report = on_bytes or (lambda _count: None)
    written = tuple(_write_shard(path, target / path.name, updates, report) for path in files)
    for path in side_files(base_dir):
        shutil.copyfile(path, target / path.name)
        _sync(target / path.name)
        report(path.stat().st_size)
    return Merge(written, tuple(sorted(updates)), inspection.update_ratio)


def _refuse_unmergeable(config: Mapping[str, Any]) -> None:
    if config.get("quantization_config"):
        raise BaseInvalid("The base is quantized: merge into its unquantized checkpoint instead.")
    if config.get("model_type") in TRANSPOSED_TYPES:
        raise BaseInvalid(f"Bases of the type {config['model_type']} store weights transposed; they cannot be merged.")


def _updates(
    weights: Path, manifest: Manifest, base: BaseDescription, layers: Mapping[str, Layer]
) -> dict[str, _Update]:
    """The update of each layer, by the layer's name in the checkpoint. Raises BaseInvalid."""
    tensors, modules = read_header(weights), modules_in(weights)
    ranks, alphas = manifest.ranks(modules), manifest.alphas(modules)
    updates = {}
    for module in sorted(modules):
        name = base.find(module)
        layer = None if name is None else layers.get(name)
        if name is None or layer is None or layer.tensor.dtype not in FLOATS:
            raise BaseInvalid(f"The base's weight of {module} is quantized or missing; nothing can be added to it.")
        updates[name] = _Update(
            path=weights,
            a=tensors[f"base_model.model.{module}.lora_A.weight"],
            b=tensors[f"base_model.model.{module}.lora_B.weight"],
            scaling=manifest.scaling(ranks[module], alphas[module]),
        )
    return updates


def _write_shard(source: Path, target: Path, updates: Mapping[str, _Update], report: OnBytes) -> MergedFile:
    """Copy a shard, its header byte for byte, with the updates added to their layers."""
    tensors = read_header(source).values()  # in the order of their data, without gaps
    sha256, size = hashlib.sha256(), 0
    with source.open("rb") as reader, target.open("xb") as writer:

        def write(content: bytes | memoryview) -> None:
            nonlocal size
            writer.write(content)
            sha256.update(content)
            size += len(content)
            report(len(content))

        start = min((tensor.start for tensor in tensors), default=source.stat().st_size)
        for content in _copied(reader, 0, start):
            write(content)
        for tensor in tensors:
            update = updates.get(tensor.name.removesuffix(".weight"))
            if update is None or not tensor.name.endswith(".weight"):
                blocks = _copied(reader, tensor.start, tensor.end)
            else:
                blocks = _merged(source, tensor, update)
            for content in blocks:
                write(content)
        writer.flush()
        os.fsync(writer.fileno())
    return MergedFile(target.name, size, sha256.hexdigest())


def _copied(file: BinaryIO, start: int, end: int) -> Iterator[bytes]:
    file.seek(start)
    while start < end:
        content = file.read(min(COPY_BYTES, end - start))
        if not content:
            raise OSError(f"{file.name} has become shorter while it was read")
        start += len(content)
        yield content


def _merged(source: Path, tensor: Tensor, update: _Update) -> Iterator[bytes]:
    """The bytes of W + scaling·B·A in blocks of rows. Raises NotFinite."""
    dtype = FLOATS[tensor.dtype]
    compute = np.dtype(np.float64) if tensor.dtype == "F64" else np.dtype(np.float32)
    w, b = open_matrix(source, tensor), open_matrix(update.path, update.b)
    a: NDArray[Any] = np.asarray(open_matrix(update.path, update.a)).astype(compute)
    scaling: Any = compute.type(update.scaling)  # of this dtype: a Python float must not widen the product
    step = max(1, CHUNK_ELEMENTS // max(1, w.shape[1]))
    for row in range(0, w.shape[0], step):
        with np.errstate(all="ignore"):  # checked below
            delta = (b[row : row + step].astype(compute) * scaling) @ a
            merged = (w[row : row + step].astype(compute) + delta).astype(dtype)
        if not np.isfinite(merged.astype(np.float32) if dtype.itemsize < 4 else merged).all():
            raise NotFinite(f"{tensor.name} has merged values that {tensor.dtype} cannot hold.", param=tensor.name)
        yield merged.tobytes()


def _sync(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())
