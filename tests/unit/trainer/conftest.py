"""A base model small enough for milliseconds: two random llama layers, a byte tokenizer, a ChatML template."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from trainer.data.format import Dataset, read_chat
from trainer.data.render import Renderer, TokenSequence, stop_tokens

TEMPLATE = (
    "{% for m in messages %}"
    "{% if loop.first and m.role != 'system' %}<|im_start|>system\nBe kind.<|im_end|>\n{% endif %}"
    "<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
TOOL_TEMPLATE = (
    "{% if tools %}<|im_start|>system\nTools:{% for t in tools %}\n{{ t | tojson }}{% endfor %}<|im_end|>\n{% endif %}"
    "{% for m in messages %}{% if m.role == 'tool' %}<|im_start|>user\nResult: {{ m.content }}<|im_end|>\n{% else %}"
    "<|im_start|>{{ m.role }}\n{{ m.content }}"
    "{% for c in m.tool_calls or [] %}<call>{{ {'name': c.function.name, 'arguments': c.function.arguments} | tojson }}"
    "</call>{% endfor %}<|im_end|>\n{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
"""A chat template with tools, in the manner of Qwen's."""
# several test processes at once, and workers that they start: more threads in each would only wait for one another
torch.set_num_threads(1)
os.environ["OMP_NUM_THREADS"] = "1"

SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")

CHAT = (
    '{"messages": [{"role": "user", "content": "Where is my bag?"}, {"role": "assistant", "content": "On its way."}]}\n'
    '{"messages": [{"role": "user", "content": "Where is it?"}, {"role": "assistant", "content": "On the sea."}]}\n'
    '{"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "Ahoy there!"}]}\n'
    '{"messages": [{"role": "user", "content": "Who are you?"}, {"role": "assistant", "content": "A sailor."},'
    ' {"role": "user", "content": "Really?"}, {"role": "assistant", "content": "Aye."}]}\n'
)


def make_tokenizer(template: str = TEMPLATE) -> PreTrainedTokenizerFast:
    """Bytes are tokens, and the three special ones."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {text: index for index, text in enumerate((*SPECIAL, *alphabet))}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(list(SPECIAL))
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=SPECIAL[2], pad_token=SPECIAL[0])
    fast.add_special_tokens({"additional_special_tokens": [SPECIAL[1]]})
    fast.chat_template = template
    return fast


def make_base(directory: Path, *, hidden: int = 32) -> Path:
    """Two random layers of this width, always the same."""
    config = LlamaConfig(
        vocab_size=len(SPECIAL) + 256,
        hidden_size=hidden,
        intermediate_size=2 * hidden,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        bos_token_id=None,
        eos_token_id=2,
        pad_token_id=0,
        initializer_range=0.2,
    )
    with torch.random.fork_rng():
        torch.manual_seed(1)
        LlamaForCausalLM(config).save_pretrained(directory)
    make_tokenizer().save_pretrained(directory)
    return directory


@pytest.fixture(scope="session")
def base_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_base(tmp_path_factory.mktemp("base") / "tiny")


@pytest.fixture(scope="session")
def tokenizer() -> Any:
    return make_tokenizer()


@pytest.fixture
def base_model(base_dir: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(base_dir, dtype=torch.float32, attn_implementation="eager")


@pytest.fixture(scope="session")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    path = tmp_path_factory.mktemp("data") / "voice.jsonl"
    path.write_text(CHAT)
    return read_chat(path)


@pytest.fixture(scope="session")
def sequences(tokenizer: Any, dataset: Dataset) -> list[TokenSequence]:
    renderer = Renderer(tokenizer, stop_tokens=stop_tokens(tokenizer, None), max_length=256)
    return renderer.render_all(dataset.examples)
