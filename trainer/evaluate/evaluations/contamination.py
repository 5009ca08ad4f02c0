"""What a version has learnt by heart: what it, and each version that it was trained on from, was trained on.

All of it comes from the gateway, with the job's key: the lineage that each version carries, the file that it names, and
what the version's own job held out of that file, which its training's verdict names.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

from pydantic import ValidationError

from trainer.data.format import split_lines
from trainer.data.formats import read_dataset
from trainer.data.trained_examples import NormalizedExample, TrainedExamples
from trainer.errors import DataError, GatewayRefused
from trainer.evaluate.arms import Question
from trainer.runs.directory import RunDirectory
from trainer.runs.gateway import Gateway

MOST_VERSIONS: Final = 32
"""Of one chain: nobody trains on that often, and metadata are an uploader's."""
FETCHED: Final = "taught.jsonl"


@dataclass(frozen=True, slots=True)
class Lesson:
    """What one version was trained on: the file's id, and that of the questions that its job held out, if known."""

    version: str
    file: str | None
    held_out: str | None


def lessons(gateway: Gateway, version: str | None) -> Iterator[Lesson]:
    """Those of a version (`name@3`) and of those that it was trained on from, the newest first.

    Raises:
        GatewayRefused: A version is not there any more, or not for this key; what came before it holds.
        GatewayUnreachable.
    """
    known: set[str] = set()
    while version is not None and version not in known and len(known) < MOST_VERSIONS:
        known.add(version)
        lineage = gateway.metadata(version).get("lineage")
        said: dict[str, Any] = lineage if isinstance(lineage, dict) else {}
        files = said.get("files")
        file = next((each for each in files if isinstance(each, str)), None) if isinstance(files, list) else None
        yield Lesson(version, file, gateway.held_out_file(version) if file is not None else None)
        parent = said.get("parent")
        version = parent if isinstance(parent, str) and "@" in parent else None


class Memory:
    """Says which held-out questions were taught.

    Args:
        say: Hears what could not be looked at.
    """

    def __init__(self, gateway: Gateway, directory: RunDirectory, say: Callable[[str], None]) -> None:
        self._gateway, self._directory, self._say = gateway, directory, say
        self._read: dict[str, TrainedExamples | None] = {}

    def held_out(self, version: str) -> list[NormalizedExample] | None:
        """What the version's own job held out, as its training's verdict says; None where nothing says it.

        Raises:
            GatewayUnreachable: It was away for too long.
        """
        try:
            file = self._gateway.held_out_file(version)
            return None if file is None else held_out_of(self._content(file))
        except GatewayRefused as error:
            self._say(f"what the job of {version} held out is not known: {error.message}")
            return None

    def taught(self, versions: Sequence[str | None], asked: Sequence[Question], *, but: str) -> tuple[str, ...]:
        """The ids of the questions that stand in what these versions, and those before them, were trained on.

        Args:
            versions: `name@3`; None is none.
            but: The version whose own training is looked at elsewhere.

        Raises:
            GatewayUnreachable: It was away for too long.
        """
        said = {question.id: as_said(question) for question in asked}
        found: set[str] = set()
        for version in versions:
            try:
                for lesson in lessons(self._gateway, version):
                    learnt = self._learnt(lesson) if lesson.version != but else None
                    found |= {each for each, one in said.items() if learnt is not None and learnt.contains(one)}
            except GatewayRefused as error:
                self._say(f"what {version} was trained on is not known: {error.message}")
        return tuple(each for each in said if each in found)

    def _learnt(self, lesson: Lesson) -> TrainedExamples | None:
        if lesson.file is None:
            return None
        if lesson.version not in self._read:
            self._read[lesson.version] = self._reading(lesson.version, lesson.file, lesson.held_out)
        return self._read[lesson.version]

    def _reading(self, version: str, file: str, held_out: str | None) -> TrainedExamples | None:
        try:
            data = read_dataset(file, self._content(file))[1]
            found = TrainedExamples((NormalizedExample.example(example) for example in data.examples), common=True)
            return found.without(held_out_of(self._content(held_out)) if held_out is not None else ())
        except (GatewayRefused, DataError) as error:
            self._say(f"what {version} was trained on is not looked at: {error.message}")
            return None

    def _content(self, file: str) -> bytes:
        path = self._directory.path(FETCHED)
        self._gateway.fetch_content(file, path)
        content = path.read_bytes()
        path.unlink()
        return content


def as_said(question: Question) -> NormalizedExample:
    """A question as it is compared with what was taught."""
    return NormalizedExample.of([(turn.role, turn.content) for turn in question.turns], question.reference)


def held_out_of(content: bytes) -> list[NormalizedExample]:
    """The questions of a file that a job kept; what is none is passed over."""
    found = []
    for line in split_lines(content):
        try:
            found.append(as_said(Question.model_validate_json(line)))
        except ValidationError:
            continue
    return found


def left_out(taught: Sequence[str], of: int) -> str:
    """What is said of questions that are not asked."""
    return (
        f"{len(taught)} of {of} held-out examples are left out: a version that this one was trained on from, or the "
        "one that is live, was trained on them"
    )
