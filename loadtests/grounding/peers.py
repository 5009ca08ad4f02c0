"""The databases that were not taken, on the same passages, vectors and questions: SQLite's FTS5, and LanceDB.

.venv/bin/python -m loadtests.grounding.peers --data CRANFIELD ours|fts5 [--passages 100000]
.venv/bin/python -m pip install --target PEER lancedb
PYTHONPATH=PEER .venv/bin/python -m loadtests.grounding.peers --data CRANFIELD lancedb

The questions' vectors are random, as the passages' are: what is timed is the search without the embedding. `ours` times
our own index in the same way.
"""

from __future__ import annotations

import argparse
import importlib
import re
import sqlite3
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import numpy as np
import psutil

from loadtests.grounding.cranfield import Cranfield, load
from loadtests.grounding.latency import show
from loadtests.grounding.synthetic import texts, vectors
from service.knowledge.index.part import PlacedSegment, build
from service.knowledge.index.ranking import DEFAULT_VECTOR_WEIGHT, Question, rank
from service.knowledge.index.searching import use_one_blas_thread
from service.knowledge.segment import Segment
from service.knowledge.terms import STOP_WORDS, Analyzer

MIB: Final = 1 << 20
RESULTS: Final = 4
CANDIDATES: Final = 100
BATCH: Final = 10_000

Search = Callable[[str, Any], int]


def words(text: str) -> list[str]:
    """A question's distinct words without stop words."""
    found = re.findall(r"\w+", text.lower())
    return [word for word in dict.fromkeys(found) if word not in STOP_WORDS]


def ours(data: Cranfield, count: int, _home: Path) -> Search:
    """Our own index."""
    use_one_blas_thread()
    analyzer = Analyzer()
    bags = [analyzer.bag("", text) for text in texts(data, count)]
    offsets = np.cumsum([0, *(len(terms) for terms, _ in bags)]).astype(np.uint32)
    arrays = (np.concatenate([terms for terms, _ in bags]), np.concatenate([counts for _, counts in bags]))
    part = build([PlacedSegment(Segment(vectors(count), offsets, *arrays), 1, 1)])

    def search(text: str, vector: Any) -> int:
        terms = tuple(dict.fromkeys(analyzer.terms(text)))
        return len(rank([part], Question(terms, vector, DEFAULT_VECTOR_WEIGHT, RESULTS, 0.0)))

    return search


def fts5(data: Cranfield, count: int, home: Path) -> Search:
    """SQLite's full text (porter, BM25) for the best hundred, beside exact vectors."""
    db = sqlite3.connect(home / "fts.db")
    db.execute("PRAGMA journal_mode = WAL")
    db.execute("CREATE VIRTUAL TABLE passages USING fts5(text, tokenize = 'porter unicode61')")
    with db:
        rows = ((number, text) for number, text in enumerate(texts(data, count), 1))
        db.executemany("INSERT INTO passages (rowid, text) VALUES (?, ?)", rows)
    db.execute("INSERT INTO passages (passages) VALUES ('optimize')")
    db.commit()
    matrix = vectors(count)
    use_one_blas_thread()

    def search(text: str, vector: Any) -> int:
        match = " OR ".join(f'"{word}"' for word in words(text))
        ranked = "SELECT rowid, rank FROM passages WHERE passages MATCH ? ORDER BY rank LIMIT ?"
        lexical = db.execute(ranked, (match, CANDIDATES)).fetchall()
        near = np.argpartition(matrix @ vector, -CANDIDATES)[-CANDIDATES:]
        return len(lexical) + len(near)

    return search


def lancedb(data: Cranfield, count: int, home: Path) -> Search:
    """LanceDB: its full-text index with stemming, exact vectors, and its reciprocal-rank fusion."""
    library = importlib.import_module("lancedb")
    arrow = importlib.import_module("pyarrow")
    table = None
    all_texts, all_vectors = list(texts(data, count)), vectors(count)
    for at in range(0, count, BATCH):
        flat = arrow.array(all_vectors[at : at + BATCH].ravel())
        rows = arrow.table(
            {
                "text": all_texts[at : at + BATCH],
                "vector": arrow.FixedSizeListArray.from_arrays(flat, all_vectors.shape[1]),
            }
        )
        if table is None:
            table = library.connect(str(home)).create_table("passages", rows)
        else:
            table.add(rows)
    if table is None:
        raise SystemExit("no passages")
    index = importlib.import_module("lancedb.index")
    table.create_index("text", config=index.FTS(stem=True, remove_stop_words=True))
    found = table

    def search(text: str, vector: Any) -> int:
        hybrid = found.search(query_type="hybrid").vector(vector).text(" ".join(words(text)))
        return len(hybrid.limit(RESULTS).to_list())

    return search


PEERS: Final = {"ours": ours, "fts5": fts5, "lancedb": lancedb}


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("peer", choices=sorted(PEERS))
    parser.add_argument("--data", type=Path, required=True, help="directory of cran.all.1400, cran.qry and cranqrel")
    parser.add_argument("--passages", type=int, default=100_000)
    asked = parser.parse_args()
    data = load(asked.data)
    with tempfile.TemporaryDirectory() as directory:
        home = Path(directory)
        began = time.perf_counter()
        search = PEERS[asked.peer](data, asked.passages, home)
        built = time.perf_counter() - began
        size = sum(path.stat().st_size for path in home.rglob("*") if path.is_file()) / MIB
        asking = vectors(len(data.questions))
        for text, vector in zip(data.questions[:20], asking, strict=False):
            search(text, vector)
        spent = []
        for text, vector in zip(data.questions, asking, strict=True):
            started = time.perf_counter()
            search(text, vector)
            spent.append(time.perf_counter() - started)
        memory = psutil.Process().memory_info().rss / MIB
        print(f"{asked.peer}: {asked.passages} passages in {built:.0f} s, disk {size:.0f} MiB, memory {memory:.0f} MiB")
        print("| ms | p50 | p95 | p99 | most |\n|---|---|---|---|---|")
        show(f"{asked.peer}, search without embedding", spent)


if __name__ == "__main__":
    main()
