"""Near-duplicate texts: the one definition for duplicates in a file, for its split, and for leaks into held-out data.

Two texts are the same if they are equal after folding (`trainer.data.folding`). They are near-duplicates if they are
the same, or if the Jaccard similarity |A ∩ B| / |A ∪ B| of the sets of four-character shingles of their folded texts is
SIMILAR or more. For leaks, a template that many texts share does not count (`NearDuplicates`).

`groups` takes its candidates from MinHash (Broder 1997) with LSH, and compares each exactly. No pair below the
threshold is ever called similar. LSH makes a pair of similarity s a candidate with probability
1 - (1 - s**ROWS)**BANDS: 99.96% at the threshold, more above. So about four of ten thousand pairs at the threshold are
missed, and a group is split only if no other pair connects it.

Every candidate pair is compared unless both texts are in one group already; there is no cap. Memory grows with the
number of texts, not of pairs. Time grows with the number of pairs only among texts that share a long part without being
near-duplicates, such as examples with one long instruction, and then by a fraction of a microsecond per pair.

`NearDuplicates` misses no pair. What it finds, `groups` keeps together, but for the pairs that LSH misses.
"""

from __future__ import annotations

import math
import re
import unicodedata
from collections.abc import Iterator, Sequence
from typing import Final, NamedTuple

import numpy as np
from datasketch import MinHash
from numpy.typing import NDArray

from trainer.data.folding import fold, key
from trainer.data.shingles import FEW, Indices, Shingles, ShingleSets

SIMILAR: Final = 0.8
"""Jaccard similarity from which two texts count as near-duplicates."""
TEMPLATE: Final = 0.125
"""Share of the texts above which a shingle counts as part of a template, such as an instruction in each question."""
SIMILAR_CONTENT: Final = 0.7
"""Jaccard similarity, without the shingles of templates, from which two texts that share a template are similar."""
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
    folded: dict[str, str] = {}
    same: dict[str, list[int]] = {}
    for index, text in enumerate(map(fold, texts)):
        text_key = key(text)
        folded.setdefault(text_key, text)
        same.setdefault(text_key, []).append(index)
    if not same:
        return []
    indices_of = list(same.values())
    near = _near(ShingleSets(list(folded.values())), threshold)
    return sorted(sorted(index for each in group for index in indices_of[each]) for group in near)


class Matches(NamedTuple):
    """The indices of the texts that are the same as another text, and of its other near-duplicates, each in order."""

    same: tuple[int, ...]
    similar: tuple[int, ...]


class NearDuplicates:
    """Finds the near-duplicates of texts among `texts`.

    A long instruction that many texts share would make them all similar. So texts are similar only if what is in their
    questions alone is, too: the similarity without the shingles that are in more than TEMPLATE of `texts` must be
    SIMILAR_CONTENT or more.

    No pair is missed. Two sets of which the first has n elements have a Jaccard similarity of s or more only if they
    share ⌈sn⌉ of these, so they share one of any n - ⌈sn⌉ + 1: the rarest of them are looked up (prefix filtering;
    Chaudhuri, Ganti and Kaushik, "A primitive operator for similarity joins in data cleaning", ICDE 2006).
    """

    def __init__(self, texts: Sequence[str]) -> None:
        self._folded: dict[str, str] = {}
        self._indices: dict[str, list[int]] = {}
        for index, text in enumerate(map(fold, texts)):
            text_key = key(text)
            self._folded.setdefault(text_key, text)
            self._indices.setdefault(text_key, []).append(index)

    def of(self, texts: Sequence[str]) -> list[Matches]:
        """The matches of each of these texts."""
        folded = [fold(text) for text in texts]
        keys = [key(text) for text in folded]
        queries = dict(zip(keys, folded, strict=True))
        known = list(self._indices)
        similar = {
            text_key: [known[other] for other in others]
            for text_key, others in zip(queries, self._similar(list(queries.values())), strict=True)
        }
        return [
            Matches(
                tuple(self._indices.get(text_key, ())),
                tuple(sorted(at for other in similar[text_key] if other != text_key for at in self._indices[other])),
            )
            for text_key in keys
        ]

    def _similar(self, queries: Sequence[str]) -> Iterator[list[int]]:
        """For each folded text the numbers of the distinct texts that are similar."""
        many = len(self._folded)
        sets = ShingleSets([*self._folded.values(), *queries])
        postings = _Postings(sets, many)
        template = postings.frequencies > max(1.0, TEMPLATE * many)
        for number in range(many, len(sets)):
            shingles = sets.shingles(number)
            own = shingles[~template[shingles]]
            looked_up = min(_prefix(len(shingles), SIMILAR), _prefix(len(own), SIMILAR_CONTENT)) if len(own) else 0
            rarest = own[np.argsort(postings.frequencies[own], kind="stable")][:looked_up]
            candidates = postings.holders(rarest)
            candidates = candidates[sets.sizes[candidates] >= SIMILAR * len(shingles)]
            candidates = candidates[SIMILAR * sets.sizes[candidates] <= len(shingles)]
            near = candidates[sets.jaccard(number, candidates) >= SIMILAR] if len(candidates) else candidates
            yield [other for other in near.tolist() if _content_similarity(own, sets.shingles(other), template)]


def _prefix(size: int, similarity: float) -> int:
    """How many of a set's elements must be looked up to find every set of this similarity."""
    return size - math.ceil(similarity * size) + 1


def _content_similarity(own: Shingles, shingles: Shingles, template: NDArray[np.bool_]) -> bool:
    others = shingles[~template[shingles]]
    shared = len(np.intersect1d(own, others, assume_unique=True))
    return shared >= SIMILAR_CONTENT * (len(own) + len(others) - shared)


class _Postings:
    """For each shingle the texts that have it, among the first `many` of the sets.

    ``frequencies``: (shingles) how many they are.
    """

    def __init__(self, sets: ShingleSets, many: int) -> None:
        members = [sets.shingles(index) for index in range(many)]
        every = np.concatenate([np.empty(0, np.int32), *members])
        texts = np.repeat(np.arange(many, dtype=np.int64), [len(each) for each in members])
        self.frequencies = np.bincount(every, minlength=sets.distinct)
        self._texts = texts[np.argsort(every, kind="stable")]
        self._starts = np.concatenate([[0], np.cumsum(self.frequencies)])

    def holders(self, shingles: Shingles) -> Indices:
        """The texts with at least one of these shingles, in order."""
        held = [self._texts[self._starts[shingle] : self._starts[shingle + 1]] for shingle in shingles]
        return np.unique(np.concatenate(held)) if held else np.empty(0, np.int64)


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
