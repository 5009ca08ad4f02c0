"""What the gateway is doing when it is killed, and what it has acknowledged until then.

Each worker is a client of its own on a thread of its own. It notes what it is about to ask before it asks, and what was
acknowledged when the answer has come.
"""

from __future__ import annotations

import hashlib
import json
import random
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from threading import Event, Lock, Thread
from typing import Any, Final

from loadtests.gateway.contenders import Failed
from loadtests.kills.installation import PATIENCE_S, Installation
from service.client import HatrackClient
from service.client.wire import ClientError
from tests.support.adapters import describe_base, make_adapter

NAMES: Final = 6
"""Adapters that get version after version."""
PROMOTED: Final = "promoted"
"""The adapter whose alias is moved, over this many versions:"""
VERSIONS: Final = 3
WORDS: Final = 400
"""Words of a document: ten passages or so."""
QUESTIONS: Final = 30
PAUSE_S: Final = 0.05
PASSING: Final = frozenset({0, 503})
"""Statuses of a gateway that is killed, or whose trainer or embedder was: 0 is no answer at all."""
TRAINER_CUT: Final = "trainer_cut"
"""The code (502) where the trainer was killed over a request."""


@dataclass
class Ledger:
    """What was asked, and what of it was acknowledged. Adapters and files by the SHA-256 of their bytes."""

    sent_versions: dict[str, set[str]] = field(default_factory=dict)
    """By adapter."""
    versions: dict[tuple[str, int], str] = field(default_factory=dict)
    live: int = 1
    """The version that the alias of `PROMOTED` was last acknowledged to point to."""
    sent_live: set[int] = field(default_factory=set)
    """Those that it was asked to point to since."""
    keys: dict[str, str] = field(default_factory=dict)
    """The keys by their ids."""
    sent_revocations: set[str] = field(default_factory=set)
    revoked: dict[str, str] = field(default_factory=dict)
    sent_files: dict[str, str] = field(default_factory=dict)
    """By filename."""
    files: dict[str, str] = field(default_factory=dict)
    """By id."""
    documents: dict[str, str] = field(default_factory=dict)
    """Files in the store by their ids: a word that no other has."""
    evaluations: list[str] = field(default_factory=list)
    surprises: Counter[str] = field(default_factory=Counter)
    """Answers that no kill explains."""

    def acknowledged(self) -> dict[str, int]:
        """How many of each kind."""
        return {
            "versions": len(self.versions),
            "keys": len(self.keys),
            "revocations": len(self.revoked),
            "files": len(self.files),
            "documents": len(self.documents),
            "evaluations": len(self.evaluations),
        }


class Workers:
    """The clients.

    Args:
        installation: Whom they ask.
        work: A directory for adapters and files.
    """

    def __init__(self, installation: Installation, work: Path) -> None:
        self._installation = installation
        self._work = work
        self._base = describe_base(work / "base", cache_dir=work / "base-cache")
        self._random = random.Random(18)
        self._numbers = iter(range(10**9))
        self._lock = Lock()
        self.ledger = Ledger()
        self.store = self.held_out = ""

    def prepare(self) -> None:
        """Make what the workers use: an adapter of some versions, a vector store, held-out examples."""
        rows = [{"prompt": f"Where is parcel {n}?", "completion": f"Parcel {n} is here."} for n in range(QUESTIONS)]
        examples = self._work / "held-out.jsonl"
        examples.write_text("".join(json.dumps(row) + "\n" for row in rows))
        with self._installation.client() as client:
            for _ in range(VERSIONS):
                self._push(client, PROMOTED)
            self.store = client.vector_stores.create("documents")["id"]
            self.held_out = client.files.create(examples, purpose="evals")["id"]

    def wait_for_trainer(self) -> None:
        """Return when the trainer answers. Raises Failed where it does not within a minute or two."""
        deadline = time.monotonic() + PATIENCE_S
        with self._installation.client() as client:
            while time.monotonic() < deadline:
                with suppress(ClientError):
                    next(iter(client.evaluations.list()), None)
                    return
                time.sleep(PAUSE_S)
        raise Failed(f"the trainer did not answer within {PATIENCE_S:g} s")

    def work_until(self, stop: Event) -> list[Thread]:
        """Start all workers; they end once ``stop`` is set and their last answer has come, or cannot come any more."""
        jobs = (self.upload, self.promote, self.create_key, self.add_document, self.evaluate)
        threads = [Thread(target=self._repeat, args=(job, stop), name=job.__name__) for job in jobs]
        for thread in threads:
            thread.start()
        return threads

    def _repeat(self, job: Callable[[HatrackClient], None], stop: Event) -> None:
        with self._installation.client() as client:
            while not stop.is_set():
                try:
                    job(client)
                except ClientError as error:
                    if error.status not in PASSING and error.code != TRAINER_CUT:
                        self.ledger.surprises[f"{job.__name__}: {error.status} {error.code}: {error.message}"] += 1
                time.sleep(PAUSE_S)

    def _next(self) -> int:
        with self._lock:
            return next(self._numbers)

    def upload(self, client: HatrackClient) -> None:
        """One more version of one of the adapters."""
        self._push(client, f"voice-{self._random.randrange(NAMES)}")

    def _push(self, client: HatrackClient, name: str) -> None:
        number = self._next()
        made = make_adapter(self._work / "made" / str(number), self._base, rank=2, seed=number)
        sha256 = hashlib.sha256(made.weights).hexdigest()
        self.ledger.sent_versions.setdefault(name, set()).add(sha256)
        pushed = client.adapters.push(name, made.directory)
        self.ledger.versions[name, pushed["version"]] = sha256

    def promote(self, client: HatrackClient) -> None:
        """Move the alias to another version."""
        version = self._random.choice([number for number in range(1, VERSIONS + 1) if number != self.ledger.live])
        self.ledger.sent_live.add(version)
        client.adapters.promote(f"{PROMOTED}@{version}")
        self.ledger.live = version
        self.ledger.sent_live.clear()

    def create_key(self, client: HatrackClient) -> None:
        """Create a key, and revoke every second one."""
        made = client.keys.create(f"key-{self._next()}", scopes=["infer"])
        self.ledger.keys[made["id"]] = made["key"]
        if len(self.ledger.keys) % 2:
            return
        self.ledger.sent_revocations.add(made["id"])
        client.keys.delete(made["id"])
        self.ledger.revoked[made["id"]] = made["key"]

    def add_document(self, client: HatrackClient) -> None:
        """Upload a document, and have it indexed."""
        number = self._next()
        word = f"word{number}x"
        path = self._work / f"document-{number}.txt"
        path.write_text(" ".join(f"{word} number {n}." for n in range(WORDS)))
        sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
        self.ledger.sent_files[path.name] = sha256
        file_id = client.files.create(path, purpose="assistants")["id"]
        self.ledger.files[file_id] = sha256
        client.vector_stores.file_batches.create(self.store, {file_id: {}})
        self.ledger.documents[file_id] = word

    def evaluate(self, client: HatrackClient) -> None:
        """An evaluation, if the last one has ended: each has a process of its own."""
        newest = next(iter(client.evaluations.list()), None)
        if newest is not None and newest["status"] in ("queued", "running"):
            time.sleep(PAUSE_S)
            return
        base = client.ready()["base"]
        arms: list[dict[str, Any]] = [
            {"label": "plain", "model": base},
            {"label": "brief", "model": base, "prompt": {"system": "Be brief."}},
        ]
        made = client.evaluations.create(self.held_out, arms=arms, metric="token_f1", repeats=1, suites=[])
        self.ledger.evaluations.append(made["id"])
