"""Which texts are nearly the same: candidates from MinHash (Broder 1997) with LSH, each then compared exactly.

Similarity is Jaccard's |A ∩ B| / |A ∪ B| over the sets of four-character shingles of the normalised texts. LSH finds a
pair at or above the threshold with a probability of about 99.9% (its own threshold is set lower), so a group may, very
rarely, fall apart into two; no pair below the threshold is ever called similar.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from typing import Final

from datasketch import MinHash, MinHashLSH

SIMILAR: Final = 0.8
"""Jaccard similarity from which two texts count as nearly the same."""
SHINGLE: Final = 4
PERMUTATIONS: Final = 96
CANDIDATES: Final = 0.6
MAX_SHINGLES: Final = 4000
"""Of a longer text its beginning is compared."""
_SPACE: Final = re.compile(r"\s+")


def normalise(text: str) -> str:
    """Case, width and white space taken out: what is left decides whether two texts are the same."""
    return _SPACE.sub(" ", unicodedata.normalize("NFKC", text)).strip().casefold()


def groups(texts: Sequence[str], threshold: float = SIMILAR) -> list[list[int]]:
    """All indices of `texts`, grouped so that no two texts of different groups are nearly the same.

    Groups are ordered by their first index, and so are the indices in them. A chain of similar texts is one group.
    """
    normal = [normalise(text) for text in texts]
    parents = list(range(len(texts)))
    distinct: dict[str, int] = {}
    for index, text in enumerate(normal):
        first = distinct.setdefault(text, index)
        parents[index] = first
    members = list(distinct.values())
    shingles = {index: _shingles(normal[index]) for index in members}
    for one, other in _candidates(members, shingles):
        if jaccard(shingles[one], shingles[other]) >= threshold:
            _join(parents, one, other)
    found: dict[int, list[int]] = {}
    for index in range(len(texts)):
        found.setdefault(_root(parents, index), []).append(index)
    return sorted(found.values())


def jaccard(one: frozenset[bytes], other: frozenset[bytes]) -> float:
    """|A ∩ B| / |A ∪ B|; 1 for two empty sets."""
    both = len(one & other)
    either = len(one) + len(other) - both
    return both / either if either else 1.0


def _candidates(members: Sequence[int], shingles: dict[int, frozenset[bytes]]) -> list[tuple[int, int]]:
    index = MinHashLSH(threshold=CANDIDATES, num_perm=PERMUTATIONS)
    pairs: list[tuple[int, int]] = []
    for member in members:
        signature = MinHash(num_perm=PERMUTATIONS)
        signature.update_batch(sorted(shingles[member]))
        pairs += [(int(other), member) for other in index.query(signature)]
        index.insert(member, signature)
    return pairs


def _shingles(text: str) -> frozenset[bytes]:
    last = max(1, min(len(text) - SHINGLE + 1, MAX_SHINGLES))
    return frozenset(text[start : start + SHINGLE].encode() for start in range(last))


def _root(parents: list[int], index: int) -> int:
    while parents[index] != index:
        parents[index] = parents[parents[index]]
        index = parents[index]
    return index


def _join(parents: list[int], one: int, other: int) -> None:
    first, second = sorted((_root(parents, one), _root(parents, other)))
    parents[second] = first
