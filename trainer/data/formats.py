"""Reading data files in any of the formats of `adapters.dataset.formats`."""

from __future__ import annotations

import hashlib

from adapters.dataset.formats import Format, read_lines
from adapters.dataset.lines import Problem
from adapters.wording import counted
from trainer.data.format import Dataset
from trainer.errors import DataInvalid, DataTooSmall

__all__ = ["Format", "read_dataset"]


def read_dataset(name: str, content: bytes, *, min_examples: int = 1) -> tuple[Format, Dataset]:
    """A data file's format and its examples.

    Args:
        name: The file's name in messages and in the lineage.
        content: Its bytes: UTF-8, one JSON object per line.

    Raises:
        DataInvalid: Lists every invalid line.
        DataTooSmall: Fewer than `min_examples`.
    """
    reader, examples = read_lines(content)
    if reader.problems:
        raise DataInvalid(reader.problems)
    if reader.kind is None:
        raise DataInvalid([Problem(1, "the file is empty")])
    if len(examples) < min_examples:
        raise DataTooSmall(f"{name} has {counted(len(examples), 'example')}; at least {min_examples} are needed.")
    sha256 = hashlib.sha256(content).hexdigest()
    return reader.kind, Dataset(name, sha256, examples, reader.ignored_keys)
