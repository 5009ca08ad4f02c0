"""Requests that write: what each sends, and what it changes when it is accepted."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from loadtests.full_disk.state import ANYTHING, Changes, Place, State, StateReader
from service.client import HatrackClient
from service.client.connection import path_of
from service.client.types.files import Purpose
from tests.support.adapters import AdapterFiles, describe_base, make_adapter

VOICE: Final = "voice"
"""The adapter whose aliases, versions and pin are changed."""
ROWS: Final = 30


@dataclass(frozen=True, slots=True)
class Write:
    """One request, made before the disk is full."""

    send: Callable[[], Any]
    """Sends it: the very same request each time."""
    changes: Callable[[State, Any], Changes]
    """What it changes when it is accepted, by the state before and the answer."""
    changes_when_refused: Callable[[State], Changes] = lambda before: {}
    """What is not to be looked at after a refusal."""
    clean_up: Callable[[Any], object] = lambda answer: None
    """Called with the answer once there is room again, before the state is looked at."""


class Workbench:
    """What all requests share.

    Args:
        client: With the admin's key.
        reader: Is told of keys and projects.
        work: A directory with room, for what is uploaded.
    """

    def __init__(self, client: HatrackClient, reader: StateReader, work: Path) -> None:
        self.client, self.reader = client, reader
        self._work = work
        self._base = describe_base(work / "base", cache_dir=work / "base-cache")
        self._number = 0
        self.base_name = client.ready()["base"]

    def number(self) -> int:
        """A number that no call returned before."""
        self._number += 1
        return self._number

    def name(self, kind: str) -> str:
        """A name that nothing has."""
        return f"{kind}-{self.number()}"

    def adapter(self) -> AdapterFiles:
        """An adapter that differs from all others."""
        number = self.number()
        return make_adapter(self._work / "made" / str(number), self._base, rank=2, seed=number)

    def file(self, purpose: Purpose) -> Path:
        """A file on this side, with other contents each time."""
        number = self.number()
        path = self._work / f"file-{number}.{'txt' if purpose == 'assistants' else 'jsonl'}"
        path.write_text(self._text(purpose, number))
        return path

    def _text(self, purpose: Purpose, number: int) -> str:
        if purpose == "assistants":
            return f"Parcel {number} is here. " * 1000
        if purpose == "batch":
            return _lines([_batch_request(self.base_name)])
        questions = [(f"Where is parcel {number}-{row}?", f"Parcel {number}-{row} is here.") for row in range(ROWS)]
        if purpose == "evals":
            return _lines([{"prompt": question, "completion": answer} for question, answer in questions])
        return _lines([{"messages": _messages(question, answer)} for question, answer in questions])

    def upload(self, purpose: Purpose) -> str:
        """Upload such a file; returns its id."""
        return self.client.files.create(self.file(purpose), purpose=purpose)["id"]

    def put(self, method: str, *path: object, body: Mapping[str, Any]) -> dict[str, Any]:
        """A request that the client has no method for."""
        return self.client._connection.request(dict[str, Any], method, path_of(*path), json=body)


def _lines(rows: list[dict[str, Any]]) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


def _messages(question: str, answer: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]


def _batch_request(base: str) -> dict[str, Any]:
    body = {"model": base, "messages": [{"role": "user", "content": "hi"}]}
    return {"custom_id": "1", "method": "POST", "url": "/v1/chat/completions", "body": body}


def audited(before: State, *actions: str) -> dict[Place, Any]:
    """One more entry in the audit for each of the actions."""
    return {("audit", action): before.get(("audit", action), 0) + 1 for action in actions}


def moved(before: State, adapter: str, alias: str, target: int | Mapping[str, int]) -> dict[Place, Any]:
    """An alias that points to a version or a split, by one move more."""
    label = f"{adapter}:{alias}"
    root = f"{adapter}@{target}" if isinstance(target, int) else label
    moves = before.get(("moves", label), 0) + 1
    return {("alias", label): target, ("moves", label): moves, ("served", label): root}


def created(*places: Place) -> dict[Place, Any]:
    """Things that are there now."""
    return dict.fromkeys(places, ANYTHING)
