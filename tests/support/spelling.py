"""A tiny base and adapters that each spell a word of their own, exact by construction: nothing is trained.

The base is a Llama of one layer whose weights are set by hand. Its attention is uniform, so each token sees the mean of
all values before it. An adapter changes `v_proj` alone, by one constant: the code of its word. The MLP then writes the
next letter, if at least `SHARE` of all tokens in the context carry that code. So an answer is right only if the
adapter, and all that the prefix cache holds of the context, are right; and it is the same in every batch and precision.
Without an adapter the base says `?` until it is stopped.
"""

from __future__ import annotations

import json
import string
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save_file

from tests.support.adapters import AdapterFiles, peft_config
from tests.support.tiny_models import VOCABULARY, make_tokenizer

LETTERS: Final = 4
"""Of a word."""
CHOICES: Final = 16
"""Of each letter; the k-th letter is one of the k-th sixteen of `ALPHABET`, so it tells its own place."""
ALPHABET: Final = (string.ascii_letters + string.digits + "-_")[: LETTERS * CHOICES]
NO_ADAPTER: Final = "?"
SHARE: Final = 0.85

HIDDEN, INTERMEDIATE, HEADS = 256, 128, 4
CONSTANT, PLACES, CODE, LETTER, END = 0, 1, 16, 128, 192
"""Where in the residual: 1 for each token; which letter is next, one-hot; the code; what is said; the end."""
CODE_GAIN: Final = 40.0
UNIT: Final = float(np.sqrt(HIDDEN / 2))
"""What a 1 becomes in the first norm: each token's embedding has two of them."""
VALUE: Final = "model.layers.0.self_attn.v_proj"


def words() -> Iterator[str]:
    """Every word, neighbours differing in more than the last letter."""
    numbers = list(product(range(CHOICES), repeat=LETTERS))
    for at in range(len(numbers)):
        digits = numbers[at * 40503 % len(numbers)]
        yield "".join(ALPHABET[place * CHOICES + digit] for place, digit in enumerate(digits))


def make_spelling_base(directory: Path) -> Path:
    """Write the base with tokenizer and chat template into ``directory``; returns it."""
    directory.mkdir(parents=True, exist_ok=True)
    tokenizer = make_tokenizer()
    tokenizer.save_pretrained(directory)
    letters = [int(tokenizer.convert_tokens_to_ids(letter)) for letter in ALPHABET]
    no_adapter, end = (int(tokenizer.convert_tokens_to_ids(token)) for token in (NO_ADAPTER, tokenizer.eos_token))
    tensors = {**_layer(), **_vocabulary(letters, no_adapter, end), "model.norm.weight": _ones()}
    save_file(
        {name: tensor.astype(np.float32) for name, tensor in tensors.items()},
        directory / "model.safetensors",
        metadata={"format": "pt"},
    )
    (directory / "config.json").write_text(json.dumps(_configuration(end)))
    return directory


def make_speller(directory: Path, word: str) -> AdapterFiles:
    """Write an adapter of rank 1 that spells ``word`` into ``directory``."""
    directory.mkdir(parents=True, exist_ok=True)
    files = AdapterFiles(directory)
    read, code = np.zeros((1, HIDDEN)), np.zeros((HIDDEN, 1))
    read[0, CONSTANT] = 1 / UNIT
    code[[ALPHABET.index(letter) for letter in word], 0] = 1.0
    tensors = {
        f"base_model.model.{VALUE}.lora_A.weight": read.astype(np.float32),
        f"base_model.model.{VALUE}.lora_B.weight": code.astype(np.float32),
    }
    save_file(tensors, files.weights_path, metadata={"format": "pt"})
    files.config_path.write_text(json.dumps(peft_config(rank=1, alpha=1, modules=["v_proj"])))
    return files


def _layer() -> dict[str, NDArray[Any]]:
    random = np.random.default_rng(0)
    value = random.standard_normal((HIDDEN, HIDDEN)) * 0.02
    value[: len(ALPHABET)] = 0  # what the output reads; the rest is there so that the module has a size
    output = np.zeros((HIDDEN, HIDDEN))
    gate, up, down = (np.zeros(shape) for shape in [(INTERMEDIATE, HIDDEN)] * 2 + [(HIDDEN, INTERMEDIATE)])
    for letter in range(len(ALPHABET)):
        output[CODE + letter, letter] = CODE_GAIN
        gate[letter, CODE + letter] = 10
        gate[letter, CONSTANT] = -10 * SHARE * CODE_GAIN
        up[letter, PLACES + letter // CHOICES] = 1
        down[LETTER + letter, letter] = 50
    last = len(ALPHABET)
    gate[last, CONSTANT] = 1
    up[last, PLACES + LETTERS] = 1
    down[END, last] = 3000
    prefix = "model.layers.0"
    zero = np.zeros((HIDDEN, HIDDEN))
    return {
        f"{prefix}.input_layernorm.weight": _ones(),
        f"{prefix}.post_attention_layernorm.weight": _ones(),
        f"{prefix}.self_attn.q_proj.weight": zero,
        f"{prefix}.self_attn.k_proj.weight": zero,
        f"{VALUE}.weight": value,
        f"{prefix}.self_attn.o_proj.weight": output,
        f"{prefix}.mlp.gate_proj.weight": gate,
        f"{prefix}.mlp.up_proj.weight": up,
        f"{prefix}.mlp.down_proj.weight": down,
    }


def _vocabulary(letters: list[int], no_adapter: int, end: int) -> dict[str, NDArray[Any]]:
    embedding, head = np.zeros((VOCABULARY, HIDDEN)), np.zeros((VOCABULARY, HIDDEN))
    embedding[:, CONSTANT] = 1
    embedding[:, PLACES] = 1  # after anything but a letter the first letter is next
    for letter, token in enumerate(letters):
        embedding[token, PLACES] = 0
        embedding[token, PLACES + 1 + letter // CHOICES] = 1
        head[token, LETTER + letter] = 0.7
    head[no_adapter, CONSTANT] = 0.7
    head[end, END] = 0.7
    return {"model.embed_tokens.weight": embedding, "lm_head.weight": head}


def _configuration(end: int) -> dict[str, Any]:
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "dtype": "float32",
        "hidden_size": HIDDEN,
        "intermediate_size": INTERMEDIATE,
        "num_hidden_layers": 1,
        "num_attention_heads": HEADS,
        "num_key_value_heads": HEADS,
        "head_dim": HIDDEN // HEADS,
        "vocab_size": VOCABULARY,
        "max_position_embeddings": 2048,
        "rms_norm_eps": 1e-6,
        "rope_theta": 10000.0,
        "hidden_act": "silu",
        "tie_word_embeddings": False,
        "attention_bias": False,
        "mlp_bias": False,
        "initializer_range": 0.02,
        "bos_token_id": 0,
        "eos_token_id": end,
        "pad_token_id": 0,
    }


def _ones() -> NDArray[Any]:
    return np.ones(HIDDEN)
