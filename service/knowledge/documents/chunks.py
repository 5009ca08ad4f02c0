"""Cutting: blocks into passages of at most so many tokens, at the ends of paragraphs and sentences where there are any.

A passage never crosses a heading, and knows the headings above it. A row is a passage of its own. Where a section is
longer than a passage, the next one begins with the last sentences of the one before.
"""

from __future__ import annotations

import re
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

from service.grounding.provider import MAX_PASSAGE_CHARS, Attribute, Turns
from service.knowledge.documents.blocks import Block, invalid
from service.knowledge.text import PassageText

Tokens = Callable[[str], Sequence[tuple[int, int]]]
"""The tokens of a text, each as its first character and the one after its last."""
PATH: Final = " › "
MAX_PATH: Final = 300
"""Characters of a heading path; the innermost are kept."""
STRETCH: Final = MAX_PASSAGE_CHARS - MAX_PATH - 1
"""Characters that are tokenized at once; a section of more is cut there, at a space. So no passage is longer than any
reader takes, its headings included, whatever the tokenizer takes for one token."""
LONG_TOKEN: Final = 24
"""Characters of a token that counts as one; a longer one, such as a number of 40,000 digits, counts once for each."""
MAX_PASSAGES: Final = 500_000
"""Passages of a document; the vectors of more would fill the memory that a store may take."""
_SENTENCE: Final = re.compile(r"[.!?…。！？]+[\"'”’)\]]*\s+|\n")
_SPACE: Final = re.compile(r"\s")
_NO_SPACE: Final = re.compile(r"\S")
_PARAGRAPH: Final = "\n\n"


@dataclass(frozen=True, slots=True)
class _Section:
    path: str
    text: str
    attributes: Mapping[str, Attribute] | None = None
    turns: Turns | None = None


def split(blocks: Sequence[Block], tokens: Tokens, *, size: int, overlap: int) -> Iterator[PassageText]:
    """The passages of a document.

    Args:
        blocks: Of one document.
        tokens: The embedding model's tokenizer.
        size: Most tokens of a passage.
        overlap: Most tokens that a passage repeats of the one before; less than ``size``.

    Raises:
        DocumentError: There are more than MAX_PASSAGES.
    """
    for number, passage in enumerate(_passages(blocks, tokens, size, overlap)):
        if number >= MAX_PASSAGES:
            raise invalid(f"it has more than {MAX_PASSAGES} passages, the maximum; split it")
        yield replace(passage, number=number)


def _passages(blocks: Sequence[Block], tokens: Tokens, size: int, overlap: int) -> Iterator[PassageText]:
    """The passages, all with the number 0."""
    for section in _sections(blocks):
        if section.turns is not None:  # half an example shows no answer, whatever its length
            yield PassageText(0, section.path, section.text, 0, section.attributes, section.turns)
            continue
        for stretch in _stretches(section.text):
            for begin, end, repeats in _spans(stretch, tokens(stretch), size, overlap):
                yield PassageText(0, section.path, stretch[begin:end], repeats, section.attributes)


def _sections(blocks: Sequence[Block]) -> Iterator[_Section]:
    path: list[tuple[int, str]] = []
    gathered: list[str] = []
    bare = False  # the last heading has nothing below it yet
    for block in blocks:
        if block.kind == "text":
            gathered.append(block.text)
            bare = False
            continue
        if gathered:
            yield _Section(_shown(path), _PARAGRAPH.join(gathered))
            gathered = []
        if block.kind == "row":
            yield _Section(_shown(path), block.text, block.attributes, block.turns)
            bare = False
            continue
        if bare and block.level <= path[-1][0]:
            yield _Section(_shown(path[:-1]), path[-1][1])
        path = [*(entry for entry in path if entry[0] < block.level), (block.level, block.text)]
        bare = True
    if gathered:
        yield _Section(_shown(path), _PARAGRAPH.join(gathered))
    elif bare:
        yield _Section(_shown(path[:-1]), path[-1][1])


def _shown(path: Sequence[tuple[int, str]]) -> str:
    titles: list[str] = []
    for _, title in reversed(path):
        if titles and len(PATH.join([title, *titles])) > MAX_PATH:
            break
        titles.insert(0, title)
    return PATH.join(titles)[:MAX_PATH]


def _stretches(text: str) -> Iterator[str]:
    begin = 0  # by places: a long text is not copied for each stretch
    while len(text) - begin > STRETCH:
        min_end, max_end = begin + STRETCH // 2, begin + STRETCH
        at = max(text.rfind(_PARAGRAPH, min_end, max_end), text.rfind(" ", min_end, max_end))
        at = at if at > 0 else max_end
        yield text[begin:at].strip()
        match = _NO_SPACE.search(text, at)
        begin = match.start() if match else len(text)
    if begin < len(text):
        yield text[begin:]


def _spans(text: str, tokens: Sequence[tuple[int, int]], size: int, overlap: int) -> Iterator[tuple[int, int, int]]:
    """First character, the one after the last, and how many of them the span before has.

    Several tokens may start at one character, such as the letters of a Korean syllable: a character is never cut, and
    each span begins at a later one than the span before.
    """
    starts = [at for start, end in tokens for at in range(start, max(end, start + 1), LONG_TOKEN)]
    sentences = [match.end() for match in _SENTENCE.finditer(text)]
    paragraphs = [match.end() for match in re.finditer(_PARAGRAPH, text)]
    token, begin, former = 0, 0, 0
    while token + size < len(starts):
        beyond = bisect_right(starts, starts[token])  # the first token of the next character, so that this ends
        if beyond == len(starts):
            break
        half, limit = starts[max(token + size // 2, beyond)], starts[max(token + size, beyond)]
        end = _last(paragraphs, half, limit) or _last(sentences, half, limit) or _word_end(text, half, limit)
        yield _trimmed(text, begin, end, former)
        former = end
        begin = end
        if overlap:
            oldest = starts[max(bisect_left(starts, end) - overlap, beyond)]
            # not behind the end: what a tokenizer leaves out between two tokens is text too
            begin = min(_first(sentences, oldest, end) or _first_word(text, oldest, end), end)
        token = bisect_left(starts, begin)
    yield _trimmed(text, begin, len(text), former)


def _trimmed(text: str, begin: int, end: int, former: int) -> tuple[int, int, int]:
    while end > begin and text[end - 1].isspace():
        end -= 1
    while begin < end and text[begin].isspace():
        begin += 1
    return begin, end, max(0, min(former, end) - begin)


def _last(marks: Sequence[int], low: int, high: int) -> int | None:
    at = bisect_right(marks, high)
    return marks[at - 1] if at and marks[at - 1] >= low else None


def _first(marks: Sequence[int], low: int, before: int) -> int | None:
    at = bisect_left(marks, low)
    return marks[at] if at < len(marks) and marks[at] < before else None


def _word_end(text: str, low: int, high: int) -> int:
    """Behind the last space, or where there is none, at ``high``."""
    for at in range(high, low, -1):
        if text[at - 1].isspace():
            return at
    return high


def _first_word(text: str, low: int, before: int) -> int:
    space = _SPACE.search(text, max(low - 1, 0), before)
    return space.end() if space and space.end() < before else low
