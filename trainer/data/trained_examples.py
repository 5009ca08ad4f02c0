"""Tells whether an example was trained on: a memorised answer must not count in an evaluation.

The questions are compared, not the answers: an answer is memorised with its question, and in another wording it is
still known. Every trained answer of a conversation counts, with the messages before it. What counts as the same
question and as a near-duplicate is defined in `trainer.data.similar`.

Another system message makes no other example: a date in it would hide every copy. Only where the training file shows
that its answers depend on the system message (`TrainedExamples.by_system`) are such examples told apart.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import Enum
from functools import cached_property
from itertools import accumulate, takewhile
from typing import Final, NamedTuple, Self

from trainer.data.folding import fold, key
from trainer.data.format import Example, Message
from trainer.data.similar import NearDuplicates, contains, normalise

MAX_SIMILAR_SHARE: Final = 0.2
"""Share of the held-out examples above which near-duplicates mean that the file is a copy of the training file.

If the questions of BANKING77 are drawn at random into both files, at most 8.6% are near-duplicates or contain a trained
question (1,000 held-out questions, 9,000 training questions, ten draws; `python -m loadtests.training.leaks`)."""
BY_SYSTEM_SHARE: Final = 0.1
"""Share of a training file's questions with other answers under another system message from which it decides."""
MAX_EARLIER_CHARS: Final = 20_000_000
"""Near-duplicates of earlier answers of conversations are searched up to so many characters in all, the shortest first:
memory grows with the square of a conversation's turns. The others are found if they are the same."""
SHOWN_CHARS: Final = 80
SHOWN_IDS: Final = 5
MAX_ID_CHARS: Final = 40


class NormalizedExample(NamedTuple):
    """The normalised texts of an example for comparison; ``system`` is None without a system message.

    ``text``: the question as it was written, all its messages. ``last``: the last of them. ``earlier``: the earlier
    answers of the same conversation that are trained, each with the messages before it; filled by `trained` alone.
    """

    system: str | None
    question: str
    answer: str
    text: str
    last: str = ""
    earlier: tuple[NormalizedExample, ...] = ()

    @classmethod
    def of(cls, turns: Iterable[tuple[str, str]], answer: str) -> Self:
        """From the roles and contents of the messages before the last answer."""
        prompt = list(turns)
        systems = [content for role, content in prompt if role == "system"]
        messages = [content for role, content in prompt if role != "system"]
        question = "\n".join(messages)
        system = key(fold("\n".join(systems))) if systems else None
        return cls(system, normalise(question), normalise(answer), question, messages[-1] if messages else "")

    @classmethod
    def example(cls, example: Example) -> Self:
        """From an example of a data file."""
        return cls.of(_turns(example.prompt), example.judged.answer)

    @classmethod
    def trained(cls, example: Example) -> NormalizedExample:
        """From an example of a training file: every answer in it that is trained."""
        last = len(example.prompt)
        earlier = [at for at, message in enumerate(example.messages[:last]) if message.trained]
        messages = example.messages
        return cls.example(example)._replace(
            earlier=tuple(cls.of(_turns(messages[:at]), messages[at].answer) for at in earlier)
        )


def _turns(messages: Sequence[Message]) -> list[tuple[str, str]]:
    return [(message.role, message.text) for message in messages]


class Relation(Enum):
    """How a held-out question is related to a trained one; the first that holds."""

    SAME = "repeats"
    SIMILAR = "is a near-duplicate of"
    CONTAINS = "contains"
    """The last messages as well: a conversation that goes on after a trained question asks something else."""
    OTHER_SYSTEM = "stands under another system message than"
    """One of these, under another system message. Left out as near-duplicates are."""


@dataclass(frozen=True, slots=True)
class Match:
    """A held-out example, by its index, and the first trained question that it is related to."""

    index: int
    question: str
    trained: str
    relation: Relation

    def __str__(self) -> str:
        return f"{_shown(self.question)} {self.relation.value} the trained {_shown(self.trained)}"


class TrainedExamples:
    """The examples of a training.

    Args:
        common: Ignore the system message if all examples share it: then it is the version's setting.
    """

    def __init__(self, examples: Iterable[NormalizedExample], *, common: bool = False) -> None:
        self._lines = list(examples)
        self._systems_ignored = common and len({example.system for example in self._lines}) == 1

    def remove(self, held_out: Iterable[NormalizedExample]) -> list[NormalizedExample]:
        """Remove the examples that were held out of the file (question and answer, as written but for case, width and
        white space), with their earlier answers, and return them."""
        unseen = {(example.question, example.answer) for example in held_out}
        removed = [example for example in self._lines if (example.question, example.answer) in unseen]
        self._lines = [example for example in self._lines if (example.question, example.answer) not in unseen]
        for made_of_lines in ("_examples", "_compared", "_same", "_near_duplicates"):
            self.__dict__.pop(made_of_lines, None)
        return removed

    def leaks(self, held_out: Sequence[NormalizedExample]) -> list[Match]:
        """The held-out examples that were trained on, near-duplicates of these, and those that contain one, in order.

        Under another system message as well, unless answers depend on it (`by_system`).
        """
        by_system = self.by_system
        return [
            match for match in self.matches(held_out) if match.relation is not Relation.OTHER_SYSTEM or not by_system
        ]

    @property
    def by_system(self) -> bool:
        """Whether answers depend on the system message, as those of several personas do: a share of the questions,
        BY_SYSTEM_SHARE, stand under several system messages and have no answer in common."""
        answers: dict[str, dict[str | None, set[str]]] = {}
        for example in self._lines:
            under = answers.setdefault(key(fold(example.text)), {})
            under.setdefault(example.system, set()).add(example.answer)
        differing = sum(len(under) > 1 and not set.intersection(*under.values()) for under in answers.values())
        return differing >= max(1, BY_SYSTEM_SHARE * len(answers))

    def matches(self, held_out: Sequence[NormalizedExample]) -> list[Match]:
        """The same, and in any case the examples under another system message than one that was trained on."""
        matches = []
        near_duplicates = self._near_duplicates.of([example.text for example in held_out], containing=True)
        for index, (example, near) in enumerate(zip(held_out, near_duplicates, strict=True)):
            same = [*near.same, *self._same.get(key(fold(example.text)), ())]
            contained = [at for at in near.contained if self._ends_alike(example, at)]
            for relation, trained in (
                (Relation.SAME, [at for at in same if self._comparable(example, at)]),
                (Relation.SIMILAR, [at for at in near.similar if self._comparable(example, at)]),
                (Relation.CONTAINS, [at for at in contained if self._comparable(example, at)]),
                (Relation.OTHER_SYSTEM, [*same, *near.similar, *contained]),
            ):
                if trained:
                    matches.append(Match(index, example.text, self._examples[trained[0]].text, relation))
                    break
        return matches

    @cached_property
    def _examples(self) -> list[NormalizedExample]:
        """The lines' own, then the earlier answers of their conversations, the shortest first."""
        earlier = [example for line in self._lines for example in line.earlier]
        return [*self._lines, *sorted(earlier, key=lambda example: len(example.text))]

    @cached_property
    def _compared(self) -> int:
        """How many of the examples near-duplicates are searched among: all but the longest earlier answers."""
        lengths = accumulate(len(example.text) for example in self._examples[len(self._lines) :])
        return len(self._lines) + sum(1 for _ in takewhile(lambda total: total <= MAX_EARLIER_CHARS, lengths))

    @cached_property
    def _near_duplicates(self) -> NearDuplicates:
        texts = [example.text for example in self._examples[: self._compared]]
        return NearDuplicates(texts, among=texts[: len(self._lines)])  # a conversation's sentences are no templates

    @cached_property
    def _same(self) -> dict[str, list[int]]:
        """The indices of the other examples, by what makes two questions the same."""
        indices: dict[str, list[int]] = {}
        for at in range(self._compared, len(self._examples)):
            indices.setdefault(key(fold(self._examples[at].text)), []).append(at)
        return indices

    def _ends_alike(self, example: NormalizedExample, trained: int) -> bool:
        """Whether the last message contains that of the trained question, which the whole question contains."""
        return example.last == example.text or contains(example.last, self._examples[trained].last)

    def _comparable(self, example: NormalizedExample, trained: int) -> bool:
        """Whether no system message tells the two apart."""
        system = self._examples[trained].system
        return self._systems_ignored or None in (example.system, system) or example.system == system


def must_be_refused(leaks: Sequence[Match], held_out: int) -> bool:
    """Whether these leaks among so many held-out examples must be refused. If not, leaving them out is enough."""
    return any(leak.relation is Relation.SAME for leak in leaks) or len(leaks) > MAX_SIMILAR_SHARE * held_out


def describe_leaks(leaks: Sequence[Match], held_out: int, ids: Sequence[str], trained: str) -> str:
    """The beginning of an error message: how many of the held-out examples leak, which, and one of them.

    Args:
        leaks: At least one.
        held_out: The number of held-out examples.
        ids: The id of each leak.
        trained: The training file, as in "questions in …".
    """
    shown = ", ".join(each[:MAX_ID_CHARS] for each in ids[:SHOWN_IDS])
    first = min(leaks, key=lambda leak: (leak.relation is not Relation.SAME, leak.index))
    return (
        f"{len(leaks)} of {held_out} held-out examples (the first: {shown}) repeat or nearly repeat questions in "
        f"{trained}; for example, {first}. Differences in case, punctuation, greetings, and invisible or look-alike "
        "characters do not make another question, nor do words around it, another answer or another system message"
    )


def _shown(text: str) -> str:
    shown = " ".join(text.split())
    return repr(shown if len(shown) <= SHOWN_CHARS else f"{shown[: SHOWN_CHARS - 1]}…")
