"""What a document is read into: blocks of text in their order, and the one error of a document that cannot be read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal

from service.grounding.provider import Attribute, Turns

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
        turns: Of a row that is an example, which is never cut.
        level: Of a heading, from 1.
        attributes: Of a row, its own.
    """

    text: str
    kind: Literal["heading", "text", "row"] = "text"
    level: int = 0
    attributes: Mapping[str, Attribute] | None = None
    turns: Turns | None = None

    def packed(self) -> list[Any]:
        """The fields as a list that JSON can hold."""
        return [self.text, self.kind, self.level, self.attributes, self.turns]


class Budget:
    """Limits the text extracted from one document, since a small file may expand into a huge text."""

    def __init__(self, max_chars: int = MAX_TEXT) -> None:
        self._max_chars = max_chars
        self._chars = 0

    def take(self, text: str) -> str:
        """Count ``text`` and return it. Raises DocumentError once more than ``max_chars`` characters were counted."""
        self._chars += len(text)
        if self._chars > self._max_chars:
            raise DocumentError(
                "invalid_file", f"the document has more than {self._max_chars} characters of text; split it"
            )
        return text


def sound(text: str) -> str:
    """The text with surrogate pairs joined and lone surrogates replaced, so that it can be encoded as UTF-8.

    A library that reads UTF-16 without a look at it may give them, and no JSON can hold them.
    """
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")


def invalid(message: str) -> DocumentError:
    """The DocumentError `invalid_file` with this message."""
    return DocumentError("invalid_file", message)
