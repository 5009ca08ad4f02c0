"""A store's index in memory: what a search reads, whole at any moment, replaced and never changed."""

from __future__ import annotations

import threading
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from types import MappingProxyType
from typing import Final

import numpy as np

from service.errors import BadGateway
from service.grounding.filters import Column, Mask, mask
from service.grounding.provider import Attribute, Filters
from service.knowledge.index.part import IndexPart, PlacedSegment, build, join
from service.knowledge.index.ranking import Hit, Question, rank

Attributes = Mapping[str, Attribute]
ROW_BYTES: Final = 64
"""What a document's or a row's own metadata are taken to weigh in memory, beside the arrays."""
ATTRIBUTE_BYTES: Final = 128
"""What each attribute of a row is taken to weigh."""

MAX_COLUMNS: Final = 16
"""Attributes of parts that an index keeps ready for filters: each takes four bytes a row, a vector takes 1,500."""


@dataclass(frozen=True, slots=True)
class Document:
    """A file in a store, with what a search needs.

    ``generation`` names it in the metadata database. ``own`` holds attributes of single rows, by segment and position;
    they go before the file's.
    """

    file_id: str
    filename: str
    generation: str
    attributes: Attributes
    own: Mapping[tuple[int, int], Attributes] = field(default_factory=lambda: MappingProxyType({}))


@dataclass(frozen=True, slots=True)
class Index:
    """A store's index: its parts, larger ones first, and its documents by number. Immutable."""

    parts: tuple[IndexPart, ...] = ()
    documents: Mapping[int, Document] = field(default_factory=lambda: MappingProxyType({}))
    bytes: int = field(init=False)
    """About what it takes in memory."""
    _columns: dict[tuple[int, str], Column] = field(init=False, repr=False, compare=False, default_factory=dict)
    """By part and attribute, the longest unused first: making one looks at every row, and an index never changes."""
    _columns_lock: threading.Lock = field(init=False, repr=False, compare=False, default_factory=threading.Lock)

    def __post_init__(self) -> None:
        rows = [attributes for document in self.documents.values() for attributes in document.own.values()]
        size = sum(part.bytes for part in self.parts) + (len(rows) + len(self.documents)) * ROW_BYTES
        size += sum(map(len, rows)) * ATTRIBUTE_BYTES
        object.__setattr__(self, "bytes", size)  # once: it is asked for after every search

    @property
    def rows(self) -> int:
        """Number of passages that a search can find."""
        return sum(int(part.alive.sum()) for part in self.parts)

    def with_document(
        self, number: int, document: Document, segments: Sequence[PlacedSegment], replaces: int | None
    ) -> Index:
        """A new index with this document added and the document number ``replaces`` removed."""
        rest = self if replaces is None else self.without(replaces)
        parts = [*rest.parts, build(segments)] if segments else list(rest.parts)
        return Index(_merge_parts(parts), MappingProxyType({**rest.documents, number: document}))

    def without(self, number: int) -> Index:
        """A new index without this document."""
        documents = {key: document for key, document in self.documents.items() if key != number}
        return Index(tuple(part.without(number) for part in self.parts), MappingProxyType(documents))

    def without_generations(self, generations: Collection[str]) -> Index:
        """A new index without the documents of these generations."""
        numbers = [number for number, document in self.documents.items() if document.generation in generations]
        index = self
        for number in numbers:
            index = index.without(number)
        return index

    def with_attributes(self, attributes: Mapping[str, Attributes]) -> Index:
        """A new index with the attributes of some files replaced, by file id."""
        changed = {
            number: replace(document, attributes=attributes[document.file_id])
            for number, document in self.documents.items()
            if document.file_id in attributes
        }
        return Index(self.parts, MappingProxyType({**self.documents, **changed})) if changed else self

    def number_of(self, generation: str) -> int | None:
        """The number of the document of this generation; None if there is none."""
        return next((number for number, document in self.documents.items() if document.generation == generation), None)

    def search(self, question: Question, filters: Filters | None) -> list[Hit]:
        """The best matching rows, best first.

        Raises:
            BadGateway: The question's vector has other dimensions than the rows'.
        """
        if question.weight > 0 and self.parts and self.parts[0].vectors.shape[1] != len(question.vector):
            reason = other_dimensions(len(question.vector), self.parts[0].vectors.shape[1])
            raise BadGateway(reason, code="embedder_error")
        return rank(self.parts, question, None if filters is None else self._masks(filters))

    def attributes(self, hit: Hit) -> Attributes:
        """The attributes of the hit's file, overridden by those of its row."""
        document = self.documents[int(hit.part.documents[hit.row])]
        own = document.own.get(hit.place)
        return document.attributes if own is None else {**document.attributes, **own}

    def _masks(self, filters: Filters) -> list[Mask]:
        return [mask(filters, partial(self._cached_column, number)) for number in range(len(self.parts))]

    def _cached_column(self, number: int, key: str) -> Column:
        """The attribute ``key`` of the rows of a part, made once."""
        with self._columns_lock:  # two searches make it once
            column = self._columns.pop((number, key), None)
            if column is None:
                column = self._column(self.parts[number], key)
            self._columns[number, key] = column
            while len(self._columns) > MAX_COLUMNS:
                del self._columns[next(iter(self._columns))]
            return column

    def _column(self, part: IndexPart, key: str) -> Column:
        """The attribute ``key`` of a part's rows."""
        values: list[Attribute | None] = [None]
        known: dict[tuple[bool, Attribute], int] = {}

        def code(value: Attribute) -> int:
            # True is 1 to a dict, and no number to a filter
            index = known.setdefault((isinstance(value, bool), value), len(values))
            if index == len(values):
                values.append(value)
            return index

        by_document = np.zeros(int(part.documents.max(initial=0)) + 1, dtype=np.int32)
        owners = []
        for number, document in self.documents.items():
            if number < len(by_document):
                if key in document.attributes:
                    by_document[number] = code(document.attributes[key])
                if document.own:
                    owners.append(number)
        codes = by_document[part.documents]
        rows = np.flatnonzero(np.isin(part.documents, owners)) if owners else np.empty(0, dtype=np.int64)
        places = (part.documents[rows], part.segments[rows], part.positions[rows])
        # as lists: numbers of Python are what the dicts have for keys
        for row, number, *place in zip(rows.tolist(), *(column.tolist() for column in places), strict=True):
            own = self.documents[number].own.get((place[0], place[1]))
            if own is not None and key in own:
                codes[row] = code(own[key])
        return Column(values, codes)


def other_dimensions(now: int, before: int) -> str:
    """What is wrong where the embedding model's vectors no longer fit those of a store."""
    return (
        f"the embedding model now returns vectors of {now} dimensions, and those of this vector store have {before}. "
        "Either let the model of before answer under its name, or add the files to a new vector store"
    )


def load(documents: Mapping[int, Document], segments: Sequence[PlacedSegment]) -> Index:
    """Build an index of these documents."""
    return Index((build(segments),) if segments else (), MappingProxyType(dict(documents)))


def _merge_parts(parts: Sequence[IndexPart]) -> tuple[IndexPart, ...]:
    """Join parts until each is more than twice as large as the one behind it, and less than half of it is dead."""
    merged: list[IndexPart] = []
    for part in parts:
        alive = int(part.alive.sum())
        if alive == 0:
            continue
        compacted = part if alive * 2 > part.size else join([part])
        while merged and compacted is not None and merged[-1].size <= 2 * compacted.size:
            compacted = join([merged.pop(), compacted])
        if compacted is not None:
            merged.append(compacted)
    return tuple(merged)
