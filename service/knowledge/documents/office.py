"""Office documents: DOCX as mammoth reads it, PPTX as python-pptx does, XLSX as calamine (Rust) does."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from io import BytesIO
from typing import Any, Final

from service.knowledge.documents.blocks import MAX_HEADING, Block, Budget, DocumentError, invalid, sound
from service.knowledge.documents.tables import read_rows
from service.knowledge.documents.web import read_html

_CELL: Final = re.compile(r"<(t[dh])\b[^>]*>((?:(?!<t[dh]\b).)*?)</\1>", re.DOTALL)
"""A cell without cells of a table in it."""
_TAG: Final = re.compile(r"<[^>]*>")


def read_office(data: bytes, budget: Budget, *, kind: str) -> Iterator[Block]:
    """Headings, paragraphs and tables; of a spreadsheet one block per row, as for CSV.

    Args:
        kind: A key of READERS.

    Raises:
        DocumentError: It cannot be read, or the library for it is not installed.
    """
    try:
        yield from READERS[kind](data, budget)
    except (DocumentError, MemoryError):
        raise
    except ImportError as error:
        raise DocumentError("unsupported_file", f"reading .{kind} files needs the extra `grounding`") from error
    except Exception as error:  # whatever a wrong part of the archive runs a library into
        raise invalid(f"it cannot be read as a .{kind} file: it is broken or encrypted") from error


def _read_docx(data: bytes, budget: Budget) -> Iterator[Block]:
    import mammoth

    without_images = mammoth.images.img_element(lambda _image: {})  # else each stands in the text as base64
    options = {"convert_image": without_images, "include_embedded_style_map": False}
    page = mammoth.convert_to_html(BytesIO(data), **options).value
    # a cell holds paragraphs: as they stand, they would cut a table into its cells
    yield from read_html(_CELL.sub(lambda cell: f"<td>{_TAG.sub(' ', cell[2])}</td>", page).encode(), budget)


def _read_pptx(data: bytes, budget: Budget) -> Iterator[Block]:
    from pptx import Presentation

    for number, slide in enumerate(Presentation(BytesIO(data)).slides, 1):
        title = slide.shapes.title
        name = " ".join(sound(title.text).split()) if title is not None and title.has_text_frame else ""
        texts = [_tidy(text) for text in _texts(shape for shape in slide.shapes if shape != title)]
        if slide.has_notes_slide and slide.notes_slide.notes_text_frame is not None:
            texts.append(_tidy(slide.notes_slide.notes_text_frame.text))
        if name or any(texts):
            yield Block(name[:MAX_HEADING] or f"slide {number}", "heading", 1)
            texts.insert(0, name if len(name) > MAX_HEADING else "")
            yield from (Block(budget.take(text)) for text in texts if text)


def _texts(shapes: Iterable[Any]) -> Iterator[str]:
    """The texts of shapes of a slide, those of groups included; a table's rows are lines."""
    for shape in shapes:
        if hasattr(shape, "shapes"):
            yield from _texts(shape.shapes)
        elif shape.has_text_frame:
            yield shape.text_frame.text
        elif getattr(shape, "has_table", False):
            yield "\n".join(" | ".join(cell.text for cell in row.cells) for row in shape.table.rows)


def _tidy(text: str) -> str:
    lines = (" ".join(line.split()) for line in sound(text).replace("\0", " ").replace("\v", "\n").split("\n"))
    return "\n".join(line for line in lines if line)


def _read_xlsx(data: bytes, budget: Budget) -> Iterator[Block]:
    from python_calamine import CalamineWorkbook

    workbook = CalamineWorkbook.from_filelike(BytesIO(data))
    for name in workbook.sheet_names:
        rows = [list(map(_cell, row)) for row in workbook.get_sheet_by_name(name).iter_rows()]
        filled = [row for row in rows if any(row)]
        if filled:
            yield Block(budget.take(name)[:MAX_HEADING], "heading", 1)
        if len(filled) == 1:  # no header, as nothing follows it
            yield Block(budget.take(" | ".join(cell for cell in filled[0] if cell)), "row")
        else:
            named = ((f"row {at} of the sheet {name!r}", row) for at, row in enumerate(rows, 1))
            yield from read_rows(named, budget)


def _cell(value: Any) -> str:
    # 15 digits are what a sheet shows of a number; it has no whole ones
    return f"{value:.15g}" if isinstance(value, float) else str(value).replace("\0", " ").strip()


READERS: Final[dict[str, Callable[[bytes, Budget], Iterator[Block]]]] = {
    "docx": _read_docx,
    "pptx": _read_pptx,
    "xlsx": _read_xlsx,
}
