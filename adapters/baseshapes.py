"""The layers of a checkpoint from its safetensors headers: shapes, and the norms of the weights that can be read.

A LoRA is named after the checkpoint's layers (`model.layers.0.self_attn.q_proj`), not after what the engine makes of
them (it packs q, k and v into one). Each two-dimensional `<layer>.weight` is one, of shape [out, in]. Quantized
checkpoints store other tensors under other names, from which the shape can often be derived.
"""

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

from adapters.tensorfile import FLOATS, Tensor, open_matrix, read_header, row_chunks

_EIGHT_BITS: Final = frozenset({"F8_E4M3", "F8_E5M2", "F8_E4M3FNUZ", "F8_E5M2FNUZ", "I8"})
_EMBEDDING_NAMES: Final = frozenset(
    {"embed_tokens", "lm_head", "wte", "wpe", "embed_in", "embed_out", "word_embeddings", "position_embeddings"}
)


_OBSTACLES: Final = (
    (
        re.compile(r"(^|\.)(block_sparse_moe|mlp|feed_forward)\.(gate|router)(\.|$)|\.router(\.|$)"),
        "a router of experts",
    ),
    (re.compile(r"(^|\.)experts(\.|$)"), "an expert of a mixture of experts"),
    (re.compile(r"(^|\.)(shared_experts?|shared_mlp)(\.|_gate(\.|$))"), "a shared expert of a mixture of experts"),
    (
        re.compile(
            r"(^|\.)(vision_tower|vision_model|visual|vision_embed_tokens|audio_tower|audio_model|embed_vision|embed_audio"
            r"|multi_modal_projector|connector)(\.|$)"
        ),
        "not part of the language model",
    ),
    (re.compile(r"^mtp(\.|$)|(^|\.)mtp\."), "a layer for speculative decoding"),
)
"""Names of layers to which the engine applies no LoRA, and what they are. On a CPU, vLLM has no LoRA for experts, and
PEFT has none for their fused weights and routers. To towers, speculative layers and the gate of a shared expert vLLM
applies nothing, silently."""


_EXPERT: Final = re.compile(r"(^|\.)experts(\.|$)")
EXPERT_NAMES: Final = frozenset({"gate", "gate_proj", "up_proj", "down_proj", "w1", "w2", "w3"})
"""Last names that PEFT takes for those of experts and their router in every model that has experts, wherever it finds
them (`peft.utils.transformers_weight_conversion`)."""


def has_experts(names: Iterable[str]) -> bool:
    """Whether these layers or parameters are those of a mixture of experts."""
    return any(_EXPERT.search(name) for name in names)


def obstacle(module: str) -> str | None:
    """What a linear layer is, if the engine applies no LoRA to layers of its kind; None if it does.

    Args:
        module: Its name in the checkpoint or in an adapter.
    """
    return next((what for pattern, what in _OBSTACLES if pattern.search(module)), None)


@dataclass(frozen=True, slots=True)
class Layer:
    """The file and tensor of a layer's weight, and its shape as far as it is known."""

    path: Path
    tensor: Tensor
    out_features: int | None
    in_features: int | None
    is_linear: bool


def layers_of(files: Sequence[Path], config: Mapping[str, Any]) -> dict[str, Layer]:
    """Every layer with a two-dimensional weight in `files`, by name; embeddings are those that are not `is_linear`."""
    section = config.get("quantization_config")
    quantization = section if isinstance(section, dict) else {}
    layers: dict[str, Layer] = {}
    for path in files:
        for tensor in read_header(path).values():
            name, _, suffix = tensor.name.rpartition(".")
            shape = _shape(suffix, tensor, quantization)
            if name and shape is not None:
                is_linear = name.rpartition(".")[2] not in _EMBEDDING_NAMES
                layers[name] = Layer(path, tensor, shape[0], shape[1], is_linear)
    return layers


def _shape(suffix: str, tensor: Tensor, quantization: Mapping[str, Any]) -> tuple[int | None, int | None] | None:
    """(out, in) of the layer whose weight is `tensor`, as far as it is known; None if it is not a weight."""
    if len(tensor.shape) != 2:
        return None
    rows, columns = tensor.shape
    if suffix == "weight":
        # Whole bytes keep the shape; bitsandbytes stores four bits as one column of bytes.
        unpacked = tensor.dtype in FLOATS or tensor.dtype in _EIGHT_BITS
        return (rows, columns) if unpacked else (None, None)
    if suffix == "weight_packed":  # compressed-tensors packs along the input
        return rows, None
    if suffix == "qweight":
        bits = quantization.get("bits", 4)
        per_integer = 32 // bits if bits in (2, 4, 8) else None
        method = quantization.get("quant_method")
        if method == "gptq" and per_integer:  # int32 [in / per_integer, out]
            return columns, rows * per_integer
        if method == "awq" and per_integer:  # int32 [in, out / per_integer]
            return columns * per_integer, rows
        return None, None
    return None


def norm_of(layer: Layer) -> float | None:
    """The Frobenius norm of a layer's weight in float64; None if it is quantized or not finite."""
    if layer.tensor.dtype not in FLOATS or 0 in layer.tensor.shape:
        return None
    total = 0.0
    for chunk in row_chunks(open_matrix(layer.path, layer.tensor)):
        flat = chunk.reshape(-1)
        total += float(np.dot(flat, flat))
    return math.sqrt(total) if math.isfinite(total) else None
