"""Office documents: DOCX as mammoth reads it, PPTX as python-pptx does, XLSX as calamine (Rust) does."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from io import BytesIO
from typing import Any, Final

from service.knowledge.documents.blocks import MAX_HEADING, Block, Budget, DocumentError, invalid, sound
from service.knowledge.documents.tables import read_rows
from service.knowledge.documents.web import read_html


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
    page = mammoth.convert_to_html(BytesIO(data), convert_image=without_images).value
    # each cell is a paragraph in itself: as it stands, a table would be cut into its cells
    yield from read_html(page.replace("<td><p>", "<td>").replace("</p></td>", "</td>").encode(), budget)


def _read_pptx(data: bytes, budget: Budget) -> Iterator[Block]:
    from pptx import Presentation

    for number, slide in enumerate(Presentation(BytesIO(data)).slides, 1):
        title = slide.shapes.title
        name = " ".join(title.text.split()) if title is not None and title.has_text_frame else ""
        texts = [_tidy(text) for text in _texts(shape for shape in slide.shapes if shape != title)]
        if slide.has_notes_slide and slide.notes_slide.notes_text_frame is not None:
            texts.append(_tidy(slide.notes_slide.notes_text_frame.text))
        if name or any(texts):
            yield Block(budget.take(name)[:MAX_HEADING] or f"slide {number}", "heading", 1)
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
    lines = (" ".join(line.split()) for line in sound(text).replace("\v", "\n").split("\n"))
    return "\n".join(line for line in lines if line)


def _read_xlsx(data: bytes, budget: Budget) -> Iterator[Block]:
    from python_calamine import CalamineWorkbook

    workbook = CalamineWorkbook.from_filelike(BytesIO(data))
    for name in workbook.sheet_names:
        rows = workbook.get_sheet_by_name(name).iter_rows()
        named = ((f"row {at} of the sheet {name!r}", list(map(_cell, row))) for at, row in enumerate(rows, 1))
        for number, block in enumerate(read_rows(named, budget)):
            if not number:
                yield Block(budget.take(name)[:MAX_HEADING], "heading", 1)
            yield block


def _cell(value: Any) -> str:
    # a sheet has no whole numbers: 12 is stored as 12.0
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)


READERS: Final[dict[str, Callable[[bytes, Budget], Iterator[Block]]]] = {
    "docx": _read_docx,
    "pptx": _read_pptx,
    "xlsx": _read_xlsx,
}
