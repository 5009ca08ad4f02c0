"""Tiny checkpoints with random weights, one for each architecture: a real configuration, two layers, a few megabytes.

They speak no language. What can be seen on them is whether the trainer, the engine and the proof mean the same layers
by the same names, and compute the same with them.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from trainer.samples import data_file

CHATML: Final = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
VOCABULARY: Final = 1024
"""Tokens of the tokenizer, a BPE of the sample voices' own words."""
_SIZES: Final[Mapping[str, Any]] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 1024,
    "initializer_range": 0.1,
    "bos_token_id": 0,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
_EXPERTS: Final = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 64, "norm_topk_prob": True}

ARCHITECTURES: Final[Mapping[str, Mapping[str, Any]]] = {
    "llama": {"tie_word_embeddings": False},
    "qwen2": {"tie_word_embeddings": True},
    "qwen3": {"head_dim": 32, "tie_word_embeddings": True},
    "mistral": {"sliding_window": 64, "head_dim": 32},
    "gemma3_text": {
        "head_dim": 32,
        "query_pre_attn_scalar": 32,
        "sliding_window": 64,
        "layer_types": ["sliding_attention", "full_attention"],
    },
    "phi3": {"sliding_window": 64},
    "granite": {
        "embedding_multiplier": 12.0,
        "attention_multiplier": 0.0625,
        "residual_multiplier": 0.22,
        "logits_scaling": 8.0,
    },
    "qwen3_moe": {**_EXPERTS, "head_dim": 32, "decoder_sparse_step": 1, "mlp_only_layers": []},
    "qwen2_moe": {**_EXPERTS, "shared_expert_intermediate_size": 128, "decoder_sparse_step": 1},
    "gpt2": {},
    "mixtral": {"num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": None},
}
"""What each `model_type` adds to the common sizes."""


def make_base(model_type: str, directory: Path, *, template: str = CHATML, seed: int = 0, **configuration: Any) -> Path:
    """Write a checkpoint with tokenizer and chat template into `directory`, as transformers saves it; returns it.

    `configuration`: what to change in the model's configuration.
    """
    config = transformers.AutoConfig.for_model(model_type, **{**_SIZES, **ARCHITECTURES[model_type], **configuration})
    torch.manual_seed(seed)
    model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    model.generation_config = transformers.GenerationConfig(eos_token_id=2, pad_token_id=0, bos_token_id=0)
    model.save_pretrained(directory)
    make_tokenizer(template).save_pretrained(directory)
    return directory


def make_tokenizer(template: str = CHATML) -> Any:
    """A byte-level BPE tokenizer of the sample voices, with `template` as its chat template."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(data_file("tidewater").read_text("utf-8").splitlines(), trainer)
    fast = transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<|endoftext|>", eos_token="<|im_end|>", pad_token="<|endoftext|>"
    )
    fast.chat_template = template
    return fast
