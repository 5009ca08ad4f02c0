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

A text can also contain another one, with words around it ("I was wondering: …", "… My name is Ann."). That is no
near-duplicate, but a leak if the other was trained on, so `NearDuplicates` finds it on request: at least CONTAINED of
the other's shingles are in the text, and the other is neither short (MIN_CONTAINED) nor a small part of the text
(CONTAINED_PART). Sentences that many of the texts share are also left out: a preamble before every copy hides none.
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
CONTAINED: Final = 0.95
"""Share of a text's shingles from which another text contains it."""
MIN_CONTAINED: Final = 18
"""Distinct shingles, about 21 characters, from which a text can be contained: what is shorter ("Where is my parcel?")
is said in many questions.

Of the values measured, the largest that finds some four fifths of 140 questions of about 35 characters behind a few
words. Of honest questions of BANKING77, 1.1% contain one of 2,000 others, and 4.0% one of 9,000
(`python -m loadtests.training.leaks`)."""
CONTAINED_PART: Final = 0.25
"""Size of a contained text relative to the one that contains it, at least: the shingles of a long text contain many
short ones by chance."""
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


def contains(text: str, part: str) -> bool:
    """Whether at least CONTAINED of the shingles of ``part`` are in ``text``, whatever the sizes; templates count."""
    sets = ShingleSets([fold(text), fold(part)])
    return bool(sets.contained(0, np.array([1]))[0] >= CONTAINED)


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
    """The indices of the texts that are the same as another text, of its other near-duplicates, and of the others that
    it contains, each in order."""

    same: tuple[int, ...]
    similar: tuple[int, ...]
    contained: tuple[int, ...] = ()


class _Related(NamedTuple):
    """The numbers of the distinct texts that are similar to a text, and of those that it contains."""

    similar: Indices
    contained: Indices


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
        self._known_keys = list(self._known.indices)
        self._among = self._known.texts if among is None else _Distinct(among).texts

    def of(self, texts: Sequence[str], *, containing: bool = False) -> list[Matches]:
        """The matches of each of these texts; what they contain only if ``containing``."""
        keys = [key(fold(text)) for text in texts]
        queries = dict(zip(keys, texts, strict=True))
        related = dict(zip(queries, self._related(list(queries.values()), containing), strict=True))
        return [
            Matches(
                tuple(self._known.indices.get(text_key, ())),
                self._indices(related[text_key].similar, text_key),
                self._indices(np.setdiff1d(related[text_key].contained, related[text_key].similar), text_key),
            )
            for text_key in keys
        ]

    def _indices(self, numbers: Indices, text_key: str) -> tuple[int, ...]:
        """The indices of the distinct texts with these numbers, but for the one with this key."""
        known = self._known_keys
        return tuple(
            sorted(at for number in numbers if known[number] != text_key for at in self._known.indices[known[number]])
        )

    def _related(self, queries: Sequence[str], containing: bool) -> Iterator[_Related]:
        """What each text is related to."""
        many = len(self._known.texts)
        contents = without_templates([*self._known.texts, *queries], self._among)
        own = without_templates(queries) if containing else []  # without what these texts themselves share
        sets = ShingleSets([fold(content) for content in [*contents, *own]])
        postings = _Postings([sets.shingles(index) for index in range(many)], sets.distinct)
        containable = _Containable(sets, many, postings.frequencies) if containing else None
        for number in range(many, many + len(queries)):
            contained = [
                containable.inside(variant) for variant in (number, number + len(queries)) if containable is not None
            ]
            yield _Related(
                self._similar(sets, postings, number), np.unique(np.concatenate([np.empty(0, np.int64), *contained]))
            )

    def _similar(self, sets: ShingleSets, postings: _Postings, number: int) -> Indices:
        shingles = sets.shingles(number)
        looked_up = len(shingles) - math.ceil(SIMILAR * len(shingles)) + 1 if len(shingles) else 0
        rarest = shingles[np.argsort(postings.frequencies[shingles], kind="stable")][:looked_up]
        candidates = postings.holders(rarest)
        candidates = candidates[sets.sizes[candidates] >= SIMILAR * len(shingles)]
        candidates = candidates[SIMILAR * sets.sizes[candidates] <= len(shingles)]
        return candidates[sets.jaccard(number, candidates) >= SIMILAR] if len(candidates) else candidates


def contained(texts: Sequence[str]) -> list[list[int]]:
    """For each text the indices of the others that it contains, in order."""
    sets = ShingleSets([fold(text) for text in without_templates(texts)])
    postings = _Postings([sets.shingles(index) for index in range(len(sets))], sets.distinct)
    containable = _Containable(sets, len(sets), postings.frequencies)
    return [[int(other) for other in containable.inside(at) if other != at] for at in range(len(sets))]


class _Postings:
    """For each shingle the texts that have it. ``frequencies``: (shingles) how many they are.

    Args:
        members: The shingles of each text.
        distinct: The number of distinct shingles.
    """

    def __init__(self, members: Sequence[Shingles], distinct: int) -> None:
        every = np.concatenate([np.empty(0, np.int32), *members])
        texts = np.repeat(np.arange(len(members), dtype=np.int64), [len(each) for each in members])
        self.frequencies = np.bincount(every, minlength=distinct)
        self._texts = texts[np.argsort(every, kind="stable")]
        self._starts = np.concatenate([[0], np.cumsum(self.frequencies)])

    def holders(self, shingles: Shingles) -> Indices:
        """The texts with at least one of these shingles, in order."""
        held = [self._texts[self._starts[shingle] : self._starts[shingle + 1]] for shingle in shingles]
        return np.unique(np.concatenate(held)) if held else np.empty(0, np.int64)


class _Containable:
    """Finds which of the first `many` of the sets are contained in another set.

    A set of n shingles, ⌈cn⌉ of which are in another, has one of any n - ⌈cn⌉ + 1 there: its rarest ones are indexed.
    """

    def __init__(self, sets: ShingleSets, many: int, frequencies: Indices) -> None:
        self._sets = sets
        self._postings = _Postings([self._rarest(index, frequencies) for index in range(many)], sets.distinct)

    def _rarest(self, index: int, frequencies: Indices) -> Shingles:
        shingles = self._sets.shingles(index)
        indexed = len(shingles) - math.ceil(CONTAINED * len(shingles)) + 1 if len(shingles) >= MIN_CONTAINED else 0
        return shingles[np.argsort(frequencies[shingles], kind="stable")][:indexed]

    def inside(self, number: int) -> Indices:
        """The numbers of the sets that the set with this number contains, in order."""
        shingles = self._sets.shingles(number)
        candidates = self._postings.holders(shingles)
        candidates = candidates[self._sets.sizes[candidates] >= CONTAINED_PART * len(shingles)]
        return candidates[self._sets.contained(number, candidates) >= CONTAINED] if len(candidates) else candidates


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
