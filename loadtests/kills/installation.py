"""The gateway that is killed: `hatrack serve` with its trainer, embedder and reader, before a fake engine.

The engine is a process of its own at a URL, so it outlives every kill; vectors come from an endpoint in this process.
"""

from __future__ import annotations

import random
import secrets
import sqlite3
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager, suppress
from pathlib import Path
from threading import Timer
from typing import Final, Literal
from urllib.parse import quote

import orjson
import psutil

from adapters.store import Store
from loadtests.gateway.contenders import Failed, Place, Server
from loadtests.gateway.hatrack import hatrack
from loadtests.gateway.run import start_upstream
from service.client import HatrackClient
from tests.support.http import serving
from tests.support.tiny_models import make_base

Victim = Literal["gateway", "embedder", "reader", "trainer", "worker"]
MODULES: Final[dict[Victim, str]] = {
    "embedder": "service.knowledge.embedder",
    "reader": "service.knowledge.documents",
    "trainer": "trainer",
    "worker": "trainer.evaluate.evaluations.worker",
}
"""What a child's command line runs with `-m`."""
WIDTH: Final = 64
PATIENCE_S: Final = 120.0


class Installation:
    """A home, and the gateway that serves it until it is killed and again afterwards.

    Args:
        server: How the gateway is started; its log is kept over all lives.
        home: Its home.
        admin: The admin's key.
    """

    def __init__(self, server: Server, home: Path, admin: str) -> None:
        self.server, self.home, self._admin = server, home, admin
        self.start_s = 0.0
        """How long the last start took."""

    def client(self, key: str | None = None) -> HatrackClient:
        """A client, by default with the admin's key."""
        return HatrackClient(base_url=self.server.url, api_key=self._admin if key is None else key)

    def start(self) -> None:
        """Start the gateway, and return when it answers. Raises Failed."""
        began = time.monotonic()
        self.server.start()
        self.start_s = time.monotonic() - began

    def start_and_kill(self, chance: random.Random) -> bool:
        """Start the gateway and kill it at some moment of its start; False: it came up before that."""
        began = time.monotonic()
        timer = Timer(chance.uniform(0, self.start_s), self._kill_gateway)
        timer.start()
        try:
            self.server.start()
        except Failed:
            return True
        finally:
            timer.join()
            self.start_s = max(self.start_s * 0.9, time.monotonic() - began)
        return not self.alive()

    def alive(self) -> bool:
        """Whether the gateway's process runs."""
        return self.server.process is not None and self.server.process.poll() is None

    def kill(self, victim: Victim) -> Victim | None:
        """SIGKILL one process: who it was, or None where there is no such process now."""
        if victim == "gateway":
            self._kill_gateway()
            return victim
        for process in self._children():
            with suppress(psutil.Error):
                if MODULES[victim] in process.cmdline():
                    process.kill()
                    return victim
        return None

    def _kill_gateway(self) -> None:
        if self.server.process is not None:
            self.server.process.kill()
            self.server.process.wait()

    def _children(self) -> list[psutil.Process]:
        with suppress(psutil.Error):
            return psutil.Process(self.server.pid).children(recursive=True)
        return []

    def integrity(self) -> Iterator[str]:
        """What is wrong with the databases and the adapters on the disk; for when no gateway writes."""
        for path in (self.home / "hatrack.db", self.home / "trainer" / "jobs.db", *self.home.glob("grounding/*.db")):
            if path.exists():
                yield from _database_faults(path)
        store = Store(self.home / "adapters")
        for digest in store.digests():
            try:
                store.verify(digest)
            except Exception as error:
                yield f"adapter {digest[:12]}: {error}"


def _database_faults(path: Path) -> Iterator[str]:
    with closing(sqlite3.connect(f"file:{quote(str(path))}?mode=ro", uri=True, timeout=60)) as database:
        for check in ("integrity_check", "foreign_key_check"):
            rows = [row for row in database.execute(f"PRAGMA {check}") if row != ("ok",)]
            if rows:
                yield f"{path.name}: {check}: {rows[:3]}"


def _vectors(_method: str, _path: str, body: bytes, _key: str) -> tuple[int, bytes, dict[str, str]]:
    """OpenAI's embeddings, a text being the bytes of its words: little work, and the same for the same text."""
    rows = []
    for index, text in enumerate(orjson.loads(body)["input"]):
        vector = [0.01] * WIDTH
        for word in text.split():
            vector[sum(word.encode()) % WIDTH] += 1.0
        rows.append({"index": index, "embedding": vector})
    return 200, orjson.dumps({"object": "list", "data": rows}), {"content-type": "application/json"}


@contextmanager
def installation(work: Path, *, core: int, more: Mapping[str, str] | None = None) -> Iterator[Installation]:
    """Set one up in an empty directory, started; everything ends with the context.

    Args:
        more: Settings of the gateway, as environment variables.
    """
    make_base("llama", work / "base")
    with ExitStack() as stack:
        vectors = stack.enter_context(serving(_vectors))
        engine = start_upstream(work, stack, core=core)
        admin = "admin-" + secrets.token_hex(16)
        settings = {
            "HATRACK_TRAINER": "on",
            "HATRACK_TRAINER_DEVICE": "cpu",
            "HATRACK_EMBEDDINGS_URL": f"{vectors}/v1",
            "HATRACK_EMBEDDINGS_MODEL": "words",
            **(more or {}),
        }
        gateway = hatrack(Place(work, engine.url, core), admin=admin, more=settings)
        started = Installation(gateway.server, work / "home", admin)
        stack.callback(_stop, started)
        started.start()
        yield started


def _stop(started: Installation) -> None:
    if started.alive():
        started.server.stop()
