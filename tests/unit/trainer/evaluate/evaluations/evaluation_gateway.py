"""A fake gateway on a real socket with what an evaluation needs: models, files, a version and its verdicts."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from adapters.protocol.runs import FileRef
from tests.support.http import serving
from tests.unit.trainer.evaluate.conftest import KEY, Gateway, pieces
from tests.unit.trainer.evaluate.worlds import subject
from tests.unit.trainer.finetune.conftest import error, parts

BASE = "tiny"
NAME = "voice"
INTENTS = ("card lost", "card late", "top up")


def rows(count: int = 36) -> list[dict[str, Any]]:
    """A closed set of three answers, each many times; no two questions are near-duplicates."""
    return [{"prompt": f"question {at}, {subject(at)}?", "completion": INTENTS[at % 3]} for at in range(count)]


def jsonl(found: list[dict[str, Any]]) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in found).encode()


def right(asked: str) -> str:
    """The answer that the author of `rows` gave."""
    return INTENTS[int((re.findall(r"\d+", asked) or ["0"])[0]) % 3]


def tuned_is_right(model: str, asked: str) -> str:
    return right(asked) if model.startswith(NAME) else "I am a helpful assistant"


@dataclass
class EvaluationGateway(Gateway):
    """`voice` has the versions 1 to 3; ``live`` is where its alias points."""

    live: int | None = None
    split: dict[str, int] | None = None
    unservable: set[int] = field(default_factory=set)
    grounded: dict[int, dict[str, Any]] = field(default_factory=dict)
    """What versions say of their grounding."""
    shown: dict[int, list[dict[str, str]]] = field(default_factory=dict)
    """The examples in each version's prompt."""
    lineages: dict[int, dict[str, Any]] = field(default_factory=dict)
    """What versions say of where they come from."""
    stored: dict[str, bytes] = field(default_factory=dict)
    kept: list[dict[str, bytes]] = field(default_factory=list)
    verdicts: list[dict[str, Any]] = field(default_factory=list)
    moves: list[dict[str, Any]] = field(default_factory=list)
    keys: set[str] = field(default_factory=lambda: {KEY})
    fingerprint: str = "f1"
    away: int = 0
    """So many times more it answers 503, whatever it is asked."""
    control: list[str] = field(default_factory=list)

    def add(self, name: str, content: bytes) -> FileRef:
        self.stored[name] = content
        digest = hashlib.sha256(content).hexdigest()
        return FileRef(id=name, filename=f"{name}.jsonl", bytes=len(content), sha256=digest)

    def handle(self, method: str, path: str, body: bytes, key: str) -> tuple[int, bytes, dict[str, str]]:
        path = path.partition("?")[0]
        if self.away > 0:
            self.away -= 1
            return 503, error("unavailable"), {}
        if path in ("/v1/chat/completions", "/v1/completions") or (path == "/v1/tokenize" and b'"messages"' in body):
            status, found, headers = self.answer(path, json.loads(body), key)
            return status, json.dumps(found).encode(), headers
        if path == "/readyz":
            return 200, json.dumps({"fingerprint": self.fingerprint}).encode(), {}
        self.control.append(f"{method} {path}")
        if key not in self.keys:
            return 401, error("invalid_api_key"), {}
        status, answer = self._controlled(method, path, body, key)
        return status, answer if isinstance(answer, bytes) else json.dumps(answer).encode(), {}

    def _controlled(self, method: str, path: str, body: bytes, key: str) -> tuple[int, Any]:
        if method == "DELETE" and path == "/v1/keys/current":
            self.keys.discard(key)
            return 200, {"deleted": True}
        if path == "/v1/tokenize":
            return 200, {"count": len(pieces(json.loads(body)["prompt"])), "tokens": []}
        if method == "POST" and path == "/v1/files":
            self.kept.append(parts(body))
            return 200, {"id": f"file-kept{len(self.kept)}"}
        if found := re.fullmatch(r"/v1/files/([\w-]+)/content", path):
            return (200, self.stored[found[1]]) if found[1] in self.stored else (404, error("not_found"))
        if path == f"/v1/adapters/{NAME}":
            splits = {"live": self.split} if self.split else {}
            return 200, {"aliases": {"live": self.live} if self.live else {}, "splits": splits}
        if method == "PUT" and path == f"/v1/adapters/{NAME}/aliases/live":
            self.moves.append(json.loads(body))
            if self.moves[-1]["expected"] != self.live:
                return 409, error("alias_moved")
            self.live = self.moves[-1]["version"]
            return 200, {}
        if found := re.fullmatch(rf"/v1/adapters/{NAME}/versions/(\d)(/verdicts)?", path):
            if not found[2]:
                number = int(found[1])
                settings = {"grounding": self.grounded.get(number), "examples": self.shown.get(number, [])}
                servable = "damaged" if int(found[1]) in self.unservable else "ok"
                lineage = self.lineages.get(int(found[1]))
                return 200, {"servable": servable, "settings": settings, "metadata": {"lineage": lineage}}
            if method == "GET":
                mine = [one for one in self.verdicts if one["version"] == int(found[1])]
                return 200, {"data": mine[::-1], "has_more": False}
            self.verdicts.append(json.loads(body) | {"version": int(found[1])})
            return 201, self.verdicts[-1]
        return 404, error("not_found")


@contextmanager
def listening(gateway: EvaluationGateway) -> Iterator[EvaluationGateway]:
    """The gateway on a port of this machine."""
    with serving(gateway.handle) as gateway.url:
        yield gateway
