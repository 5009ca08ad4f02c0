"""The home of an earlier version as kill -9 left it, packed under `tests/fixtures/old_var`, and how it is read.

    home = unpack(VERSION, tmp_path / "var", base_dir=base, gateway="http://127.0.0.1:8123")
    answers = asyncio.run(read_home(home, base_dir, VERSION.facts))

`tests/fixtures/old_var/make.py` made it. Texts in it that name a path or URL of the machine it was made on hold a mark
instead, which `unpack` replaces.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import sys
import tarfile
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final
from unittest.mock import patch

import httpx
import psutil

from service.app import create_app
from service.config import Settings
from tests.support.asgi import lifespan_of
from tests.support.gateway import Gateway
from tests.support.system import plain_environment
from trainer.app import Trainer
from trainer.app import create_app as create_trainer_app
from trainer.config import Settings as TrainerSettings
from trainer.finetune.capacity import BaseModelInfo
from trainer.installation import Installation

ROOT: Final = Path(__file__).parent.parent / "fixtures" / "old_var"
ARCHIVE: Final = "var.tar.xz"
HOME_MARK, BASE_MARK, GATEWAY_MARK, PYTHON_MARK = "@HATRACK_HOME@", "@BASE_DIR@", "@GATEWAY_URL@", "@PYTHON@"
LEFT_OUT: Final = (
    "base-cache",
    "gateway.log",
    "engine.log",
    "trainer.log",
    "embedder.log",
    "worker.log",
    "__pycache__",
)
"""Caches and logs: no version takes them over, and the base's hashes are of the machine that made them."""
NO_ENGINE: Final = "unix:/nonexistent/hatrack-engine.sock"
PAGE: Final = 100


@dataclass(frozen=True)
class OldVersion:
    """A packed home, with what its maker knows of it."""

    directory: Path

    @property
    def facts(self) -> dict[str, Any]:
        """Ids, keys and names that the tests ask for."""
        return dict(json.loads((self.directory / "facts.json").read_text()))

    @property
    def answers(self) -> dict[str, Any]:
        """What the version that made it answered to `read_home`."""
        return dict(json.loads((self.directory / "answers.json").read_text()))


def versions() -> list[OldVersion]:
    """All packed homes, oldest first."""
    return [OldVersion(path.parent) for path in sorted(ROOT.glob(f"*/{ARCHIVE}"))]


class OldGateway(Gateway):
    """A gateway that has its admin key from its home, as an operator's has who sets none."""

    @property
    def key(self) -> str:
        return (self.home / "admin.key").read_text().strip()

    @property
    def environment(self) -> dict[str, str]:
        return {
            name: value
            for name, value in super().environment.items()
            if name not in ("HATRACK_ADMIN_KEY", "HATRACK_KEY")
        }

    def kill_everything(self) -> None:
        """SIGKILL to the gateway, its engine, its trainer and their workers, all at one moment."""
        assert self.process is not None
        gateway = psutil.Process(self.process.pid)
        processes = [gateway, *gateway.children(recursive=True), *self.engine_processes()]
        for process in processes:
            process.suspend()  # or one would see another's end, and write it down
        for process in processes:
            process.kill()
        self.process.wait()
        psutil.wait_procs(processes, timeout=60)


# packing


def pack(home: Path, archive: Path, places: Mapping[str, str]) -> None:
    """Write `home` into an archive, with marks where its texts name a place of this machine.

    Args:
        places: The mark of each such text.
    """
    with tarfile.open(archive, "w:xz", preset=9) as tar:
        for path in sorted(home.rglob("*")):
            relative = path.relative_to(home)
            if set(relative.parts) & set(LEFT_OUT) or not (path.is_file() or path.is_dir()):
                continue
            content = path.read_bytes() if path.is_file() else b""
            for text, mark in places.items():
                if text.encode() in content:
                    if b"\0" in content:
                        raise ValueError(f"{relative} is no text and names {text}")
                    content = content.replace(text.encode(), mark.encode())
            _add(tar, path, str(relative), content)


def _add(tar: tarfile.TarFile, path: Path, name: str, content: bytes) -> None:
    info = tarfile.TarInfo(name)
    info.mode = path.stat().st_mode & 0o777
    info.mtime = int(path.stat().st_mtime)
    info.type = tarfile.DIRTYPE if path.is_dir() else tarfile.REGTYPE
    info.size = len(content)
    tar.addfile(info, io.BytesIO(content))


def unpack(version: OldVersion, home: Path, *, base_dir: Path, gateway: str) -> Path:
    """Make `home` what it was, for a gateway at the URL `gateway` that serves the base in `base_dir`."""
    home.mkdir(parents=True, exist_ok=True)
    with tarfile.open(version.directory / ARCHIVE) as tar:
        tar.extractall(home, filter="tar")
    places = {HOME_MARK: str(home), BASE_MARK: str(base_dir), GATEWAY_MARK: gateway, PYTHON_MARK: sys.executable}
    for path in home.rglob("*"):
        if path.is_file():
            content = before = path.read_bytes()
            for mark, text in places.items():
                content = content.replace(mark.encode(), text.encode())
            if content != before:
                path.write_bytes(content)
    return home


# reading


def missing(old: Any, new: Any, path: str = "") -> list[str]:
    """What of an old answer is not in the new one as it was, each with its path; fields may have been added."""
    if isinstance(old, dict) and isinstance(new, dict):
        gone = [f"{path}.{name} is gone" for name in old if name not in new]
        return gone + [line for name in old if name in new for line in missing(old[name], new[name], f"{path}.{name}")]
    if isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        return [
            line
            for at, pair in enumerate(zip(old, new, strict=True))
            for line in missing(*pair, f"{path}.{at}")
        ]  # fmt: skip
    return [] if old == new else [f"{path} was {old!r} and is {new!r}"]


def usage_of(facts: Mapping[str, Any]) -> str:
    """The query of `/v1/usage` for the days around the one on which the home was made."""
    return f"start={facts['made_at'] - 86_400}&end={facts['made_at'] + 86_400}"


async def read_home(home: Path, base_dir: Path, facts: Mapping[str, Any]) -> dict[str, Any]:
    """What gateway and trainer answer about `home`, each in this process and without an engine."""
    with patch.dict(os.environ, plain_environment(), clear=True):
        return {"gateway": await _read_gateway(home, base_dir, facts), "trainer": await _read_trainer(home, base_dir)}


async def _read_gateway(home: Path, base_dir: Path, facts: Mapping[str, Any]) -> dict[str, Any]:
    settings = Settings(
        home=home,
        base_model=str(base_dir),
        engine_url=NO_ENGINE,
        engine_dtype="bfloat16",  # what that release served in, on whatever CPU the tests run
        trainer="off",
        samples=False,
        revalidate_days=36_500,
    )
    app = create_app(settings)
    transport = httpx.ASGITransport(app)
    async with lifespan_of(app), httpx.AsyncClient(transport=transport, base_url="http://hatrack") as http:
        admin = Reader(http, (home / "admin.key").read_text().strip())
        projects = sorted({key["project"] for key in (await admin.get(f"/v1/keys?limit={PAGE}"))["data"]} | {"default"})
        return {
            "keys": await admin.get(f"/v1/keys?limit={PAGE}"),
            "audit": await admin.get(f"/v1/audit?limit={PAGE}"),
            "usage": await admin.get(f"/v1/usage?{usage_of(facts)}&group_by=project,key,adapter,version"),
            "projects": {project: await _project(admin.within(project)) for project in projects},
            "sees": {name: await _visible_to(Reader(http, key)) for name, key in facts["keys"].items()},
        }


@dataclass(frozen=True)
class Reader:
    """GET with one key, in one project."""

    http: httpx.AsyncClient
    key: str
    project: str | None = None

    def within(self, project: str) -> Reader:
        return Reader(self.http, self.key, project)

    async def ask(self, path: str) -> httpx.Response:
        headers = {"authorization": f"Bearer {self.key}"}
        return await self.http.get(path, headers=headers | ({"openai-project": self.project} if self.project else {}))

    async def get(self, path: str) -> dict[str, Any]:
        answer = await self.ask(path)
        assert answer.status_code == 200, (path, answer.text)
        return dict(answer.json())


async def _project(admin: Reader) -> dict[str, Any]:
    adapters = (await admin.get(f"/v1/adapters?limit={PAGE}"))["data"]
    files = (await admin.get(f"/v1/files?limit={PAGE}"))["data"]
    stores = (await admin.get(f"/v1/vector_stores?limit={PAGE}"))["data"]
    return {
        "adapters": {adapter["name"]: await _adapter(admin, adapter) for adapter in adapters},
        # the embedding model was not among them before it could be asked
        "models": [card["id"] for card in (await admin.get("/v1/models"))["data"] if card.get("type") != "embedding"],
        "files": {file["id"]: file | await _content(admin, f"/v1/files/{file['id']}/content") for file in files},
        "vector_stores": {store["id"]: await _store(admin, store) for store in stores},
    }


async def _adapter(admin: Reader, adapter: dict[str, Any]) -> dict[str, Any]:
    under = f"/v1/adapters/{adapter['name']}"
    numbers = [version["version"] for version in adapter["versions"]]
    return {
        "adapter": adapter,
        "versions": {str(number): await admin.get(f"{under}/versions/{number}") for number in numbers},
        "verdicts": {str(number): await admin.get(f"{under}/versions/{number}/verdicts") for number in numbers},
        "aliases": {alias: await admin.get(f"{under}/aliases/{alias}") for alias in adapter["aliases"]},
        "weights": {
            str(number): await _content(admin, f"{under}/versions/{number}/files/weights") for number in numbers
        },
    }


async def _content(admin: Reader, path: str) -> dict[str, Any]:
    answer = await admin.ask(path)
    digest = hashlib.sha256(answer.content).hexdigest() if answer.status_code == 200 else None
    return {"content": {"status": answer.status_code, "sha256": digest}}


async def _store(admin: Reader, store: dict[str, Any]) -> dict[str, Any]:
    under = f"/v1/vector_stores/{store['id']}/files"
    files = (await admin.get(f"{under}?limit={PAGE}"))["data"]
    return {
        "store": store,
        "files": {
            file["id"]: file | {"text": (await admin.get(f"{under}/{file['id']}/content"))["data"]} for file in files
        },
    }


async def _visible_to(key: Reader) -> dict[str, Any]:
    """What a key without the admin scope may see: the statuses, and the names where there are any."""
    visible: dict[str, Any] = {}
    for path, name in (
        ("/v1/models", "id"),
        ("/v1/adapters", "name"),
        ("/v1/files", "id"),
        ("/v1/vector_stores", "id"),
    ):
        answer = await key.ask(path)
        items = answer.json()["data"] if answer.status_code == 200 else None
        names = None if items is None else [item[name] for item in items if item.get("type") != "embedding"]
        visible[path] = {"status": answer.status_code, "names": names}
    return visible


async def _read_trainer(home: Path, base_dir: Path) -> dict[str, Any]:
    """From its records and folders. Nothing is started, so no job moves."""
    installation = Installation(
        home=home, gateway="http://gateway", base=base_dir, base_name="base", max_rank=32, context=2048
    )
    settings = TrainerSettings(device="cpu", secret=None)
    trainer = Trainer.build(settings, installation, BaseModelInfo.read(base_dir))
    await trainer.database.open()
    app = create_trainer_app(trainer, settings)
    try:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://trainer") as http:
            return {
                "jobs": [job async for job in _runs(http, "/v1/fine_tuning/jobs", ("events", "checkpoints"))],
                "evaluations": [evaluation async for evaluation in _runs(http, "/v1/evaluations", ("report",))],
            }
    finally:
        await trainer.database.close()


async def _runs(http: httpx.AsyncClient, path: str, more: tuple[str, ...]) -> AsyncIterator[dict[str, Any]]:
    headers = {"x-hatrack-project": "default", "x-hatrack-key-id": "admin", "x-request-id": "r1"}
    listed = await http.get(f"{path}?limit={PAGE}", headers=headers)
    assert listed.status_code == 200, listed.text
    for run in listed.json()["data"]:
        parts = {"run": (await http.get(f"{path}/{run['id']}", headers=headers)).json()}
        for part in more:
            answer = await http.get(f"{path}/{run['id']}/{part}", headers=headers)
            parts[part] = answer.json() if answer.status_code == 200 else answer.status_code
        yield parts
