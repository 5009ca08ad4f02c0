"""Estimates before it starts how much memory a training needs; imports no torch.

What a layer keeps for the backward pass, in bytes per token, with n bytes a number (2 in bfloat16), hidden width h, a
the width of all attention heads, i that of the MLP and k experts per token:

    4 × the widths of its norms                    they compute in float32: 2h in a Llama, 4h in a Gemma 3, which also
                                                   normalises queries and keys, as a Qwen3 does
    n · (2h + a + i)                               the inputs of the linear layers, which their LoRAs need; experts
                                                   have none, so there it is 2h + a
    n · 3a                                         queries; keys and values, repeated to the number of query heads
    n · 3i                                         the gate, its activation, and what that is multiplied by
    n · k · h                                      the experts' outputs
    n · 7 · rank                                   what the LoRAs' A matrices give
    n · max(2a, s)                                 keys and values of a shared prefix again, or attention's mask for s
                                                   tokens, which is converted in each layer
    n · (2 · (5h + a + i) - (2h + i))              with dropout: a dropped input and a mask for each linear layer

The source is transformers' own code: each term is a tensor that autograd saves in it, as
`torch.autograd.graph.saved_tensors_hooks` shows (`python -m loadtests.training.activations`). It is not the 34·s·b·h of
Korthikanti et al. 2022 ("Reducing Activation Recomputation in Large Transformer Models", equation 1), whose MLP has no
gate: a Llama of i = 3.5h keeps about 51h.

With recomputation a layer keeps only its input, n·h. If attention is not fused, a layer in transformers keeps of each
of the heads' s² scores the softmax's result, which is computed in float32, and its copy in the model's own numbers;
going back, one layer at a time holds the gradients of both and of what went into the softmax.
"""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from adapters.basefiles import weight_files
from adapters.tensorfile import Tensor, read_header
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
LINEAR_LAYERS: Final = 7
"""Linear layers with a LoRA in a decoder layer: q, k, v, o, gate, up, down; fewer where they are fused."""
ROUTER_BYTES: Final = 192
"""Per expert that a token goes through: indices and weights, 64 bytes, and float32 scores of up to 32 experts for each
that is chosen."""
_NORM: Final = re.compile(r"(?P<layer>.*\blayers\.\d+)\..*?(?P<kind>\w*norm\w*)\.weight$")


@dataclass(frozen=True, slots=True)
class ModelShape:
    """The dimensions of a base that decide its memory.

    ``weights`` counts its parameters, of which ``embeddings`` are never quantized. `streams`: whether the base can be
    streamed for the proof (`trainer.tune.streaming`). `intermediate`: numbers between the MLP's projections for one
    token, in a mixture of `experts_per_token` those of all its experts. `attention_width`: heads × their size, by
    default `hidden`. `norm_width`: the numbers that a layer's norms normalise for one token, by default two norms'.
    """

    layers: int
    hidden: int
    heads: int
    intermediate: int
    vocabulary: int
    weights: int
    embeddings: int
    streams: bool = False
    attention_width: int | None = None
    norm_width: int | None = None
    experts_per_token: int = 0

    @property
    def attention(self) -> int:
        """The width of all heads together."""
        return self.hidden if self.attention_width is None else self.attention_width

    @property
    def norms(self) -> int:
        """The width of a layer's norms together."""
        return 2 * self.hidden if self.norm_width is None else self.norm_width

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
    heads = config["num_attention_heads"]
    head_width = config.get("head_dim") or hidden // heads
    tensors = {name: tensor for path in weight_files(base) for name, tensor in read_header(path).items()}
    experts = config.get("num_experts_per_tok") or 0
    return ModelShape(
        layers=layers,
        hidden=hidden,
        heads=heads,
        intermediate=_intermediate(config, experts),
        vocabulary=vocabulary,
        weights=sum(math.prod(tensor.shape) for tensor in tensors.values()),
        embeddings=hidden * vocabulary * (1 if tied else 2),
        streams=whole.get("model_type") in STREAMED_TYPES,
        attention_width=heads * head_width,
        norm_width=max(
            2 * hidden,
            _norm_width(
                tensors.items(),
                query_width=heads * head_width,
                key_width=(config.get("num_key_value_heads") or heads) * head_width,
            ),
        ),
        experts_per_token=experts,
    )


def _intermediate(config: Mapping[str, Any], experts: int) -> int:
    """The widest MLP of any layer for one token, in a mixture of experts that of all that a token goes through."""
    dense: int = config["intermediate_size"]
    if not experts:
        return dense
    shared = config.get("shared_expert_intermediate_size") or config.get("shared_intermediate_size") or 0
    mixture = experts * int(config.get("moe_intermediate_size") or dense) + int(shared)
    has_dense_layers = any(
        (
            config.get("mlp_only_layers"),
            config.get("first_k_dense_replace"),
            (config.get("decoder_sparse_step") or 1) > 1,
        )
    )
    return max(dense, mixture) if has_dense_layers else mixture


def _norm_width(tensors: Iterable[tuple[str, Tensor]], *, query_width: int, key_width: int) -> int:
    """The numbers that the norms of one layer normalise for one token: the most of any layer, 0 if none is known.

    The weight of a norm of queries or keys has the size of one head, but every head is normalised.
    """
    widths: Counter[str] = Counter()
    for name, tensor in tensors:
        match = _NORM.match(name)
        if match is None or len(tensor.shape) != 1:
            continue
        whole = {"q_norm": query_width, "k_norm": key_width}.get(match["kind"], tensor.shape[0])
        widths[match["layer"]] += max(whole, tensor.shape[0])
    return max(widths.values(), default=0)


def estimate(shape: ModelShape, recipe: Recipe, *, longest: int, fused: bool, number_bytes: int = 2) -> MemoryEstimate:
    """An upper bound of the memory that a training needs. Activations are those of a micro-batch: a packed row, or
    padded rows of as many tokens, which need no more.

    Args:
        longest: Tokens of the longest example.
        fused: Whether attention avoids storing its [s, s] scores (always on a GPU; on a CPU above EAGER_MAX_TOKENS).
        number_bytes: Bytes per number: 2, or 4 if the hardware has no 16-bit arithmetic.
    """
    linear = shape.weights - shape.embeddings
    quantized = recipe.quantization == "nf4"
    bytes_per_weight = NF4_BYTES_PER_WEIGHT if quantized else float(number_bytes)
    lora_per_layer = recipe.rank * (4 * (shape.hidden + shape.attention) + 3 * (shape.hidden + shape.intermediate))
    example = 2 * longest if recipe.objective == "dpo" else longest  # a pair is two sequences of one pass
    tokens = min(recipe.batch_size * example, max(example, recipe.micro_batch_tokens))
    # one layer's weight at a time is computed back from four bits
    unpacked = number_bytes * shape.hidden * shape.intermediate if quantized else 0
    return MemoryEstimate(
        base=int(linear * bytes_per_weight + number_bytes * shape.embeddings) + unpacked,
        adapter=(3 * number_bytes + OPTIMIZER_BYTES) * shape.layers * lora_per_layer,
        activations=activation_bytes(shape, recipe, tokens=tokens, fused=fused, number_bytes=number_bytes),
        proof=number_bytes * (shape.largest_block if shape.streams else shape.weights),
    )


def activation_bytes(shape: ModelShape, recipe: Recipe, *, tokens: int, fused: bool, number_bytes: int) -> int:
    """Bytes of what all layers keep of a micro-batch of `tokens`, and of what the backward pass adds to it."""
    hidden, intermediate = shape.hidden, shape.intermediate
    scores = 0 if fused else shape.heads * tokens * tokens
    per_layer = layer_bytes(shape, recipe, tokens=tokens, fused=fused, number_bytes=number_bytes)
    kept = shape.layers * (number_bytes * tokens * hidden if recipe.gradient_checkpointing else per_layer)
    recomputed = per_layer if recipe.gradient_checkpointing else 0
    # the final norm, its gradients, and those of the MLP of one layer at a time
    going_back = number_bytes * tokens * (6 * hidden + 2 * intermediate) + (FLOAT32_BYTES + 2 * number_bytes) * scores
    outside = (FLOAT32_BYTES + 2 * number_bytes) * tokens * hidden
    mask = (1 + number_bytes) * tokens * tokens  # as booleans, and to be added to the scores
    logits = number_bytes * tokens * shape.vocabulary  # as if every token were trained: an upper bound
    return kept + recomputed + going_back + outside + mask + logits


def layer_bytes(shape: ModelShape, recipe: Recipe, *, tokens: int, fused: bool, number_bytes: int) -> int:
    """What one layer keeps of `tokens` for the backward pass without recomputation, in bytes (the module's formula)."""
    hidden, attention, intermediate = shape.hidden, shape.attention, shape.intermediate
    experts = shape.experts_per_token
    inputs = 2 * hidden + attention + (0 if experts else intermediate)
    inside = 3 * attention + 3 * intermediate + experts * hidden
    numbers = inputs + inside + LINEAR_LAYERS * recipe.rank
    if recipe.dropout > 0:
        numbers += 2 * (5 * hidden + attention + intermediate) - (2 * hidden + intermediate)
    # attention's log-sums and the norms' scales, of queries and keys per head
    scales = 3 * shape.heads + 4
    per_token = FLOAT32_BYTES * (shape.norms + scales) + number_bytes * numbers + ROUTER_BYTES * experts
    if not fused:
        return tokens * per_token + (FLOAT32_BYTES + number_bytes) * shape.heads * tokens * tokens
    shares_prefix = recipe.dropout == 0 and not recipe.gradient_checkpointing  # see loss.Collator
    return tokens * (per_token + number_bytes * max(2 * attention if shares_prefix else 0, tokens))
