"""Checks from its files alone whether an adapter fits the base and is safe to serve, before the engine sees them.

First the header: names, pairs, shapes and dtypes, without reading values. Then each pair A [r, in], B [out, r] is read
in chunks: every value must be finite, also in the engine's dtype, and the update must not dwarf the weight that it is
added to (an overflow in one adapter's activations can corrupt other requests in the batch).
"""

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final, NoReturn

import numpy as np
from numpy.typing import NDArray

from adapters.base import BaseDescription, ModuleShape
from adapters.baseshapes import obstacle
from adapters.errors import (
    DtypeUnsupported,
    EmbeddingUnsupported,
    ModuleUnknown,
    ModuleUnsupported,
    NotFinite,
    PairIncomplete,
    ShapeMismatch,
    TargetModulesMismatch,
    TensorNameInvalid,
    UpdateTooLarge,
    WeightsEmpty,
)
from adapters.manifest import Manifest
from adapters.tensorfile import Tensor, column_chunks, open_matrix, read_header, row_chunks

DEFAULT_MAX_UPDATE_RATIO: Final = 100.0
"""‖scaling·BA‖ / ‖W‖ above which an adapter is refused. Trained adapters have 0.001 to 0.01."""

LARGEST_VALUE: Final[Mapping[str, float]] = {
    "float16": 65504.0,
    "bfloat16": (2.0 - 2.0**-7) * 2.0**127,
    "float32": float(np.finfo(np.float32).max),
}
"""The largest finite value of each dtype that an engine computes in: A and scaling·B are cast to it when loaded."""

ZERO_EFFECT: Final = 1e-13
"""‖BA‖² / (‖B‖²·‖A‖²) below which BA is zero up to float64 rounding."""

_DTYPES: Final = frozenset({"F32", "F16", "BF16"})
_NAME: Final = re.compile(r"base_model\.model\.(?P<module>[A-Za-z0-9_.-]+)\.lora_(?P<side>[AB])\.weight", re.ASCII)
_EMBEDDING_PART: Final = re.compile(r"\.lora_embedding_[AB]\b|\.base_layer\.weight$")
_SHOWN: Final = 5


@dataclass(frozen=True, slots=True)
class Inspection:
    """The result of an inspection. `rank`: the largest of any module. `alpha`: the config's. `bytes`: of the weights.

    `manifest` is the config resolved by the modules in the weights, as stored. `effect_is_zero`: B·A is zero in every
    module, which is harmless but surely a mistake. `update_ratio` is the largest ‖scaling·BA‖_F / ‖W‖_F, of the module
    `update_ratio_module`.
    """

    manifest: Manifest
    rank: int
    alpha: float
    tensors: int
    bytes: int
    target_modules: tuple[str, ...]
    modules: int
    effect_is_zero: bool
    update_ratio: float
    update_ratio_module: str
    warnings: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class _Pair:
    a: Tensor
    b: Tensor
    shape: ModuleShape
    scaling: float


def inspect_weights(
    path: Path,
    manifest: Manifest,
    base: BaseDescription,
    *,
    max_update_ratio: float = DEFAULT_MAX_UPDATE_RATIO,
) -> Inspection:
    """Read the adapter_model.safetensors at `path` against its config and the base. Blocks: run it in a thread.

    Raises a subclass of WeightsError, ConfigInvalid if the patterns cannot be resolved, OSError if the file cannot be
    read. Uses some tens of MiB of memory, whatever the file's size.
    """
    tensors = read_header(path)
    sides = _sides(tensors.values(), base)
    resolved, target_warnings = _resolve(manifest, sides)
    pairs = _pairs(sides, resolved, base)
    ratios, is_zero = _measure(path, pairs, base, max_update_ratio)
    largest = max(ratios, key=lambda module: ratios[module])
    return Inspection(
        manifest=resolved,
        rank=max(pair.a.shape[0] for pair in pairs.values()),
        alpha=manifest.alpha,
        tensors=len(tensors),
        bytes=path.stat().st_size,
        target_modules=tuple(resolved.target_modules),
        modules=len(pairs),
        effect_is_zero=is_zero,
        update_ratio=ratios[largest],
        update_ratio_module=largest,
        warnings=(*manifest.warnings, *target_warnings, *_base_warnings(pairs.values())),
    )


def modules_in(path: Path) -> frozenset[str]:
    """The modules with tensors in the adapter_model.safetensors at `path`; only reads its header.

    Raises a subclass of WeightsError, OSError.
    """
    return frozenset(match["module"] for name in read_header(path) if (match := _NAME.fullmatch(name)) is not None)


def _measure(
    path: Path, pairs: Mapping[str, _Pair], base: BaseDescription, max_update_ratio: float
) -> tuple[dict[str, float], bool]:
    """‖scaling·BA‖ / ‖W‖ of each module, and whether BA is zero in all. Raises NotFinite and UpdateTooLarge."""
    ratios, is_zero = {}, True
    for module, pair in pairs.items():
        norm, zero = _update_norm(path, pair, base.fingerprint.dtype)
        ratio = norm / (pair.shape.norm or _fresh_norm(pair, base.initializer_range))
        if ratio > max_update_ratio:
            raise UpdateTooLarge(
                f"The update of {module} is {ratio:.3g} times its base weight's norm; at most {max_update_ratio:g} is "
                "served.",
                param=f"base_model.model.{module}",
                details={"ratio": ratio, "max_update_ratio": max_update_ratio},
            )
        ratios[module] = ratio
        is_zero = is_zero and zero
    return ratios, is_zero


def _base_warnings(pairs: Iterable[_Pair]) -> list[str]:
    """Warnings about what could not be compared because the base is quantized."""
    shapes = [pair.shape for pair in pairs]
    warnings = []
    if any(shape.out_features is None or shape.in_features is None for shape in shapes):
        warnings.append("Some of the base's layer shapes are unknown because it is quantized; those were not compared.")
    if any(not shape.norm for shape in shapes):
        warnings.append(
            "Some of the base's weight norms are unknown; the norm of an untrained weight was used instead."
        )
    return warnings


def _sides(tensors: Iterable[Tensor], base: BaseDescription) -> dict[str, dict[str, Tensor]]:
    """The tensors by module and side ("A", "B"), with names and dtypes checked, and both sides present."""
    sides: dict[str, dict[str, Tensor]] = {}
    for tensor in tensors:
        match = _NAME.fullmatch(tensor.name)
        if match is None:
            _refuse_name(tensor.name)
        module = match["module"]
        if module in base.embeddings or (base.find(module) is None and _leaf(module) in {"embed_tokens", "lm_head"}):
            raise EmbeddingUnsupported(
                f"{module} is an embedding or the LM head; only some of the engine's models support LoRA there.",
                param=tensor.name,
            )
        if tensor.dtype not in _DTYPES:
            raise DtypeUnsupported(
                f"{tensor.name} has dtype {tensor.dtype}; supported are {', '.join(sorted(_DTYPES))}.",
                param=tensor.name,
            )
        sides.setdefault(module, {})[match["side"]] = tensor
    if not sides:
        raise WeightsEmpty("The file has no tensors: the engine would serve the plain base.")
    for module, pair in sides.items():
        if len(pair) < 2:
            missing = "B" if "A" in pair else "A"
            raise PairIncomplete(f"{module} has no lora_{missing}.", param=f"base_model.model.{module}")
    return sides


def _refuse_name(name: str) -> NoReturn:
    if _EMBEDDING_PART.search(name):
        raise EmbeddingUnsupported(
            f"{name[:256]!r}: an adapter with its own embeddings cannot be served.", param=name[:256]
        )
    raise TensorNameInvalid(
        f"{name[:256]!r} is not base_model.model.<module>.lora_A.weight or .lora_B.weight.", param=name[:256]
    )


def _resolve(manifest: Manifest, sides: Mapping[str, object]) -> tuple[Manifest, list[str]]:
    """Resolve the config by the modules that have tensors, and compare the two.

    The engine applies every tensor in the file and never looks at target_modules; PEFT leaves out what they do not
    name.
    """
    warnings = []
    targets = manifest.target_modules
    if isinstance(targets, tuple):
        unused = [t for t in targets if not any(_is_target(module, t) for module in sides)]
        if len(unused) == len(targets):
            raise TargetModulesMismatch(
                f"No tensor belongs to any of the config's target_modules ({_listed(targets)}). "
                "Check that the config and the weights are of the same adapter.",
                param="target_modules",
            )
        extra = [module for module in sides if not any(_is_target(module, t) for t in targets)]
        if unused:
            warnings.append(f"The weights have no tensors for these target_modules of the config: {_listed(unused)}.")
        if extra:
            warnings.append(
                f"The weights hold tensors of modules that target_modules does not name ({_listed(extra)}); the engine "
                "applies them, PEFT would not."
            )
    return manifest.resolve(sides), warnings


def _is_target(module: str, target: str) -> bool:
    """PEFT's rule for a list of targets: the whole name, or its end after a dot."""
    return module == target or module.endswith(f".{target}")


def _pairs(sides: Mapping[str, Mapping[str, Tensor]], manifest: Manifest, base: BaseDescription) -> dict[str, _Pair]:
    """Each module with its layer of the base; shapes compared."""
    ranks, alphas = manifest.ranks(sides), manifest.alphas(sides)
    taken: dict[str, str] = {}
    pairs = {}
    for module, sides_of_module in sides.items():
        name, kind = base.find(module), obstacle(module)
        if kind is not None:
            raise ModuleUnsupported(
                f"{module} is {kind}, to which the engine applies no LoRA; allowed are {', '.join(base.adaptable)}.",
                param=f"base_model.model.{module}",
                details={"allowed": list(base.adaptable)},
            )
        if name is None:
            raise ModuleUnknown(
                f"{base.served_name} has no layer {module}; its linear layers are {', '.join(base.adaptable)}.",
                param=f"base_model.model.{module}",
                details={"allowed": list(base.adaptable)},
            )
        if taken.setdefault(name, module) != module:
            raise TensorNameInvalid(
                f"{module} and {taken[name]} are the same layer of the base.", param=f"base_model.model.{module}"
            )
        shape, rank = base.modules[name], ranks[module]
        _compare(sides_of_module["A"], (rank, shape.in_features), module, rank)
        _compare(sides_of_module["B"], (shape.out_features, rank), module, rank)
        pairs[module] = _Pair(sides_of_module["A"], sides_of_module["B"], shape, manifest.scaling(rank, alphas[module]))
    return pairs


def _compare(tensor: Tensor, expected: tuple[int | None, int | None], module: str, rank: int) -> None:
    fits = len(tensor.shape) == 2 and all(
        have == want if want is not None else have > 0 for have, want in zip(tensor.shape, expected, strict=True)
    )
    if not fits:
        want = [size if size is not None else "any" for size in expected]
        raise ShapeMismatch(
            f"{tensor.name} has shape {list(tensor.shape)}; {module} of this base and rank {rank} need {want}.",
            param=tensor.name,
            details={"shape": list(tensor.shape), "expected": want},
        )


def _update_norm(path: Path, pair: _Pair, dtype: str) -> tuple[float, bool]:
    """‖scaling·BA‖_F, and whether BA is zero. Raises NotFinite.

    ‖BA‖_F² = tr(AᵀBᵀBA) = tr((BᵀB)(AAᵀ)) needs only two r×r products. In float64 no float32 values overflow it: each
    Gram matrix stays below 1e83 and their product below 1e170.
    """
    largest = LARGEST_VALUE.get(dtype, LARGEST_VALUE["bfloat16"])
    rank = pair.a.shape[0]
    gram_a, gram_b = np.zeros((rank, rank)), np.zeros((rank, rank))
    for chunk in column_chunks(open_matrix(path, pair.a)):
        _refuse_not_finite(chunk, largest, pair.a.name)
        gram_a += chunk @ chunk.T
    # The engine multiplies B by the scaling when it loads it, in its own dtype.
    largest_b = largest / max(1.0, abs(pair.scaling))
    for chunk in row_chunks(open_matrix(path, pair.b)):
        _refuse_not_finite(chunk, largest_b, pair.b.name)
        gram_b += chunk.T @ chunk
    square = max(0.0, float(np.sum(gram_a * gram_b)))
    bound = float(np.trace(gram_a)) * float(np.trace(gram_b))
    is_zero = pair.scaling == 0.0 or square <= ZERO_EFFECT * bound
    return abs(pair.scaling) * math.sqrt(square), is_zero


def _refuse_not_finite(chunk: NDArray[np.float64], largest: float, name: str) -> None:
    peak = float(np.max(np.abs(chunk)))  # NaN where any value is NaN
    if not peak <= largest:
        what = "values that are not finite" if not math.isfinite(peak) else "values too large for the engine's dtype"
        raise NotFinite(f"{name} has {what}.", param=name)


def _fresh_norm(pair: _Pair, initializer_range: float) -> float:
    """The expected norm of an untrained weight of this shape, used if the base's norm is unknown."""
    return initializer_range * math.sqrt(pair.b.shape[0] * pair.a.shape[1])


def _leaf(module: str) -> str:
    return module.rpartition(".")[2]


def _listed(names: Iterable[str]) -> str:
    names = sorted(names)
    return ", ".join(name[:80] for name in names[:_SHOWN]) + (" …" if len(names) > _SHOWN else "")
