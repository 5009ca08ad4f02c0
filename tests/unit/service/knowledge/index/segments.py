"""Segments without an embedder: a text's vector is drawn from its words, so that texts that share words are near."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from service.knowledge.segment import Segment, Vectors
from service.knowledge.terms import Analyzer

DIMENSIONS = 16


def vector(text: str) -> Vectors:
    """The sum of a fixed random direction for each term."""
    total = np.zeros(DIMENSIONS, dtype=np.float32)
    for term in Analyzer().terms(text):
        total += np.random.default_rng(term).standard_normal(DIMENSIONS).astype(np.float32)
    return total / max(float(np.linalg.norm(total)), 1e-9)


def segment(texts: Sequence[str]) -> Segment:
    """A segment of these passages."""
    analyzer = Analyzer()
    bags = [analyzer.bag("", text) for text in texts]
    return Segment(
        np.stack([vector(text) for text in texts]),
        np.cumsum([0, *(len(terms) for terms, _ in bags)]).astype(np.uint32),
        np.concatenate([terms for terms, _ in bags]),
        np.concatenate([counts for _, counts in bags]),
    )
