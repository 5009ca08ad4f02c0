"""Five data sets whose advice is known beforehand, each through `hatrack advise --quick` on a running Hatrack.

    .venv/bin/hatrack serve --trainer                                       # in another terminal, or `make up`
    .venv/bin/python -m loadtests.training.advice --data banking77/train.csv
    .venv/bin/python -m loadtests.training.advice --cases facts,shuffled --data banking77/train.csv

| case | the data | what should be advised |
|---|---|---|
| `intents` | BANKING77, questions of ten intents | a LoRA, or examples: no instruction tells the intents apart |
| `voice` | 1,000 replies of a shop's voice (`trainer/samples/marlow`) | a LoRA |
| `facts` | questions about that shop's orders, whose answers stand in its files | retrieval |
| `shuffled` | as `intents`, the answers mixed up | this data cannot tell |
| `copied` | BANKING77 questions that name an order; its number is the answer | not a LoRA: the base can copy |

Prints a Markdown table for each; `--out DIR` keeps the data, the reports and the pages.

`--go-live` has the best rung without weights of `intents` judged by its verdict on questions that the ladder has not
seen, and then a LoRA trained under the same name, on all other questions of these intents: each goes live if it passes.
"""

from __future__ import annotations

import argparse
import csv
import json
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Final

from loadtests.training.banking import balanced, jsonl, read, unlike
from trainer.ladder.spec import TRAININGS

MARLOW: Final = Path(__file__).resolve().parents[2] / "trainer" / "samples" / "marlow"
ORDERS: Final = MARLOW / "store" / "orders"
INTENTS, QUESTIONS = 10, 500
COPIED = 300
LATER: Final = 150
MAX_TOKENS: Final = 256
"""Of an answer to these: the base without a prompt goes on and on, and what is cut may count for it."""
ASKED: Final = {
    "carrier": ("Who is bringing {order}?", "{order}: which carrier has it?", "Which firm delivers my order {order}?"),
    "state": ("What has become of {order}?", "Is {order} on its way or not?", "Where do things stand with {order}?"),
    "ordered": ("When did I order {order}?", "On what day was {order} placed?", "Date of purchase of {order}, please."),
    "expected": ("When will {order} be here?", "I wait for {order}. What day?", "Expected arrival of {order}?"),
    "items": ("What was in {order}?", "Remind me what I bought with {order}.", "List the things in {order}."),
    "total": ("What did {order} come to?", "How much did you charge for {order}?", "The bill for {order}, please?"),
}
ANSWERS: Final = {
    "carrier": "{order} is with {value}.",
    "state": "{order} is {value}.",
    "ordered": "{order} was placed on {value}.",
    "expected": "{order} is expected on {value}.",
    "items": "{order}: {value}.",
    "total": "{order} came to {value}.",
}
EXPECTED: Final = {
    "intents": ("fine_tune", "examples"),
    "voice": ("fine_tune",),
    "facts": ("retrieval",),
    "shuffled": ("cannot_tell",),
    "copied": ("do_not_fine_tune", "prompt", "examples"),
}


def main() -> None:
    """Run the cases one after the other."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="BANKING77's train.csv; not for `voice` and `facts`")
    parser.add_argument("--cases", default=",".join(CASES))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--go-live", action="store_true", help="judge and promote the rungs of `intents`")
    options = parser.parse_args()
    wanted = options.cases.split(",")
    if unknown := sorted(set(wanted) - set(CASES)):
        parser.error(f"no case {unknown[0]!r}; there are {', '.join(CASES)}")
    if options.data is None and set(wanted) - {"voice", "facts"}:
        parser.error("give --data: only `voice` and `facts` do without")
    folder = options.out or Path(tempfile.mkdtemp(prefix="advice-"))
    folder.mkdir(parents=True, exist_ok=True)
    as_expected = [_run(case, options, folder) for case in wanted]
    sys.exit(0 if all(as_expected) else 1)


def _run(case: str, options: Any, folder: Path) -> bool:
    """Print what a ladder says of a case; whether it is what was known beforehand."""
    data = folder / f"{case}.jsonl"
    data.write_bytes(jsonl(CASES[case](options)))
    name = f"{case}-{int(time.time())}"
    arguments = ["advise", str(data), "--name", name, "--quick", "--json", "--html", str(folder / f"{case}.html")]
    if case == "facts":
        arguments += ["--docs", str(ORDERS)]
    began = time.monotonic()
    report = _hatrack(*arguments)
    took = time.monotonic() - began
    (folder / f"{case}.json").write_text(json.dumps(report))
    advice = report["advice"]
    print(f"\n`{case}`, {len(data.read_bytes().splitlines())} examples, {took:.0f} s: **{advice['sentence']}**\n")
    print("\n".join(_table(report)), flush=True)
    as_expected = advice["word"] in EXPECTED[case]
    if not as_expected:
        print(f"\nexpected: {' or '.join(EXPECTED[case])}; found: {advice['word']}", flush=True)
    if case == "intents" and options.go_live:
        _go_live(report, name, folder, options)
    return as_expected


def _hatrack(*arguments: str) -> Any:
    """What a `hatrack` command prints as JSON; exit codes 1 and 4 of an evaluation are answers, too."""
    command = [sys.executable, "-m", "service.cli", *arguments]
    ran = subprocess.run(command, capture_output=True, text=True, check=False)
    if ran.returncode not in (0, 1, 4) or not ran.stdout:
        raise SystemExit(f"{' '.join(arguments)}: {ran.stderr}")
    return json.loads(ran.stdout)


def _go_live(report: dict[str, Any], name: str, folder: Path, options: Any) -> None:
    """Print the verdicts on the best rung without weights and on a LoRA, and which version is live after each."""
    held_out, more = folder / "later.jsonl", folder / "more.jsonl"
    later = _later(options)
    held_out.write_bytes(jsonl(later))
    more.write_bytes(jsonl(unlike(read(options.data, seed=options.seed, intents=INTENTS), later)))
    rungs = [rung for rung in report["rungs"] if rung["key"] not in ("base", *TRAININGS)]
    best = max(rungs, key=lambda rung: rung["mean"]["mean"])["model"]
    print("\n| made by | verdict | live afterwards |\n|---|---|---|")
    judged = ("--held-out", str(held_out), "--promote", "auto")
    for arguments in (
        ("evaluate", best, "--metric", "exact_match", "--max-tokens", str(MAX_TOKENS), *judged),
        ("train", str(more), "--name", name, *judged),
    ):
        _hatrack(*arguments, "--json")
        adapter = _hatrack("show", name, "--json")
        version = max(
            (each for each in adapter["versions"] if each["verdict"]), key=lambda each: each["verdict"]["created_at"]
        )
        live = adapter["aliases"].get("live", "nothing")
        cells = (f"hatrack {arguments[0]}: {name}@{version['version']}", version["verdict"]["sentence"], live)
        print(f"| {' | '.join(map(str, cells))} |", flush=True)


def _table(report: dict[str, Any]) -> Iterator[str]:
    yield "| rung | score | interval | tokens in + out |"
    yield "|---|---|---|---|"
    for rung in report["rungs"]:
        mean, request = rung["mean"], rung["request"]
        tokens = f"{request['prompt_tokens']:.0f} + {request['completion_tokens']:.0f}"
        interval = f"{100 * mean['low']:.0f} to {100 * mean['high']:.0f}"
        yield f"| {rung['key']} | {100 * mean['mean']:.0f} | {interval} | {tokens} |"
    for skipped in report["skipped"]:
        yield f"| {skipped['key']} | not measured: {skipped['reason']} | | |"


def _intents(options: Any) -> Sequence[dict[str, Any]]:
    rows, _ = balanced(read(options.data, seed=options.seed, intents=INTENTS), QUESTIONS)
    return rows


def _later(options: Any) -> Sequence[dict[str, str]]:
    """Questions of the same intents that are not in the ladder's file."""
    asked, rest = balanced(read(options.data, seed=options.seed, intents=INTENTS), QUESTIONS)
    unseen = unlike(rest, asked)
    chosen, _ = balanced(unseen, min(LATER, len(unseen)))
    return chosen


def _shuffled(options: Any) -> Sequence[dict[str, Any]]:
    rows = _intents(options)
    answers = [row["completion"] for row in rows]
    random.Random(options.seed).shuffle(answers)
    return [row | {"completion": answer} for row, answer in zip(rows, answers, strict=True)]


def _voice(_options: Any) -> Sequence[dict[str, Any]]:
    return [json.loads(line) for line in (MARLOW / "training.jsonl").read_text("utf-8").splitlines()]


def _copied(options: Any) -> Sequence[dict[str, Any]]:
    draw = random.Random(options.seed)
    orders = [f"MT-{draw.randrange(10_000, 100_000)}" for _ in range(COPIED)]
    asked = read(options.data, seed=options.seed)
    return [
        {"prompt": f"{row['prompt'].strip()} My order is {order}.", "completion": order}
        for row, order in zip(asked, orders, strict=False)
    ]


def _facts(options: Any) -> Sequence[dict[str, Any]]:
    draw = random.Random(options.seed)
    rows = []
    for path in sorted(ORDERS.glob("*.csv")):
        for order in csv.DictReader(path.read_text("utf-8").splitlines()):
            for field, forms in ASKED.items():
                if order[field]:
                    answer = ANSWERS[field].format(order=order["order"], value=order[field])
                    rows.append({"prompt": draw.choice(forms).format(order=order["order"]), "completion": answer})
    draw.shuffle(rows)
    return rows


CASES: Final[dict[str, Callable[[Any], Sequence[dict[str, Any]]]]] = {
    "intents": _intents,
    "voice": _voice,
    "facts": _facts,
    "shuffled": _shuffled,
    "copied": _copied,
}


if __name__ == "__main__":
    main()
