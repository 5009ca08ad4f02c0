"""How fast passages are found among many, what that takes of memory, and what indexing costs the gateway's event loop.

.venv/bin/python -m loadtests.grounding.latency --data CRANFIELD [--passages 100000] [--index 10000]

The store of so many passages is synthetic (see `synthetic.py`), the questions are Cranfield's 225 and go through the
real embedder. The loop's lag is that of a task that wants to run every 5 ms in the process that indexes, as the gateway
does, while a question is asked every half second.
"""

from __future__ import annotations

import argparse
import asyncio
import csv
import sys
import tempfile
import time
from pathlib import Path
from typing import Final

import numpy as np
import psutil

from loadtests.grounding.cranfield import Cranfield, load
from loadtests.grounding.synthetic import STORE, fill
from service.database import Database
from service.knowledge.embeddings import Embedder, EmbedderConfig
from service.knowledge.index.ranking import DEFAULT_VECTOR_WEIGHT, Question, rank
from service.knowledge.index.searching import use_one_blas_thread
from service.knowledge.index.stores import Stores
from service.knowledge.terms import Analyzer
from service.knowledge.types import NewStoreFile

MIB: Final = 1 << 20
TICK_S: Final = 0.005
ASK_S: Final = 0.5
WAIT_S: Final = 120.0
RESULTS: Final = 4
MEMORY_BYTES: Final = 8 << 30


def show(name: str, seconds: list[float]) -> None:
    """One line of percentiles, in ms."""
    p50, p95, p99 = np.percentile(seconds, [50, 95, 99]) * 1e3
    print(f"| {name} | {p50:.1f} | {p95:.1f} | {p99:.1f} | {max(seconds) * 1e3:.1f} |", flush=True)


def resident() -> float:
    """MiB of this process."""
    return float(psutil.Process().memory_info().rss) / MIB


async def ask(stores: Stores, store: str, text: str) -> float:
    """Seconds that one search takes."""
    began = time.perf_counter()
    deadline = asyncio.get_running_loop().time() + WAIT_S
    await stores.search("default", [store], text, filters=None, k=RESULTS, threshold=None, deadline=deadline)
    return time.perf_counter() - began


async def searching(stores: Stores, embedder: Embedder, data: Cranfield) -> None:
    """Print how long searches take, as a whole and in their parts."""
    loop = asyncio.get_running_loop()
    await embedder.question("is it there", loop.time() + WAIT_S)
    before = resident()
    first = await ask(stores, STORE, data.questions[0])
    print(f"\nfirst search, which loads the store: {first:.2f} s; memory {before:.0f} to {resident():.0f} MiB")
    child = psutil.Process(embedder.pid).memory_info().rss / MIB
    print(f"the embedder's process: {child:.0f} MiB\n")
    print("| ms | p50 | p95 | p99 | most |\n|---|---|---|---|---|")
    whole = [await ask(stores, STORE, text) for text in data.questions * 2]
    show("retrieval, one at a time", whole)
    vectors, spent = [], []
    for text in data.questions:
        began = time.perf_counter()
        vectors.append(await embedder.question(text, loop.time() + WAIT_S))
        spent.append(time.perf_counter() - began)
    show("of it: the question's vector", spent)
    async with stores.opened(STORE) as index:
        analyzer, spent = Analyzer(), []
        use_one_blas_thread()
        for text, vector in zip(data.questions, vectors, strict=True):
            terms = tuple(dict.fromkeys(analyzer.terms(text)))
            began = time.perf_counter()
            rank(index.parts, Question(terms, vector, DEFAULT_VECTOR_WEIGHT, RESULTS, 0.0))
            spent.append(time.perf_counter() - began)
    show("of it: ranking", spent)
    at_once: list[float] = []
    for at in range(0, len(data.questions), 4):
        at_once += await asyncio.gather(*(ask(stores, STORE, text) for text in data.questions[at : at + 4]))
    show("retrieval, four at once", at_once)


async def indexing(stores: Stores, data: Cranfield, home: Path, count: int) -> None:
    """Print how fast a file of so many passages is indexed, and how late the loop is meanwhile."""
    sentences = [part for one in data.abstracts for part in one.text.split(" . ") if len(part.split()) > 3]
    with (home / "rows.csv").open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["number", "sentence"])
        rows.writerows((number, sentences[number % len(sentences)]) for number in range(count))
    store = await stores.create_store("default", "rows", metadata={})
    lags: list[float] = []

    async def tick() -> None:
        loop = asyncio.get_running_loop()
        while True:
            due = loop.time() + TICK_S
            await asyncio.sleep(TICK_S)
            lags.append(max(0.0, loop.time() - due))

    idle = asyncio.create_task(tick())
    await asyncio.sleep(5)
    idle.cancel()
    quiet, lags = lags, []
    ticking = asyncio.create_task(tick())
    began = time.perf_counter()
    await stores.add_files("default", store.id, [NewStoreFile("rows.csv", "rows.csv")])
    asked = []
    while (info := await stores.get_file("default", store.id, "rows.csv")) and info.status == "in_progress":
        asked.append(await ask(stores, STORE, data.questions[len(asked) % len(data.questions)]))
        await asyncio.sleep(ASK_S)
    seconds = time.perf_counter() - began
    ticking.cancel()
    print(f"\n{count} passages indexed in {seconds:.0f} s: {count / seconds:.0f} a second\n")
    print("| ms | p50 | p95 | p99 | most |\n|---|---|---|---|---|")
    show("lag of the event loop, idle", quiet)
    show("lag of the event loop while indexing", lags)
    if asked:
        show(f"retrieval while indexing ({len(asked)} questions)", asked)
    print(f"\ntorch imported in this process: {'torch' in sys.modules}")


async def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="directory of cran.all.1400, cran.qry and cranqrel")
    parser.add_argument("--passages", type=int, default=100_000)
    parser.add_argument("--index", type=int, default=10_000)
    asked = parser.parse_args()
    data = load(asked.data)
    with tempfile.TemporaryDirectory() as directory:
        home = Path(directory)
        database = Database(home / "hatrack.db")
        await database.open()
        embedder = Embedder(EmbedderConfig(home / "embedder"))
        began = time.perf_counter()
        await fill(database, home / "stores", data, asked.passages, embedder.identity)
        size = sum(path.stat().st_size for path in (home / "stores").iterdir()) / MIB
        print(f"{asked.passages} passages written in {time.perf_counter() - began:.0f} s, {size:.0f} MiB on the disk")
        stores = Stores(database, home / "stores", embedder, lambda file_id: home / file_id, memory_bytes=MEMORY_BYTES)
        await stores.open()
        await searching(stores, embedder, data)
        if asked.index:
            await indexing(stores, data, home, asked.index)
        await stores.close()
        await database.close()


if __name__ == "__main__":
    asyncio.run(main())
