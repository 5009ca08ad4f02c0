"""The base and the adapters that spell words, in transformers and PEFT: what the churn takes for right is right."""

from __future__ import annotations

from itertools import islice
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.support.spelling import LETTERS, NO_ADAPTER, make_speller, make_spelling_base, words


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_each_adapter_spells_its_word_and_the_base_none(tmp_path: Path, dtype: torch.dtype) -> None:
    base = make_spelling_base(tmp_path / "base")
    tokenizer = AutoTokenizer.from_pretrained(base)
    prompt = tokenizer.apply_chat_template(
        [{"role": "user", "content": "Who are you? aqGW jEJ3"}], add_generation_prompt=True, return_tensors="pt",
        return_dict=True,
    )  # fmt: skip

    def answer(adapter: Path | None) -> str:
        model = AutoModelForCausalLM.from_pretrained(base, dtype=dtype)
        model = model if adapter is None else PeftModel.from_pretrained(model, str(adapter))
        tokens = model.generate(**prompt, max_new_tokens=2 * LETTERS, do_sample=False)
        return str(tokenizer.decode(tokens[0, prompt["input_ids"].shape[1] :], skip_special_tokens=True))

    assert answer(None) == NO_ADAPTER * 2 * LETTERS
    for word in islice(words(), 3):
        assert answer(make_speller(tmp_path / word, word).directory) == word


def test_no_two_words_are_the_same() -> None:
    assert len(set(words())) == len(list(words())) == 16**LETTERS
