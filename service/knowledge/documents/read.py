"""A document, whatever its kind, as blocks."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path, PurePath
from typing import Final

from service.knowledge.documents.blocks import MAX_BYTES, Block, Budget, DocumentError, invalid

Reader = Callable[[bytes, Budget], Iterator[Block]]
CODE: Final = (
    *(".c", ".cc", ".cpp", ".cs", ".css", ".go", ".h", ".hpp", ".ini", ".java", ".js", ".json", ".kt", ".php", ".pl"),
    *(".py", ".rb", ".rs", ".sh", ".sql", ".swift", ".tex", ".toml", ".ts", ".xml", ".yaml", ".yml"),
)
KINDS: Final = {
    ".txt": "text",
    ".text": "text",
    ".log": "text",
    ".rst": "text",
    ".md": "markdown",
    ".markdown": "markdown",
    ".html": "html",
    ".htm": "html",
    ".xhtml": "html",
    ".pdf": "pdf",
    ".docx": "docx",
    ".pptx": "pptx",
    ".xlsx": "xlsx",
    ".csv": "csv",
    ".tsv": "tsv",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    **dict.fromkeys(CODE, "text"),
}


def kind_of(filename: str) -> str:
    """The kind of a file of that name, by its suffix. Raises DocumentError if the suffix is unknown."""
    suffix = PurePath(filename).suffix.lower()
    if suffix not in KINDS:
        shown = ", ".join(sorted(set(KINDS) - set(CODE)))
        raise DocumentError(
            "unsupported_file", f"unsupported file extension {suffix[:20]!r}; supported are {shown}, and source code"
        )
    return KINDS[suffix]


def read(path: Path, kind: str) -> list[Block]:
    """The document's blocks, at least one.

    Raises:
        DocumentError: It is broken, empty or too large.
    """
    size = path.stat().st_size
    if size > MAX_BYTES:
        raise invalid(f"it has {size} bytes; at most {MAX_BYTES} are allowed; split it")
    blocks = list(_reader(kind)(path.read_bytes(), Budget()))
    if not blocks:
        raise invalid("it has no text")
    return blocks


def _reader(kind: str) -> Reader:
    # imported where needed: a reader of text need not carry a PDF library
    if kind == "pdf":
        from service.knowledge.documents.pdf import read_pdf

        return read_pdf
    if kind in ("docx", "pptx", "xlsx"):
        from service.knowledge.documents.office import read_office

        return partial(read_office, kind=kind)
    if kind == "html":
        from service.knowledge.documents.web import read_html

        return read_html
    if kind in ("csv", "tsv", "jsonl"):
        from service.knowledge.documents.tables import read_csv, read_jsonl

        return read_jsonl if kind == "jsonl" else partial(read_csv, delimiter="\t" if kind == "tsv" else None)
    from service.knowledge.documents.plain import read_markdown, read_text

    return read_markdown if kind == "markdown" else read_text
