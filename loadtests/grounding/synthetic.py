"""A large store without hours of embedding: sentences of real abstracts thrown together, and random vectors.

Words come as often as they do in one field of science, which is harder than a mixed collection: a question's words are
each in a large part of the passages.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import numpy as np
import sqlalchemy as sa
from numpy.typing import NDArray

from loadtests.grounding.cranfield import Cranfield
from service.database import Database
from service.knowledge.index import indexing_records, records
from service.knowledge.index.indexing_records import IndexingResult, IndexingTask
from service.knowledge.index.passage_records import PassageFile
from service.knowledge.segment import Segment
from service.knowledge.terms import Analyzer
from service.knowledge.text import PassageText
from service.knowledge.types import DEFAULT_CHUNKING, NewStoreFile

DIMENSIONS: Final = 384
SENTENCES: Final = 5
SEGMENT: Final = 64
STORE: Final = "vs_synthetic"
SEED: Final = 1


def texts(data: Cranfield, count: int) -> Iterator[str]:
    """Passages of five sentences each."""
    chosen = random.Random(SEED)
    sentences = [part.strip() for one in data.abstracts for part in one.text.split(" . ") if len(part.split()) > 3]
    for _ in range(count):
        yield ". ".join(chosen.sample(sentences, SENTENCES)) + "."


def vectors(count: int) -> NDArray[np.float32]:
    """Directions drawn evenly."""
    drawn = np.random.default_rng(SEED).standard_normal((count, DIMENSIONS), dtype=np.float32)
    return drawn / np.linalg.norm(drawn, axis=1, keepdims=True)


async def fill(database: Database, root: Path, data: Cranfield, count: int, model: str) -> None:
    """A store of one file with so many passages, as the indexing would leave it."""
    root.mkdir(parents=True, exist_ok=True)
    new_file = NewStoreFile("file-synthetic", "synthetic.txt")

    def begin(db: sa.Connection) -> None:
        records.create_store(db, STORE, "default", "synthetic", None, {})
        records.add_files(db, "default", STORE, [(new_file, DEFAULT_CHUNKING, "g")], None)

    await database.run(begin)
    file = PassageFile(root / f"{STORE}.db")
    size = _write(file, data, count)
    file.close()
    task = IndexingTask(STORE, "default", new_file.file_id, new_file.filename, DEFAULT_CHUNKING, "g")
    await database.run(lambda db: indexing_records.record_result(db, IndexingResult(task, count, size, model)))


def _write(file: PassageFile, data: Cranfield, count: int) -> int:
    analyzer = Analyzer()
    document = file.begin("g")
    all_texts, all_vectors = list(texts(data, count)), vectors(count)
    size = 0
    for at in range(0, count, SEGMENT):
        some = all_texts[at : at + SEGMENT]
        bags = [analyzer.bag("", text) for text in some]
        segment = Segment(
            all_vectors[at : at + SEGMENT],
            np.cumsum([0, *(len(terms) for terms, _ in bags)]).astype(np.uint32),
            np.concatenate([terms for terms, _ in bags]),
            np.concatenate([counts for _, counts in bags]),
        )
        file.add(document, segment, [PassageText(at + number, "", text) for number, text in enumerate(some)])
        size += segment.size + sum(map(len, some))
    return size
