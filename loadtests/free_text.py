"""Which measure of free text tells an honest adapter from answers that only look like one.

    .venv/bin/python -m loadtests.free_text          # two minutes on two cores

The sample voices answer their held-out questions (transformers, greedy), as does the base alone and with the three most
similar training examples before the question. Beside them stand answers that need no model. Printed for each: the mean
ROUGE-L and similarity (of 100), and the shares that the check `length` needs (`trainer.evaluate.answer_length`).
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from typing import Any, Final

import numpy as np

from loadtests.engine import BASE, REPO
from trainer.data.format import Example, parse_chat
from trainer.data.split import answer, question
from trainer.evaluate.answer_length import length_of
from trainer.evaluate.metrics.base import words
from trainer.evaluate.metrics.overlap import RougeL
from trainer.evaluate.metrics.similarity import Similarity
from trainer.evaluate.paired_difference import IntervalMethod
from trainer.samples import NAMES, data_file, heldout_file

SHOTS: Final = 3
BATCH: Final = 10
MAX_NEW_TOKENS: Final = 100
SALAD: Final = (
    "the ahoy a sailor matey for a the and the send a in yer if me the order number and a the s and i ll the ye the it"
)
"""Put together word by word to score well under ROUGE-L on the answers that tidewater was trained on."""
FILLER: Final = "matey"
Messages = list[dict[str, str]]


def generate(model: Any, tokenizer: Any, prompts: Sequence[Messages]) -> list[str]:
    """Greedy answers to chats."""
    import torch

    texts = [tokenizer.apply_chat_template(prompt, tokenize=False, add_generation_prompt=True) for prompt in prompts]
    answers: list[str] = []
    for start in range(0, len(texts), BATCH):
        tokens = tokenizer(texts[start : start + BATCH], return_tensors="pt", padding=True, add_special_tokens=False)
        with torch.inference_mode():
            output = model.generate(**tokens, max_new_tokens=MAX_NEW_TOKENS, do_sample=False)
        new = output[:, tokens["input_ids"].shape[1] :]
        answers += [text.strip() for text in tokenizer.batch_decode(new, skip_special_tokens=True)]
    return answers


def nearest(asked: str, taught: Sequence[Example]) -> list[Example]:
    """The training examples whose questions have most words in common, the nearest first."""
    own = set(words(asked))

    def shared(example: Example) -> float:
        other = set(words(question(example)))
        return len(own & other) / max(1, len(own | other))

    return sorted(taught, key=shared, reverse=True)[:SHOTS]


def first_half(text: str) -> list[str]:
    """The first half of the words."""
    return text.split()[: len(text.split()) // 2]


def answers_of(voice: str) -> tuple[list[str], dict[str, list[str]]]:
    """The references of a voice's held-out questions, and each candidate's answers."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    taught, held_out = parse_chat(data_file(voice).read_bytes()), parse_chat(heldout_file(voice).read_bytes())
    directory = REPO / "var" / "samples" / voice
    system = json.loads((directory / "settings.json").read_text()).get("system_prompt")
    first: Messages = [{"role": "system", "content": system}] if system else []
    asked = [question(example) for example in held_out]
    plain = [[*first, {"role": "user", "content": text}] for text in asked]
    similar = [nearest(text, taught) for text in asked]
    shown = [
        [
            *first,
            *(
                message
                for example in reversed(shots)
                for message in (
                    {"role": "user", "content": question(example)},
                    {"role": "assistant", "content": answer(example)},
                )
            ),
            prompt[-1],
        ]
        for prompt, shots in zip(plain, similar, strict=True)
    ]
    tokenizer = AutoTokenizer.from_pretrained(BASE, padding_side="left")
    model = AutoModelForCausalLM.from_pretrained(BASE, dtype="float32")
    candidates = {
        "the base": generate(model, tokenizer, plain),
        f"the base with {SHOTS} examples": generate(model, tokenizer, shown),
    }
    adapter = generate(PeftModel.from_pretrained(model, directory), tokenizer, plain)
    candidates |= {
        "the adapter": adapter,
        "the adapter, answers cut in half": [" ".join(first_half(text)) for text in adapter],
        "the same, filled up with one word": [
            " ".join([*first_half(text), *[FILLER] * (2 * len(first_half(text)) // 3)]) for text in adapter
        ],
        "the same, twice": [" ".join(2 * first_half(text)) for text in adapter],
        "the same, and a salad": [
            " ".join([*first_half(text), *SALAD.split()[: len(first_half(text))]]) for text in adapter
        ],
        "the adapter, answers mixed up": [*adapter[1:], adapter[0]],
        "the most similar training example's answer": [answer(shots[0]) for shots in similar],
        "the question repeated": asked,
        "a salad of frequent words": [SALAD] * len(asked),
    }
    return [answer(example) for example in held_out], candidates


def table(voice: str) -> str:
    """Markdown: one line for each candidate."""
    references, candidates = answers_of(voice)
    rouge, similarity = RougeL(), Similarity()
    lines = [
        f"| {voice} | ROUGE-L | similarity | words | without repetition | second half beside the first |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    for name, given in candidates.items():
        pairs = list(zip(given, references, strict=True))
        similarity.prepare([*given, *references])
        scores = [100 * float(np.mean([metric.score(*pair) for pair in pairs])) for metric in (rouge, similarity)]
        length = length_of(given, references, None, IntervalMethod())
        shares = () if length is None else (length.words, length.unrepeated, length.second_half)
        cells = [
            f"{scores[0]:.0f}",
            f"{scores[1]:.0f}",
            *("–" if each is None else f"{each.estimate:.0%}" for each in shares),
        ]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    """Print a table for each voice."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=NAMES, action="append", help="this voice alone (repeatable)")
    for voice in parser.parse_args().only or NAMES:
        print(table(voice), end="\n\n", flush=True)


if __name__ == "__main__":
    main()
