"""A fake gateway on a real socket whose tokens are bytes, and folders of jobs that use it."""

from __future__ import annotations

import hashlib
import json
import re
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from adapters.protocol.runs import FileRef
from tests.support.http import serving
from tests.unit.trainer.finetune.fake_engine import FakeEngine
from tests.unit.trainer.look_database import make_look_database
from trainer.finetune.spec import JobSpec
from trainer.runs import protocol
from trainer.tune.hyperparameters import HyperparameterRequest

KEY = "hk_job"


def rows(count: int = 24) -> list[dict[str, Any]]:
    words = ("rope", "lantern", "kettle", "anchor", "compass", "barrel")
    return [
        {
            "prompt": f"{words[n % 6]} {n * 7919 % 997} or {words[(n + 2) % 6]}?",
            "completion": f"Aye, {words[n % 6]} it is.",
        }
        for n in range(count)
    ]


def jsonl(examples: list[dict[str, Any]]) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in examples).encode()


@dataclass
class FakeGateway:
    """Serves files, accepts adapters and reports a load; records its requests."""

    files: dict[str, bytes] = field(default_factory=dict)
    load: tuple[int, int] = (0, 0)
    failing: list[int] = field(default_factory=list)
    """Statuses of the next answers to uploads; below 300: it takes that one."""
    pushed: list[dict[str, bytes]] = field(default_factory=list)
    asked: list[str] = field(default_factory=list)
    kept: list[dict[str, bytes]] = field(default_factory=list)
    """Files that were uploaded."""
    keys: set[str] = field(default_factory=lambda: {KEY})
    """Those that are valid."""
    away: bool = False
    """Whether it answers 503 to everything."""
    engine: FakeEngine = field(default_factory=FakeEngine)
    aliases: dict[str, int] = field(default_factory=dict)
    held_back: set[int] = field(default_factory=set)
    splits: dict[str, dict[str, int]] = field(default_factory=dict)
    unservable: set[str] = field(default_factory=set)
    """Paths of versions that cannot serve."""
    grounded: dict[str, dict[str, Any]] = field(default_factory=dict)
    """What versions, by their paths, say of their grounding."""
    no_store: set[str] = field(default_factory=set)
    """Models that answer from a store that the job's key may not read."""
    verdicts: list[dict[str, Any]] = field(default_factory=list)
    """On the version, the newest first."""
    fingerprint: str = "f1"
    """Of the base, as it is served now."""
    url: str = ""

    def answer(self, method: str, path: str, body: bytes, key: str = KEY) -> tuple[int, bytes]:
        self.asked.append(f"{method} {path}")
        if self.away:
            return 503, error("unavailable")
        if key not in self.keys:
            return 401, error("invalid_api_key")
        if method == "DELETE" and path == "/v1/keys/current":
            self.keys.discard(key)
            return 200, json.dumps({"deleted": True}).encode()
        if method == "POST" and path == "/v1/files":
            self.kept.append(parts(body))
            return 200, json.dumps({"id": f"file-kept{len(self.kept)}"}).encode()
        if path == "/readyz":
            return 200, json.dumps({"fingerprint": self.fingerprint}).encode()
        if path == "/v1/load":
            return 200, json.dumps({"waiting": self.load[0], "in_flight": self.load[1]}).encode()
        if match := re.fullmatch(r"/v1/files/([\w-]+)/content", path):
            content = self.files.get(match[1])
            return (200, content) if content is not None else (404, error("not_found"))
        if method == "POST" and path == "/v1/adapters":
            status = self.failing.pop(0) if self.failing else 201
            if status >= 300:
                return status, error("later")
            self.pushed.append(parts(body))
            version = {"adapter": "voice", "version": len(self.pushed), "digest": "d" * 64}
            return 201, json.dumps(version).encode()
        if path.startswith("/v1/adapters/voice"):
            return self._adapter(method, path, body)
        if path == "/v1/chat/completions" and json.loads(body)["model"] in self.no_store:
            return 404, error("vector_store_not_found")
        if path == "/v1/chat/completions/render":
            *before, question = json.loads(body)["messages"]
            shown = [*before, question | {"content": f"Rope is hemp.\n\n{question['content']}"}]
            return 200, json.dumps({"messages": shown}).encode()
        answered = self.engine.answer(path, json.loads(body)) if method == "POST" else None
        return (404, error("not_found")) if answered is None else (200, json.dumps(answered).encode())

    def _adapter(self, method: str, path: str, body: bytes) -> tuple[int, bytes]:
        if path == "/v1/adapters/voice":
            return 200, json.dumps({"aliases": self.aliases, "splits": self.splits}).encode()
        if (
            path.startswith("/v1/adapters/voice/versions/")
            and method == "GET"
            and not path.partition("?")[0].endswith("verdicts")
        ):
            servable = "ok" if path not in self.unservable else "other_base"
            settings = {"system_prompt": None, "sampling": {}, "grounding": self.grounded.get(path)}
            return 200, json.dumps({"servable": servable, "settings": settings}).encode()
        if method == "PUT":
            move, alias = json.loads(body), path.rpartition("/")[2]
            if self.aliases.get(alias) not in (move["expected"], move["version"]):
                return 409, error("alias_moved")
            if alias == "live" and move["version"] in self.held_back:
                return 409, error("version_held_back")
            self.aliases[alias] = move["version"]
            return 200, b"{}"
        if method == "POST":
            self.verdicts.insert(0, json.loads(body))
            return 201, b"{}"
        return 200, json.dumps({"data": self.verdicts[:1]}).encode()


def error(code: str) -> bytes:
    return json.dumps({"error": {"message": code, "type": "t", "param": None, "code": code}}).encode()


def once(act: Callable[[], object]) -> Callable[[], None]:
    """Does it the first time, and nothing after that: answers that are still on their way must not do it again."""
    left, lock = [act], threading.Lock()

    def do() -> None:
        with lock:
            now = left.pop() if left else lambda: None
        now()

    return do


def parts(body: bytes) -> dict[str, bytes]:
    boundary = body[: body.index(b"\r\n")]
    contents = {}
    for part in body.split(boundary)[1:-1]:
        head, _, content = part.strip(b"\r\n").partition(b"\r\n\r\n")
        name = re.search(rb'name="(\w+)"', head)
        assert name is not None
        contents[name[1].decode()] = content
    return contents


@pytest.fixture(autouse=True)
def _patient_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Cancel, pause and resume wait for the worker for longer than they do for a client: on a busy machine one may need
    more than their seconds to start, and tests hold the answer to the state that was asked for."""
    monkeypatch.setattr("trainer.runs.service.SETTLE_S", 120.0)


@pytest.fixture
def gateway() -> Iterator[FakeGateway]:
    fake = FakeGateway()

    def answer(method: str, path: str, body: bytes, key: str) -> tuple[int, bytes, dict[str, str]]:
        return *fake.answer(method, path, body, key), {}

    with serving(answer) as fake.url:
        yield fake


@pytest.fixture
def make_job(gateway: FakeGateway, base_dir: Path, tmp_path: Path) -> Any:
    """Writes a job's folder; keyword arguments change the spec."""

    def make(content: bytes | None = None, held_out: bytes | None = None, **changes: Any) -> Path:
        def ref(name: str, data: bytes) -> FileRef:
            gateway.files[name] = data
            return FileRef(id=name, filename=f"{name}.jsonl", bytes=len(data), sha256=hashlib.sha256(data).hexdigest())

        values: dict[str, Any] = {
            "id": "ftjob-1",
            "project": "default",
            "created_at": 0,
            "gateway": gateway.url,
            "adapter": "voice",
            "base_dir": base_dir,
            "base_name": "tiny",
            "max_rank": 16,
            "context": 256,
            "training_file": ref("train", jsonl(rows()) if content is None else content),
            "validation_file": ref("held", held_out) if held_out is not None else None,
            "wish": HyperparameterRequest(n_epochs=3, batch_size=4, lora_rank=4, learning_rate=5e-3),
            "seed": 3,
            "device": "cpu",
            "checkpoint_s": 0.0,
        }
        job = JobSpec(**(values | changes))
        folder = tmp_path / "jobs" / job.id
        folder.mkdir(parents=True)
        make_look_database(tmp_path)
        (folder / protocol.SPEC).write_text(job.model_dump_json())
        (folder / protocol.KEY).write_text(KEY)
        return folder

    return make
