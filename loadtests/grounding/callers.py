"""How fast callers' texts are embedded, and what a question for retrieval waits beside them.

.venv/bin/python -m loadtests.grounding.callers [--questions 100]

Against the embedder's process with the packaged model, without the gateway. The flood is four requests at once, as many
as the gateway lets in, each of 256 texts of 200 tokens; whichever ends is followed by another.
"""

from __future__ import annotations

import argparse
import asyncio
import tempfile
import time
from pathlib import Path
from typing import Any, Final

from loadtests.grounding.latency import show
from service.admission.policy import EMBEDDING_WIDTH
from service.knowledge.embeddings import Embedder, EmbedderConfig

WAIT_S: Final = 240.0
TEXT: Final = "the keeper of the lighthouse writes of boots parcels and salt " * 18
TEXTS: Final = 256
OPTIONS: Final[dict[str, Any]] = {"single": False, "model": "m", "base64": True, "dimensions": None}


async def ask(embedder: Embedder, questions: int) -> list[float]:
    """Seconds that each question's vector takes."""
    spent, loop = [], asyncio.get_running_loop()
    for number in range(questions):
        began = time.perf_counter()
        await embedder.question(f"When does parcel {number} leave the warehouse?", loop.time() + WAIT_S)
        spent.append(time.perf_counter() - began)
    return spent


async def flood(embedder: Embedder) -> None:
    while True:
        await embedder.inputs([TEXT] * TEXTS, **OPTIONS)


async def main() -> None:
    """Print the two tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--questions", type=int, default=100)
    questions = parser.parse_args().questions
    with tempfile.TemporaryDirectory() as home:
        embedder = Embedder(EmbedderConfig(Path(home) / "e"))
        await ask(embedder, 5)
        for texts in (["boots"], [TEXT], ["boots"] * 512, [TEXT] * TEXTS):
            began = time.perf_counter()
            answer, tokens = await embedder.inputs(texts, **OPTIONS)
            seconds = time.perf_counter() - began
            pace = f"{tokens / seconds:.0f} tokens/s"
            print(f"{len(texts)} texts, {tokens} tokens: {seconds:.3f} s, {pace}, {len(answer)} bytes")
        print("\n| a question's vector, ms | p50 | p95 | p99 | most |\n|---|---|---|---|---|")
        show("alone", await ask(embedder, questions))
        floods = [asyncio.create_task(flood(embedder)) for _ in range(EMBEDDING_WIDTH)]
        await asyncio.sleep(2)
        show("beside four requests of 256 texts", await ask(embedder, questions))
        began = time.perf_counter()
        await embedder.inputs(["boots"], **OPTIONS)
        print(f"\none text of another caller beside them: {time.perf_counter() - began:.2f} s")
        for task in floods:
            task.cancel()
        await asyncio.gather(*floods, return_exceptions=True)
        await embedder.close()


if __name__ == "__main__":
    asyncio.run(main())
