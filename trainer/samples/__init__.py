"""Sample adapters: two brand voices of two small shops' support, trained on the spot from the files in this folder.

NAME.jsonl and, where there is one, NAME.grounded.jsonl are trained on; NAME.heldout.jsonl never is, and serves to hear
what was learnt. The grounded pairs teach to answer from quoted passages, which stand before the question as the
gateway's grounding puts them: a small model that has learned a voice without them talks past every passage.
"""

import hashlib
from pathlib import Path
from typing import Final

from trainer.data.format import Dataset, parse_chat
from trainer.tune.recipe import Recipe

NAMES: Final = ("tidewater", "pemberton")

RECIPE: Final = Recipe(rank=16, alpha=32, learning_rate=2e-3, epochs=1, batch_size=4, max_length=512, seed=7)
"""140 short pairs want a far higher rate than the usual 2e-4. Loss on tidewater's held-out pairs, in nats per token:
3.25 after these 44 steps; 3.18 with batches of 8, two epochs and twice the time; 3.22 at 3e-3, where pemberton forgets
more of the general suite than the usual budget allows."""


def data_file(name: str) -> Path:
    """The training data of a sample."""
    return Path(__file__).with_name(f"{name}.jsonl")


def grounded_file(name: str) -> Path:
    """Questions with passages before them, and answers from these in the sample's voice."""
    return Path(__file__).with_name(f"{name}.grounded.jsonl")


def sample_data(name: str) -> Dataset:
    """All that a sample is trained on."""
    content = data_file(name).read_bytes()
    if grounded_file(name).is_file():
        content += grounded_file(name).read_bytes()
    return Dataset(f"{name}.jsonl", hashlib.sha256(content).hexdigest(), parse_chat(content))


def heldout_file(name: str) -> Path:
    """Questions of the same kind that no sample was trained on, with the answers its author would give."""
    return Path(__file__).with_name(f"{name}.heldout.jsonl")
