"""Which texts are nearly the same: candidates from MinHash (Broder 1997) with LSH, each then compared exactly.

Similarity is Jaccard's |A ∩ B| / |A ∪ B| over the sets of four-character shingles of the normalised texts. No pair
below the threshold is ever called similar. LSH offers a pair with the similarity s for comparison with the probability
1 - (1 - s**ROWS)**BANDS: 99.96% at the threshold, more above. So of ten thousand pairs just at the threshold about four
are missed, and a group falls apart only where no other pair holds it together.

Every candidate is compared unless both are in one group already: nothing is capped. Memory grows with the texts, not
with the pairs. Time grows with the pairs only among texts that share a long piece and are not nearly the same, as
examples with one long instruction and different inputs, and then by a fraction of a microsecond for each pair.
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
"""Jaccard similarity from which two texts count as nearly the same."""
BANDS: Final = 20
ROWS: Final = 5
_SPACE: Final = re.compile(r"\s+")


def normalise(text: str) -> str:
    """Case, width and white space taken out: what is left decides whether two texts are the same."""
    return _SPACE.sub(" ", unicodedata.normalize("NFKC", text)).strip().casefold()


def groups(texts: Sequence[str], threshold: float = SIMILAR) -> list[list[int]]:
    """All indices of `texts`, grouped so that no two texts of different groups are nearly the same.

    Groups are ordered by their first index, and so are the indices in them. A chain of similar texts is one group.
    """
    same: dict[str, list[int]] = {}
    for index, text in enumerate(texts):
        same.setdefault(normalise(text), []).append(index)
    if not same:
        return []
    places = list(same.values())
    found = [[index for one in group for index in places[one]] for group in _near(ShingleSets(list(same)), threshold)]
    return sorted(sorted(group) for group in found)


def _near(sets: ShingleSets, threshold: float) -> list[list[int]]:
    """The sets' indices, grouped."""
    candidates = _Candidates(sets)
    group_of = np.arange(len(sets))
    members = {index: [index] for index in range(len(sets))}
    for index in range(len(sets)):
        others = candidates.before(index)
        compared = FEW  # a few first: most often they join the group that all the others are in
        while len(others := others[group_of[others] != group_of[index]]):
            now, others = others[:compared], others[compared:]
            near = now[sets.jaccard(index, now) >= threshold]
            for other in np.unique(group_of[near]).tolist():
                smaller, larger = sorted((int(group_of[index]), other), key=lambda group: len(members[group]))
                group_of[members[smaller]] = larger
                members[larger] += members.pop(smaller)
            compared = len(sets)
    return list(members.values())


class _Candidates:
    """Which sets have one of BANDS bands of ROWS MinHash values in common."""

    def __init__(self, sets: ShingleSets) -> None:
        signatures = _signatures(sets)
        self._there = np.zeros(len(sets), bool)
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
        """The candidates for a set among those of a lower index, in order."""
        there = self._there
        there[:] = False
        for order, start, place in zip(self._order, self._start[:, index], self._place[:, index], strict=True):
            there[order[start:place]] = True
        return np.flatnonzero(there)


def _signatures(sets: ShingleSets) -> Indices:
    empty = MinHash(num_perm=BANDS * ROWS, hashfunc=int)
    signatures = np.empty((len(sets), BANDS * ROWS), np.int64)
    for index in range(len(sets)):
        signature = empty.copy()
        signature.update_batch(sets.hashes(index))
        signatures[index] = signature.hashvalues
    return signatures
