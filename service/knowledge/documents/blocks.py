"""What a document is read into: blocks of text in their order, and the one error of a document that cannot be read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal

from service.grounding.provider import Attribute

ErrorCode = Literal["unsupported_file", "invalid_file"]
MAX_TEXT: Final = 32 * 1024 * 1024
"""Characters of text that a document may have."""
MAX_BYTES: Final = 128 * 1024 * 1024
"""Bytes of a document."""
MAX_HEADING: Final = 200
"""Characters of a heading that are kept."""


class DocumentError(Exception):
    """A document that cannot be read.

    Args:
        code: OpenAI's: the kind of file is not known, or this one is broken.
        message: One sentence, for the file's ``last_error``.
    """

    def __init__(self, code: ErrorCode, message: str) -> None:
        super().__init__(message)
        self.code: ErrorCode = code
        self.message = message


@dataclass(frozen=True, slots=True)
class Block:
    """A piece of a document.

    Attributes:
        text: Never empty.
        kind: A heading, a paragraph, or a row, which shares its passage with nothing else.
        level: Of a heading, from 1.
        attributes: Of a row, its own.
    """

    text: str
    kind: Literal["heading", "text", "row"] = "text"
    level: int = 0
    attributes: Mapping[str, Attribute] | None = None

    def packed(self) -> list[Any]:
        """As JSON."""
        return [self.text, self.kind, self.level, self.attributes]


class Budget:
    """Counts what was read, so that a small file that unfolds into a huge text is stopped on the way."""

    def __init__(self, max_chars: int = MAX_TEXT) -> None:
        self._max_chars = max_chars
        self._seen = 0

    def take(self, text: str) -> str:
        """The text, counted. Raises DocumentError where it is too much."""
        self._seen += len(text)
        if self._seen > self._max_chars:
            raise DocumentError(
                "invalid_file", f"the document has more than {self._max_chars} characters of text; split it"
            )
        return text


def sound(text: str) -> str:
    """The text without halves of characters: pairs are joined, what is left alone is replaced.

    A library that reads UTF-16 without a look at it may give them, and no JSON can hold them.
    """
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")


def invalid(message: str) -> DocumentError:
    """The file is broken."""
    return DocumentError("invalid_file", message)
