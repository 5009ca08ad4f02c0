"""Estimates before it starts how much memory a training needs; imports no torch.

Activations follow Korthikanti et al. 2022, "Reducing Activation Recomputation in Large Transformer Models": in 16 bits
a layer keeps 34·s·b·h bytes beside the attention's scores (their equation 1); with recomputation it keeps only its
input, 2·s·b·h. If attention is not fused, a layer in transformers keeps of each of a·s² scores the softmax's result,
which is computed in float32, and its copy in the model's own numbers; going back, one layer at a time holds the
gradients of both and of what went into the softmax. (Their 5·a·s² is for a softmax in 16 bits, with dropout. With it
measured peaks were up to 1.3 times the estimate: `python -m loadtests.training.memory --measure`.)
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from adapters.basefiles import weight_files
from adapters.tensorfile import read_header
from trainer.tune.recipe import Recipe

RUNTIME_BYTES: Final = 900 * 2**20
"""Libraries, tokenizer and allocator: the memory of a process without a model, measured on a CPU."""
NF4_BYTES_PER_WEIGHT: Final = 0.516
"""Four bits plus the doubly quantized constants of blocks of 64 (Dettmers et al. 2023, section 3)."""
STREAMED_TYPES: Final = frozenset({"gemma3_text", "granite", "llama", "mistral", "phi3", "qwen2", "qwen3", "smollm3"})
"""`model_type`s whose checkpoints name every parameter as the model does: their base can be streamed for the proof."""
EAGER_MAX_TOKENS: Final = 512
"""Up to this length plain attention is faster on a CPU than the fused kernel: a step of 16 × 100 tokens took 1.6 s
against 2.1 s. Its memory grows with the square of the length."""
FLOAT32_BYTES: Final = 4
OPTIMIZER_BYTES: Final = 4 + 4 + 8
"""Per trained number, in addition to it, its gradient and its copy at the best measurement: float32 master weight and
gradient, AdamW's two moments."""


@dataclass(frozen=True, slots=True)
class ModelShape:
    """The dimensions of a base that decide its memory. ``weights`` counts its parameters, of which ``embeddings`` are
    never quantized. `streams`: whether the base can be streamed for the proof (`trainer.tune.streaming`)."""

    layers: int
    hidden: int
    heads: int
    intermediate: int
    vocabulary: int
    weights: int
    embeddings: int
    streams: bool = False

    @property
    def largest_block(self) -> int:
        """The parameters of a decoder layer, or of the embeddings if these are more: what a streamed base holds."""
        return max((self.weights - self.embeddings) // self.layers, self.hidden * self.vocabulary)


@dataclass(frozen=True, slots=True)
class MemoryEstimate:
    """Bytes by purpose. ``proof`` is what the proof at the end holds of the base in the serving dtype: its largest
    layer if it is streamed, else all of it; a four-bit copy used for training is freed before."""

    base: int
    adapter: int
    activations: int
    proof: int = 0
    runtime: int = RUNTIME_BYTES

    @property
    def total(self) -> int:
        """The peak: during the training or during the proof."""
        return self.runtime + max(self.base + self.adapter + self.activations, self.proof)

    def describe(self) -> str:
        """The total and its parts in GiB, for messages."""
        parts = {"base": self.base, "adapter": self.adapter, "activations": self.activations}
        if self.proof > sum(parts.values()):
            parts = {"unquantized base, for the proof": self.proof}
        parts["runtime"] = self.runtime
        listed = ", ".join(f"{name} {size / 2**30:.1f}" for name, size in parts.items())
        return f"{self.total / 2**30:.1f} GiB ({listed})"


def read_shape(base: Path) -> ModelShape:
    """The shape of the checkpoint in `base`.

    Raises:
        AdapterError, OSError, KeyError, ValueError: It is not a usable checkpoint.
    """
    whole: dict[str, Any] = json.loads((base / "config.json").read_text())
    config = whole.get("text_config", whole)
    hidden, layers, vocabulary = config["hidden_size"], config["num_hidden_layers"], config["vocab_size"]
    tied = config.get("tie_word_embeddings", True)
    tensors = (tensor for path in weight_files(base) for tensor in read_header(path).values())
    weights = sum(math.prod(tensor.shape) for tensor in tensors)
    return ModelShape(
        layers=layers,
        hidden=hidden,
        heads=config["num_attention_heads"],
        intermediate=config["intermediate_size"],
        vocabulary=vocabulary,
        weights=weights,
        embeddings=hidden * vocabulary * (1 if tied else 2),
        streams=whole.get("model_type") in STREAMED_TYPES,
    )


def estimate(shape: ModelShape, recipe: Recipe, *, longest: int, fused: bool, number_bytes: int = 2) -> MemoryEstimate:
    """An upper bound of the memory that a training needs. Activations are those of a micro-batch: a packed row, or
    padded rows of as many tokens, which need no more.

    Args:
        longest: Tokens of the longest example.
        fused: Whether attention avoids storing its [s, s] scores (always on a GPU; on a CPU above EAGER_MAX_TOKENS).
        number_bytes: Bytes per number: 2, or 4 if the hardware has no 16-bit arithmetic.
    """
    linear = shape.weights - shape.embeddings
    bytes_per_weight = NF4_BYTES_PER_WEIGHT if recipe.quantization == "nf4" else float(number_bytes)
    lora_per_layer = recipe.rank * (8 * shape.hidden + 3 * (shape.hidden + shape.intermediate))
    example = 2 * longest if recipe.objective == "dpo" else longest  # a pair is two sequences of one pass
    tokens = min(recipe.batch_size * example, max(example, recipe.micro_batch_tokens))
    scores = 0 if fused else shape.heads * tokens * tokens
    per_layer = 17 * number_bytes * tokens * shape.hidden + (FLOAT32_BYTES + number_bytes) * scores
    kept = (
        shape.layers * number_bytes * tokens * shape.hidden + per_layer
        if recipe.gradient_checkpointing
        else shape.layers * per_layer
    )
    going_back = (FLOAT32_BYTES + 2 * number_bytes) * scores
    logits = number_bytes * tokens * shape.vocabulary  # as if every token were trained: an upper bound
    return MemoryEstimate(
        base=int(linear * bytes_per_weight + number_bytes * shape.embeddings),
        adapter=(3 * number_bytes + OPTIMIZER_BYTES) * shape.layers * lora_per_layer,
        activations=kept + going_back + logits,
        proof=number_bytes * (shape.largest_block if shape.streams else shape.weights),
    )
