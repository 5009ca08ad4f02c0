"""Finds near-duplicate texts: candidates from MinHash (Broder 1997) with LSH, each compared exactly.

Similarity is Jaccard's |A ∩ B| / |A ∪ B| over the sets of four-character shingles of the normalised texts. No pair
below the threshold is ever called similar. LSH makes a pair of similarity s a candidate with probability
1 - (1 - s**ROWS)**BANDS: 99.96% at the threshold, more above. So about four of ten thousand pairs at the threshold are
missed, and a group is split only if no other pair connects it.

Every candidate pair is compared unless both texts are in one group already; there is no cap. Memory grows with the
number of texts, not of pairs. Time grows with the number of pairs only among texts that share a long part without being
near-duplicates, such as examples with one long instruction, and then by a fraction of a microsecond per pair.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from typing import Final

import numpy as np
from datasketch import MinHash

from trainer.data.shingles import FEW, Indices, ShingleSets

SIMILAR: Final = 0.8
"""Jaccard similarity from which two texts count as near-duplicates."""
BANDS: Final = 20
ROWS: Final = 5
_SPACE: Final = re.compile(r"\s+")


def normalise(text: str) -> str:
    """The text without differences of case, width and white space."""
    return _SPACE.sub(" ", unicodedata.normalize("NFKC", text)).strip().casefold()


def groups(texts: Sequence[str], threshold: float = SIMILAR) -> list[list[int]]:
    """All indices of `texts`, grouped so that near-duplicates are in the same group.

    Groups are sorted by their first index, and so are the indices in them. A chain of similar texts is one group.
    """
    same: dict[str, list[int]] = {}
    for index, text in enumerate(texts):
        same.setdefault(normalise(text), []).append(index)
    if not same:
        return []
    indices_of = list(same.values())
    merged = [
        [index for each in group for index in indices_of[each]] for group in _near(ShingleSets(list(same)), threshold)
    ]
    return sorted(sorted(group) for group in merged)


def merged(similar: Sequence[Sequence[int]], labels: Sequence[str | None]) -> list[list[int]]:
    """Groups of indices, joined where two of their members have the same label; None is no label.

    Args:
        similar: Groups that together hold each index of `labels` once.
        labels: One per index.

    Returns:
        Groups sorted by their first index, and so are the indices in them.
    """
    group_of = list(range(len(similar)))

    def root(number: int) -> int:
        while group_of[number] != number:
            number = group_of[number]
        return number

    first_with: dict[str, int] = {}
    for number, group in enumerate(similar):
        for label in (labels[index] for index in group):
            if label is not None:
                low, high = sorted((root(first_with.setdefault(label, number)), root(number)))
                group_of[high] = low
    members: dict[int, list[int]] = {}
    for number, group in enumerate(similar):
        members.setdefault(root(number), []).extend(group)
    return sorted(sorted(group) for group in members.values())


def _near(sets: ShingleSets, threshold: float) -> list[list[int]]:
    """The indices of the sets, grouped."""
    candidates = _Candidates(sets)
    group_of = np.arange(len(sets))
    members = {index: [index] for index in range(len(sets))}
    for index in range(len(sets)):
        others = candidates.before(index)
        compared = FEW  # a few first: usually they join the group of all the others
        while len(others := others[group_of[others] != group_of[index]]):
            now, others = others[:compared], others[compared:]
            near = now[sets.jaccard(index, now) >= threshold]
            for group in np.unique(group_of[near]).tolist():
                smaller, larger = sorted((int(group_of[index]), group), key=lambda key: len(members[key]))
                group_of[members[smaller]] = larger
                members[larger] += members.pop(smaller)
            compared = len(sets)
    return list(members.values())


class _Candidates:
    """Sets that share at least one of BANDS bands of ROWS MinHash values."""

    def __init__(self, sets: ShingleSets) -> None:
        signatures = _signatures(sets)
        self._marks = np.zeros(len(sets), bool)
        self._order: list[Indices] = []
        self._start = np.empty((BANDS, len(sets)), np.int64)
        self._place = np.empty((BANDS, len(sets)), np.int64)
        for band in range(BANDS):
            rows = signatures[:, band * ROWS : (band + 1) * ROWS]
            _, bucket = np.unique(rows, axis=0, return_inverse=True)
            order = np.argsort(bucket, kind="stable")
            self._order.append(order)
            self._start[band] = np.searchsorted(bucket[order], bucket)
            self._place[band, order] = np.arange(len(sets))

    def before(self, index: int) -> Indices:
        """The candidates for a set among those with a lower index, in order."""
        marks = self._marks
        marks[:] = False
        for order, start, place in zip(self._order, self._start[:, index], self._place[:, index], strict=True):
            marks[order[start:place]] = True
        return np.flatnonzero(marks)


def _signatures(sets: ShingleSets) -> Indices:
    empty = MinHash(num_perm=BANDS * ROWS, hashfunc=int)
    signatures = np.empty((len(sets), BANDS * ROWS), np.int64)
    for index in range(len(sets)):
        signature = empty.copy()
        signature.update_batch(sets.hashes(index))
        signatures[index] = signature.hashvalues
    return signatures
