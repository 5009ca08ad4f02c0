"""A part of a store in memory: rows of vectors, and their terms by term instead of by row.

Parts are never changed. A store's index is a handful of them: what is new becomes a small part, and small parts are
joined to larger ones, so that a row is copied no more often than the logarithm of the rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from service.knowledge.segment import Counts, Segment, Terms, Vectors

Ints = NDArray[np.int32]
Floats = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class IndexPart:
    """``n`` rows with ``p`` postings of ``t`` terms.

    Attributes:
        vectors: (n, dimensions).
        lengths: (n): how many terms a passage has.
        segments: (n): the number of its segment in the passage file.
        positions: (n): its place in the segment.
        documents: (n): the number of its document in the passage file.
        alive: (n): False where its document was taken out.
        terms: (t): ascending.
        starts: (t + 1): term ``i`` has the postings from ``starts[i]`` to ``starts[i + 1]``.
        rows: (p): of each posting; ascending within a term.
        counts: (p): how often the term counts in the row.
    """

    vectors: Vectors
    lengths: Floats
    segments: NDArray[np.int64]
    positions: Ints
    documents: Ints
    alive: NDArray[np.bool_]
    terms: Terms
    starts: NDArray[np.int64]
    rows: Ints
    counts: Counts

    @property
    def size(self) -> int:
        """Number of rows, including those that are not alive."""
        return len(self.lengths)

    @property
    def bytes(self) -> int:
        """Size of the arrays in memory, bytes."""
        rows = self.vectors.nbytes + self.lengths.nbytes + self.segments.nbytes + self.positions.nbytes
        postings = self.terms.nbytes + self.starts.nbytes + self.rows.nbytes + self.counts.nbytes
        return rows + self.documents.nbytes + self.alive.nbytes + postings

    def postings(self, term: int) -> tuple[Ints, Counts]:
        """The rows that contain a term, and how often it occurs in each."""
        at = int(np.searchsorted(self.terms, np.uint64(term)))
        if at == len(self.terms) or int(self.terms[at]) != term:
            return self.rows[:0], self.counts[:0]
        span = slice(int(self.starts[at]), int(self.starts[at + 1]))
        return self.rows[span], self.counts[span]

    def without(self, document: int) -> IndexPart:
        """A copy in which the document's rows are not alive."""
        return replace(self, alive=self.alive & (self.documents != document))


@dataclass(frozen=True, slots=True)
class PlacedSegment:
    """A segment with its number and its document's number in the passage file."""

    segment: Segment
    number: int
    document: int


def build(placed: Sequence[PlacedSegment]) -> IndexPart:
    """Build a part from at least one segment; rows are in the order of the segments."""
    segments = [placement.segment for placement in placed]
    sizes = [segment.rows for segment in segments]
    widths = np.concatenate([np.diff(segment.offsets) for segment in segments]).astype(np.int64)
    counts = np.concatenate([segment.counts for segment in segments])
    rows = np.repeat(np.arange(len(widths), dtype=np.int32), widths)
    lengths = np.bincount(rows, weights=counts, minlength=len(widths)).astype(np.float32)
    terms, starts, order = _by_term(np.concatenate([segment.terms for segment in segments]))
    return IndexPart(
        vectors=np.concatenate([segment.vectors for segment in segments]),
        lengths=lengths,
        segments=np.repeat(np.array([placement.number for placement in placed], dtype=np.int64), sizes),
        positions=np.concatenate([np.arange(size, dtype=np.int32) for size in sizes]),
        documents=np.repeat(np.array([placement.document for placement in placed], dtype=np.int32), sizes),
        alive=np.ones(len(widths), dtype=np.bool_),
        terms=terms,
        starts=starts,
        rows=rows[order],
        counts=counts[order],
    )


def join(parts: Sequence[IndexPart]) -> IndexPart | None:
    """Join the rows that are alive of several parts, in order; None if there are none."""
    masks = [part.alive for part in parts]
    if not any(alive.any() for alive in masks):
        return None
    rows, counts, terms = [], [], []
    before = 0
    for part, alive in zip(parts, masks, strict=True):
        numbers = np.cumsum(alive, dtype=np.int32) - 1 + before
        living = alive[part.rows]
        rows.append(numbers[part.rows[living]].astype(np.int32, copy=False))
        counts.append(part.counts[living])
        terms.append(np.repeat(part.terms, np.diff(part.starts))[living])
        before += int(alive.sum())
    distinct, starts, order = _by_term(np.concatenate(terms))

    def gathered(name: str) -> NDArray[np.generic]:
        return np.concatenate([getattr(part, name)[alive] for part, alive in zip(parts, masks, strict=True)])

    return IndexPart(
        vectors=gathered("vectors"),  # type: ignore[arg-type]
        lengths=gathered("lengths"),  # type: ignore[arg-type]
        segments=gathered("segments"),  # type: ignore[arg-type]
        positions=gathered("positions"),  # type: ignore[arg-type]
        documents=gathered("documents"),  # type: ignore[arg-type]
        alive=np.ones(before, dtype=np.bool_),
        terms=distinct,
        starts=starts,
        rows=np.concatenate(rows)[order],
        counts=np.concatenate(counts)[order],
    )


def _by_term(terms: Terms) -> tuple[Terms, NDArray[np.int64], NDArray[np.int64]]:
    order = np.argsort(terms, kind="stable")
    ordered = terms[order]
    first = np.ones(len(ordered), dtype=np.bool_)
    first[1:] = ordered[1:] != ordered[:-1]
    begins = np.flatnonzero(first)
    return ordered[first], np.append(begins, len(ordered)).astype(np.int64), order
