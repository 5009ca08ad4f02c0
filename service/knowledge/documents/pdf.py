"""PDF, as pypdf reads it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from io import BytesIO
from typing import Final

from pypdf import PdfReader
from pypdf.errors import DependencyError, FileNotDecryptedError, LimitReachedError, PyPdfError

from service.knowledge.documents.blocks import Block, Budget, invalid, sound

MAX_PAGES: Final = 5_000
_HYPHEN: Final = re.compile(r"(?<=[a-z])-\n(?=[a-z])")
_PARAGRAPH: Final = re.compile(r"\n[ \t]*\n\s*")
_BROKEN: Final = (PyPdfError, LimitReachedError, ValueError, TypeError, KeyError, IndexError, AttributeError, OSError)
"""What pypdf raises over a file that is no sound PDF: its own errors, and whatever a wrong object runs it into."""


def read_pdf(data: bytes, budget: Budget) -> Iterator[Block]:
    """The paragraphs of each page, under a heading with its number. Raises DocumentError."""
    try:
        reader = PdfReader(BytesIO(data))
        if reader.is_encrypted and not reader.decrypt(""):
            raise invalid("it is encrypted; upload it without a password")
        pages = len(reader.pages)
    except (FileNotDecryptedError, DependencyError) as error:
        raise invalid("it is encrypted; upload it without a password") from error
    except (*_BROKEN, ArithmeticError, RecursionError) as error:
        raise invalid(f"it is not a readable PDF ({type(error).__name__})") from error
    if pages > MAX_PAGES:
        raise invalid(f"it has {pages} pages; at most {MAX_PAGES} are allowed; split it")
    for number in range(pages):
        try:
            text = reader.pages[number].extract_text()
        except (*_BROKEN, ArithmeticError, RecursionError) as error:
            raise invalid(f"page {number + 1} cannot be read ({type(error).__name__})") from error
        paragraphs = [" ".join(part.split()) for part in _PARAGRAPH.split(_HYPHEN.sub("", budget.take(sound(text))))]
        if any(paragraphs):
            yield Block(f"page {number + 1}", "heading", 1)
            yield from (Block(part) for part in paragraphs if part)
