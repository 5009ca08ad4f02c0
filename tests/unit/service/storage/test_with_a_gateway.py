"""A gateway is backed up while it is written to; what is restored serves in another place, and holds together."""

from __future__ import annotations

import asyncio
import hashlib
import time
from pathlib import Path

import pytest

from adapters.store import Store
from service.storage.backup import Backup, make_backup
from service.storage.garbage import find_garbage
from service.storage.restore import restore
from tests.support.adapters import AdapterFiles, describe_base, make_adapter, make_base
from tests.unit.service.gateway_app import BASE, GatewayApp, running
from tests.unit.service.storage.test_backup import QUIET

MIN_ROUNDS = 8
RETURNS = b"# Returns\n\nGoods may be sent back within 45 days.\n"
CHAT = {"model": "voice", "messages": [{"role": "user", "content": "hello"}]}


async def put_file(gateway: GatewayApp, content: bytes) -> str:
    files = {"file": ("a.md", content)}
    answer = await gateway.http.post("/v1/files", data={"purpose": "assistants"}, files=files)
    assert answer.status_code == 200, answer.text
    return str(answer.json()["id"])


async def indexed(gateway: GatewayApp, store: str) -> None:
    """Wait until all files of a store are indexed; none may fail."""
    statuses: list[str] = []
    while not statuses or "in_progress" in statuses:
        await asyncio.sleep(0.02)
        files = (await gateway.http.get(f"/v1/vector_stores/{store}/files")).json()["data"]
        statuses = [file["status"] for file in files]
    assert set(statuses) == {"completed"}


async def push(gateway: GatewayApp, name: str, files: AdapterFiles) -> int:
    """Push a version; its number."""
    parts = {"config": ("adapter_config.json", files.config), "weights": ("w.safetensors", files.weights)}
    answer = await gateway.http.post("/v1/adapters", data={"name": name}, files=parts)
    assert answer.status_code == 201, answer.text
    return int(answer.json()["version"])


class Writer:
    """Uploads files and puts them into a store until it is ``done``, makes keys, and pushes and promotes adapters; in
    its first rounds it deletes those before, too.

    Not in all: a backup gives up where content is deleted in each of its rounds, and on a slow machine it would be.
    """

    def __init__(self, gateway: GatewayApp, base: Path, folder: Path) -> None:
        self._gateway = gateway
        self._base = describe_base(base, served_name=BASE)
        self._folder = folder
        self.promoted = 0
        self.deleted = 0
        self.rounds = 0
        self.done = False

    async def run(self) -> None:
        try:
            await self._write()
        finally:
            self.done = True  # or the backup would wait for another round for ever

    async def _write(self) -> None:
        http = self._gateway.http
        store = (await http.post("/v1/vector_stores", json={"name": "busy"})).json()["id"]
        before: str | None = None
        while not self.done:
            text = f"# Notice {self.rounds}\n\nParcel {self.rounds} has come.\n"
            file_id = await put_file(self._gateway, text.encode())
            await http.post(f"/v1/vector_stores/{store}/files", json={"file_id": file_id})
            await self._gateway.key("infer")
            await self._write_adapters()
            if before is not None and self.rounds <= MIN_ROUNDS:
                assert (await http.delete(f"/v1/vector_stores/{store}/files/{before}")).status_code == 200
                assert (await http.delete(f"/v1/files/{before}")).status_code == 200
            before, self.rounds = file_id, self.rounds + 1

    async def _write_adapters(self) -> None:
        """A version that is promoted and an adapter that lasts for a round; all have weights of their own."""
        http, number = self._gateway.http, self.rounds
        lasting, passing = (
            make_adapter(self._folder / f"{kind}{number}", self._base, rank=1, seed=seed)
            for kind, seed in (("l", 1000 + number), ("p", 2000 + number))
        )
        version = await push(self._gateway, "busy", lasting)
        promoted = await http.put("/v1/adapters/busy/aliases/live", json={"version": version})
        assert promoted.status_code == 200, promoted.text
        self.promoted = version
        await push(self._gateway, f"passing-{number}", passing)
        if 0 < number <= MIN_ROUNDS:
            gone = [f"/v1/adapters/passing-{number - 1}?force=true", f"/v1/adapters/busy/versions/{version - 1}"]
            for path in gone:
                deleted = await http.delete(path)
                assert deleted.status_code == 204, deleted.text
                self.deleted += 1

    def pace(self, _done: int, _total: int | None, doing: str) -> None:
        """Of the backup, in its thread: with each of the first pieces that it copies, two rounds are written."""
        if doing == "copying" and self.rounds < MIN_ROUNDS:
            until = self.rounds + 2
            while self.rounds < until and not self.done:
                time.sleep(0.005)


async def back_up_while_written_to(gateway: GatewayApp, base: Path, target: Path) -> Backup:
    writer = Writer(gateway, base, target.with_suffix(".adapters"))
    writing = asyncio.create_task(writer.run())
    try:
        while writer.rounds < 2 and not writing.done():  # noqa: ASYNC110 (it has begun, and goes on)
            await asyncio.sleep(0.01)
        return await asyncio.to_thread(make_backup, gateway.settings, target, writer.pace)
    finally:
        writer.done = True
        await writing
        assert writer.rounds >= MIN_ROUNDS
        assert writer.promoted >= MIN_ROUNDS
        assert writer.deleted >= MIN_ROUNDS


async def adapters_are_whole(gateway: GatewayApp) -> set[str]:
    """Check each version that is listed, and each alias; returns the adapters' names."""
    store = Store(gateway.settings.store_dir)
    names = set()
    after: dict[str, str] = {}
    while True:
        page = (await gateway.http.get("/v1/adapters", params={"limit": "100", **after})).json()
        for listed in page["data"]:
            adapter = (await gateway.http.get(f"/v1/adapters/{listed['name']}")).json()
            names.add(adapter["name"])
            digests = {version["version"]: version["digest"] for version in adapter["versions"]}
            assert digests
            for number, digest in digests.items():
                store.verify(digest)
                files = f"/v1/adapters/{adapter['name']}/versions/{number}/files"
                for file in ("config", "weights"):
                    assert (await gateway.http.get(f"{files}/{file}")).status_code == 200
            assert {number for number in adapter["aliases"].values() if number is not None} <= digests.keys()
            assert adapter["aliases"]["live"] in digests
            chat = {**CHAT, "model": adapter["name"]}
            answer = await gateway.http.post("/v1/chat/completions", json=chat)
            assert (answer.status_code, answer.headers.get("x-hatrack-digest")) == (
                200,
                digests[adapter["aliases"]["live"]],
            )
        if not page["has_more"]:
            return names
        after = {"after": page["data"][-1]["name"]}


@pytest.mark.sqlite
async def test_a_backup_that_was_made_under_writes_serves_in_another_place(tmp_path: Path) -> None:
    base = make_base(tmp_path / "base")
    made = make_adapter(tmp_path / "adapter", describe_base(base, served_name=BASE))
    async with running(tmp_path / "a", base) as gateway:
        parts = {"config": ("adapter_config.json", made.config), "weights": ("w.safetensors", made.weights)}
        pushed = await gateway.http.post("/v1/adapters", data={"name": "voice"}, files=parts)
        assert pushed.status_code == 201, pushed.text
        key = await gateway.key("infer")
        kept = await put_file(gateway, RETURNS)
        store = (await gateway.http.post("/v1/vector_stores", json={"name": "rules", "file_ids": [kept]})).json()["id"]
        await indexed(gateway, store)
        space = (await gateway.http.get("/v1/storage")).json()
        assert space["adapters"] == {"bytes": len(made.weights), "limit_bytes": None}
        assert space["files"] == {"bytes": len(RETURNS), "limit_bytes": 64 * 2**30}
        assert space["vector_stores"]["bytes"] > 0
        backup = await back_up_while_written_to(gateway, base, tmp_path / "b.tar")
    assert backup.manifest.faults == ()

    restore(gateway.settings.model_copy(update={"home": tmp_path / "b"}), backup.path, QUIET)
    async with running(tmp_path / "b", base) as other:
        answer = await other.http.post("/v1/chat/completions", json=CHAT, headers={"authorization": f"Bearer {key}"})
        assert answer.status_code == 200, answer.text
        assert answer.headers["x-hatrack-digest"] == pushed.json()["digest"]
        assert {"voice", "busy"} <= await adapters_are_whole(other)
        listed = (await other.http.get("/v1/files")).json()["data"]
        assert kept in [file["id"] for file in listed]
        for file in listed:
            content = (await other.http.get(f"/v1/files/{file['id']}/content")).content
            assert hashlib.sha256(content).hexdigest() == file["sha256"]
        await indexed(other, store)  # again, if the stand-in's embedder counts as another one
        found = await other.http.post(f"/v1/vector_stores/{store}/search", json={"query": "How many days?"})
        assert "45 days" in found.json()["data"][0]["content"][0]["text"]
        for each in (await other.http.get("/v1/vector_stores")).json()["data"]:
            await indexed(other, each["id"])
        garbage = find_garbage(other.settings, grace_s=0)
        # weights wait for a start without HATRACK_ENGINE_URL: an engine of somebody else's may have them open
        assert {(each.kind, each.later is None) for each in garbage} <= {("adapter", False)}, (
            "its start has removed all else that came after the databases"
        )
