"""HTML, as lexbor (through selectolax) reads it, which takes anything for HTML as browsers do."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from selectolax.lexbor import LexborHTMLParser, LexborNode

from service.knowledge.documents.blocks import MAX_HEADING, Block, Budget
from service.knowledge.documents.plain import decode

_HEADINGS: Final = {f"h{level}": level for level in range(1, 7)}
_SKIPPED: Final = frozenset({
    "head", "script", "style", "noscript", "template", "svg", "math", "nav", "button", "select", "textarea",
    "datalist", "iframe", "object", "canvas", "video", "audio",
})  # fmt: skip
_BLOCKS: Final = frozenset({
    "address", "article", "aside", "blockquote", "body", "caption", "dd", "details", "dialog", "div", "dl", "dt",
    "fieldset", "figcaption", "figure", "footer", "form", "header", "hr", "li", "main", "ol", "p", "pre", "section",
    "summary", "table", "tbody", "tfoot", "thead", "tr", "ul",
})  # fmt: skip
_CELLS: Final = frozenset({"td", "th"})


def read_html(data: bytes, budget: Budget) -> Iterator[Block]:
    """Headings and paragraphs, without scripts, styles, navigation and the fields of forms.

    Raises:
        DocumentError: It is not text, or too long.
    """
    tree = LexborHTMLParser(decode(data))
    title = tree.css_first("title")
    name = " ".join(title.text().split())[:MAX_HEADING] if title is not None else ""
    if name and tree.css_first("h1") is None:
        yield Block(budget.take(name), "heading", 1)
    body = tree.body
    if body is None:
        return
    gathered: list[str] = []
    heading = 0
    for node, enters in _walk(body):
        tag = node.tag or ""
        if tag == "-text":
            if not enters:
                continue
            gathered.append(budget.take(node.text_content or ""))
        elif tag == "br":
            gathered.append("\n")
        elif tag in _CELLS and not enters:
            gathered.append(" | ")
        elif tag in _BLOCKS or tag in _HEADINGS:
            text = _tidy("".join(gathered), keep_lines=tag == "pre" and not enters)
            gathered.clear()
            if text:
                yield Block(text[:MAX_HEADING], "heading", heading) if heading else Block(text)
            heading = _HEADINGS.get(tag, 0) if enters else 0


def _walk(root: LexborNode) -> Iterator[tuple[LexborNode, bool]]:
    """Every node below the root on entering and on leaving it, without recursion: pages nest as deep as they like."""
    node, depth = root, 0  # depth by counting: two nodes are compared by all that is in them
    while True:
        yield node, True
        inside = node.child if node.tag not in _SKIPPED else None
        if inside is not None:
            node, depth = inside, depth + 1
            continue
        yield node, False
        while depth and node.next is None and node.parent is not None:
            node, depth = node.parent, depth - 1
            yield node, False
        if not depth or node.next is None:
            return
        node = node.next


def _tidy(text: str, *, keep_lines: bool) -> str:
    if keep_lines:
        return text.strip("\n").rstrip()
    lines = (" ".join(line.split()) for line in text.replace("\n\n", "\n").split("\n"))
    return " ".join(line for line in lines if line).removesuffix(" |")
