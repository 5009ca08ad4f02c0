"""A disk that is full at each write: 507 and nothing half made, and all goes on once there is room.

    sudo .venv/bin/python -m loadtests.full_disk

The home of `hatrack serve` is a small file system of its own (tmpfs, so this needs root). Before each request all but
so many bytes of it are taken, SQLite's write-ahead logs cut to nothing, so that each write needs room. A request must
be answered as ever or with 507 `disk_full`; what is listed afterwards must be what was listed before, plus what was
acknowledged and nothing else; and with room again, the same request must succeed.
"""

from __future__ import annotations

import argparse
import json
import os
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from loadtests.kills.checks import until
from loadtests.kills.installation import Installation, installation
from service.client import HatrackClient
from service.client.wire import ClientError
from tests.support.adapters import describe_base, make_adapter

SIZE_MIB: Final = 64
LEFT_BYTES: Final = (0, 4096, 8192, 16384, 24576, 32768, 49152, 65536, 98304, 131072, 262144)
"""Room that is left for a request: from none for its first write to enough for all of them."""
FULL: Final = (507, "disk_full")
FILLER: Final = "filler"
Listed = dict[str, list[Any]]


@dataclass
class Result:
    """What came of all requests."""

    answers: Counter[str] = field(default_factory=Counter)
    """By request and status."""
    faults: list[str] = field(default_factory=list)

    @property
    def sound(self) -> bool:
        """Whether each was answered as it should, and nothing was left half made."""
        return not self.faults

    def report(self) -> str:
        """The lines to print."""
        counts = (f"{count:3d} × {answer}" for answer, count in sorted(self.answers.items()))
        return "\n".join(
            [*counts, *(f"fault: {fault}" for fault in self.faults), "sound" if self.sound else "NOT SOUND"]
        )


class Requests:
    """One request for each thing that the gateway writes, each with other contents every time.

    Args:
        client: With the admin's key.
        work: A directory with room, for what is uploaded.
    """

    def __init__(self, client: HatrackClient, work: Path) -> None:
        self._client, self._work = client, work
        self._base = describe_base(work / "base", cache_dir=work / "base-cache")
        self._number = 0
        self.adapter()
        self.adapter()
        self._live = 2
        self._document, self._examples = self.file(), self._upload("evals", _examples())
        self._requests = self._upload("batch", _batch(client.ready()["base"]))
        self._store = self._client.vector_stores.create("documents")["id"]

    def all(self) -> Sequence[Callable[[], Any]]:
        """The requests."""
        return (
            self.adapter, self.alias, self.pin, self.key, self.file, self.store, self.store_with_files,
            self.store_file, self.batch, self.evaluation,
        )  # fmt: skip

    def adapter(self) -> Any:
        """An upload of a version."""
        self._number += 1
        made = make_adapter(self._work / "made" / str(self._number), self._base, rank=2, seed=self._number)
        return self._client.adapters.push("voice", made.directory, alias="")

    def alias(self) -> Any:
        """A promotion."""
        self._live = 3 - self._live
        return self._client.adapters.promote(f"voice@{self._live}")

    def pin(self) -> Any:
        """A pin, and no pin."""
        self._client.adapters.pin("voice")
        return self._client.adapters.unpin("voice")

    def key(self) -> Any:
        """A key."""
        return self._client.keys.create("key")

    def file(self) -> str:
        """An upload of a document."""
        self._number += 1
        return self._upload("assistants", f"Parcel {self._number} is here. " * 1000)

    def _upload(self, purpose: Any, text: str) -> str:
        path = self._work / ("file.txt" if purpose == "assistants" else "file.jsonl")
        path.write_text(text)
        return self._client.files.create(path, purpose=purpose)["id"]

    def store(self) -> Any:
        """A vector store."""
        return self._client.vector_stores.create("store")

    def store_with_files(self) -> Any:
        """A vector store that has a document from the start."""
        body = {"name": "with files", "file_ids": [self._document]}
        return self._client._connection.request(dict, "POST", "/v1/vector_stores", json=body)

    def store_file(self) -> Any:
        """A document of a store."""
        return self._client.vector_stores.file_batches.create(self._store, {self.file(): {}})

    def batch(self) -> Any:
        """A batch of requests."""
        return self._client.batches.create(self._requests, "/v1/chat/completions")

    def evaluation(self) -> Any:
        """A run of the trainer's, with a key of its own; cancelled, as it is not what is looked at."""
        base = self._client.ready()["base"]
        arms: list[dict[str, Any]] = [
            {"label": "a", "model": base},
            {"label": "b", "model": base, "prompt": {"system": "Be brief."}},
        ]
        made = self._client.evaluations.create(self._examples, arms=arms, metric="token_f1", repeats=1, suites=[])
        with suppress(ClientError):
            self._client.evaluations.cancel(made["id"])
        return made

    def listed(self) -> Listed:
        """What the gateway lists, without what changes by itself."""
        client = self._client
        voice = client.adapters.retrieve("voice")
        return {
            "versions": [(version["version"], version["state"]) for version in voice["versions"]],
            "aliases": sorted(voice["aliases"].items()),
            "keys": [key["id"] for key in client.keys.list() if not (key["name"] or "").startswith("evaluating ")],
            "files": [file["id"] for file in client.files.list("assistants")],
            "stores": [store["id"] for store in client.vector_stores.list()],
            "documents": [file["id"] for file in client.vector_stores.files.list(self._store)],
            "batches": [batch["id"] for batch in client.batches.list()],
            "evaluations": [run["id"] for run in client.evaluations.list()],
        }


GROWS: Final = {
    "adapter": {"versions": 1},
    "key": {"keys": 1},
    "file": {"files": 1},
    "store": {"stores": 1},
    "store_with_files": {"stores": 1},
    "store_file": {"files": 1, "documents": 1},
    "batch": {"batches": 1},
    "evaluation": {"evaluations": 1},
}
"""How many more there are of each after a request that succeeded."""
MAY_GROW: Final = {("store_file", "files")}
"""The document is uploaded first, in a request of its own."""


def _examples() -> str:
    rows = [{"prompt": f"Where is parcel {n}?", "completion": f"Parcel {n} is here."} for n in range(30)]
    return "".join(json.dumps(row) + "\n" for row in rows)


def _batch(base: str) -> str:
    body = {"model": base, "messages": [{"role": "user", "content": "hi"}]}
    request = {"custom_id": "1", "method": "POST", "url": "/v1/chat/completions", "body": body}
    return json.dumps(request) + "\n"


class FullDisk:
    """Takes the room of a home's file system, and gives it back.

    Args:
        home: The mount point.
    """

    def __init__(self, home: Path) -> None:
        self._home = home

    @contextmanager
    def leaving(self, room: int) -> Iterator[None]:
        """All but ``room`` bytes are taken."""
        for database in [*self._home.glob("*.db"), *self._home.glob("*/*.db")]:
            with closing(sqlite3.connect(database, timeout=60)) as connection:
                connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        filler = self._home / FILLER
        with filler.open("wb", buffering=0) as file:
            with suppress(OSError):  # what is full says so
                while True:
                    file.write(bytes(1 << 16))
            file.truncate(max(0, file.tell() - room))
        try:
            yield
        finally:
            filler.unlink()


def fill_often(installed: Installation, work: Path, levels: Sequence[int]) -> Result:
    """Send each request with each room that is left."""
    result, disk = Result(), FullDisk(installed.home)
    with installed.client() as client:
        assert until(lambda: list(client.evaluations.list()) == []), "the trainer does not answer"
        requests = Requests(client, work)
        for send in requests.all():
            for room in levels:
                _send_one(result, disk, requests, send, room)
    result.faults += installed.integrity()
    return result


def _send_one(result: Result, disk: FullDisk, requests: Requests, send: Callable[[], Any], room: int) -> None:
    name, before = send.__name__, requests.listed()
    with disk.leaving(room):
        try:
            send()
            status = 200
        except ClientError as error:
            status = error.status
            if (error.status, error.code) != FULL:
                result.faults.append(f"{name} with {room} bytes: {error.status} {error.code}: {error.message}")
    result.answers[f"{name} {status}"] += 1
    after = _settled(requests)
    for kind, rows in after.items():
        grown = len(rows) - len(before[kind])
        expected = GROWS.get(name, {}).get(kind, 0) if status == 200 else 0
        allowed = (0, 1) if (name, kind) in MAY_GROW else (expected,)
        if grown not in allowed:
            result.faults.append(f"{name} with {room} bytes answered {status}: {grown:+d} {kind}")
    try:
        send()
    except ClientError as error:
        result.faults.append(f"{name} with room again: {error.status} {error.code}: {error.message}")


def _settled(requests: Requests) -> Listed:
    """What is listed once nothing is being proven or undone any more."""
    listed = requests.listed()
    for _ in range(50):
        time.sleep(0.1)
        again = requests.listed()
        if again == listed and all(state == "ready" for _, state in again["versions"]):
            break
        listed = again
    return listed


@contextmanager
def small_disk(mount_point: Path, size_mib: int = SIZE_MIB) -> Iterator[None]:
    """A file system of that size, mounted; needs root."""
    mount_point.mkdir(parents=True)
    options = ["-t", "tmpfs", "-o", f"size={size_mib}m,mode=700", "tmpfs"]
    subprocess.run(["mount", *options, str(mount_point)], check=True, capture_output=True)
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", str(mount_point)], check=True, capture_output=True)


def full_disk(work: Path, levels: Sequence[int] = LEFT_BYTES, core: int = 0) -> Result:
    """Set up a gateway in the empty directory ``work``, its home on a small disk, and fill that. Needs root."""
    with small_disk(work / "home"), installation(work, core=core) as installed:
        return fill_often(installed, work, levels)


def main(argv: Sequence[str] | None = None) -> None:
    """Run, print the report, and end with 1 if something was wrong."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--core", type=int, default=0, help="of the gateway and the engine")
    chosen = parser.parse_args(argv)
    if os.geteuid() != 0:
        sys.exit("only root can mount a small file system; run this with sudo or in a container")
    with tempfile.TemporaryDirectory(prefix="full-disk-") as work:
        result = full_disk(Path(work), core=chosen.core)
    print(result.report())
    sys.exit(not result.sound)


if __name__ == "__main__":
    main()
