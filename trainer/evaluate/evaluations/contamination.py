"""Contamination: held-out examples that a version, or one of its ancestors, was trained on or is shown in its prompt.

Everything comes from the gateway, with the job's key: each version's lineage, the training file that it names, the
examples that the version's job held out of that file, which the job's verdict names, and the examples in its settings.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from pydantic import ValidationError

from trainer.data.folding import fold, squeezed
from trainer.data.format import split_lines
from trainer.data.formats import read_dataset
from trainer.data.trained_examples import NormalizedExample, TrainedExamples
from trainer.errors import DataError, GatewayRefused
from trainer.evaluate.arms import Question
from trainer.runs.directory import RunDirectory
from trainer.runs.gateway import Gateway

MAX_VERSIONS: Final = 32
"""Bounds one chain of parents: the lineage is in metadata that any uploader can write."""
MIN_QUOTED_CHARS: Final = 16
"""Length of a question, without spaces, from which a system prompt that contains it quotes it."""
FETCHED_FILE: Final = "taught.jsonl"


@dataclass(frozen=True, slots=True)
class VersionTraining:
    """The ids of a version's training file and of the file with its job's held-out questions; None if unknown."""

    version: str
    file: str | None
    held_out: str | None


def training_chain(gateway: Gateway, version: str | None) -> Iterator[VersionTraining]:
    """Yield the training of a version (`name@3`) and of its ancestors, newest first.

    Raises:
        GatewayRefused: A version was deleted, or this key may not read it; what was yielded before is valid.
        GatewayUnreachable: The gateway was unreachable for too long.
    """
    visited: set[str] = set()
    while version is not None and version not in visited and len(visited) < MAX_VERSIONS:
        visited.add(version)
        value = gateway.metadata(version).get("lineage")
        lineage: dict[str, Any] = value if isinstance(value, dict) else {}
        files = lineage.get("files")
        file = (
            next((file_id for file_id in files if isinstance(file_id, str)), None) if isinstance(files, list) else None
        )
        yield VersionTraining(version, file, gateway.held_out_file(version) if file is not None else None)
        parent = lineage.get("parent")
        version = parent if isinstance(parent, str) and "@" in parent else None


class TrainingHistory:
    """Finds held-out questions that versions were trained on.

    Args:
        warn: Called with a message about each version that could not be checked.
    """

    def __init__(self, gateway: Gateway, directory: RunDirectory, warn: Callable[[str], None]) -> None:
        self._gateway, self._directory, self._warn = gateway, directory, warn
        self._cache: dict[str, TrainedExamples | None] = {}

    def held_out(self, version: str) -> list[NormalizedExample] | None:
        """What the version's own job held out, according to its verdict; None if unknown.

        Raises:
            GatewayUnreachable: The gateway was unreachable for too long.
        """
        try:
            file = self._gateway.held_out_file(version)
            return None if file is None else questions_of_job_file(self._fetch(file))
        except GatewayRefused as error:
            self._warn(f"cannot tell what the job of {version} held out: {error.message}")
            return None

    def trained_on(
        self, versions: Sequence[str | None], questions: Sequence[Question], *, excluded: str
    ) -> tuple[str, ...]:
        """The ids of the questions that these versions or their ancestors were trained on, or near-duplicates of them.

        What stands as an example in a version's prompt counts as trained on.

        Args:
            versions: `name@3`; None is skipped.
            questions: The held-out questions.
            excluded: The version whose own training file is checked elsewhere, though not the examples in its prompt.

        Raises:
            GatewayUnreachable: The gateway was unreachable for too long.
        """
        held_out = [normalized_question(question) for question in questions]
        seen: set[int] = set()
        for version in versions:
            try:
                for training in training_chain(self._gateway, version):
                    examples = self._trained_examples(training) if training.version != excluded else None
                    seen |= {leak.index for leak in examples.leaks(held_out)} if examples is not None else set()
                    shown = self._gateway.settings(training.version).get("examples") or ()
                    seen |= shown_in_prompt([(each["user"], each["assistant"]) for each in shown], held_out)
            except GatewayRefused as error:
                self._warn(f"cannot tell what {version} was trained on: {error.message}")
        return tuple(question.id for index, question in enumerate(questions) if index in seen)

    def _trained_examples(self, training: VersionTraining) -> TrainedExamples | None:
        if training.file is None:
            return None
        if training.version not in self._cache:
            self._cache[training.version] = self._read_trained_examples(
                training.version, training.file, training.held_out
            )
        return self._cache[training.version]

    def _read_trained_examples(self, version: str, file: str, held_out: str | None) -> TrainedExamples | None:
        try:
            data = read_dataset(file, self._fetch(file))[1]
            trained = TrainedExamples(map(NormalizedExample.trained, data.examples), common=True)
            trained.remove(questions_of_job_file(self._fetch(held_out)) if held_out is not None else ())
            return trained
        except (GatewayRefused, DataError) as error:
            self._warn(f"the training data of {version} was not checked: {error.message}")
            return None

    def _fetch(self, file: str) -> bytes:
        path = self._directory.path(FETCHED_FILE)
        self._gateway.fetch_content(file, path)
        content = path.read_bytes()
        path.unlink()
        return content


def shown_in_prompt(examples: Sequence[tuple[str, str]], held_out: Sequence[NormalizedExample]) -> set[int]:
    """The indices of the held-out questions that a prompt has as examples (question, answer), or near-duplicates."""
    if not examples:
        return set()
    shown = TrainedExamples(NormalizedExample.of([("user", question)], answer) for question, answer in examples)
    return {leak.index for leak in shown.leaks(held_out)}


def quoted_in_prompt(system: Sequence[str], held_out: Sequence[Question]) -> set[int]:
    """The indices of the held-out questions whose text stands in one of these system prompts; short ones only if their
    answer stands in the same line, since what a prompt is about has their words as well."""
    wholes = [squeezed(fold(prompt)) for prompt in system]
    lines = [squeezed(fold(line)) for prompt in system for line in prompt.splitlines()]
    quoted = set()
    for index, question in enumerate(held_out):
        asked, reference = squeezed(fold(question.last_message)), squeezed(fold(question.reference))
        if len(asked) >= MIN_QUOTED_CHARS:
            found = any(asked in whole for whole in wholes)
        else:
            both = bool(asked and reference)
            found = both and any(asked in line and reference in line.replace(asked, "", 1) for line in lines)
        if found:
            quoted.add(index)
    return quoted


def normalized_question(question: Question) -> NormalizedExample:
    """The question and its reference, normalised for comparison with training examples."""
    return NormalizedExample.of([(turn.role, turn.text) for turn in question.turns], question.reference)


def questions_of_job_file(content: bytes) -> list[NormalizedExample]:
    """The questions in a file that a job stored; invalid lines are skipped."""
    questions = []
    for line in split_lines(content):
        try:
            questions.append(normalized_question(Question.model_validate_json(line)))
        except ValidationError:
            continue
    return questions


def left_out_note(trained_on: Sequence[str], total: int) -> str:
    """The report's sentence on the questions that are left out, of ``total``."""
    return (
        f"{len(trained_on)} of {total} held-out examples are left out: an earlier version that this one continues, or "
        "the live one, was trained on them or on near-duplicates of them, or has them in its prompt"
    )


def shown_note(shown: Sequence[str], total: int, version: str) -> str:
    """The report's sentence on the questions that are left out because the version's prompt has them."""
    return (
        f"{len(shown)} of {total} held-out examples are left out: the prompt of {version} has them, or near-duplicates "
        "of them, among its examples or in its system message"
    )


def shared_groups_note(held_out: Sequence[Question], trained_on: Sequence[Question]) -> str | None:
    """The report's sentence on held-out questions with the `group` of a training example; None if there are none.

    They stay: a new question of a known customer may be what the version is for. But they are not independent of what
    it was trained on, and a split would have kept the group on one side.
    """
    trained_groups = {question.group for question in trained_on} - {None}
    shared = sum(question.group in trained_groups for question in held_out)
    if not shared:
        return None
    return (
        f"{shared} of {len(held_out)} held-out examples have the `group` of a training example: the scores say how "
        "good the version is for groups that it knows, not for new ones"
    )


def shown_answers_note(held_out: Sequence[Question], grounding: Mapping[str, Any] | None) -> str | None:
    """The report's sentence on held-out questions that a version's store of examples may show their own answers; None
    if there are none. Without a `group` nothing keeps one from its own example."""
    if (grounding or {}).get("insert_as") != "turns":  # of other stores nobody here knows what they hold
        return None
    without = sum(question.group is None for question in held_out)
    if not without:
        return None
    return (
        f"{without} of {len(held_out)} held-out examples have no `group`: if the version's store of examples holds "
        "them, it was shown their answers"
    )


def unchecked_note(version: str, reason: str) -> str:
    """The report's sentence on held-out examples that were not compared with the version's training data."""
    return f"whether {version} was trained on held-out examples was not checked: {reason}"


def near_duplicates_note(left_out: Sequence[str], total: int, version: str) -> str:
    """The report's sentence on the questions that are left out because of the version's own training file."""
    return (
        f"{len(left_out)} of {total} held-out examples are left out: they are near-duplicates of examples that "
        f"{version} was trained on, or contain their questions"
    )
