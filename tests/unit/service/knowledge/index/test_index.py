"""A store's index: documents come, change and go, and the next search sees it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from service.grounding.filters import Column
from service.knowledge.index.memory import MAX_COLUMNS, Document, Index, load
from service.knowledge.index.part import IndexPart, PlacedSegment
from service.knowledge.index.ranking import Question
from service.knowledge.terms import Analyzer
from tests.unit.service.knowledge.index.segments import segment, vector

Own = Mapping[tuple[int, int], Mapping[str, Any]]


def document(number: int, attributes: dict[str, Any] | None = None, own: Own | None = None) -> Document:
    return Document(f"file-{number}", f"{number}.txt", f"g{number}", attributes or {}, own or {})


def with_texts(index: Index, number: int, texts: list[str], instead: int | None = None) -> Index:
    return index.with_document(number, document(number), [PlacedSegment(segment(texts), number, number)], instead)


def found(index: Index, text: str, filters: dict[str, Any] | None = None) -> list[tuple[int, int]]:
    asked = Question(tuple(Analyzer().terms(text)), vector(text), 0.4, 100, 0.01)
    hits = index.search(asked, filters)
    return sorted((int(hit.part.documents[hit.row]), int(hit.part.positions[hit.row])) for hit in hits)


def test_an_empty_index_finds_nothing() -> None:
    assert found(Index(), "boots") == []
    assert load({}, []).rows == 0


def test_a_document_is_found_replaced_and_gone() -> None:
    index = with_texts(Index(), 1, ["boots", "parcel"])
    assert (1, 0) in found(index, "boots")
    newer = with_texts(index, 2, ["anchor boots"], instead=1)
    assert found(newer, "boots") == [(2, 0)]
    assert (1, 0) in found(index, "boots"), "a search that began before sees what was there before"
    assert found(newer.without(2), "boots") == []


@given(st.lists(st.integers(1, 5), min_size=1, max_size=12), st.data())
@settings(max_examples=40)
def test_rows_are_those_of_the_documents_that_are_there(sizes: list[int], data: st.DataObject) -> None:
    index, kept = Index(), {}
    for number, size in enumerate(sizes, 1):
        index = with_texts(index, number, [f"boots w{number}x{row}" for row in range(size)])
        kept[number] = size
        if data.draw(st.booleans()):
            gone = data.draw(st.sampled_from(sorted(kept)))
            index, _ = index.without(gone), kept.pop(gone)
        assert found(index, "boots") == [(n, row) for n in sorted(kept) for row in range(kept[n])]
        assert index.rows == sum(kept.values())


def test_parts_stay_few() -> None:
    index = Index()
    for number in range(1, 200):
        index = with_texts(index, number, ["boots"])
    assert len(index.parts) <= 9
    assert index.rows == 199


def test_filters_see_the_attributes_of_files_and_of_rows() -> None:
    own: Own = {(1, 1): {"lang": "de", "page": 2}}
    first = document(1, {"lang": "en"}, own)
    index = load(
        {1: first, 2: document(2)},
        [PlacedSegment(segment(["boots a", "boots b"]), 1, 1), PlacedSegment(segment(["boots"]), 2, 2)],
    )
    assert found(index, "boots", {"type": "eq", "key": "lang", "value": "en"}) == [(1, 0)]
    assert found(index, "boots", {"type": "eq", "key": "lang", "value": "de"}) == [(1, 1)]
    assert found(index, "boots", {"type": "ne", "key": "lang", "value": "en"}) == [(1, 1), (2, 0)]
    assert found(index, "boots", {"type": "gte", "key": "page", "value": 2}) == [(1, 1)]
    changed = index.with_attributes({"file-2": {"lang": "en"}, "file-9": {}})
    assert found(changed, "boots", {"type": "eq", "key": "lang", "value": "en"}) == [(1, 0), (2, 0)]


def test_an_attribute_is_gathered_once_for_all_questions(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[str] = []
    gather = Index._column

    def counting(self: Index, part: IndexPart, key: str) -> Column:
        made.append(key)
        return gather(self, part, key)

    monkeypatch.setattr(Index, "_column", counting)
    own: Own = {(1, row): {"page": row} for row in range(4)}
    index = load(
        {1: document(1, {"lang": "en"}, own)}, [PlacedSegment(segment([f"boots {n}" for n in range(4)]), 1, 1)]
    )
    page: dict[str, Any] = {"type": "eq", "key": "page", "value": 2}
    between = {"type": "and", "filters": [{**page, "type": "gt", "value": 0}, {**page, "type": "lt", "value": 3}]}
    for _ in range(2):
        assert found(index, "boots", page) == [(1, 2)]
        assert found(index, "boots", between) == [(1, 1), (1, 2)]
    assert made == ["page"]
    changed = index.with_attributes({"file-1": {"lang": "de"}})
    assert found(changed, "boots", {"type": "eq", "key": "lang", "value": "de"}) == [(1, row) for row in range(4)]
    assert found(index, "boots", {"type": "eq", "key": "lang", "value": "de"}) == []
    for number in range(2 * MAX_COLUMNS):
        assert found(index, "boots", {**page, "key": f"k{number}"}) == []
    assert len(index._columns) == MAX_COLUMNS


def test_true_is_no_one_to_a_filter() -> None:
    index = load(
        {1: document(1, {"x": True}), 2: document(2, {"x": 1})},
        [PlacedSegment(segment(["boots"]), 1, 1), PlacedSegment(segment(["boots"]), 2, 2)],
    )
    assert found(index, "boots", {"type": "eq", "key": "x", "value": 1}) == [(2, 0)]
    assert found(index, "boots", {"type": "eq", "key": "x", "value": True}) == [(1, 0)]


def test_bytes_grow_with_the_rows() -> None:
    small, large = with_texts(Index(), 1, ["boots"]), with_texts(Index(), 1, ["boots"] * 100)
    assert large.bytes > 50 * small.bytes / 2
    assert small.bytes == pytest.approx(small.parts[0].bytes, abs=200)
