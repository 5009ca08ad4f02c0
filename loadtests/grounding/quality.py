"""How well passages are found: nDCG@10 of words alone, of meaning alone, and of both.

.venv/bin/python -m loadtests.grounding.quality --data CRANFIELD [--banking BANKING77] [--chunks 200:40]

Every document goes through the real reader, cutter and embedder, and is as good as its best passage. A judged document
counts as relevant (gain 1), whatever its grade, and again by grade (4 to 1). Parameters are looked for on every other
question, and shown on the other half beside the whole.
"""

from __future__ import annotations

import argparse
import asyncio
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from loadtests.grounding.judged import Collection, banking, cranfield
from service.knowledge.embeddings import Embedder, EmbedderConfig
from service.knowledge.index.part import IndexPart, PlacedSegment, build
from service.knowledge.index.ranking import DEFAULT_VECTOR_WEIGHT, FEEDBACK, Question, bm25, rank
from service.knowledge.terms import Analyzer
from service.knowledge.text import PassageText
from service.knowledge.types import Chunking

TOP: Final = 10
WEIGHTS: Final = tuple(round(0.05 * step, 2) for step in range(1, 20))
SHOWN: Final = (0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8)
WAIT_S: Final = 60.0
Scores = NDArray[np.float32]
"""(questions, passages), or (questions, documents)"""


@dataclass(frozen=True, slots=True)
class Embedded:
    """A collection's passages as one part and as texts, in the same order, and its questions' vectors.

    A passage's document (`IndexPart.documents`) is its place in the collection.
    """

    part: IndexPart
    passages: list[PassageText]
    questions: Scores


async def embed(data: Collection, chunking: Chunking, home: Path) -> Embedded:
    """Read, cut and embed the whole collection."""
    embedder = Embedder(EmbedderConfig(home / "embedder"))
    placed: list[PlacedSegment] = []
    passages: list[PassageText] = []
    loop = asyncio.get_running_loop()
    try:
        for place, (name, text) in enumerate(data.files):
            (home / name).write_text(text)
            async for batch in embedder.passages(home / name, name, chunking):
                placed.append(PlacedSegment(batch.segment, len(placed), place))
                passages += batch.passages
        vectors = [await embedder.question(text, loop.time() + WAIT_S) for text in data.questions]
    finally:
        await embedder.close()
    part = build(placed)
    if data.rows:
        part = replace(part, documents=np.arange(part.size, dtype=np.int32))
    return Embedded(part, passages, np.stack(vectors))


class Bench:
    """A collection in memory, and what each way of ranking makes of it."""

    def __init__(self, data: Collection, part: IndexPart, vectors: Scores) -> None:
        self._data = data
        self._part = part
        self._documents = int(part.documents.max()) + 1
        self._odd = np.arange(len(data.questions)) % 2 == 1
        analyzer = Analyzer()
        self._terms = [tuple(dict.fromkeys(analyzer.terms(text))) for text in data.questions]
        self._vectors = vectors
        self.words = np.stack([bm25([part], terms)[0] for terms in self._terms])
        self.cosines = vectors @ part.vectors.T

    def served(self, weight: float, feedback: float) -> Scores:
        """As the stores rank."""
        scores = np.full(self.words.shape, -1.0, dtype=np.float32)
        for number, (terms, vector) in enumerate(zip(self._terms, self._vectors, strict=True)):
            for hit in rank([self._part], Question(terms, vector, weight, self._part.size, 0.0, feedback)):
                scores[number, hit.row] = hit.score
        return scores

    def measure(self, scores: Scores) -> tuple[float, float, float, float]:
        """nDCG of scores of passages: on the half to choose on, on the other, on all, and by grade."""
        best = np.full((len(scores), self._documents), -np.inf, dtype=np.float32)
        for question, row in enumerate(scores):
            np.maximum.at(best[question], self._part.documents, row)
        flat, graded = self._ndcg(best, graded=False), self._ndcg(best, graded=True)
        return flat[~self._odd].mean(), flat[self._odd].mean(), flat.mean(), graded.mean()

    def _ndcg(self, scores: Scores, *, graded: bool) -> NDArray[np.float64]:
        """nDCG@10 of every question (Järvelin and Kekäläinen 2002)."""
        found = []
        for row, judged in zip(scores, self._data.judged, strict=True):
            gains = {place: grade if graded else 1 for place, grade in judged.items()}
            best = np.argsort(-row, kind="stable")[:TOP]
            reached = sum(gains.get(int(at), 0) / np.log2(place + 2) for place, at in enumerate(best))
            most = sum(gain / np.log2(at + 2) for at, gain in enumerate(sorted(gains.values(), reverse=True)[:TOP]))
            found.append(reached / most)
        return np.array(found)

    def line(self, name: str, scores: Scores) -> None:
        """Print one line of the table."""
        chosen, other, whole, graded = self.measure(scores)
        print(f"| {name} | {chosen:.3f} | {other:.3f} | **{whole:.3f}** | {graded:.3f} |", flush=True)

    def best_weight(self, fuse: Callable[[float], Scores]) -> float:
        """The weight that is best on the half to choose on."""
        return max(WEIGHTS, key=lambda weight: self.measure(fuse(weight))[0])


def ranks(scores: Scores) -> Scores:
    """Reciprocal ranks with a constant of 60 (Cormack, Clarke and Buettcher 2009)."""
    places = np.argsort(np.argsort(-scores, axis=1, kind="stable"), axis=1, kind="stable")
    return (1.0 / (61.0 + places)).astype(np.float32)


def stretched(scores: Scores) -> Scores:
    """Min-max over all passages, question by question."""
    least, most = scores.min(axis=1, keepdims=True), scores.max(axis=1, keepdims=True)
    return (scores - least) / np.maximum(most - least, 1e-9)


def report(bench: Bench) -> None:
    """Print the table, and how the result depends on the weight."""
    print("| ranking | chosen half | other half | all | all, graded |\n|---|---|---|---|---|")
    bench.line("BM25", bench.words)
    bench.line("vectors", bench.cosines)
    bench.line("both, reciprocal ranks (60)", ranks(bench.words) + ranks(bench.cosines))

    def minmax(weight: float) -> Scores:
        return (1 - weight) * stretched(bench.words) + weight * stretched(bench.cosines)

    def shares(weight: float) -> Scores:
        return (1 - weight) * bench.words + weight * np.clip(bench.cosines, 0.0, 1.0)

    for name, fuse in (("min-max", minmax), ("shares", shares)):
        weight = bench.best_weight(fuse)
        bench.line(f"both, {name}, weight {weight:g} (best on the half)", fuse(weight))
    bench.line(f"both, shares, weight {DEFAULT_VECTOR_WEIGHT:g}", shares(DEFAULT_VECTOR_WEIGHT))
    served = bench.served(DEFAULT_VECTOR_WEIGHT, FEEDBACK)
    bench.line("**the default: that and the second look**", served)
    for name, feedback in (("without", 0.0), ("with", FEEDBACK)):
        found = (f"{weight:g}: {bench.measure(bench.served(weight, feedback))[2]:.3f}" for weight in SHOWN)
        print(f"\nall questions by the vectors' weight, {name} the second look: {', '.join(found)}", end="")
    print()


async def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="directory of cran.all.1400, cran.qry and cranqrel")
    parser.add_argument("--banking", type=Path, help="directory of BANKING77's train.csv")
    parser.add_argument("--chunks", default="200:40", help="size:overlap in tokens")
    asked = parser.parse_args()
    size, overlap = (int(number) for number in asked.chunks.split(":"))
    readers = ((cranfield, asked.data), (banking, asked.banking))
    for data in [reader(directory) for reader, directory in readers if directory is not None]:
        began = time.perf_counter()
        with tempfile.TemporaryDirectory() as home:
            embedded = await embed(data, Chunking(size, overlap), Path(home))
        spent = time.perf_counter() - began
        print(
            f"\n{data.name}: {embedded.part.size} passages of at most {size} tokens, overlap {overlap}; {spent:.0f} s\n"
        )
        report(Bench(data, embedded.part, embedded.questions))


if __name__ == "__main__":
    asyncio.run(main())
