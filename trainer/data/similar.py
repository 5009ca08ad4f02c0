"""Near-duplicate texts: the one definition for duplicates in a file, for its split, and for leaks into held-out data.

Two texts are the same if they are equal after folding (`trainer.data.folding`). They are near-duplicates if they are
the same, or if the Jaccard similarity |A ∩ B| / |A ∪ B| of the sets of four-character shingles of their folded texts is
SIMILAR or more. Sentences and lines that many texts share, such as an instruction, are left out of the comparison
(`without_templates`): they say nothing about a text, and would make all of them similar.

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
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from typing import Final, NamedTuple

import numpy as np

from trainer.data.folding import fold, key
from trainer.data.shingles import FEW, Indices, Shingles, ShingleSets

SIMILAR: Final = 0.8
"""Jaccard similarity from which two texts count as near-duplicates."""
TEMPLATE: Final = 0.125
"""Share of the texts above which a sentence or line is a template, such as an instruction in each question."""
INSTRUCTION: Final = 0.5
"""Share above which it is one that says nothing in any case."""
MIN_TEMPLATES: Final = 3
"""Texts that must share it at least."""
MIN_CONTENT_CHARS: Final = 12
"""A text that has less than this beside templates is compared as a whole."""
BANDS: Final = 20
ROWS: Final = 5
_SPACE: Final = re.compile(r"\s+")
_NUMBER: Final = re.compile(r"\w*\d\w*")
_SENTENCES: Final = re.compile(r"[\n.!?:;]+")


def normalise(text: str) -> str:
    """The text without differences of case, width and white space."""
    return _SPACE.sub(" ", unicodedata.normalize("NFKC", text)).strip().casefold()


def without_templates(texts: Sequence[str], among: Sequence[str] | None = None) -> list[str]:
    """The texts without the sentences and lines that are in more than TEMPLATE of them.

    Variants of one question stay alike, however many they are: the sentence in which they differ is not shared, and a
    text of which less than MIN_CONTENT_CHARS would be left is compared as a whole.

    If what would be left differs only in numbers from what is left of other texts ("My order number is 4711"), it says
    nothing either: of a few kinds of questions, each asked often, the kind does. Then only what is in more than
    INSTRUCTION of the texts is left out.

    Args:
        texts: The texts.
        among: The texts in which templates are counted; None for ``texts``.
    """
    counts = Counter(sentence for text in (texts if among is None else among) for sentence in set(_sentences(text)))
    limit = max(MIN_TEMPLATES - 1, TEMPLATE * len(texts if among is None else among))
    known = texts if among is None else among
    forms = Counter(form for text in known for form in {_form(sentence) for sentence in _sentences(text)})
    contents = []
    for text in texts:
        sentences = _sentences(text)
        content = [sentence for sentence in sentences if counts[sentence] <= limit]
        telling = [sentence for sentence in content if forms[_form(sentence)] <= limit]
        if len(" ".join(telling)) < MIN_CONTENT_CHARS:
            content = [sentence for sentence in sentences if counts[sentence] <= max(limit, INSTRUCTION * len(known))]
        joined = " ".join(content)
        contents.append(joined if len(joined) >= MIN_CONTENT_CHARS else text)
    return contents


def _form(sentence: str) -> str:
    """The sentence without its numbers."""
    return _NUMBER.sub("0", sentence)


def _sentences(text: str) -> list[str]:
    return [sentence for sentence in map(normalise, _SENTENCES.split(text)) if sentence]


def groups(texts: Sequence[str], threshold: float = SIMILAR) -> list[list[int]]:
    """All indices of `texts`, grouped so that near-duplicates are in the same group.

    Groups are sorted by their first index, and so are the indices in them. A chain of similar texts is one group.
    """
    distinct = _Distinct(texts)
    if not distinct.texts:
        return []
    indices_of = list(distinct.indices.values())
    near = _near(ShingleSets([fold(text) for text in without_templates(distinct.texts)]), threshold)
    return sorted(sorted(index for each in group for index in indices_of[each]) for group in near)


class _Distinct:
    """Texts without those that are the same as an earlier one after folding.

    ``texts``: the first of each, as it is. ``indices``: by its key, the indices of all that are the same, in order.
    """

    def __init__(self, texts: Sequence[str]) -> None:
        self.indices: dict[str, list[int]] = {}
        self.texts: list[str] = []
        for index, text in enumerate(texts):
            indices = self.indices.setdefault(key(fold(text)), [])
            if not indices:
                self.texts.append(text)
            indices.append(index)


class Matches(NamedTuple):
    """The indices of the texts that are the same as another text, and of its other near-duplicates, each in order."""

    same: tuple[int, ...]
    similar: tuple[int, ...]


class NearDuplicates:
    """Finds the near-duplicates of texts among `texts`.

    No pair is missed. Two sets of which the first has n elements have a Jaccard similarity of s or more only if they
    share ⌈sn⌉ of these, so they share one of any n - ⌈sn⌉ + 1: the rarest of them are looked up (prefix filtering;
    Chaudhuri, Ganti and Kaushik, "A primitive operator for similarity joins in data cleaning", ICDE 2006).

    Args:
        texts: The texts.
        among: The texts in which templates are counted (`without_templates`); None for ``texts``.
    """

    def __init__(self, texts: Sequence[str], among: Sequence[str] | None = None) -> None:
        self._known = _Distinct(texts)
        self._among = self._known.texts if among is None else _Distinct(among).texts

    def of(self, texts: Sequence[str]) -> list[Matches]:
        """The matches of each of these texts."""
        keys = [key(fold(text)) for text in texts]
        queries = dict(zip(keys, texts, strict=True))
        known = list(self._known.indices)
        similar = {
            text_key: [known[other] for other in others]
            for text_key, others in zip(queries, self._similar(list(queries.values())), strict=True)
        }
        indices = self._known.indices
        return [
            Matches(
                tuple(indices.get(text_key, ())),
                tuple(sorted(at for other in similar[text_key] if other != text_key for at in indices[other])),
            )
            for text_key in keys
        ]

    def _similar(self, queries: Sequence[str]) -> Iterator[list[int]]:
        """For each text the numbers of the distinct texts that are similar."""
        many = len(self._known.texts)
        contents = without_templates([*self._known.texts, *queries], self._among)
        sets = ShingleSets([fold(content) for content in contents])
        postings = _Postings(sets, many)
        for number in range(many, len(sets)):
            shingles = sets.shingles(number)
            looked_up = len(shingles) - math.ceil(SIMILAR * len(shingles)) + 1 if len(shingles) else 0
            rarest = shingles[np.argsort(postings.frequencies[shingles], kind="stable")][:looked_up]
            candidates = postings.holders(rarest)
            candidates = candidates[sets.sizes[candidates] >= SIMILAR * len(shingles)]
            candidates = candidates[SIMILAR * sets.sizes[candidates] <= len(shingles)]
            near = candidates[sets.jaccard(number, candidates) >= SIMILAR] if len(candidates) else candidates
            yield [int(other) for other in near]


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
    return merged_by_keys(similar, [() if label is None else (label,) for label in labels])


def merged_by_keys(similar: Sequence[Sequence[int]], keys: Sequence[Collection[str]]) -> list[list[int]]:
    """As `merged`, with any number of labels per index."""
    group_of = list(range(len(similar)))

    def root(number: int) -> int:
        while group_of[number] != number:
            group_of[number] = group_of[group_of[number]]
            number = group_of[number]
        return number

    first_with: dict[str, int] = {}
    for number, group in enumerate(similar):
        for label in (label for index in group for label in keys[index]):
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
    from datasketch import MinHash  # brings scipy.integrate: half a second of every worker's start, for one stage

    empty = MinHash(num_perm=BANDS * ROWS, hashfunc=int)
    signatures = np.empty((len(sets), BANDS * ROWS), np.int64)
    for index in range(len(sets)):
        signature = empty.copy()
        signature.update_batch(sets.hashes(index))
        signatures[index] = signature.hashvalues
    return signatures
