"""The sets of shingles that texts are compared by: Jaccard's similarity of one text with many, always exact.

Where a text has many others to be compared with, most of them mostly say the same: a long instruction that stands in
every example. Then shingles that stand in many texts are compared as bits, a machine word for 64 of them, and the rest
is counted by lists of who has which: about a hundred bytes of work for a pair, where two sets would take thousands.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from datasketch.hashfunc import sha1_hash32
from numpy.typing import NDArray

SHINGLE: Final = 4
MAX_SHINGLES: Final = 4000
"""Of a longer text its beginning is compared."""
COMMON: Final = 8
"""A shingle is common that stands in more than one of so many texts."""
FEW: Final = 64
"""Up to so many others are compared one by one."""

Indices = NDArray[np.int64]


class ShingleSets:
    """A set of four-character shingles for each of `texts`, which are normalised."""

    def __init__(self, texts: Sequence[str]) -> None:
        numbers: dict[str, int] = {}
        self._sets = [_numbered(text, numbers) for text in texts]
        self._hashes = np.fromiter((sha1_hash32(shingle.encode()) for shingle in numbers), np.uint32, len(numbers))
        self._sizes = np.array([len(one) for one in self._sets], np.int64)
        self._marks = np.zeros(len(numbers), bool)
        self._crowd: _Crowd | None = None

    def __len__(self) -> int:
        return len(self._sets)

    def hashes(self, index: int) -> list[int]:
        """A 32-bit hash of each of its shingles."""
        hashes: list[int] = self._hashes[self._sets[index]].tolist()
        return hashes

    def jaccard(self, index: int, others: Indices) -> NDArray[np.float64]:
        """|A ∩ B| / |A ∪ B| with each of the others."""
        both = self._one_by_one(index, others) if len(others) <= FEW else self._at_once(index, others)
        similarity: NDArray[np.float64] = both / (self._sizes[index] + self._sizes[others] - both)
        return similarity

    def _one_by_one(self, index: int, others: Indices) -> Indices:
        self._marks[self._sets[index]] = True
        both = [np.count_nonzero(self._marks[self._sets[other]]) for other in others]
        self._marks[self._sets[index]] = False
        return np.array(both, np.int64)

    def _at_once(self, index: int, others: Indices) -> Indices:
        if self._crowd is None:
            self._crowd = _Crowd.of(self._sets, len(self._marks))
        return self._crowd.shared(self._sets[index], index, others)


@dataclass(frozen=True, slots=True)
class _Crowd:
    """``bits``: a row for each text, a bit for each common shingle; ``holders[starts[s] : starts[s + 1]]``: the texts
    that shingle s stands in, where it is not common."""

    common: NDArray[np.bool_]
    bits: NDArray[np.uint64]
    holders: NDArray[np.int32]
    starts: Indices

    @classmethod
    def of(cls, sets: Sequence[NDArray[np.int32]], shingles: int) -> _Crowd:
        every = np.concatenate(sets)
        common = np.bincount(every, minlength=shingles) * COMMON > len(sets)
        columns = np.cumsum(common) - 1
        row = np.zeros(-(-int(common.sum()) // 64) * 64, bool)
        bits = np.empty((len(sets), len(row) // 64), np.uint64)
        for text, one in enumerate(sets):
            row[:] = False
            row[columns[one[common[one]]]] = True
            bits[text] = np.packbits(row).view(np.uint64)
        texts = np.repeat(np.arange(len(sets), dtype=np.int32), [len(one) for one in sets])
        rare = ~common[every]
        order = np.argsort(every[rare], kind="stable")
        starts = np.concatenate([[0], np.cumsum(np.bincount(every[rare], minlength=shingles))])
        return cls(common, bits, texts[rare][order], starts)

    def shared(self, one: NDArray[np.int32], index: int, others: Indices) -> Indices:
        """How many shingles the text of that index, which has these, shares with each of the others."""
        same = np.bitwise_count(self.bits[others] & self.bits[index]).sum(axis=1, dtype=np.int64)
        rare = one[~self.common[one]]
        if len(rare):
            held = [self.holders[self.starts[shingle] : self.starts[shingle + 1]] for shingle in rare]
            same += np.bincount(np.concatenate(held), minlength=len(self.bits))[others]
        shared: Indices = same
        return shared


def _numbered(text: str, numbers: dict[str, int]) -> NDArray[np.int32]:
    last = max(1, min(len(text) - SHINGLE + 1, MAX_SHINGLES))
    found = {text[start : start + SHINGLE] for start in range(last)}
    return np.sort(np.fromiter((numbers.setdefault(one, len(numbers)) for one in found), np.int32, len(found)))
