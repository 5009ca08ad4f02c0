"""Answers on disk, appended one line at a time, so that a crash loses only the requests in flight."""

from __future__ import annotations

import os
from pathlib import Path
from types import TracebackType
from typing import Generic, Protocol, Self, TypeVar

from pydantic import TypeAdapter, ValidationError

from trainer.runs.protocol import Frozen

Key = tuple[str, str, int]
"""An arm's label, an example's id, and the number of the run, from 0."""


class Answer(Frozen):
    """An arm's answer to one example. ``request``: a digest of the whole request; ``seconds``: includes queueing.

    ``version`` (`name@3`) and ``digest``: what the gateway reports it served; None for the base and outside endpoints.
    ``passages``: a digest of those that the gateway put into the prompt; None if there were none.
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
    passages: str | None = None

    @property
    def key(self) -> Key:
        """Unique within a comparison."""
        return self.arm, self.example, self.repeat


class Record(Protocol):
    """A pydantic model with a key."""

    @property
    def key(self) -> Key:
        """Unique within a file."""


RecordT = TypeVar("RecordT", bound=Record)


class RecordFile(Generic[RecordT]):
    """A JSONL file of records; a context manager, for one writer at a time.

    A truncated last line, left by a crash, is removed. Of records with the same key the last wins. Lines that are not
    valid records (of another format version) are skipped, so their requests are sent again.
    """

    def __init__(self, path: Path, kind: type[RecordT]) -> None:
        self._path = path
        self._adapter = TypeAdapter(kind)
        self._file = -1
        self.records: dict[Key, RecordT] = {}

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
            self.records[record.key] = record
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        os.close(self._file)

    def add(self, record: RecordT) -> None:
        """Append a record. Once this returns, the record survives a crash of this process."""
        line = self._adapter.dump_json(record, exclude_defaults=True) + b"\n"
        while line:
            line = line[os.write(self._file, line) :]
        self.records[record.key] = record
