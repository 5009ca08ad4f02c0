"""Questions that say the same in slightly other words, and whose answers contradict each other.

Two questions count as the same if their words are, in order, without articles, possessives, auxiliary verbs and
courtesies ("How do I return an item?", "How can I return the item, please?"), or if they are near-duplicates
(`trainer.data.similar`) whose words differ only by typing errors. Questions that differ in a number, an identifier or
any other word are different questions. Labels contradict each other if they differ; free texts if their numbers differ,
if only one of them negates, or if they share hardly a word. Texts that reword each other do not.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from itertools import combinations
from typing import Final

from adapters.dataset.lines import edits
from adapters.wording import counted
from trainer.data.findings import finding
from trainer.data.format import Example
from trainer.data.report import Finding
from trainer.data.similar import normalise
from trainer.data.split import answer, question
from trainer.data.trained_examples import NormalizedExample

MAX_QUESTION_CHARS: Final = 2000
"""Longer ones (with retrieved passages) are not compared."""
MAX_PAIRWISE: Final = 30
"""Size of a group of near-duplicates up to which each is compared with each."""
MAX_TYPING_ERRORS: Final = 2
MIN_TYPO_CHARS: Final = 5
FEW_SHARED_WORDS: Final = 0.15
"""Jaccard similarity of two answers' words up to which they have hardly a word in common."""
SHOWN_PAIRS: Final = 5

_WORD: Final = re.compile(r"\w+(?:['’]\w+)?")
_NUMBER: Final = re.compile(r"\d+(?:[.,]\d+)*")
_DROPPED: Final = frozenset(
    (
        *("a", "an", "the", "my", "our", "your", "i", "we", "you"),
        *("do", "does", "did", "can", "could", "will", "would", "may", "might", "is", "are", "am", "to"),
        *("please", "kindly", "just", "hi", "hello", "hey", "thanks"),
    )
)
"""Words without which a question is the same."""
_NEGATION: Final = re.compile(
    r"\b(?:not|no|never|cannot|unable|without|none|nothing|unavailable|impossible)\b|n['’]t\b", re.IGNORECASE
)

Pair = tuple[int, int]
"""The indices of two examples."""


def near_contradictions(
    examples: Sequence[Example], similar: Sequence[Sequence[int]], *, closed: bool
) -> list[Finding]:
    """A finding about pairs of nearly the same question with contradictory answers.

    Args:
        examples: The examples; those with exactly the same question are left to `findings.duplicates`.
        similar: Indices grouped by near-duplicate questions; indices that are not in `examples` are ignored.
        closed: Whether the answers are labels.
    """
    words = [_words(example) for example in examples]
    found: dict[Pair, None] = {}
    for first, second in (*_same_words(examples, words), *_near_words(examples, words, similar)):
        pair = (min(first, second), max(first, second))
        if pair not in found and _contradict(answer(examples[first]), answer(examples[second]), closed):
            found[pair] = None
    if not found:
        return []
    lines = [(examples[first].line, examples[second].line) for first, second in sorted(found)]
    shown = ", ".join(f"{first} and {second}" for first, second in lines[:SHOWN_PAIRS])
    message = (
        f"{counted(len(lines), 'pair of nearly the same question has', 'pairs of nearly the same question have')} "
        f"contradictory answers, such as lines {shown}: the model can only guess; correct or remove one of each pair"
    )
    return [finding("near_contradictions", message, (line for pair in lines for line in pair))]


def _words(example: Example) -> tuple[str, ...]:
    """The words that make the question what it is; none of a question that is not compared."""
    text = question(example)
    if len(text) > MAX_QUESTION_CHARS:
        return ()
    return tuple(_singular(word) for word in _WORD.findall(normalise(text)) if word not in _DROPPED)


def _singular(word: str) -> str:
    return word[:-1] if len(word) > 3 and word.endswith("s") and not word.endswith("ss") else word


def _same_words(examples: Sequence[Example], words: Sequence[tuple[str, ...]]) -> Iterator[Pair]:
    """The first example with these words, and each other one that asks in another way."""
    same: dict[tuple[str | None, tuple[str, ...]], list[tuple[str, int]]] = defaultdict(list)
    for index, (example, own) in enumerate(zip(examples, words, strict=True)):
        if own:
            normalized = NormalizedExample.example(example)
            same[normalized.system, own].append((normalized.question, index))
    for questions in same.values():
        first_text, first = questions[0]
        yield from ((first, index) for text, index in questions[1:] if text != first_text)


def _near_words(
    examples: Sequence[Example], words: Sequence[tuple[str, ...]], similar: Sequence[Sequence[int]]
) -> Iterator[Pair]:
    """Pairs of near-duplicate questions whose words differ only by typing errors."""
    times = Counter(word for own in words for word in own)
    for group in similar:
        members = [index for index in group if index < len(examples) and words[index]]
        if not 2 <= len(members) <= MAX_PAIRWISE:
            continue
        for first, second in combinations(members, 2):
            if words[first] != words[second] and _misspelt(words[first], words[second], times):
                normalized = [NormalizedExample.example(examples[index]) for index in (first, second)]
                if normalized[0].system == normalized[1].system:
                    yield first, second


def _misspelt(first: Sequence[str], second: Sequence[str], times: Counter[str]) -> bool:
    """Whether the words are the same but for MAX_TYPING_ERRORS letters, each in a word of its own."""
    if len(first) != len(second):
        return False
    different = [(one, other) for one, other in zip(first, second, strict=True) if one != other]
    return len(different) <= MAX_TYPING_ERRORS and all(_is_typo(one, other, times) for one, other in different)


def _is_typo(one: str, other: str, times: Counter[str]) -> bool:
    """Whether one is the other with a typing error: then the file has it nowhere else ("contract" is no "contact")."""
    latin = one.isascii() and other.isascii() and one.isalpha() and other.isalpha()
    long = min(len(one), len(other)) >= MIN_TYPO_CHARS
    return latin and long and min(times[one], times[other]) == 1 and edits(one, other) == 1


def _contradict(first: str, second: str, closed: bool) -> bool:
    one, other = normalise(first), normalise(second)
    if one == other or closed:
        return one != other
    numbers = [Counter(_NUMBER.findall(text)) for text in (one, other)]
    if all(numbers) and numbers[0] != numbers[1] and not (numbers[0] <= numbers[1] or numbers[1] <= numbers[0]):
        return True
    if bool(_NEGATION.search(one)) != bool(_NEGATION.search(other)):
        return True
    own, others = set(_WORD.findall(one)), set(_WORD.findall(other))
    return len(own & others) <= FEW_SHARED_WORDS * len(own | others)
