"""Shingle sets of texts, and the exact Jaccard similarity of one text with many others.

If a text has many candidates, these usually share most of their content, such as a long instruction in every example.
Then shingles that are common to many texts are compared as bits, 64 per machine word, and the others are counted with
an inverted index: about a hundred bytes of work per pair, where comparing two sets would take thousands.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Final

import numpy as np
from datasketch.hashfunc import sha1_hash32
from numpy.typing import NDArray

SHINGLE: Final = 4
MAX_SHINGLES: Final = 4000
"""Of a longer text only the beginning is compared."""
COMMON: Final = 8
"""A shingle is common if it is in more than one of this many texts."""
FEW: Final = 64
"""Up to this many candidates are compared one by one."""

Indices = NDArray[np.int64]
Shingles = NDArray[np.int32]


class ShingleSets:
    """The sets of four-character shingles of `texts`, which must be normalised. ``sizes``: (texts) their sizes."""

    def __init__(self, texts: Sequence[str]) -> None:
        numbers: dict[str, int] = {}
        self._sets = [_numbered(text, numbers) for text in texts]
        self._numbers = numbers
        self.sizes: Indices = np.array([len(shingles) for shingles in self._sets], np.int64)
        self._marks = np.zeros(len(numbers), bool)
        self._inverted_index: _InvertedIndex | None = None

    def __len__(self) -> int:
        return len(self._sets)

    @property
    def distinct(self) -> int:
        """The number of distinct shingles; they are numbered from 0."""
        return len(self._numbers)

    def shingles(self, index: int) -> Shingles:
        """The numbers of the shingles of the text with this index, ascending."""
        return self._sets[index]

    @cached_property
    def _hashes(self) -> NDArray[np.uint32]:
        return np.fromiter((sha1_hash32(shingle.encode()) for shingle in self._numbers), np.uint32, self.distinct)

    def hashes(self, index: int) -> list[int]:
        """32-bit hashes of the shingles of the text with this index."""
        hashes: list[int] = self._hashes[self._sets[index]].tolist()
        return hashes

    def jaccard(self, index: int, others: Indices) -> NDArray[np.float64]:
        """|A ∩ B| / |A ∪ B| of the text with each of the others."""
        shared = self._count_shared(index, others)
        similarity: NDArray[np.float64] = shared / (self.sizes[index] + self.sizes[others] - shared)
        return similarity

    def contained(self, index: int, others: Indices) -> NDArray[np.float64]:
        """|A ∩ B| / |B| of the text with each of the others: the share of the other that is in the text."""
        share: NDArray[np.float64] = self._count_shared(index, others) / self.sizes[others]
        return share

    def _count_shared(self, index: int, others: Indices) -> Indices:
        return self._count_pairwise(index, others) if len(others) <= FEW else self._count_indexed(index, others)

    def _count_pairwise(self, index: int, others: Indices) -> Indices:
        self._marks[self._sets[index]] = True
        shared = [np.count_nonzero(self._marks[self._sets[candidate]]) for candidate in others]
        self._marks[self._sets[index]] = False
        return np.array(shared, np.int64)

    def _count_indexed(self, index: int, others: Indices) -> Indices:
        if self._inverted_index is None:
            self._inverted_index = _InvertedIndex.of(self._sets, len(self._marks))
        return self._inverted_index.shared(self._sets[index], index, others)


@dataclass(frozen=True, slots=True)
class _InvertedIndex:
    """``bits``: one row per text, one bit per common shingle. ``holders[starts[s] : starts[s + 1]]``: indices of the
    texts with shingle s, if s is not common."""

    common: NDArray[np.bool_]
    bits: NDArray[np.uint64]
    holders: NDArray[np.int32]
    starts: Indices

    @classmethod
    def of(cls, sets: Sequence[NDArray[np.int32]], shingles: int) -> _InvertedIndex:
        every = np.concatenate(sets)
        common = np.bincount(every, minlength=shingles) * COMMON > len(sets)
        columns = np.cumsum(common) - 1
        row = np.zeros(-(-int(common.sum()) // 64) * 64, bool)
        bits = np.empty((len(sets), len(row) // 64), np.uint64)
        for text, shingles_of_text in enumerate(sets):
            row[:] = False
            row[columns[shingles_of_text[common[shingles_of_text]]]] = True
            bits[text] = np.packbits(row).view(np.uint64)
        texts = np.repeat(np.arange(len(sets), dtype=np.int32), [len(each) for each in sets])
        rare = ~common[every]
        order = np.argsort(every[rare], kind="stable")
        starts = np.concatenate([[0], np.cumsum(np.bincount(every[rare], minlength=shingles))])
        return cls(common, bits, texts[rare][order], starts)

    def shared(self, shingles: NDArray[np.int32], index: int, others: Indices) -> Indices:
        """The number of shingles that the text with this index and these shingles shares with each of the others."""
        same = np.bitwise_count(self.bits[others] & self.bits[index]).sum(axis=1, dtype=np.int64)
        rare = shingles[~self.common[shingles]]
        if len(rare):
            held = [self.holders[self.starts[shingle] : self.starts[shingle + 1]] for shingle in rare]
            same += np.bincount(np.concatenate(held), minlength=len(self.bits))[others]
        shared: Indices = same
        return shared


def _numbered(text: str, numbers: dict[str, int]) -> NDArray[np.int32]:
    last = max(1, min(len(text) - SHINGLE + 1, MAX_SHINGLES))
    shingles = {text[start : start + SHINGLE] for start in range(last)}
    return np.sort(np.fromiter((numbers.setdefault(each, len(numbers)) for each in shingles), np.int32, len(shingles)))
