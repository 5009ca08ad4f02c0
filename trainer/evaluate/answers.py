"""Answers on disk: a line each, appended as they come, so that a crash costs what was being asked and no more."""

from __future__ import annotations

import os
from pathlib import Path
from types import TracebackType
from typing import Generic, Protocol, Self, TypeVar

from pydantic import TypeAdapter, ValidationError

from trainer.evaluate.arms import Frozen

Key = tuple[str, str, int]
"""An arm's label, an example's id, and which asking it was, from 0."""


class Answer(Frozen):
    """What an arm said to one example. ``request`` is a digest of all that was asked; ``seconds`` counts the waiting.

    ``version`` (`name@3`) and ``digest`` are what the gateway says it served; None for the base and elsewhere.
    """

    arm: str
    example: str
    repeat: int
    request: str
    text: str
    finish_reason: str | None = None
    prompt_tokens: int = 0
    completion_tokens: int = 0
    seconds: float = 0.0
    version: str | None = None
    digest: str | None = None

    @property
    def key(self) -> Key:
        """What no two answers of one comparison have in common."""
        return self.arm, self.example, self.repeat


class Record(Protocol):
    """What a book holds: a model of pydantic's with a key."""

    @property
    def key(self) -> Key:
        """What no two records of one book have in common."""


RecordT = TypeVar("RecordT", bound=Record)


class RecordFile(Generic[RecordT]):
    """A JSONL file of records; a context manager, for one writer at a time.

    A last line that a crash left torn is cut off. A key that stands there twice counts as it stands last. A line that
    is no such record (of another version of the file) is passed over: what it held is asked again.
    """

    def __init__(self, path: Path, kind: type[RecordT]) -> None:
        self._path = path
        self._adapter = TypeAdapter(kind)
        self._file = -1
        self.found: dict[Key, RecordT] = {}

    def __enter__(self) -> Self:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._file = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        content = self._path.read_bytes()
        whole = content[: content.rfind(b"\n") + 1]
        os.ftruncate(self._file, len(whole))
        for line in whole.splitlines():
            try:
                record = self._adapter.validate_json(line)
            except ValidationError:
                continue
            self.found[record.key] = record
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        os.close(self._file)

    def add(self, record: RecordT) -> None:
        """Append a record; when this returns it outlives the process, whatever becomes of that."""
        line = self._adapter.dump_json(record, exclude_defaults=True) + b"\n"
        while line:
            line = line[os.write(self._file, line) :]
        self.found[record.key] = record
