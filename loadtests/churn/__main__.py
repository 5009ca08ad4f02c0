"""Not one token of a wrong adapter or version, whatever changes meanwhile.

    .venv/bin/python -m loadtests.churn --requests 10000 --adapters 50 --hostile 20 --kills 5

A real gateway with its real engine, prefix caching on, and few adapter slots. Each version of each adapter spells a
word of its own, exact by construction (`tests/support/spelling.py`): a word is right only if the weights are and if all
that the prefix cache holds of the prompt, which is the same for all, was computed with them. While clients ask, new
versions go live, aliases are rolled back, adapters are deleted and others pushed under their names, and the engine is
killed. The files of the hostile adapters were damaged in the store, behind the gateway's back, after their proof.
Each answer's text and digest are compared with what its adapter was, or was becoming, between request and answer.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from threading import Event
from typing import Final

from loadtests.churn.adapters import Adapter, AdapterMaker, damage_stored
from loadtests.churn.changes import Changes, EngineKiller
from loadtests.churn.traffic import Answers, Traffic
from tests.support.gateway import Gateway
from tests.support.spelling import make_spelling_base

SLOTS, RESIDENT = 4, 8
CACHE_HITS: Final = "vllm:prefix_cache_hits_total{"
SETTINGS: Final = {
    "HATRACK_ENGINE_SLOTS": str(SLOTS),
    "HATRACK_ENGINE_RESIDENT": str(RESIDENT),
    "HATRACK_ENGINE_MAX_RANK": "8",
    "HATRACK_TRAINER": "off",
    "HATRACK_KNOWLEDGE": "false",
}


@dataclass(frozen=True)
class Plan:
    """How much of everything."""

    requests: int = 10_000
    """That are answered; those that meet a deleted adapter or a dead engine come on top."""
    adapters: int = 50
    hostile: int = 20
    kills: int = 5
    """Of the engine, evenly over the requests."""
    changes: int = 0
    """At least so many: where they take longer than the requests, more requests are made."""
    connections: int = 8
    seed: int = 18


@dataclass
class Result:
    """What came of it."""

    answers: Answers
    changes: Counter[str]
    surprises: Counter[str]
    damages: Counter[str]
    kills: int
    cache_hits: float
    """Tokens that the engine took from its prefix cache, in the longest life of an engine."""
    seconds: float

    @property
    def sound(self) -> bool:
        """Whether no answer was of a wrong adapter, and nothing failed that no kill or deletion explains."""
        return not self.answers.faults and not self.surprises

    def report(self) -> str:
        """The lines to print."""
        return "\n".join(
            [
                f"{sum(self.answers.statuses.values()):,} requests in {self.seconds:.0f} s: "
                + ", ".join(f"{name} {count:,}" for name, count in sorted(self.answers.statuses.items())),
                f"changes: {_listed(self.changes)}; engine killed {self.kills} times; "
                f"hostile adapters: {_listed(self.damages)}",
                f"versions that answered: {len(self.answers.texts)}; "
                f"tokens from the prefix cache: {self.cache_hits:,.0f}",
                *(f"surprise, {count} times: {text}" for text, count in self.surprises.items()),
                *(f"WRONG: {fault}" for fault in self.answers.faults[:20]),
                f"{len(self.answers.faults)} answers of a wrong adapter or version",
            ]
        )


def _listed(counts: Counter[str]) -> str:
    return ", ".join(f"{count} {name}" for name, count in sorted(counts.items())) or "none"


def churn(work: Path, plan: Plan) -> Result:
    """Run it in the empty directory ``work``."""
    gateway = Gateway(work / "home", make_spelling_base(work / "base"), dict(SETTINGS))
    gateway.start()
    try:
        return _churn(gateway, work, plan)
    finally:
        gateway.stop()


def _churn(gateway: Gateway, work: Path, plan: Plan) -> Result:
    began = time.monotonic()
    maker = AdapterMaker(gateway, work / "made")
    adapters = [Adapter(f"voice-{number}") for number in range(plan.adapters)]
    hostile = [Adapter(f"hostile-{number}") for number in range(plan.hostile)]
    for adapter in [*adapters, *hostile]:
        refused = maker.push_first(adapter)
        assert refused is None, refused.text
    digests = {word: digest for digest, word in maker.words.items()}
    damages = Counter(
        damage_stored(gateway, digests[next(iter(adapter.possible))], number) for number, adapter in enumerate(hostile)
    )
    changes, killer = Changes(gateway, adapters, maker, plan.seed), EngineKiller(gateway)
    traffic = Traffic(gateway.url, gateway.key, gateway.base_name(), adapters, hostile, lambda: killer.epoch, plan.seed)
    hits, stop = 0.0, Event()
    with ThreadPoolExecutor(2) as pool:
        changing = pool.submit(changes.run, stop)
        try:
            for part in range(plan.kills + 1):
                share = plan.requests // (plan.kills + 1)
                asking = pool.submit(asyncio.run, traffic.run(share, plan.connections))
                if part < plan.kills:
                    _wait_for_half(traffic, share * part + share // 2)
                    hits = max(hits, cache_hits(gateway))
                    killer.kill()
                asking.result()
            while changes.made.total() < plan.changes:
                asyncio.run(traffic.run(plan.connections, plan.connections))
        finally:
            stop.set()
            changing.result()
    traffic.answers.check_digests(maker.words)
    return Result(
        traffic.answers,
        changes.made,
        changes.surprises + traffic.answers.surprises,
        damages,
        killer.kills,
        max(hits, cache_hits(gateway)),
        time.monotonic() - began,
    )


def _wait_for_half(traffic: Traffic, answers: int) -> None:
    while traffic.answers.answered < answers:
        time.sleep(0.05)


def cache_hits(gateway: Gateway) -> float:
    """Tokens that this engine has taken from its prefix cache."""
    lines = gateway.ask_engine("/metrics").text.splitlines()
    return sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith(CACHE_HITS))


def main(argv: Sequence[str] | None = None) -> None:
    """Run, print the report, and end with 1 if an answer was wrong."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, value in vars(Plan()).items():
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--keep", type=Path, help="an empty directory that is kept, with home and logs")
    chosen = vars(parser.parse_args(argv))
    kept: Path | None = chosen.pop("keep")
    with tempfile.TemporaryDirectory(prefix="churn-") as temporary:
        result = churn(kept or Path(temporary), Plan(**chosen))
    print(result.report())
    sys.exit(not result.sound)


if __name__ == "__main__":
    main()
