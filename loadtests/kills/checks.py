"""What must be there after a kill: all that was acknowledged, and nothing that is not whole."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final, TypeVar

from loadtests.kills.installation import PATIENCE_S
from loadtests.kills.work import PROMOTED, Ledger
from service.client import HatrackClient
from service.client.wire import ClientError

Item = TypeVar("Item")
RECENT: Final = 8
"""Of each kind, the newest that a check looks at between two kills; the check at the end looks at all."""
SETTLE_S: Final = 0.2
OVER: Final = ("succeeded", "failed", "cancelled")
RUN_KEY: Final = "evaluating "
"""How the name of a key begins that the gateway makes for an evaluation."""


class Checks:
    """Compares a gateway with what it has acknowledged.

    Args:
        client: With the admin's key.
        client_of: A client with another key.
        ledger: What was sent and acknowledged.
        store: The vector store's id.
        everything: Look at all there is, and wait until background work has ended; else at the newest of each kind.
    """

    def __init__(
        self,
        client: HatrackClient,
        client_of: Callable[[str], HatrackClient],
        ledger: Ledger,
        store: str,
        *,
        everything: bool,
    ) -> None:
        self._client, self._client_of, self._ledger, self._store = client, client_of, ledger, store
        self._everything = everything

    def faults(self) -> Iterator[str]:
        """Each a sentence."""
        yield from self._versions()
        yield from self._alias()
        yield from self._keys()
        yield from self._files()
        if self._everything:
            yield from self._documents()
            yield from self._evaluations()

    def _some(self, items: Sequence[Item]) -> Sequence[Item]:
        return items if self._everything else items[-RECENT:]

    def _versions(self) -> Iterator[str]:
        for (name, number), sha256 in self._some(list(self._ledger.versions.items())):
            label = f"{name}@{number}"
            try:
                version = self._client.adapters.versions.retrieve(name, number)
            except ClientError as error:
                yield f"{label} was acknowledged: {error.message}"
                continue
            if version["state"] != "ready" or self._weights(name, number) != sha256:
                yield f"{label} was acknowledged, and is {version['state']} or has other bytes"
        for adapter in self._client.adapters.list():
            name = adapter["name"]
            for number in self._some([version["version"] for version in adapter["versions"]]):
                if not until(partial(self._is_ready, name, number)):
                    yield f"{name}@{number} is visible and {self._state(name, number)}"
                elif self._weights(name, number) not in self._ledger.sent_versions.get(name, ()):
                    yield f"{name}@{number} has bytes that nobody sent"

    def _is_ready(self, name: str, number: int) -> bool:
        return self._state(name, number) == "ready"

    def _state(self, name: str, number: int) -> str:
        return str(self._client.adapters.versions.retrieve(name, number)["state"])

    def _weights(self, name: str, number: int) -> str:
        with TemporaryDirectory() as directory:
            target = Path(directory) / "weights"
            self._client.adapters.versions.download(name, number, "weights", target)
            return hashlib.sha256(target.read_bytes()).hexdigest()

    def _alias(self) -> Iterator[str]:
        live = self._client.adapters.retrieve(PROMOTED)["aliases"]["live"]
        allowed = {self._ledger.live, *self._ledger.sent_live}
        if live not in allowed:
            yield f"{PROMOTED} is at version {live}, not at one of {sorted(allowed)}"
        else:
            self._ledger.live = live
            self._ledger.sent_live.clear()

    def _keys(self) -> Iterator[str]:
        for key_id, key in self._some(list(self._ledger.keys.items())):
            works = self._works(key)
            if key_id in self._ledger.revoked and works:
                yield f"{key_id} was revoked, and works"
            if key_id not in self._ledger.sent_revocations and not works:
                yield f"{key_id} was acknowledged, and does not work"

    def _works(self, key: str) -> bool:
        with self._client_of(key) as client:
            try:
                return bool(list(client.models.list()))
            except ClientError as error:
                if error.status == 401:
                    return False
                raise

    def _files(self) -> Iterator[str]:
        listed = {file["id"]: file["filename"] for file in self._client.files.list("assistants")}
        yield from (f"{file_id} was acknowledged, and is gone" for file_id in self._ledger.files.keys() - listed.keys())
        for file_id, filename in self._some(list(reversed(listed.items()))):
            if hashlib.sha256(self._client.files.content(file_id)).hexdigest() != self._ledger.sent_files.get(filename):
                yield f"{filename} has other bytes than were sent"

    def _documents(self) -> Iterator[str]:
        def files() -> dict[str, Any]:
            return {file["id"]: file for file in self._client.vector_stores.files.list(self._store)}

        def settled() -> bool:
            return all(file["status"] != "in_progress" for file in files().values())

        if not until(settled, PATIENCE_S + len(self._ledger.documents)):
            yield "documents are still in progress"
        stored = files()
        for file_id, word in self._ledger.documents.items():
            status = stored[file_id]["status"] if file_id in stored else "gone"
            if status != "completed":
                reason = (stored.get(file_id, {}).get("last_error") or {}).get("message")
                yield f"the document {file_id} was acknowledged, and is {status} ({reason})"
                continue
            best = self._client.vector_stores.search(self._store, word, max_num_results=1)
            if not best or best[0]["file_id"] != file_id:
                yield f"the document {file_id} is completed, and not found"

    def _evaluations(self) -> Iterator[str]:
        def listed() -> dict[str, str]:
            return {run["id"]: run["status"] for run in self._client.evaluations.list()}

        if not until(lambda: all(status in OVER for status in listed().values()), 2 * PATIENCE_S):
            yield f"evaluations go on: {listed()}"
        runs = listed()
        for run in {*self._ledger.evaluations, *runs}:
            if runs.get(run) != "succeeded":
                yield f"the evaluation {run} is {runs.get(run, 'gone')}"
        keys = [key["id"] for key in self._run_keys()]
        if not until(lambda: not list(self._run_keys())):
            yield f"keys of evaluations that have ended or never were: {keys}"

    def _run_keys(self) -> Iterator[Any]:
        return (key for key in self._client.keys.list() if (key.get("name") or "").startswith(RUN_KEY))


def until(condition: Callable[[], bool], patience_s: float = PATIENCE_S) -> bool:
    """Whether it holds, at the latest after ``patience_s``. A child that was killed may take until then to answer."""
    deadline = time.monotonic() + patience_s
    while True:
        try:
            if condition():
                return True
        except ClientError as error:
            if error.status != 503:
                raise
        if time.monotonic() > deadline:
            return False
        time.sleep(SETTLE_S)
