"""What the gateway shows through its API, and what differs between two looks at it."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator, Mapping
from itertools import takewhile
from typing import Any, Final, TypeAlias

from loadtests.kills.checks import RUN_KEY
from service.client import HatrackClient
from service.client.batches import UNFINISHED
from service.client.connection import path_of
from service.client.wire import ClientError

Place: TypeAlias = tuple[str, str]
"""A kind and a name, such as `("alias", "voice:live")`."""
State: TypeAlias = dict[Place, Any]
Changes: TypeAlias = Mapping[Place, Any]
"""What becomes of places: a value, GONE, ANYTHING or UNCHECKED."""
GONE: Final = "gone"
ANYTHING: Final = "anything"
"""It is there, with whatever value."""
UNCHECKED: Final = "unchecked"
"""It is there or not."""
PURPOSES: Final = ("assistants", "evals", "fine-tune", "batch")
"""Of files that callers upload. Results come and go by themselves."""
REFUSED: Final = "access.refused"
"""The audit's action of refusals, which are counted and written later."""
SETTLE_S: Final = 0.1
MAX_LOOKS: Final = 300


class StateReader:
    """Reads the state.

    Args:
        client: With the admin's key.
    """

    def __init__(self, client: HatrackClient) -> None:
        self._client = client
        self.keys: dict[str, str] = {}
        """Keys by their ids: whether each works is a part of the state."""
        self.projects: set[str] = set()
        """Names of projects: whether each exists is a part of the state."""
        self._newest_entry, self._audited = 0, Counter[str]()

    def settled(self) -> State:
        """The state once no version is being proven, no file indexed, no batch under way, and no run has a key."""
        for _ in range(MAX_LOOKS):
            state = self._read()
            if not any(_is_unsettled(place, value) for place, value in state.items()):
                break
            time.sleep(SETTLE_S)
        return state

    def _read(self) -> State:
        parts = (self._adapters, self._access, self._uploads, self._stores, self._work)
        return {place: value for part in parts for place, value in part()}

    def _adapters(self) -> Iterator[tuple[Place, Any]]:
        for adapter in self._client.adapters.list():
            name = adapter["name"]
            yield ("adapter", name), True
            yield ("pin", name), adapter["pinned"]
            for version in adapter["versions"]:
                yield ("version", f"{name}@{version['version']}"), version["state"]
            for alias, number in adapter["aliases"].items():
                label = f"{name}:{alias}"
                yield ("alias", label), adapter["splits"][alias] if number is None else number
                yield ("moves", label), len(self._get("adapters", name, "aliases", alias)["history"])
                yield ("served", label), self._client.models.retrieve(label).get("root")
        for model in self._client.models.list():
            yield ("model", model["id"]), True

    def _access(self) -> Iterator[tuple[Place, Any]]:
        for key in self._client.keys.list():
            yield ("key", key["id"]), (key["name"], key["project"])
        for key_id, secret in self.keys.items():
            yield ("working key", key_id), self._works(secret)
        for project in self.projects:
            yield ("project", project), self._exists(project)
        for budget in self._client.budgets.list():
            yield ("budget", budget["project"]), budget["monthly"]
        self._count_audit()
        yield from ((("audit", action), count) for action, count in self._audited.items())

    def _count_audit(self) -> None:
        newest = self._newest_entry
        for entry in takewhile(lambda entry: entry["id"] > newest, self._client.audit.list()):
            self._newest_entry = max(self._newest_entry, entry["id"])
            if entry["action"] != REFUSED:
                self._audited[entry["action"]] += 1

    def _works(self, secret: str) -> bool:
        headers = {"authorization": f"Bearer {secret}"}
        return self._answers("/v1/models", headers, refused_with=401)

    def _exists(self, project: str) -> bool:
        return self._answers("/v1/storage", {"openai-project": project}, refused_with=404)

    def _answers(self, path: str, headers: Mapping[str, str], *, refused_with: int) -> bool:
        try:
            self._client._connection.checked("GET", path, headers=headers)
        except ClientError as error:
            if error.status != refused_with:
                raise
            return False
        return True

    def _uploads(self) -> Iterator[tuple[Place, Any]]:
        for file in self._client.files.list():
            if file["purpose"] in PURPOSES:
                yield ("file", file["id"]), (file["filename"], file["sha256"])
        for dataset in self._client.datasets.list():
            for version in dataset["versions"]:
                yield ("dataset", f"{dataset['name']}@{version['version']}"), version["file"]

    def _stores(self) -> Iterator[tuple[Place, Any]]:
        for store in self._client.vector_stores.list():
            yield ("store", store["id"]), store["name"]
            if store["file_counts"]["total"]:
                for file in self._client.vector_stores.files.list(store["id"]):
                    yield ("document", f"{store['id']}/{file['id']}"), (file["status"], file["attributes"])

    def _work(self) -> Iterator[tuple[Place, Any]]:
        for batch in self._client.batches.list():
            yield ("batch", batch["id"]), batch["status"]
        for run in self._client.evaluations.list():
            yield ("evaluation", run["id"]), True

    def _get(self, *path: str) -> dict[str, Any]:
        return self._client._connection.request(dict[str, Any], "GET", path_of(*path))


def _is_unsettled(place: Place, value: Any) -> bool:
    match place[0]:
        case "version":
            return bool(value != "ready")
        case "document":
            return bool(value[0] == "in_progress")
        case "batch":
            return value in UNFINISHED
        case "key":
            return bool(value[0].startswith(RUN_KEY))
    return False


def unexpected(before: State, after: State, changes: Changes) -> Iterator[str]:
    """What of a state is not as it was before but for the changes; each a clause."""
    for place in sorted(before.keys() | after.keys() | changes.keys()):
        expected, value = changes.get(place, before.get(place, GONE)), after.get(place, GONE)
        if value != expected and expected != UNCHECKED and (expected != ANYTHING or value == GONE):
            yield f"the {place[0]} {place[1]} was {before.get(place, GONE)} and is {value}, not {expected}"
