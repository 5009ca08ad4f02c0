"""Office documents made by hand, as small as the formats allow."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Mapping, Sequence
from xml.sax.saxutils import escape

_MAIN = "http://schemas.openxmlformats.org"
_TYPES = f"{_MAIN}/package/2006/content-types"
_RELATIONS = f"{_MAIN}/package/2006/relationships"
_OFFICE = f"{_MAIN}/officeDocument/2006/relationships"
_OPEN_XML = "application/vnd.openxmlformats-officedocument"
_HEAD = '<?xml version="1.0" encoding="UTF-8" standalone="yes"?>'


def make_docx(body: Sequence[tuple[str, str]], *, table: Sequence[Sequence[str]] = (), doctype: str = "") -> bytes:
    """Paragraphs as (style, text), where a style is empty or ``Heading1`` to ``Heading9``, and a table's rows."""
    word = f"{_MAIN}/wordprocessingml/2006/main"
    paragraphs = "".join(
        f"<w:p>{f'<w:pPr><w:pStyle w:val={chr(34)}{style}{chr(34)}/></w:pPr>' if style else ''}"
        f'<w:r><w:t xml:space="preserve">{text if doctype else escape(text)}</w:t></w:r></w:p>'
        for style, text in body
    )
    cells = "".join(
        "<w:tr>" + "".join(f"<w:tc><w:p><w:r><w:t>{escape(text)}</w:t></w:r></w:p></w:tc>" for text in row) + "</w:tr>"
        for row in table
    )
    whole = paragraphs + (f"<w:tbl>{cells}</w:tbl>" if table else "")
    document = f'{doctype}<w:document xmlns:w="{word}"><w:body>{whole}</w:body></w:document>'
    parts = {"word/document.xml": document}
    return _package(
        parts, "word/document.xml", {"/word/document.xml": f"{_OPEN_XML}.wordprocessingml.document.main+xml"}
    )


def make_pptx(slides: Sequence[tuple[str, str]]) -> bytes:
    """Slides as (title, text)."""
    names = f'xmlns:p="{_MAIN}/presentationml/2006/main" xmlns:a="{_MAIN}/drawingml/2006/main" xmlns:r="{_OFFICE}"'
    parts, types, relations, ids = {}, {}, "", ""
    for number, (title, text) in enumerate(slides, 1):
        shapes = "".join(
            f'<p:sp><p:nvSpPr><p:cNvPr id="{at}" name="{kind}"/><p:cNvSpPr/><p:nvPr><p:ph type="{kind}"/></p:nvPr>'
            f"</p:nvSpPr><p:spPr/><p:txBody><a:bodyPr/><a:p><a:r><a:t>{escape(words)}</a:t></a:r></a:p></p:txBody></p:sp>"
            for at, (kind, words) in enumerate((("title", title), ("body", text)), 2)
        )
        tree = f'<p:nvGrpSpPr><p:cNvPr id="1" name=""/><p:cNvGrpSpPr/><p:nvPr/></p:nvGrpSpPr><p:grpSpPr/>{shapes}'
        parts[f"ppt/slides/slide{number}.xml"] = f"<p:sld {names}><p:cSld><p:spTree>{tree}</p:spTree></p:cSld></p:sld>"
        types[f"/ppt/slides/slide{number}.xml"] = f"{_OPEN_XML}.presentationml.slide+xml"
        relations += f'<Relationship Id="rId{number}" Type="{_OFFICE}/slide" Target="slides/slide{number}.xml"/>'
        ids += f'<p:sldId id="{255 + number}" r:id="rId{number}"/>'
    parts["ppt/presentation.xml"] = f"<p:presentation {names}><p:sldIdLst>{ids}</p:sldIdLst></p:presentation>"
    parts["ppt/_rels/presentation.xml.rels"] = f'<Relationships xmlns="{_RELATIONS}">{relations}</Relationships>'
    types["/ppt/presentation.xml"] = f"{_OPEN_XML}.presentationml.presentation.main+xml"
    return _package(parts, "ppt/presentation.xml", types)


def make_xlsx(sheets: Mapping[str, Sequence[Sequence[str | float | None]]]) -> bytes:
    """Sheets of rows by name."""
    name = f'xmlns="{_MAIN}/spreadsheetml/2006/main"'
    parts, types, relations, ids = {}, {}, "", ""
    for number, (title, rows) in enumerate(sheets.items(), 1):
        data = "".join(
            f'<row r="{at}">{"".join(_cell(at, column, value) for column, value in enumerate(row))}</row>'
            for at, row in enumerate(rows, 1)
        )
        parts[f"xl/worksheets/sheet{number}.xml"] = f"<worksheet {name}><sheetData>{data}</sheetData></worksheet>"
        types[f"/xl/worksheets/sheet{number}.xml"] = f"{_OPEN_XML}.spreadsheetml.worksheet+xml"
        relations += (
            f'<Relationship Id="rId{number}" Type="{_OFFICE}/worksheet" Target="worksheets/sheet{number}.xml"/>'
        )
        ids += f'<sheet name="{escape(title)}" sheetId="{number}" r:id="rId{number}"/>'
    parts["xl/workbook.xml"] = f'<workbook {name} xmlns:r="{_OFFICE}"><sheets>{ids}</sheets></workbook>'
    parts["xl/_rels/workbook.xml.rels"] = f'<Relationships xmlns="{_RELATIONS}">{relations}</Relationships>'
    types["/xl/workbook.xml"] = f"{_OPEN_XML}.spreadsheetml.sheet.main+xml"
    return _package(parts, "xl/workbook.xml", types)


def make_sparse_xlsx() -> bytes:
    """A sheet of two cells, the first and the last that the format allows: 17 billion lie between them."""
    return replaced(
        make_xlsx({"a": [["x"], ["y"]]}),
        "xl/worksheets/sheet1.xml",
        "</sheetData>",
        '<row r="1048576"><c r="XFD1048576"><v>1</v></c></row></sheetData>',
    )


def replaced(package: bytes, part: str, old: str, new: str) -> bytes:
    """The same package with another text in one of its parts."""
    out = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(package)) as before, zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as after:
        for name in before.namelist():
            content = before.read(name).decode()
            if name == part:
                assert old in content
                content = content.replace(old, new)
            after.writestr(name, content)
    return out.getvalue()


def _cell(row: int, column: int, value: str | float | None) -> str:
    place = f"{chr(ord('A') + column)}{row}"
    if value is None:
        return ""
    if isinstance(value, str):
        return f'<c r="{place}" t="inlineStr"><is><t>{escape(value)}</t></is></c>'
    return f'<c r="{place}"><v>{value}</v></c>'


def _package(parts: Mapping[str, str], main: str, types: Mapping[str, str]) -> bytes:
    overrides = "".join(f'<Override PartName="{part}" ContentType="{kind}"/>' for part, kind in types.items())
    defaults = '<Default Extension="rels" ContentType="application/vnd.openxmlformats-package.relationships+xml"/>'
    defaults += '<Default Extension="xml" ContentType="application/xml"/>'
    start = f'<Relationship Id="rId1" Type="{_OFFICE}/officeDocument" Target="{main}"/>'
    whole = {
        "[Content_Types].xml": f'<Types xmlns="{_TYPES}">{defaults}{overrides}</Types>',
        "_rels/.rels": f'<Relationships xmlns="{_RELATIONS}">{start}</Relationships>',
        **parts,
    }
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        for path, content in whole.items():
            archive.writestr(path, _HEAD + content)
    return out.getvalue()
