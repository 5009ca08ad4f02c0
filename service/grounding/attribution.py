"""Which passages an answer uses: by its markers where the prompt asks for them, and by the words that it shares.

The rule, sentence by sentence of the answer:

1. What counts are its terms that the question does not have, and that a passage shares: numbers, codes, names and words
   of at least four letters. A common word counts nothing, nor does one that most of the passages have.
2. A term that several passages have is credited to the one that shares most terms with question and sentence together
   (to all of them if they share equally many, as copies do; to none of more than eight).
3. A number of two or more digits, a code or a name in one sentence decides: the passage is used. So do three points:
   any other term is worth one, and so is each pair of neighbours that are neighbours in the passage, too. One point
   suffices if the sentence says nothing else and the passage has a word of the question.

So it tells whether the answer says what a passage says and the question did not, not where the model took it from. An
answer that only says yes, or repeats the question, uses none. Deterministic, without a model. Its time grows with the
texts' length, of which `MAX_COMPARED_CHARS` are compared, and for each sentence with the passages that its terms occur
in: the terms of the same passages are counted at once, and at most eight passages get credit for a term.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Final, NamedTuple

from service.grounding.template import COMMON

MIN_POINTS: Final = 3
"""Chosen on answers that were given without the passages, see GROUNDING.md."""
STRONG: Final = MIN_POINTS
"""Points of a number, code or name."""
MIN_WORD_CHARS: Final = 4
MAX_COMPARED_CHARS: Final = 16_384
"""Characters of an answer that are looked at, and of all passages together: this runs on the event loop."""
MIN_PASSAGES_FOR_COMMON: Final = 3
"""From so many passages on, a word that most of them have is no evidence."""
MAX_CREDITED: Final = 8
"""A term that more passages share equally tells none of them from the others, and is no evidence."""
_STOP_WORDS: Final = frozenset(
    {*COMMON.split("|"), "yes", "please", "does", "doing", "done", "having", "being", "within", "whose", "whom"}
    | {"doesn", "didn", "wasn", "aren", "haven", "hasn", "couldn", "wouldn", "shouldn"}
)
_WORD: Final = re.compile(r"\d+(?:[.,:]\d+)+|[^\W_]+")
_SENTENCE_END: Final = re.compile(r"(?:(?<![.!?…])[.!?…]++[\"')\]»”’]*+(?=\s)|[。！？]|\n)\s*")
_NO_INDEX: Final = r"(?<![A-Za-z0-9_\])])"
"""Before a bracket that is no index into something, as in `argv[1]`, `f(x)[0]` or `rows[1][2]`. Letters of ASCII alone:
text without spaces between words has its markers right behind a word."""
_NUMBERS: Final = r"\[\s*\d{1,2}(?:\s*[,;]\s*\d{1,2})*\s*\]"
_MARKER: Final = re.compile(rf"{_NO_INDEX}{_NUMBERS}(?:{_NUMBERS})*+")
"""One or several in a row: `[1]`, `[1, 2]`, `[1][2]`."""
_ONE_MARKER: Final = re.compile(_NUMBERS)
_MARKER_SHOWN: Final = re.compile(_NO_INDEX + r"\[\s*(?:\d{1,2}|n|N|i|#|number)\s*\]")
"""How instructions show a reader what a marker looks like: `[1]`, `[n]`."""
_CODE: Final = re.compile(r"```.*?(?:```|\Z)|`[^`\n]*`", re.DOTALL)


class Span(NamedTuple):
    """Characters of an answer, from ``start`` to before ``end``."""

    start: int
    end: int


class _Term(NamedTuple):
    key: str
    is_name: bool
    """Begins with a capital inside a sentence."""
    is_capital: bool


@dataclass(frozen=True, slots=True)
class _Bag:
    """A text's terms, those that are names, and its pairs of neighbours."""

    keys: frozenset[str]
    names: frozenset[str]
    capitals: frozenset[str]
    pairs: frozenset[tuple[str, str]]


def shows_markers(instructions: Sequence[str]) -> bool:
    """Whether instructions ask for markers, as shown by an example such as `[1]` or `[n]` in them."""
    return any(_MARKER_SHOWN.search(text) for text in instructions)


def used_spans(answer: str, question: str, passages: Sequence[str], *, by_marker: bool) -> list[Span | None]:
    """For each passage the part of the answer that uses it best; None if the answer does not use it.

    Args:
        passages: Their texts as in the prompt; the first has the number 1.
        by_marker: The prompt asks for markers such as `[1]`: a passage whose marker the answer has is used, and the
            span is the first of them. The words decide about the others.
    """
    answer = answer[:MAX_COMPARED_CHARS]
    spans = _shared(answer, question, passages)
    if not by_marker:
        return spans
    return [marker or span for marker, span in zip(_marked(answer, passages), spans, strict=True)]


def _marked(answer: str, passages: Sequence[str]) -> list[Span | None]:
    """The first marker of each passage. One that a passage's own text has may have been copied, and does not count."""
    quoted = {number for text in passages for number, _ in _markers(text)}
    spans: list[Span | None] = [None] * len(passages)
    for number, span in _markers(_CODE.sub(lambda code: " " * len(code[0]), answer)):
        if 1 <= number <= len(passages) and number not in quoted and spans[number - 1] is None:
            spans[number - 1] = span
    return spans


def _markers(text: str) -> Iterator[tuple[int, Span]]:
    """The numbers of a text's markers, and where these stand."""
    for row in _MARKER.finditer(text):
        for marker in _ONE_MARKER.finditer(text, *row.span()):
            for number in re.findall(r"\d+", marker[0]):
                yield int(number), Span(*marker.span())


def _shared(answer: str, question: str, passages: Sequence[str]) -> list[Span | None]:
    compared = _Passages(question, passages)
    best: list[tuple[int, Span] | None] = [None] * len(passages)
    plain = _MARKER.sub(lambda marker: " " * len(marker[0]), answer)
    for span in _sentences(plain):
        for number, points in compared.used_by(_bag(_terms(plain[span.start : span.end]))):
            before = best[number]
            if before is None or points > before[0]:
                best[number] = points, span
    return [None if found is None else found[1] for found in best]


class _Passages:
    """The passages of one question by their terms, against which sentences are held."""

    def __init__(self, question: str, passages: Sequence[str]) -> None:
        room = MAX_COMPARED_CHARS
        self._bags: list[_Bag] = []
        holders: dict[str, list[int]] = {}
        for number, text in enumerate(passages):
            bag = _bag(_terms(text[: max(room, 0)]))
            room -= len(text)
            self._bags.append(bag)
            for key in bag.keys:
                holders.setdefault(key, []).append(number)
        groups: dict[tuple[int, ...], tuple[int, ...]] = {}
        self._holders = {key: groups.setdefault(group := tuple(found), group) for key, found in holders.items()}
        """By term the passages that have it; terms of the same passages share one object."""
        self._asked = _bag(_terms(question)).keys
        self._asked_shared = [len(self._asked & bag.keys) for bag in self._bags]

    def used_by(self, sentence: _Bag) -> list[tuple[int, int]]:
        """The passages that a sentence uses, by their place, and their points."""
        new = sentence.keys - self._asked
        by_group: dict[int, tuple[tuple[int, ...], list[str]]] = {}
        for key in new:
            holders = self._holders.get(key)
            if holders is not None:
                by_group.setdefault(id(holders), (holders, []))[1].append(key)
        credited: dict[int, dict[str, int]] = {}
        for holders, best, keys in self._closest(by_group.values()):
            is_common = self._is_common(holders)
            for number in best:
                for key in keys:
                    worth = _worth(key, sentence, self._bags[number])
                    if worth == STRONG or not is_common:
                        credited.setdefault(number, {})[key] = worth
        used = []
        for number, terms in credited.items():
            pairs = self._bags[number].pairs
            neighbours = sum(pair in pairs and not terms.keys().isdisjoint(pair) for pair in sentence.pairs)
            points = sum(terms.values()) + neighbours
            says_all = len(terms) == len(new) and self._asked_shared[number] > 0
            if points >= MIN_POINTS or says_all:
                used.append((number, points))
        return used

    def _closest(
        self, groups: Collection[tuple[tuple[int, ...], list[str]]]
    ) -> Iterator[tuple[tuple[int, ...], list[int], list[str]]]:
        """Of each group's passages those that share most with question and sentence; none where too many do."""
        affinity: dict[int, int] = {}
        for holders, keys in groups:
            for number in holders:
                affinity[number] = affinity.get(number, self._asked_shared[number]) + len(keys)
        for holders, keys in groups:
            most = max(affinity[number] for number in holders)
            best = [number for number in holders if affinity[number] == most]
            if len(best) <= MAX_CREDITED:
                yield holders, best, keys

    def _is_common(self, holders: Sequence[int]) -> bool:
        return len(self._bags) >= MIN_PASSAGES_FOR_COMMON and 2 * len(holders) > len(self._bags)


def _worth(key: str, sentence: _Bag, passage: _Bag) -> int:
    if not key.isalpha():
        return STRONG if len(key) > 1 else 1
    is_capital = key in sentence.capitals and key in passage.capitals
    return STRONG if is_capital and (key in sentence.names or key in passage.names) else 1


def _sentences(text: str) -> list[Span]:
    """The sentences and lines of a text, without the spaces around them."""
    spans = []
    start = 0
    for end in [*(found.end() for found in _SENTENCE_END.finditer(text)), len(text)]:
        sentence = text[start:end]
        body = sentence.strip()
        if body:
            first = start + sentence.index(body)
            spans.append(Span(first, first + len(body)))
        start = end
    return spans


def _terms(text: str) -> list[_Term]:
    """The words of a text that can be evidence, in order; common and short words are left out."""
    terms = []
    starts = {span.start for span in _sentences(text)}
    for found in _WORD.finditer(text):
        word = found[0]
        key = _key(word)
        if key is not None:
            is_capital = word[0].isupper()
            terms.append(_Term(key, is_capital and found.start() not in starts, is_capital))
    return terms


def _key(word: str) -> str | None:
    """What two forms of one word have in common: no case, no accents, no plural s, and no ending after 7 letters."""
    folded = word.casefold()
    if not folded.isascii():
        decomposed = unicodedata.normalize("NFKD", folded)
        folded = "".join(character for character in decomposed if not unicodedata.combining(character))
    if not folded.isalpha():
        return folded.replace(",", "")
    if len(folded) < MIN_WORD_CHARS or folded in _STOP_WORDS:
        return None
    return folded.removesuffix("s")[:7]


def _bag(terms: Sequence[_Term]) -> _Bag:
    keys = [term.key for term in terms]
    return _Bag(
        frozenset(keys),
        frozenset(term.key for term in terms if term.is_name),
        frozenset(term.key for term in terms if term.is_capital),
        frozenset(pairwise(keys)),
    )
