"""Sample adapters: the brand voices of two small shops' support, trained on demand from the files in this directory.

NAME.jsonl and NAME.grounded.jsonl, if it exists, are trained on; NAME.heldout.jsonl never is, and serves to try the
result. The grounded pairs teach answering from quoted passages, which precede the question as in the gateway's
grounding: a small model that learned a voice without them would ignore the passages.
"""

import hashlib
from pathlib import Path
from typing import Final

from trainer.data.format import Dataset, parse_chat
from trainer.tune.recipe import Recipe

NAMES: Final = ("tidewater", "pemberton")

MARLOW: Final = Path(__file__).with_name("marlow")
"""The directory of the example that `make walkthrough` takes, which is not trained with the other samples."""

RECIPE: Final = Recipe(
    rank=16,
    alpha=32,
    learning_rate=2e-3,
    epochs=1,
    batch_size=4,
    max_length=512,
    seed=7,
    group_by_length=True,
    micro_batch_tokens=4 * 512,
)
"""140 short pairs need a far higher rate than the usual 2e-4. Loss on tidewater's held-out pairs, in nats per token:
3.25 after these 44 steps; 3.18 with batches of 8, two epochs and twice the time; 3.22 at 3e-3, where pemberton forgets
more of the general suite than the usual budget allows. Grouped by length, as when these figures were measured."""


def data_file(name: str) -> Path:
    """The path of a sample's training data."""
    return Path(__file__).with_name(f"{name}.jsonl")


def grounded_file(name: str) -> Path:
    """The path of questions with quoted passages and answers from them in the sample's voice; it may not exist."""
    return Path(__file__).with_name(f"{name}.grounded.jsonl")


def sample_data(name: str) -> Dataset:
    """The examples of both training files of a sample."""
    content = data_file(name).read_bytes()
    if grounded_file(name).is_file():
        content += grounded_file(name).read_bytes()
    return Dataset(f"{name}.jsonl", hashlib.sha256(content).hexdigest(), parse_chat(content))


def heldout_file(name: str) -> Path:
    """The path of similar questions that the sample is not trained on, with reference answers."""
    return Path(__file__).with_name(f"{name}.heldout.jsonl")
