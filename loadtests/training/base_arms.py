"""How the base's arms of an evaluation score, each by itself: no gateway, greedy decoding with transformers on the CPU.

    .venv/bin/python -m loadtests.training.base_arms                        # the sample voice, and three made-up labels
    .venv/bin/python -m loadtests.training.base_arms --training train.jsonl --held-out held_out.jsonl

Prompts, length limit, reading and metric are those of an evaluation. Prints a Markdown table; tokens are means per
question.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoModelForCausalLM

from tests.support.classification import jsonl, rows
from trainer.data.formats import read_dataset
from trainer.evaluate.announced import closed_labels
from trainer.evaluate.arms import Arm, Question, base_at_its_best, max_answer_tokens, questions
from trainer.evaluate.base_prompts import base_prompts, longest, wanted_examples
from trainer.evaluate.metrics.choose import choose_primary
from trainer.evaluate.reading import form_of, read_answer
from trainer.evaluate.spec import MetricOptions
from trainer.samples import data_file, heldout_file
from trainer.tune.model import load_tokenizer

BATCH = 16
LABELS = rows()
SAMPLES = {
    "labels": (jsonl(LABELS[:160]), jsonl(LABELS[160:192])),
    "tidewater": (data_file("tidewater").read_bytes(), heldout_file("tidewater").read_bytes()),
}


class Base:
    """A checkpoint that answers questions greedily."""

    def __init__(self, path: Path) -> None:
        self._tokenizer: Any = load_tokenizer(path)
        self._tokenizer.padding_side = "left"
        self._tokenizer.pad_token = self._tokenizer.pad_token or self._tokenizer.eos_token
        model: Any = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
        self._model = model.eval()

    def count(self, text: str) -> int:
        """The number of tokens in `text`."""
        return len(self._tokenizer(text, add_special_tokens=False)["input_ids"])

    def answers(self, arm: Arm, asked: Sequence[Question], limit: int) -> Iterator[tuple[str, int, int]]:
        """Each answer, with the tokens of its prompt and its own."""
        for at in range(0, len(asked), BATCH):
            prompts = [
                self._tokenizer.apply_chat_template(
                    arm.prompt.messages(question), tokenize=False, add_generation_prompt=True
                )
                for question in asked[at : at + BATCH]
            ]
            batch = self._tokenizer(prompts, return_tensors="pt", padding=True, add_special_tokens=False)
            with torch.inference_mode():
                found = self._model.generate(**batch, max_new_tokens=limit, do_sample=False)
            for prompt, row in zip(prompts, found[:, batch["input_ids"].shape[1] :], strict=True):
                text = self._tokenizer.decode(row, skip_special_tokens=True)
                yield text, self.count(prompt), self.count(text)


def table_rows(name: str, base: Base, training: bytes, held_out: bytes, context: int) -> Iterator[str]:
    """A row of the table for each arm."""
    examples = read_dataset(name, training)[1].examples
    trained, asked = questions(examples), questions(read_dataset(name, held_out)[1].examples)
    chosen = choose_primary(examples)
    longest_reference = longest((question.reference for question in trained), base.count)
    limit = max_answer_tokens(longest_reference, context, metric=chosen.primary.name)
    prompts = base_prompts(
        *(asked, trained, asked),
        metric=MetricOptions(name=chosen.primary.name),
        answers=chosen.answers,
        wanted=wanted_examples(chosen.answers),
        for_bases=True,
        room=context - limit - longest((question.last_message for question in asked), base.count) - 64,
        count=base.count,
    )
    for arm in base_at_its_best(
        "base",
        system=None,
        answers=chosen.answers,
        instructions=prompts.instructions,
        examples=prompts.examples,
    ):
        answers = list(base.answers(arm, prompts.questions, limit))
        form, labels = form_of(chosen.primary), closed_labels([question.reference for question in asked])
        scores = [
            chosen.primary.score(read_answer(text, question.reference, form, labels), question.reference)
            for (text, _, _), question in zip(answers, asked, strict=True)
        ]
        sizes = np.array([sizes for _, *sizes in answers]).mean(axis=0)
        yield (
            f"| {name} | {arm.label} | {arm.prompt.examples} | {chosen.primary.name} | {100 * np.mean(scores):.1f} | "
            f"{sizes[0]:.0f} | {sizes[1]:.0f} |"
        )


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(prog="python -m loadtests.training.base_arms", description=__doc__)
    parser.add_argument("--base", type=Path, default=Path("var/base/smollm2-135m-instruct"), help="a checkpoint")
    parser.add_argument("--context", type=int, default=2048, help="the engine's context in tokens")
    parser.add_argument("--training", type=Path, help="a training file; default: the samples")
    parser.add_argument("--held-out", type=Path, help="its held-out file")
    options = parser.parse_args()
    if (options.training is None) != (options.held_out is None):
        parser.error("send both --training and --held-out, or neither")
    data = SAMPLES
    if options.training is not None:
        data = {options.training.stem: (options.training.read_bytes(), options.held_out.read_bytes())}
    base = Base(options.base)
    print("| data | arm | examples | metric | score | tokens of the prompt | of the answer |")
    print("|---|---|---|---|---|---|---|")
    for name, (training, held_out) in data.items():
        for row in table_rows(name, base, training, held_out, options.context):
            print(row, flush=True)


if __name__ == "__main__":
    main()
