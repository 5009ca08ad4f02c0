"""How much memory a training will need, told before it starts; imports no torch.

Activations follow Korthikanti et al. 2022, "Reducing Activation Recomputation in Large Transformer Models": a layer
keeps s·b·h·(34 + 5·a·s/h) bytes in 16 bits (their equation 1), of which the second term falls away where attention is
fused; recomputed, a layer keeps its input, 2·s·b·h.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from trainer.tune.recipe import Recipe

RUNTIME_BYTES: Final = 900 * 2**20
"""Libraries, tokenizer and allocator: what a process holds that has loaded no model yet, measured on a CPU."""
NF4_BYTES_A_WEIGHT: Final = 0.516
"""Four bits, and the doubly quantized constants of blocks of 64 (Dettmers et al. 2023, section 3)."""
EAGER_MAX_TOKENS: Final = 512
"""Up to this length plain attention is faster on a CPU than the fused kernel: a step of 16 × 100 tokens took 1.6 s
against 2.1 s. Its memory grows with the square of the length."""
ORIGINAL_BYTES: Final = 4 + 4 + 8
"""Of a trained number, beside it and its gradient: its float32 original and gradient, AdamW's two moments."""


@dataclass(frozen=True, slots=True)
class Shape:
    """What of a base's config decides its memory. ``weights`` counts its numbers, of which ``embeddings`` stay whole
    whatever the quantization."""

    layers: int
    hidden: int
    heads: int
    intermediate: int
    vocabulary: int
    weights: int
    embeddings: int


@dataclass(frozen=True, slots=True)
class Need:
    """Bytes, by what they are for. ``whole`` is the base as it serves, on which an adapter is proven in the end: where
    it was trained in four bits, that copy is gone by then."""

    base: int
    adapter: int
    activations: int
    whole: int = 0
    runtime: int = RUNTIME_BYTES

    @property
    def total(self) -> int:
        """At the worst moment: while it trains, or while it is proven."""
        return self.runtime + max(self.base + self.adapter + self.activations, self.whole)

    def words(self) -> str:
        """The sum and its parts, in GiB."""
        parts = {"base": self.base, "adapter": self.adapter, "activations": self.activations}
        if self.whole > sum(parts.values()):
            parts = {"the whole base, for the proof": self.whole}
        parts["runtime"] = self.runtime
        listed = ", ".join(f"{name} {size / 2**30:.1f}" for name, size in parts.items())
        return f"{self.total / 2**30:.1f} GiB ({listed})"


def read_shape(base: Path) -> Shape:
    """The shape of the checkpoint in `base`. Raises OSError, KeyError, ValueError where it has no usual config."""
    config: dict[str, Any] = json.loads((base / "config.json").read_text())
    config = config.get("text_config", config)
    hidden, layers, vocabulary = config["hidden_size"], config["num_hidden_layers"], config["vocab_size"]
    tied = config.get("tie_word_embeddings", True)
    weights = sum(path.stat().st_size for path in base.glob("*.safetensors")) // 2
    return Shape(
        layers=layers,
        hidden=hidden,
        heads=config["num_attention_heads"],
        intermediate=config["intermediate_size"],
        vocabulary=vocabulary,
        weights=weights,
        embeddings=hidden * vocabulary * (1 if tied else 2),
    )


def estimate(shape: Shape, recipe: Recipe, *, longest: int, fused: bool, number_bytes: int = 2) -> Need:
    """What a training needs at most.

    Args:
        longest: Tokens of the longest example.
        fused: Attention never writes its [s, s] scores (always on a GPU; on a CPU beyond EAGER_MAX_TOKENS).
        number_bytes: Of a number that is computed with: 2, or 4 where the hardware knows no 16 bits.
    """
    linear = shape.weights - shape.embeddings
    a_weight = NF4_BYTES_A_WEIGHT if recipe.quantization == "nf4" else float(number_bytes)
    a_layer = recipe.rank * (8 * shape.hidden + 3 * (shape.hidden + shape.intermediate))
    rows, width = recipe.batch_size, longest
    if recipe.packing:
        rows, width = 1, recipe.batch_size * longest
    tokens = rows * width
    scores = 0 if fused else 5 * shape.heads * width * tokens
    whole = 34 * tokens * shape.hidden + scores
    kept = shape.layers * 2 * tokens * shape.hidden + whole if recipe.gradient_checkpointing else shape.layers * whole
    logits = 2 * tokens * shape.vocabulary  # as if every token were trained: a bound, not a guess
    return Need(
        base=int(linear * a_weight + number_bytes * shape.embeddings),
        adapter=(2 * number_bytes + ORIGINAL_BYTES) * shape.layers * a_layer,
        activations=(kept + logits) * number_bytes // 2,
        whole=number_bytes * shape.weights,
    )
