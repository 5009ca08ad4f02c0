"""Each kind of document: what is read of it, and what is wrong with one that cannot be."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

import orjson
import pytest

from service.knowledge.documents import blocks
from service.knowledge.documents.blocks import Block, Budget, DocumentError
from service.knowledge.documents.read import kind_of, read
from tests.unit.service.knowledge.documents.pdfs import make_mapped_pdf, make_pdf


def blocks_of(folder: Path, name: str, data: bytes | str) -> list[Block]:
    path = folder / "bytes"
    path.write_bytes(data.encode() if isinstance(data, str) else data)
    return read(path, kind_of(name))


def texts(found: list[Block]) -> list[str]:
    return [f"{'#' * block.level} {block.text}".strip() for block in found]


def refused(folder: Path, name: str, data: bytes | str) -> DocumentError:
    with pytest.raises(DocumentError) as caught:
        blocks_of(folder, name, data)
    return caught.value


# text and Markdown


def test_text_is_paragraphs(tmp_path: Path) -> None:
    assert texts(blocks_of(tmp_path, "a.txt", "\ufeffone\r\ntwo\r\n \r\n\r\nthree\n")) == ["one\ntwo", "three"]
    assert texts(blocks_of(tmp_path, "a.txt", "één".encode("utf-16"))) == ["één"]


def test_markdown_is_headings_and_blocks(tmp_path: Path) -> None:
    page = "---\ntitle: x\n---\n# Returns *now*\n\nText one.\n\n```\n# no heading\n```\n\nBelow\n-----\n\n- a\n- b\n"
    found = blocks_of(tmp_path, "a.md", page)
    assert texts(found) == ["# Returns now", "Text one.", "```\n# no heading\n```", "## Below", "- a\n- b"]


@pytest.mark.parametrize(
    ("front", "kept"),
    [
        ("title: Returns\ntags:\n  - a\n- b\n\n# note\n'quoted': x", []),
        ("Boots go back within 45 days.", ["## Boots go back within 45 days."]),
        ("\nBoots go back.\n\nParcels: daily.\n", ["Boots go back.", "Parcels: daily."]),
        ("title: x\nBoots go back.", ["## title: x Boots go back."]),
        ("- a\n- b", ["- a\n- b"]),
    ],
)
def test_only_settings_between_two_rules_are_left_out(tmp_path: Path, front: str, kept: list[str]) -> None:
    found = texts(blocks_of(tmp_path, "a.md", f"---\n{front}\n---\nRest.\n"))
    assert [text for text in found if text != "---"] == [*kept, "Rest."]


@pytest.mark.parametrize("data", [b"\xff\xfe\x00", b"caf\xe9", b"a\0b", b"PK\x03\x04\x14\x00\x06\x00\x08\x00"])
def test_what_is_no_text_is_refused(tmp_path: Path, data: bytes) -> None:
    error = refused(tmp_path, "a.txt", data)
    assert (error.code, error.message[:14]) == ("invalid_file", "it is not text")


# HTML


def test_html_is_what_a_reader_sees(tmp_path: Path) -> None:
    page = """<!doctype html><html><head><title>Shop</title><style>p{}</style></head><body>
    <nav><a href=/>Home</a></nav><script>alert(1)</script>
    <h2>Returns &amp; <b>refunds</b></h2><p>Within <em>45</em> days,<br>unworn.<p>Second
    <ul><li>one</li><li>two<ul><li>deep</li></ul></li></ul>
    <table><tr><th>size</th><th>price</th></tr><tr><td>38</td><td>90</td></tr></table>
    <form><button>Buy</button></form></body></html>"""
    assert texts(blocks_of(tmp_path, "a.html", page)) == [
        "# Shop", "## Returns & refunds", "Within 45 days, unworn.", "Second", "one", "two", "deep", "size | price",
        "38 | 90",
    ]  # fmt: skip


def test_a_page_inside_a_form_is_read_without_its_inputs(tmp_path: Path) -> None:
    page = """<form action=/ method=post><input type=hidden name=__VIEWSTATE value=x>
    <h1>Returns</h1>Before<p>45 days.</p>
    <label>Size <select><option>38</select></label><textarea>yours</textarea><button>Send</button></form>After"""
    assert texts(blocks_of(tmp_path, "a.html", page)) == ["# Returns", "Before", "45 days.", "Size", "After"]


def test_lines_of_preformatted_html_stay(tmp_path: Path) -> None:
    assert texts(blocks_of(tmp_path, "a.htm", "<pre>a\n  b</pre>")) == ["a\n  b"]


def test_html_nests_as_deep_as_it_likes(tmp_path: Path) -> None:
    assert texts(blocks_of(tmp_path, "a.html", "<div>" * 20_000 + "bottom")) == ["bottom"]


# PDF


def test_a_pdf_is_pages(tmp_path: Path) -> None:
    data = make_pdf([["Boots are re-", "turned in 45 days."], [], ["Parcels leave daily."]])
    assert texts(blocks_of(tmp_path, "a.pdf", data)) == [
        "# page 1", "Boots are returned in 45 days.", "# page 3", "Parcels leave daily.",
    ]  # fmt: skip


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"no pdf at all",
        b"%PDF-1.7\n%%EOF",
        make_pdf([["x"]])[:-120],
        make_pdf([["x"]]).replace(b"/Kids [4 0 R]", b"/Kids [2 0 R]"),
        make_pdf([["x"]]).replace(b"/Type /Pages", b"/Type /Sages").replace(b"/Count 1", b"/Count x"),
        bytes(range(256)) * 50,
    ],
)
def test_a_broken_pdf_is_refused_or_read_but_never_anything_else(tmp_path: Path, data: bytes) -> None:
    with suppress(DocumentError):
        assert blocks_of(tmp_path, "a.pdf", data)


# rows


@pytest.mark.parametrize(
    ("mapping", "text"), [("<41> <D835>", "x\ufffdx"), ("<41> <D835DC00>", "x\U0001d400x"), ("<41> <DC00>", "x\ufffdx")]
)
def test_half_a_character_of_a_pdf_is_replaced(tmp_path: Path, mapping: str, text: str) -> None:
    found = blocks_of(tmp_path, "a.pdf", make_mapped_pdf("xAx", mapping))
    assert texts(found) == ["# page 1", text]
    assert orjson.dumps([block.packed() for block in found])


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("a.html", "<title>&#xD835;</title><p>a &#xD835; b &#55349;&#xDC00;</p>"),
        ("a.md", "# a &#xD835;\n\nb &#xD835; [c](&#xD835;)\n"),
        ("a.jsonl", '{"text": "a \\ud835\\udc00 b"}'),
        ("a.csv", "n\n\\ud835 &#xD835;\n"),
    ],
)
def test_no_reader_gives_half_a_character(tmp_path: Path, name: str, data: str) -> None:
    assert orjson.dumps([block.packed() for block in blocks_of(tmp_path, name, data)])


@pytest.mark.parametrize(
    "line",
    [
        '{"text": "a \\ud835 b"}',
        '{"text": "a", "title": "\\ud835"}',
        '{"text": "a", "metadata": {"\\udc00": "x"}}',
        '{"text": "a", "metadata": {"k": "\\ud835"}}',
    ],
)
def test_a_line_of_jsonl_with_half_a_character_is_named(tmp_path: Path, line: str) -> None:
    assert "line 1 is not valid JSON" in refused(tmp_path, "a.jsonl", line).message


def test_a_rows_cells_are_its_attributes(tmp_path: Path) -> None:
    wide = ",".join(f"k{number}" for number in range(20))
    data = f"id,id,{'n' * 65},customer,note,{wide}\n1,2,3,c-1,,{wide}\n7,8,9,{'x' * 513},007\n"
    first, second = blocks_of(tmp_path, "a.csv", data)
    # a name that two columns have, or that is too long, is nobody's; sixteen columns count, with or without a cell
    assert first.attributes == {"customer": "c-1", **{f"k{number}": f"k{number}" for number in range(14)}}
    assert second.attributes == {"note": "007"}
    assert blocks_of(tmp_path, "a.csv", f"{'n' * 65}\n1\n")[0].attributes is None


def test_csv_is_rows_with_their_columns_names(tmp_path: Path) -> None:
    data = 'order,status\nTW-1,"lost, at sea"\n,\n"TW-2",shipped,extra\n'
    found = blocks_of(tmp_path, "a.csv", data)
    assert texts(found) == ["order: TW-1\nstatus: lost, at sea", "order: TW-2\nstatus: shipped\ncolumn 3: extra"]
    assert {block.kind for block in found} == {"row"}
    assert texts(blocks_of(tmp_path, "a.csv", "a;b\n1,5;2\n")) == ["a: 1,5\nb: 2"]
    assert texts(blocks_of(tmp_path, "a.tsv", "a,b\tc\n1\t2\n")) == ["a,b: 1\nc: 2"]


def test_jsonl_is_texts_with_their_metadata(tmp_path: Path) -> None:
    data = '{"text": "Boots", "title": "Returns", "metadata": {"page": 2, "draft": false}}\n\n{"text": "Parcel"}\n'
    first, second = blocks_of(tmp_path, "a.jsonl", data)
    assert (first.text, first.attributes) == ("Returns\nBoots", {"page": 2, "draft": False})
    assert (second.text, second.attributes) == ("Parcel", None)


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("{", "line 2 is not valid JSON"),
        ('["text"]', "line 2 must be an object"),
        ('{"text": 7}', "line 2 must be an object with a string `text`"),
        ('{"text": "x", "title": 1}', "line 2: `title`"),
        ('{"text": "x", "metadata": []}', "line 2: `metadata` must be an object"),
        ('{"text": "x", "metadata": {"a": {}}}', "line 2: `metadata` has 'a'"),
        ('{"text": "x", "metadata": {"": 1}}', "line 2: `metadata` has ''"),
    ],
)
def test_a_line_of_jsonl_that_is_wrong_is_named(tmp_path: Path, line: str, says: str) -> None:
    assert says in refused(tmp_path, "a.jsonl", '{"text": "fine"}\n' + line).message


def test_a_cell_without_end_is_refused(tmp_path: Path) -> None:
    assert "is not valid CSV" in refused(tmp_path, "a.csv", 'a\n"' + "x" * 2_000_000).message


# all of them


@pytest.mark.parametrize("name", ["a.doc", "a", "a.PNG", "archive.tar.gz"])
def test_other_kinds_are_not_supported(name: str) -> None:
    with pytest.raises(DocumentError) as caught:
        kind_of(name)
    assert caught.value.code == "unsupported_file"
    assert ".pdf" in caught.value.message


def test_endings_are_read_in_any_case() -> None:
    assert (kind_of("A.PDF"), kind_of("b.Md"), kind_of("c.py")) == ("pdf", "markdown", "text")


@pytest.mark.parametrize(("name", "data"), [("a.txt", " \n"), ("a.csv", "a,b\n"), ("a.html", "<p> </p>"), ("a.md", "")])
def test_a_document_without_text_is_refused(tmp_path: Path, name: str, data: str) -> None:
    assert refused(tmp_path, name, data).message == "it has no text"


def test_a_file_that_is_too_large_is_refused_unread(tmp_path: Path) -> None:
    path = tmp_path / "large"
    with path.open("wb") as file:
        file.truncate(blocks.MAX_BYTES + 1)
    with pytest.raises(DocumentError, match="are allowed"):
        read(path, "text")


def test_text_is_counted_as_it_unfolds() -> None:
    budget = Budget(10)
    budget.take("12345")
    with pytest.raises(DocumentError, match="more than 10 characters"):
        budget.take("123456")
