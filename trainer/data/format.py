"""A data file's examples; `adapters.dataset` reads the lines, for the gateway's uploads, too."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

from adapters.dataset.chat import Example, Message, Role
from adapters.dataset.formats import Format, IgnoredKey, read_lines, split_lines
from adapters.wording import counted
from trainer.errors import DataInvalid, DataTooSmall

__all__ = ["Dataset", "Example", "Message", "Role", "parse_chat", "read_chat", "split_lines"]


@dataclass(frozen=True, slots=True)
class Dataset:
    """A data file's examples, the SHA-256 of its bytes, and the keys of its lines that are not used."""

    name: str
    sha256: str
    examples: tuple[Example, ...]
    ignored_keys: tuple[IgnoredKey, ...] = ()


def read_chat(path: Path, *, min_examples: int = 1) -> Dataset:
    """Read a file of chat examples.

    Raises:
        DataInvalid: Lists every invalid line.
        DataTooSmall: Fewer than `min_examples`.
        OSError: The file cannot be read.
    """
    content = path.read_bytes()
    examples = parse_chat(content)
    if len(examples) < min_examples:
        raise DataTooSmall(f"{path.name} has {counted(len(examples), 'example')}; at least {min_examples} are needed.")
    return Dataset(name=path.name, sha256=hashlib.sha256(content).hexdigest(), examples=examples)


def parse_chat(content: bytes) -> tuple[Example, ...]:
    """The examples in `content`, UTF-8 with or without a byte-order mark. Raises DataInvalid."""
    reader, examples = read_lines(content, Format.CHAT)
    if reader.problems:
        raise DataInvalid(reader.problems)
    return examples
