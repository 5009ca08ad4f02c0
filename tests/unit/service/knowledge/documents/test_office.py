"""Office documents: what is read of them, and hostile ones."""

from __future__ import annotations

import io
import sys
import zipfile
from pathlib import Path

import pytest

from service.knowledge.documents.blocks import Block, Budget, DocumentError
from service.knowledge.documents.office import read_office
from service.knowledge.documents.read import kind_of, read
from service.knowledge.embedder.document_reader import DocumentReader, ReaderEnded
from tests.unit.service.knowledge.documents.office_files import (
    make_docx,
    make_pptx,
    make_sparse_xlsx,
    make_xlsx,
    replaced,
)

TENFOLD = "".join('<!ENTITY b{} "{}">'.format(n, f"&b{n - 1};" * 10) for n in range(1, 9))
LAUGHS = '<!DOCTYPE d [<!ENTITY b0 "{}">{}]>'.format("x" * 1000, TENFOLD)
FILE = '<!DOCTYPE d [<!ENTITY e SYSTEM "file:///etc/passwd">]>'


def blocks_of(folder: Path, name: str, data: bytes) -> list[Block]:
    path = folder / "bytes"
    path.write_bytes(data)
    return read(path, kind_of(name))


def texts(found: list[Block]) -> list[str]:
    return [f"{'#' * block.level} {block.text}".strip() for block in found]


def test_docx_is_headings_paragraphs_and_tables(tmp_path: Path) -> None:
    body = [
        ("Heading1", "Returns & refunds"),
        ("", "Boots go back within 45 days, not <sandals>."),
        ("Heading2", "But"),
    ]
    document = make_docx([*body, ("", "Socks do not.")], table=[["Item", "Days"], ["Boots", "45"]])
    assert texts(blocks_of(tmp_path, "a.docx", document)) == [
        "# Returns & refunds",
        "Boots go back within 45 days, not <sandals>.",
        "## But",
        "Socks do not.",
        "Item | Days",
        "Boots | 45",
    ]


def test_a_table_in_docx_is_its_rows_whatever_is_in_a_cell(tmp_path: Path) -> None:
    document = make_docx([("", "before")], table=[["Item", "Days"], ["Boots", "45"]])
    header = replaced(document, "word/document.xml", "<w:tr>", "<w:tr><w:trPr><w:tblHeader/></w:trPr>")
    assert texts(blocks_of(tmp_path, "a.docx", header)) == ["before", "Item | Days", "Boots | 45"]
    two = "<w:t>Boots</w:t></w:r></w:p><w:p><w:r><w:t>and socks</w:t>"
    paragraphs = replaced(document, "word/document.xml", "<w:t>Boots</w:t>", two)
    assert texts(blocks_of(tmp_path, "a.docx", paragraphs)) == ["before", "Item | Days", "Boots and socks | 45"]
    wide = '<w:tc><w:tcPr><w:gridSpan w:val="2"/></w:tcPr><w:p><w:r><w:t>Item</w:t>'
    spans = replaced(document, "word/document.xml", "<w:tc><w:p><w:r><w:t>Item</w:t>", wide)
    assert texts(blocks_of(tmp_path, "a.docx", spans)) == ["before", "Item | Days", "Boots | 45"]


def test_pptx_is_slides(tmp_path: Path) -> None:
    slides = make_pptx([("Sales & costs", "Sales rose."), ("", "A slide without a title.")])
    assert texts(blocks_of(tmp_path, "a.PPTX", slides)) == [
        "# Sales & costs",
        "Sales rose.",
        "# slide 2",
        "A slide without a title.",
    ]


def test_xlsx_is_rows_with_their_columns_names_under_their_sheets(tmp_path: Path) -> None:
    prices = [["sku", "price", None], ["A1", 9.5, "old & worn"], [None, None, None], ["B2", 12]]
    found = blocks_of(tmp_path, "a.xlsx", make_xlsx({"Prices": prices, "Empty": [], "Names": [["name"], ["Ada"]]}))
    assert texts(found) == [
        "# Prices",
        "sku: A1\nprice: 9.5\ncolumn 3: old & worn",
        "sku: B2\nprice: 12",
        "# Names",
        "name: Ada",
    ]
    assert [block.kind for block in found] == ["heading", "row", "row", "heading", "row"]


def test_numbers_of_a_sheet_are_as_it_shows_them_and_one_row_is_a_row(tmp_path: Path) -> None:
    values = [["x"], [0.1 + 0.2], [6.022e23], [1234567890123.0]]
    found = texts(blocks_of(tmp_path, "a.xlsx", make_xlsx({"Numbers": values, "One": [["only", None, "row"]]})))
    assert found[1:] == ["x: 0.3", "x: 6.022e+23", "x: 1234567890123", "# One", "only | row"]


@pytest.mark.parametrize("kind", ["docx", "pptx", "xlsx"])
@pytest.mark.parametrize(
    "data",
    [b"", b"PK\x03\x04", b"text", b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + b"\0" * 600],
    ids=["empty", "cut", "text", "encrypted"],
)
def test_what_is_no_office_file_is_refused(tmp_path: Path, kind: str, data: bytes) -> None:
    with pytest.raises(DocumentError, match=rf"cannot be read as a \.{kind} file") as caught:
        blocks_of(tmp_path, f"a.{kind}", data)
    assert caught.value.code == "invalid_file"


def test_one_kind_under_anothers_name_is_refused(tmp_path: Path) -> None:
    for name, data in (("a.docx", make_xlsx({"a": [["x"], ["y"]]})), ("a.xlsx", make_docx([("", "x")]))):
        with pytest.raises(DocumentError):
            blocks_of(tmp_path, name, data)


@pytest.mark.parametrize("doctype", [LAUGHS, FILE], ids=["laughs", "file"])
def test_entities_are_not_followed(tmp_path: Path, doctype: str) -> None:
    document = make_docx([("", f"before {'&b8;' if doctype is LAUGHS else '&e;'} after")], doctype=doctype)
    try:
        found = texts(blocks_of(tmp_path, "a.docx", document))
    except DocumentError as error:
        assert "cannot be read" in error.message  # noqa: PT017 (either will do)
    else:
        assert found == ["before after"]


def test_a_document_nested_without_end_is_refused(tmp_path: Path) -> None:
    cell = "<w:tbl><w:tr><w:tc>", "</w:tc></w:tr></w:tbl>"
    depth = 3 * sys.getrecursionlimit()
    inside = f"{cell[0] * depth}<w:p><w:r><w:t>x</w:t></w:r></w:p>{cell[1] * depth}"
    with pytest.raises(DocumentError, match="cannot be read"):
        blocks_of(tmp_path, "a.docx", replaced(make_docx([]), "word/document.xml", "<w:body>", f"<w:body>{inside}"))


def test_the_text_that_a_small_file_unfolds_into_is_bounded(tmp_path: Path) -> None:
    document = make_docx([("", "word " * 400_000)])
    assert len(document) < 20_000
    path = tmp_path / "bytes"
    path.write_bytes(document)
    with pytest.raises(DocumentError, match="1000 characters"):
        list(read_office(document, Budget(1000), kind="docx"))


async def test_a_sheet_as_large_as_the_format_allows_costs_its_file_alone(tmp_path: Path) -> None:
    (tmp_path / "sparse").write_bytes(make_sparse_xlsx())
    (tmp_path / "good").write_bytes(make_docx([("", "hello")]))
    reader = DocumentReader()
    try:
        with pytest.raises(ReaderEnded):  # its memory is bounded; what becomes of the file is in index/test_trouble.py
            await reader.blocks(tmp_path / "sparse", "a.xlsx")
        assert [block.text for block in await reader.blocks(tmp_path / "good", "a.docx")] == ["hello"]
    finally:
        await reader.close()


def test_a_file_of_zeros_without_end_is_refused(tmp_path: Path) -> None:
    """The kind of archive that unfolds a thousandfold, in its XML."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("word/document.xml", b"\0" * (64 << 20))
    with pytest.raises(DocumentError):
        blocks_of(tmp_path, "a.docx", out.getvalue())
