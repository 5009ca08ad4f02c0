"""What a minimum score costs and what it keeps out: questions that a store answers, and questions about anything else.

.venv/bin/python -m loadtests.grounding.threshold --data CRANFIELD --banking BANKING77 [--save results.json]

Five stores: the facts of the two sample shops (`trainer/samples/NAME.grounded.jsonl`), the example shop's policies and
orders (`trainer/samples/marlow/`) and, where given, the two judged collections. A store is asked its own questions, for
which the right passages are known, and others': general ones (`off_topic.txt`), which nothing in any store answers, and
the other collections'. Tidewater's shop is also asked the same things in other words (`paraphrases.txt`, one for each
question). As in a prompt, the best four passages count. `--save` keeps every question's scores, `--load` prints the
table from them again.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import re
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import numpy as np

from loadtests.grounding.judged import Collection, banking, cranfield
from loadtests.grounding.quality import WAIT_S, embed
from service.grounding.config import DEFAULT_RESULTS
from service.knowledge.embeddings import Embedder, EmbedderConfig
from service.knowledge.index.part import IndexPart
from service.knowledge.index.ranking import DEFAULT_VECTOR_WEIGHT, Question, rank
from service.knowledge.segment import Vectors
from service.knowledge.terms import Analyzer
from service.knowledge.types import DEFAULT_CHUNKING
from trainer.samples import NAMES, data_file

THRESHOLDS: Final = (0.0, 0.05, 0.08, 0.1, 0.12, 0.14, 0.15, 0.16, 0.18, 0.2, 0.22, 0.25, 0.3)
GENERAL: Final = (Path(__file__).parent / "off_topic.txt").read_text().splitlines()
PARAPHRASES: Final = (Path(__file__).parent / "paraphrases.txt").read_text().splitlines()
UNANSWERED: Final = 3
"""The last pairs of each voice have no passage that answers; the others do."""
SECOND: Final = ("What is in my order", "What is the number of the service desk")
"""Questions whose right passage is the second; of all others, it is the first."""
BLOCK: Final = re.compile(r"\[\d\] \S+\n<<(\w+)\n(.+?)\n\1>>", re.DOTALL)

MARLOW: Final = data_file(NAMES[0]).parent / "marlow"

Asked = list[tuple[float, bool]]
"""The best passages of one question: score, and whether it is right."""


def grounded_pairs(name: str) -> list[tuple[list[str], str, str, int | None]]:
    """A voice's grounded examples: passages, question, answer, and which passage has the answer, if one does."""
    pairs = []
    for line in data_file(name).with_suffix(".grounded.jsonl").read_text().splitlines():
        asked, answer = (message["content"] for message in json.loads(line)["messages"])
        question = asked.rsplit("\n\n", 1)[1]
        right = 1 if question.startswith(SECOND) else 0
        pairs.append(([text for _, text in BLOCK.findall(asked)], question, answer, right))
    return [*pairs[:-UNANSWERED], *((*pair[:3], None) for pair in pairs[-UNANSWERED:])]


def shop(name: str) -> Collection:
    """A shop's facts, a passage each, and the questions that they answer."""
    pairs = grounded_pairs(name)
    facts = list(dict.fromkeys(text for passages, *_ in pairs for text in passages))
    answered = [pair for pair in pairs if pair[3] is not None]
    right = [passages[number or 0].partition("\n")[2] or passages[number or 0] for passages, _, _, number in answered]
    judged = [{at: 1 for at, fact in enumerate(facts) if fact.endswith(text)} for text in right]
    rows = "".join(json.dumps({"text": fact}) + "\n" for fact in facts)
    return Collection(name, [("facts.jsonl", rows)], [pair[1] for pair in answered], judged, rows=True)


def marlow() -> Collection:
    """The example shop's documents, and its customers' questions with the document that answers each."""
    paths = sorted((MARLOW / "store").glob("*/*.*"))
    places = {path.name: place for place, path in enumerate(paths)}
    lines = [json.loads(line) for line in (MARLOW / "questions.jsonl").read_text().splitlines()]
    answered = [line for line in lines if line["must_contain"]]
    judged = [{places[line["source"]]: 1} for line in answered]
    files = [(path.name, path.read_text()) for path in paths]
    return Collection("marlow", files, [line["question"] for line in answered], judged)


def best(part: IndexPart, terms: tuple[int, ...], vector: Vectors, judged: dict[int, int]) -> Asked:
    """The passages that would go into the prompt."""
    question = Question(terms, vector, DEFAULT_VECTOR_WEIGHT, DEFAULT_RESULTS, 0.0)
    return [(hit.score, int(part.documents[hit.row]) in judged) for hit in rank([part], question)]


async def vectors_of(texts: Sequence[str], home: Path) -> list[Vectors]:
    """The vectors of questions."""
    embedder = Embedder(EmbedderConfig(home / "embedder"))
    loop = asyncio.get_running_loop()
    try:
        return [await embedder.question(text, loop.time() + WAIT_S) for text in texts]
    finally:
        await embedder.close()


async def measure(collections: Sequence[Collection]) -> dict[str, dict[str, list[Asked]]]:
    """The best passages of every question, by store and kind of question; `own` and `paraphrased` have right ones."""
    analyzer = Analyzer()
    results: dict[str, dict[str, list[Asked]]] = {}
    with tempfile.TemporaryDirectory() as directory:
        home = Path(directory)
        asked = {
            "general": list(zip(GENERAL, await vectors_of(GENERAL, home), strict=True)),
            "paraphrased": list(zip(PARAPHRASES, await vectors_of(PARAPHRASES, home), strict=True)),
        }
        parts = []
        for data in collections:
            began = time.perf_counter()
            (home / data.name).mkdir()
            store = await embed(data, DEFAULT_CHUNKING, home / data.name)
            parts.append(store.part)
            asked[data.name] = list(zip(data.questions, store.questions, strict=True))
            print(f"{data.name}: {store.part.size} passages, {time.perf_counter() - began:.0f} s", flush=True)
        for data, part in zip(collections, parts, strict=True):
            kinds = results[data.name] = {}
            for kind, questions in asked.items():
                answered = kind == data.name or (kind == "paraphrased" and data.name == NAMES[0])
                if not answered and kind in (*NAMES, "marlow", "paraphrased"):
                    continue  # one shop's questions are no stranger's to the other
                judged = data.judged if answered else [{}] * len(questions)
                kinds["own" if kind == data.name else kind] = [
                    best(part, tuple(dict.fromkeys(analyzer.terms(text))), vector, right)
                    for (text, vector), right in zip(questions, judged, strict=True)
                ]
    return results


def line(name: str, values: Sequence[float]) -> None:
    """One row of the table."""
    print(f"| {name} | " + " | ".join(f"{value:.1%}" for value in values) + " |")


def report(results: dict[str, dict[str, list[Asked]]]) -> None:
    """Print, by minimum score: what remains of the answers, and how many other questions get passages."""
    print("\n| minimum score | " + " | ".join(f"{least:g}" for least in THRESHOLDS) + " |")
    print("|---" * (len(THRESHOLDS) + 1) + "|")
    for store, kinds in results.items():
        for kind, questions in kinds.items():
            if kind in ("own", "paraphrased"):
                right = np.array([max((score for score, good in asked if good), default=-1) for asked in questions])
                wrong = np.array([score for asked in questions for score, good in asked if not good])
                line(f"{store}, {kind}: a right passage", [(right >= max(t, 0)).mean() for t in THRESHOLDS])
                line(f"{store}, {kind}: wrong passages kept", [(wrong >= t).mean() for t in THRESHOLDS])
                print(f"least scores of a best right passage: {np.sort(right[right >= 0])[:6].round(3).tolist()}")
            else:
                top = np.array([max((score for score, _ in asked), default=-1) for asked in questions])
                line(f"{store}, {kind}: any passage", [(top >= t).mean() for t in THRESHOLDS])


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="directory of cran.all.1400, cran.qry and cranqrel")
    parser.add_argument("--banking", type=Path, help="directory of BANKING77's train.csv")
    parser.add_argument("--save", type=Path, help="file for every question's scores")
    parser.add_argument("--load", type=Path, help="such a file, instead of measuring")
    given = parser.parse_args()
    if given.load:
        results = json.loads(given.load.read_text())
    else:
        collections = [*(shop(name) for name in NAMES), marlow()]
        collections += [read(path) for read, path in ((cranfield, given.data), (banking, given.banking)) if path]
        results = asyncio.run(measure(collections))
    if given.save:
        given.save.write_text(json.dumps(results))
    report(results)


if __name__ == "__main__":
    main()
