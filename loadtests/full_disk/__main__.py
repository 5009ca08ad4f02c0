"""A disk that is full at each write: 507 and nothing changed, and all goes on once there is room.

    sudo .venv/bin/python -m loadtests.full_disk

The home of `hatrack serve` is a small file system of its own (tmpfs, so this needs root). Before each request all but
so many bytes of it are taken, SQLite's write-ahead logs cut to nothing, so that each write needs room. A chat
completion must be answered all the same. The request itself must be answered as ever or with 507 `disk_full`. Then what
the API shows is compared with what it showed before: aliases with their histories and what they serve, splits, pins,
versions, keys and whether they work, projects, budgets, files, datasets, vector stores and their documents, batches,
evaluations, the audit. A 507 must have changed nothing, and the very same request must succeed with room again; an
accepted request must have changed what it says and nothing else. At the end, a restart must change nothing.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from loadtests.full_disk.disk import FullDisk, small_disk
from loadtests.full_disk.other_writes import AccessWrites, DataWrites, StoreWrites
from loadtests.full_disk.registry_writes import RegistryWrites
from loadtests.full_disk.state import Changes, State, StateReader, unexpected
from loadtests.full_disk.writes import VOICE, Workbench, Write
from loadtests.kills.checks import until
from loadtests.kills.installation import Installation, installation
from service.client import HatrackClient
from service.client.wire import ClientError

LEFT_BYTES: Final = (0, 4096, 8192, 16384, 24576, 32768, 49152, 65536, 98304, 131072, 262144)
"""Room that is left for a request: from none for its first write to enough for all of them."""
FULL: Final = (507, "disk_full")
SETTINGS: Final = {"HATRACK_PRICE_DEVICE_HOUR": "1"}
"""Without a price there are no budgets."""


@dataclass
class Result:
    """What came of all requests."""

    answers: Counter[str] = field(default_factory=Counter)
    """By request and status."""
    faults: list[str] = field(default_factory=list)

    @property
    def sound(self) -> bool:
        """Whether each was answered as it should, and changed all of what it says or nothing."""
        return not self.faults

    def report(self) -> str:
        """The lines to print."""
        counts = (f"{count:3d} × {answer}" for answer, count in sorted(self.answers.items()))
        kinds = len({answer.rpartition(" ")[0] for answer in self.answers})
        total = f"{self.answers.total()} requests of {kinds} kinds: {'sound' if self.sound else 'NOT SOUND'}"
        return "\n".join([*counts, *(f"fault: {fault}" for fault in self.faults), total])


class Filling:
    """Sends requests to a gateway whose disk is full.

    Args:
        client: With the admin's key.
        disk: The gateway's.
        work: A directory with room.
    """

    def __init__(self, client: HatrackClient, disk: FullDisk, work: Path) -> None:
        self._client, self._disk = client, disk
        self._reader = StateReader(client)
        bench = Workbench(client, self._reader, work)
        writes = (RegistryWrites(bench), AccessWrites(bench), StoreWrites(bench), DataWrites(bench))
        self.kinds: Sequence[Callable[[], Write]] = [kind for each in writes for kind in each.all()]
        self.result = Result()

    def settled(self) -> State:
        """What the gateway shows."""
        return self._reader.settled()

    def send_one(self, kind: Callable[[], Write], room: int) -> None:
        """Send a request of a kind with so many bytes of room, and again with all room where it was refused."""
        write, before = kind(), self.settled()
        label = f"{kind.__name__} with {room} bytes"
        with self._disk.leaving(room):
            self._chat(label)
            status, answer = self._send(write, label, refusal=FULL)
        self.result.answers[f"{kind.__name__} {status}"] += 1
        if status != 200:
            self._compare(f"{label}, refused with {status}", before, write.changes_when_refused(before))
            status, answer = self._send(write, f"{label}, and then with room again", refusal=None)
        if status == 200:
            write.clean_up(answer)
            self._compare(f"{label}, accepted", before, write.changes(before, answer))

    def _send(self, write: Write, label: str, *, refusal: tuple[int, str] | None) -> tuple[int, Any]:
        try:
            return 200, write.send()
        except ClientError as error:
            if (error.status, error.code) != refusal:
                self._fault(f"{label}: {error.status} {error.code}: {error.message}")
            return error.status, None

    def _chat(self, label: str) -> None:
        """Inference writes nothing before it is answered; its usage waits until it can be written."""
        try:
            text = "".join(self._client.chat.stream(VOICE, [{"role": "user", "content": "hi"}]))
        except ClientError as error:
            self._fault(f"{label}: a chat completion: {error.status} {error.code}: {error.message}")
        else:
            if not text:
                self._fault(f"{label}: a chat completion without text")

    def _compare(self, label: str, before: State, changes: Changes) -> None:
        for clause in unexpected(before, self.settled(), changes):
            self._fault(f"{label}: {clause}")

    def _fault(self, text: str) -> None:
        self.result.faults.append(text)
        print(f"fault: {text}", file=sys.stderr, flush=True)


def fill_often(installed: Installation, work: Path, levels: Sequence[int], kinds: Sequence[str] = ()) -> Result:
    """Send requests of each kind, or of those that are named, with each room that is left."""
    with installed.client() as client:
        _wait_for_trainer(client)
        filling = Filling(client, FullDisk(installed.home), work)
        for kind in filling.kinds:
            if not kinds or kind.__name__ in kinds:
                began = time.monotonic()
                for room in levels:
                    filling.send_one(kind, room)
                print(f"{kind.__name__}: {time.monotonic() - began:.1f} s", file=sys.stderr, flush=True)
        before = filling.settled()
        installed.server.stop()
        filling.result.faults += installed.integrity()
        installed.start()
        _wait_for_trainer(client)
        changed = unexpected(before, filling.settled(), {})
        filling.result.faults += [f"after a restart: {clause}" for clause in changed]
    return filling.result


def _wait_for_trainer(client: HatrackClient) -> None:
    assert until(lambda: bool(list(client.evaluations.list())) or True), "the trainer does not answer"


def full_disk(work: Path, levels: Sequence[int] = LEFT_BYTES, core: int = 0, kinds: Sequence[str] = ()) -> Result:
    """Set up a gateway in the empty directory ``work``, its home on a small disk, and fill that. Needs root."""
    with small_disk(work / "home"), installation(work, core=core, more=SETTINGS) as installed:
        return fill_often(installed, work, levels, kinds)


def main(argv: Sequence[str] | None = None) -> None:
    """Run, print the report, and end with 1 if something was wrong."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--core", type=int, default=0, help="of the gateway and the engine")
    parser.add_argument("--only", default="", metavar="KINDS", help="kinds of requests, separated by commas")
    parser.add_argument("--room", type=int, nargs="+", default=LEFT_BYTES, metavar="BYTES", help="that are left")
    chosen = parser.parse_args(argv)
    if os.geteuid() != 0:
        sys.exit("only root can mount a small file system; run this with sudo or in a container")
    with tempfile.TemporaryDirectory(prefix="full-disk-") as work:
        kinds = [kind for kind in chosen.only.split(",") if kind]
        result = full_disk(Path(work), chosen.room, core=chosen.core, kinds=kinds)
    print(result.report())
    sys.exit(not result.sound)


if __name__ == "__main__":
    main()
