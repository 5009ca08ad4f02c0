"""Text and Markdown."""

from __future__ import annotations

import codecs
import re
from collections.abc import Iterator
from typing import Final

from markdown_it import MarkdownIt
from markdown_it.token import Token

from service.knowledge.documents.blocks import MAX_HEADING, Block, Budget, invalid

_BLANK: Final = re.compile(r"\n[ \t]*\n\s*")
_FRONT: Final = re.compile(r"\A---[ \t]*\n(.*?)\n---[ \t]*\n", re.DOTALL)
_KEY: Final = re.compile(r"""["']?[\w.-]+["']?:(?:[ \t].*)?""")
_REST: Final = re.compile(r"[ \t]*#.*|[ \t]+.*|-(?:[ \t].*)?|")
"""What else stands in front matter: a comment, what belongs to the key above, an item of a list, nothing."""
_MARKS: Final = ((codecs.BOM_UTF8, "utf-8-sig"), (codecs.BOM_UTF16_LE, "utf-16"), (codecs.BOM_UTF16_BE, "utf-16"))


def decode(data: bytes) -> str:
    """The text of a file in UTF-8, or in UTF-16 with a byte order mark. Line ends become ``\\n``.

    Raises:
        DocumentError: It is in another encoding, or is not text.
    """
    encoding = next((name for mark, name in _MARKS if data.startswith(mark)), "utf-8")
    try:
        text = data.decode(encoding)
    except UnicodeDecodeError as error:
        raise invalid(f"it is not text in {encoding}: byte {error.start} cannot be read") from error
    at = text.find("\0")
    if at >= 0:
        raise invalid(f"it is not text: character {at} is a NUL")
    return text.replace("\r\n", "\n").replace("\r", "\n")


def read_text(data: bytes, budget: Budget) -> Iterator[Block]:
    """The paragraphs, which are separated by blank lines. Raises DocumentError."""
    for paragraph in _BLANK.split(budget.take(decode(data))):
        if paragraph.strip():
            yield Block(paragraph.strip())


def read_markdown(data: bytes, budget: Budget) -> Iterator[Block]:
    """The headings, and the blocks between them in Markdown. Raises DocumentError."""
    text = _without_front_matter(budget.take(decode(data)))
    lines = text.split("\n")
    tokens = MarkdownIt("commonmark").enable("table").parse(text)
    for number, token in enumerate(tokens):
        if token.level != 0 or token.map is None or token.nesting < 0:
            continue
        if token.type == "heading_open":
            title = _title(tokens[number + 1])
            if title:
                yield Block(title, "heading", int(token.tag[1:]))
            continue
        block = "\n".join(lines[token.map[0] : token.map[1]]).strip()
        if block:
            yield Block(block)


def _without_front_matter(text: str) -> str:
    """The text without a page's settings, which are `key: value` between two rules; what else stands there is text."""
    front = _FRONT.match(text)
    if front is None:
        return text
    lines = front[1].split("\n")
    if _KEY.fullmatch(lines[0]) and all(_KEY.fullmatch(line) or _REST.fullmatch(line) for line in lines):
        return text[front.end() :]
    return text


def _title(inline: Token) -> str:
    shown = {"softbreak": "\n", "hardbreak": "\n"}
    children = [child for child in inline.children or () if child.type in ("text", "code_inline", *shown)]
    words = "".join(shown.get(child.type, child.content) for child in children)
    return " ".join((words or inline.content).split())[:MAX_HEADING]
