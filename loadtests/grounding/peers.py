"""The search libraries that were not taken beside our own index: LanceDB, tantivy, SQLite's FTS5.

.venv/bin/python -m pip install --target PEERS lancedb tantivy
export PYTHONPATH=PEERS
.venv/bin/python -m loadtests.grounding.peers --data CRANFIELD --banking BANKING77 quality PEER...
.venv/bin/python -m loadtests.grounding.peers --data CRANFIELD latency PEER

*quality*: nDCG@10 on the judged collections, whose passages go through the real reader, cutter and embedder. *latency*:
searches among 100,000 passages, without the question's embedding (the vectors are random), memory and disk; one peer a
process, so that the memory is its own.
"""

from __future__ import annotations

import argparse
import asyncio
import importlib
import math
import re
import sqlite3
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import psutil
from numpy.typing import NDArray

from loadtests.grounding.cranfield import load
from loadtests.grounding.judged import banking, cranfield
from loadtests.grounding.latency import show
from loadtests.grounding.quality import Bench, embed
from loadtests.grounding.synthetic import texts, vectors
from service.knowledge.index import ranking
from service.knowledge.index.part import IndexPart, PlacedSegment, build
from service.knowledge.index.ranking import DEFAULT_VECTOR_WEIGHT, Question, rank
from service.knowledge.index.searching import use_one_blas_thread
from service.knowledge.segment import Segment
from service.knowledge.terms import HEADING_WEIGHT, STOP_WORDS, Analyzer
from service.knowledge.text import PassageText
from service.knowledge.types import DEFAULT_CHUNKING

MIB: Final = 1 << 20
RESULTS: Final = 4
CANDIDATES: Final = 1000
"""Hits of the words that a library is asked for, to be joined with the vectors' scores: as many as we rerank."""
BATCH: Final = 10_000
IVF_CELLS: Final = 64
TANTIVY_K1: Final = 1.2
"""Fixed in its source, as b = 0.75 is."""
WARM_UP: Final = 20

Search = Callable[[str, Any, int], Sequence[tuple[int, float]]]
"""(question, its vector, k) → (number of the passage, score), best first."""


@dataclass(frozen=True, slots=True)
class Passages:
    """What is indexed: texts, and their vectors as rows."""

    passages: list[PassageText]
    vectors: NDArray[np.float32]

    @property
    def weighted(self) -> list[str]:
        """Texts in which a heading's words count as often as we count them."""
        return [f"{passage.text} {f'{passage.heading} ' * HEADING_WEIGHT}" for passage in self.passages]


def words(text: str) -> list[str]:
    """A question's distinct words without stop words."""
    found = re.findall(r"\w+", text.lower())
    return [word for word in dict.fromkeys(found) if word not in STOP_WORDS]


def part_of(data: Passages) -> IndexPart:
    """Our own index of the passages."""
    analyzer = Analyzer()
    bags = [analyzer.bag(passage.heading, passage.text) for passage in data.passages]
    offsets = np.cumsum([0, *(len(terms) for terms, _ in bags)]).astype(np.uint32)
    arrays = (np.concatenate([terms for terms, _ in bags]), np.concatenate([counts for _, counts in bags]))
    return build([PlacedSegment(Segment(data.vectors, offsets, *arrays), 1, 1)])


def ours(data: Passages, _home: Path) -> Search:
    """Our own index."""
    part, analyzer = part_of(data), Analyzer()

    def search(text: str, vector: Any, k: int) -> list[tuple[int, float]]:
        terms = tuple(dict.fromkeys(analyzer.terms(text)))
        return [(hit.row, hit.score) for hit in rank([part], Question(terms, vector, DEFAULT_VECTOR_WEIGHT, k, 0.0))]

    return search


def _joined(data: Passages, lexical: Callable[[str], tuple[NDArray[np.intp], NDArray[np.float32]]]) -> Search:
    """Scores of words (0 to 1) from elsewhere beside exact vectors, joined and reranked as we do it."""
    nothing = np.zeros(len(data.passages), dtype=np.int32)
    empty = np.zeros(0, dtype=np.uint64)
    part = IndexPart(
        vectors=data.vectors,
        lengths=nothing.astype(np.float32),
        segments=nothing.astype(np.int64),
        positions=nothing,
        documents=nothing,
        alive=np.ones(len(nothing), dtype=np.bool_),
        terms=empty,
        starts=np.zeros(1, dtype=np.int64),
        rows=nothing[:0],
        counts=empty.astype(np.uint16),
    )

    def search(text: str, vector: Any, k: int) -> list[tuple[int, float]]:
        question = Question((), vector, DEFAULT_VECTOR_WEIGHT, k, 0.0)
        words_of = np.zeros(part.size, dtype=np.float32)
        rows, scores = lexical(text)
        words_of[rows] = scores
        first = ranking._scores([part], [words_of], [part.alive], question)
        second = ranking._rerank_with_feedback([part], [words_of], first, question)
        return [(hit.row, hit.score) for hit in ranking._best([part], second, k, 0.0)]

    return search


def tantivy(data: Passages, home: Path) -> Search:
    """tantivy for the words, with its own stop words and stemmer, beside exact vectors."""
    library = importlib.import_module("tantivy")
    filters = library.Filter
    builder = library.TextAnalyzerBuilder(library.Tokenizer.simple())
    for step in (filters.remove_long(64), filters.lowercase(), filters.ascii_fold()):
        builder = builder.filter(step)
    analyzer = builder.filter(filters.custom_stopword(sorted(STOP_WORDS))).filter(filters.stemmer("english")).build()
    schema = library.SchemaBuilder()
    schema.add_text_field("text", tokenizer_name="ours")
    schema.add_integer_field("row", fast=True)
    index = library.Index(schema.build(), path=str(home))
    index.register_tokenizer("ours", analyzer)
    writer = index.writer(num_threads=1)
    for row, text in enumerate(data.weighted):
        writer.add_document(library.Document(text=[text], row=row))
    writer.commit()
    writer.wait_merging_threads()
    index.reload()
    searcher, built, total = index.searcher(), index.schema, len(data.passages)

    def lexical(text: str) -> tuple[NDArray[np.intp], NDArray[np.float32]]:
        terms = list(dict.fromkeys(analyzer.analyze(text)))
        frequencies = [searcher.doc_freq("text", term) for term in terms]
        most = sum(math.log(1 + (total - n + 0.5) / (n + 0.5)) for n in frequencies) * (TANTIVY_K1 + 1)
        clauses = [(library.Occur.Should, library.Query.term_query(built, "text", term)) for term in terms]
        hits = searcher.search(library.Query.boolean_query(clauses), CANDIDATES, count=False).hits
        rows = searcher.fast_field_values("row", [address for _, address in hits])
        scores = np.array([score for score, _ in hits], dtype=np.float32) / np.float32(max(most, 1e-9))
        return np.array(rows, dtype=np.intp), scores

    return _joined(data, lexical)


def fts5(data: Passages, home: Path) -> Search:
    """SQLite's full text (porter, BM25) for the words, beside exact vectors."""
    db = sqlite3.connect(home / "fts.db")
    db.execute("PRAGMA journal_mode = WAL")
    db.execute("CREATE VIRTUAL TABLE passages USING fts5(text, tokenize = 'porter unicode61')")
    with db:
        rows = ((number, text) for number, text in enumerate(data.weighted, 1))
        db.executemany("INSERT INTO passages (rowid, text) VALUES (?, ?)", rows)
    db.execute("INSERT INTO passages (passages) VALUES ('optimize')")
    db.commit()
    best = 1e-9

    def lexical(text: str) -> tuple[NDArray[np.intp], NDArray[np.float32]]:
        nonlocal best
        match = " OR ".join(f'"{word}"' for word in words(text))
        ranked = "SELECT rowid, rank FROM passages WHERE passages MATCH ? ORDER BY rank LIMIT ?"
        found = db.execute(ranked, (match, CANDIDATES)).fetchall()
        if not found:
            return np.zeros(0, dtype=np.intp), np.zeros(0, dtype=np.float32)
        scores = np.array([-score for _, score in found], dtype=np.float32)
        # it does not tell how many passages have a word: its best hit stands for the most that could be reached
        return np.array([row - 1 for row, _ in found], dtype=np.intp), scores / max(float(scores.max()), best)

    return _joined(data, lexical)


def _lancedb(data: Passages, home: Path) -> Any:
    library, arrow = importlib.import_module("lancedb"), importlib.import_module("pyarrow")
    table, all_texts = None, data.weighted
    for at in range(0, len(all_texts), BATCH):
        some = data.vectors[at : at + BATCH]
        rows = arrow.table(
            {
                "row": arrow.array(range(at, at + len(some))),
                "text": all_texts[at : at + BATCH],
                "vector": arrow.FixedSizeListArray.from_arrays(arrow.array(some.ravel()), some.shape[1]),
            }
        )
        if table is None:
            table = library.connect(str(home)).create_table("passages", rows)
        else:
            table.add(rows)
    assert table is not None
    index = importlib.import_module("lancedb.index")
    table.create_index("text", config=index.FTS(stem=True, remove_stop_words=True))
    return table


def lancedb(data: Passages, home: Path, *, indexed: bool = True) -> Search:
    """LanceDB: its full text with stemming, its vectors and its reciprocal-rank fusion; of a hit the number alone."""
    table = _lancedb(data, home)
    if indexed:
        index = importlib.import_module("lancedb.index")
        table.create_index("vector", config=index.HnswSq(distance_type="cosine", num_partitions=1))

    def search(text: str, vector: Any, k: int) -> list[tuple[int, float]]:
        query = table.search(query_type="hybrid").vector(vector).text(" ".join(words(text))).distance_type("cosine")
        found = query.limit(k).select(["row"]).to_arrow()
        return list(zip(found["row"].to_pylist(), found["_relevance_score"].to_pylist(), strict=True))

    return search


def lancedb_exact(data: Passages, home: Path) -> Search:
    """The same without an index of the vectors."""
    return lancedb(data, home, indexed=False)


PEERS: Final[dict[str, Callable[[Passages, Path], Search]]] = {
    "ours": ours,
    "tantivy": tantivy,
    "fts5": fts5,
    "lancedb": lancedb,
    "lancedb-exact": lancedb_exact,
}


async def quality(names: Sequence[str], directories: dict[str, Path]) -> None:
    """nDCG@10 of each peer on each collection."""
    for name, read in (("data", cranfield), ("banking", banking)):
        if directories[name] is None:
            continue
        data = read(directories[name])
        with tempfile.TemporaryDirectory() as directory:
            embedded = await embed(data, DEFAULT_CHUNKING, Path(directory))
        bench = Bench(data, embedded.part, embedded.questions)
        passages = Passages(embedded.passages, embedded.part.vectors)
        print(f"\n{data.name}: {embedded.part.size} passages; nDCG@10\n| | chosen half | other half | all | graded |")
        for peer in names:
            with tempfile.TemporaryDirectory() as directory:
                search = PEERS[peer](passages, Path(directory))
                scores = np.full((len(data.questions), embedded.part.size), -1.0, dtype=np.float32)
                for number, (text, vector) in enumerate(zip(data.questions, embedded.questions, strict=True)):
                    for row, score in search(text, vector, min(CANDIDATES, embedded.part.size)):
                        scores[number, row] = score
                bench.line(peer, scores)


def latency(peer: str, cranfield_files: Path, count: int) -> None:
    """Print how long searches take, the memory of the process, and what is on the disk."""
    data = load(cranfield_files)
    passages = Passages([PassageText(at, "", text) for at, text in enumerate(texts(data, count))], vectors(count))
    with tempfile.TemporaryDirectory() as directory:
        home = Path(directory)
        began = time.perf_counter()
        search = PEERS[peer](passages, home)
        built = time.perf_counter() - began
        size = sum(path.stat().st_size for path in home.rglob("*") if path.is_file()) / MIB
        asking = vectors(len(data.questions))
        for text, vector in zip(data.questions[:WARM_UP], asking, strict=False):
            search(text, vector, RESULTS)
        spent = []
        for text, vector in zip(data.questions, asking, strict=True):
            started = time.perf_counter()
            search(text, vector, RESULTS)
            spent.append(time.perf_counter() - started)
        memory = psutil.Process().memory_info().rss / MIB
    print(f"{peer}: {count} passages in {built:.0f} s, disk {size:.0f} MiB, memory {memory:.0f} MiB")
    print("| ms | p50 | p95 | p99 | most |\n|---|---|---|---|---|")
    show(f"{peer}, search without embedding", spent)


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("quality", "latency"))
    parser.add_argument("peers", nargs="+", choices=sorted(PEERS))
    parser.add_argument("--data", type=Path, required=True, help="directory of cran.all.1400, cran.qry and cranqrel")
    parser.add_argument("--banking", type=Path, help="directory of BANKING77's train.csv")
    parser.add_argument("--passages", type=int, default=100_000)
    asked = parser.parse_args()
    use_one_blas_thread()
    if asked.what == "quality":
        asyncio.run(quality(asked.peers, {"data": asked.data, "banking": asked.banking}))
    else:
        for peer in asked.peers:
            latency(peer, asked.data, asked.passages)


if __name__ == "__main__":
    main()
