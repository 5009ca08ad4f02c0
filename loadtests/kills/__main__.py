"""kill -9 at random moments: what was acknowledged is there, what was not is whole or invisible.

    .venv/bin/python -m loadtests.kills --kills 200

`hatrack serve` with trainer and embedder stands before a fake engine. Five clients upload versions, move an alias,
create and revoke keys, have documents indexed and start evaluations, until one process is killed at a random moment:
most often the gateway, one time in five while it starts; else the embedder, the process that reads documents, the
trainer or an evaluation's worker, which must come back by themselves. While no gateway runs, SQLite's own checks and
the digests of all adapters are looked at; once one runs, the newest of each kind; at the end, everything. Ctrl-C ends
it early, with that last look.
"""

from __future__ import annotations

import argparse
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from threading import Event
from typing import Final

from loadtests.kills.checks import Checks
from loadtests.kills.installation import Installation, Victim, installation
from loadtests.kills.work import Workers

VICTIMS: Final[dict[Victim, float]] = {"gateway": 0.6, "embedder": 0.1, "reader": 0.1, "trainer": 0.1, "worker": 0.1}
IN_START: Final = 0.2
"""Share of the gateway's kills after which the next start is killed, too."""
WITH_TRAINER: Final = 0.7
"""Share of the kills before which the trainer, which starts after the gateway, is waited for."""
MAX_FAULTS: Final = 20


@dataclass
class Result:
    """Of all kills."""

    kills: Counter[str] = field(default_factory=Counter)
    """By victim."""
    acknowledged: dict[str, int] = field(default_factory=dict)
    surprises: Counter[str] = field(default_factory=Counter)
    """Answers that no kill explains."""
    faults: list[str] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def sound(self) -> bool:
        """Whether nothing was lost, torn or answered wrongly."""
        return not self.faults and not self.surprises

    def report(self) -> str:
        """The lines to print."""
        lines = [
            f"{self.kills.total()} kills in {self.seconds:.0f} s: "
            + ", ".join(f"{victim} {count}" for victim, count in self.kills.most_common()),
            "acknowledged: " + ", ".join(f"{name} {count}" for name, count in self.acknowledged.items()),
            *(f"answered {count} times: {text}" for text, count in self.surprises.items()),
            *(f"fault: {fault}" for fault in self.faults),
        ]
        return "\n".join([*lines, "nothing was lost" if self.sound else "NOT SOUND"])


class Killing:
    """Kills one process after the other.

    Args:
        installation: The gateway.
        workers: Who makes it write.
        life_s: Longest time between a start, or a kill, and the next kill, s.
    """

    def __init__(self, installation: Installation, workers: Workers, life_s: float, seed: int) -> None:
        self._installation, self._workers, self._life_s = installation, workers, life_s
        self._random = random.Random(seed)
        self.result = Result()

    def run(self, kills: int, stop: Event) -> Result:
        """Kill until there were so many, or until ``stop`` is set; then look at everything."""
        began = time.monotonic()
        while self.result.kills.total() < kills and len(self.result.faults) < MAX_FAULTS and not stop.is_set():
            self._kill_one()
            print(f"{self.result.kills.total()} of {kills} kills", file=sys.stderr, flush=True)
        self._check(everything=True)
        self._installation.server.stop()
        self._note(self._installation.integrity())
        self.result.acknowledged = self._workers.ledger.acknowledged()
        self.result.surprises = self._workers.ledger.surprises
        self.result.seconds = time.monotonic() - began
        return self.result

    def _kill_one(self) -> None:
        if self._random.random() < WITH_TRAINER:
            self._workers.wait_for_trainer()
        stop = Event()
        threads = self._workers.work_until(stop)
        time.sleep(self._random.uniform(0, self._life_s))
        wanted = self._random.choices(list(VICTIMS), list(VICTIMS.values()))[0]
        victim = self._installation.kill(wanted) or self._installation.kill("gateway")
        stop.set()
        for thread in threads:
            thread.join()
        self.result.kills[victim or "gateway"] += 1
        if victim == "gateway":
            self._note(self._installation.integrity())
            if self._random.random() < IN_START and self._installation.start_and_kill(self._random):
                self.result.kills["gateway that starts"] += 1
                self._note(self._installation.integrity())
            if not self._installation.alive():
                self._installation.start()
        self._check(everything=False)

    def _check(self, *, everything: bool) -> None:
        with self._installation.client() as client:
            checks = Checks(
                client,
                self._installation.client,
                self._workers.ledger,
                self._workers.store,
                everything=everything,
            )
            self._note(checks.faults())

    def _note(self, faults: Iterable[str]) -> None:
        number = self.result.kills.total()
        self.result.faults += [f"after kill {number}: {fault}" for fault in faults]


def kill_often(
    work: Path, *, kills: int, life_s: float = 6.0, core: int = 0, seed: int = 18, stop: Event | None = None
) -> Result:
    """Set up a gateway in the empty directory ``work``, kill so often, or until ``stop`` is set, and look."""
    with installation(work, core=core) as started:
        workers = Workers(started, work)
        workers.prepare()
        return Killing(started, workers, life_s, seed).run(kills, stop or Event())


def main(argv: Sequence[str] | None = None) -> None:
    """Run, print the report, and end with 1 if something was lost."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--life-s", type=float, default=6.0, help="longest time between two kills")
    parser.add_argument("--core", type=int, default=0, help="of the gateway and the engine")
    parser.add_argument("--seed", type=int, default=18)
    parser.add_argument("--keep", type=Path, help="an empty directory that is kept, with home and logs")
    chosen = parser.parse_args(argv)
    with tempfile.TemporaryDirectory(prefix="kills-") as temporary:
        work = chosen.keep or Path(temporary)
        work.mkdir(parents=True, exist_ok=True)
        stop = Event()
        signal.signal(signal.SIGINT, lambda *_: stop.set())
        result = kill_often(
            work, kills=chosen.kills, life_s=chosen.life_s, core=chosen.core, seed=chosen.seed, stop=stop
        )
    print(result.report())
    sys.exit(not result.sound)


if __name__ == "__main__":
    main()
