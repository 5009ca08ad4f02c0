"""Uploads: what is taken, what is refused by name, and that nothing half done is ever there."""

from __future__ import annotations

import hashlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from service.files.form import MAX_FIELD_BYTES
from tests.unit.service.files.files_app import ADMIN_KEY, LINE, MIB, FilesApp, bearer, error_of


def form(*parts: tuple[str, str | None, bytes], boundary: str = "b") -> dict[str, Any]:
    """A multipart body, part by part in the given order: (name, filename or None, content)."""
    body = b""
    for name, filename, content in parts:
        more = "" if filename is None else f'; filename="{filename}"'
        head = f'--{boundary}\r\ncontent-disposition: form-data; name="{name}"{more}\r\n\r\n'
        body += head.encode() + content + b"\r\n"
    return {
        "content": body + f"--{boundary}--\r\n".encode(),
        "headers": {"content-type": f"multipart/form-data; boundary={boundary}"},
    }


async def test_a_file_is_what_was_sent(files_app: FilesApp) -> None:
    content = LINE * 5000
    answer = await files_app.put(content, name="C:\\data\\Stimmen für alle.jsonl")
    made = answer.json()
    assert made == {
        "id": made["id"],
        "object": "file",
        "bytes": len(content),
        "created_at": made["created_at"],
        "filename": "Stimmen für alle.jsonl",
        "purpose": "fine-tune",
        "status": "processed",
        "status_details": None,
        "expires_at": None,
        "sha256": hashlib.sha256(content).hexdigest(),
    }
    assert made["id"].startswith("file-")
    assert abs(made["created_at"] - time.time()) < 60
    assert answer.headers["location"] == f"/v1/files/{made['id']}"
    assert (await files_app.http.get(f"/v1/files/{made['id']}")).json() == made
    got = await files_app.http.get(f"/v1/files/{made['id']}/content")
    assert got.content == content
    assert got.headers["content-type"] == "application/octet-stream"
    assert got.headers["x-content-type-options"] == "nosniff"
    assert "Stimmen%20f%C3%BCr%20alle.jsonl" in got.headers["content-disposition"]


@pytest.mark.parametrize("purpose_first", [True, False])
async def test_the_parts_come_in_any_order(files_app: FilesApp, purpose_first: bool) -> None:
    purpose, good, bad = (
        ("purpose", None, b"fine-tune"),
        ("file", "a.jsonl", LINE * 3),
        ("file", "a.jsonl", LINE + b"no"),
    )
    for file, status in ((good, 200), (bad, 400)):
        parts = (purpose, file) if purpose_first else (file, purpose)
        answer = await files_app.http.post("/v1/files", **form(*parts))
        assert answer.status_code == status
    assert "line 2" in error_of(answer)["message"]
    assert len(await files_app.listed()) == len(files_app.on_disk()) == 1


@pytest.mark.parametrize("purpose", ["assistants", "user_data", "evals"])
async def test_only_training_data_must_be_jsonl(files_app: FilesApp, purpose: str) -> None:
    assert (await files_app.put(b"\x00\xff anything", purpose)).json()["purpose"] == purpose


@pytest.mark.parametrize(
    ("parts", "status", "param", "code"),
    [
        ([("purpose", None, b"fine-tune")], 400, "file", "missing_required_parameter"),
        ([("file", "a", LINE)], 400, "purpose", "missing_required_parameter"),
        ([("purpose", None, b"user_data"), ("file", "a", b"")], 400, "file", "empty_file"),
        ([("purpose", None, b"batch_output"), ("file", "a", LINE)], 400, "purpose", "invalid_value"),
        ([("purpose", None, b"\xff"), ("file", "a", LINE)], 400, "purpose", "invalid_value"),
        ([("purpose", None, b"x" * (MAX_FIELD_BYTES + 1))], 413, "purpose", "request_too_large"),
        ([("colour", None, b"red")], 400, "colour", "unknown_parameter"),
        ([("purpose", None, b"evals"), ("purpose", None, b"evals")], 400, "purpose", "repeated_parameter"),
        ([("purpose", None, b"evals"), ("file", "n" * 256, LINE)], 400, "file", "invalid_value"),
        ([("purpose", None, b"evals"), ("file", "a\tb", LINE)], 400, "file", "invalid_value"),
        ([("purpose", None, b"fine-tune-results"), ("file", "a", LINE)], 403, "purpose", "purpose_not_allowed"),
    ],
)
async def test_what_is_wrong_is_named_and_nothing_is_kept(
    files_app: FilesApp, parts: list[tuple[str, str | None, bytes]], status: int, param: str, code: str
) -> None:
    answer = await files_app.http.post("/v1/files", **form(*parts))
    assert answer.status_code == status
    assert (error_of(answer)["param"], error_of(answer)["code"]) == (param, code)
    assert files_app.on_disk() == set()
    assert await files_app.listed() == []


async def test_a_body_that_is_no_form_or_not_whole_is_refused(files_app: FilesApp) -> None:
    whole = form(("purpose", None, b"evals"), ("file", "a", b"content"))
    cut = whole | {"content": whole["content"][:-12]}
    assert (await files_app.http.post("/v1/files", **cut)).json()["error"]["code"] == "invalid_multipart"
    assert (await files_app.http.post("/v1/files", json={})).status_code == 415
    assert files_app.on_disk() == set()


async def test_a_file_is_bounded_whatever_its_sender_says(tmp_path: Path) -> None:
    async with FilesApp(tmp_path, max_file=1000).run() as files_app:
        assert (await files_app.put(b"x" * 1000, "evals")).status_code == 200
        answer = await files_app.put(b"x" * 1001, "evals")
        assert (answer.status_code, error_of(answer)["param"]) == (413, "file")

        taken = 0

        async def endless() -> AsyncIterator[bytes]:
            nonlocal taken
            yield form(("purpose", None, b"evals"), ("file", "a", b""))["content"][:-9]
            while True:
                taken += 1 << 16
                yield b"x" * (1 << 16)

        headers = {"content-type": "multipart/form-data; boundary=b"}
        assert (await files_app.http.post("/v1/files", content=endless(), headers=headers)).status_code == 413
        assert taken < 4 * MIB
        assert len(files_app.on_disk()) == 1


async def test_a_project_s_files_are_bounded_together_and_what_is_deleted_makes_room(tmp_path: Path) -> None:
    async with FilesApp(tmp_path, max_project=1500).run() as files_app:
        first = await files_app.made(b"x" * 1000, "evals")
        full = await files_app.put(b"x" * 501, "evals")
        assert (full.status_code, error_of(full)["code"]) == (413, "project_storage_full")
        assert await files_app.listed() == [first]
        assert files_app.on_disk() == {first}
        other = await files_app.key("train", project="other")
        assert (await files_app.put(b"x" * 1000, "evals", key=other)).status_code == 200
        assert (await files_app.http.delete(f"/v1/files/{first}")).status_code == 200
        assert (await files_app.put(b"x" * 501, "evals")).status_code == 200


@pytest.mark.parametrize(
    ("anchor", "seconds", "param"),
    [
        ("created_at", "3599", "expires_after.seconds"),
        ("created_at", "2592001", "expires_after.seconds"),
        ("created_at", "1e4", "expires_after.seconds"),
        ("created_at", None, "expires_after.seconds"),
        ("last_active_at", "3600", "expires_after.anchor"),
        (None, "3600", "expires_after.anchor"),
    ],
)
async def test_an_expiry_that_cannot_be_kept_is_refused(
    files_app: FilesApp, anchor: str | None, seconds: str | None, param: str
) -> None:
    given = {"expires_after[anchor]": anchor, "expires_after[seconds]": seconds}
    more = {name: value for name, value in given.items() if value is not None}
    answer = await files_app.put(**more)
    assert (answer.status_code, error_of(answer)["param"]) == (400, param)
    assert files_app.on_disk() == set()


async def test_a_project_that_does_not_exist_takes_no_files(files_app: FilesApp) -> None:
    answer = await files_app.http.post(
        "/v1/files",
        data={"purpose": "evals"},
        files={"file": b"a"},
        headers={"openai-project": "nowhere"},
    )
    assert (answer.status_code, error_of(answer)["code"]) == (404, "project_not_found")


FULL = """
import asyncio, resource, sys
from pathlib import Path
from tests.unit.service.files.files_app import FilesApp

async def main() -> None:
    async with FilesApp(Path(sys.argv[1])).run() as files_app:
        resource.setrlimit(resource.RLIMIT_FSIZE, (512 * 1024, 512 * 1024))
        answer = await files_app.put(b"x" * 1024 * 1024, "evals")
        print(answer.status_code, answer.json()["error"]["code"], await files_app.listed(), files_app.on_disk())
        print((await files_app.put(b"small", "evals")).status_code)

asyncio.run(main())
"""


def test_a_full_disk_is_507_and_nothing_half_done(tmp_path: Path) -> None:
    """A real refusal by the kernel, the limit of a file's size, in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-c", FULL, str(tmp_path)], capture_output=True, text=True, timeout=240, check=True
    )
    assert done.stdout.splitlines() == ["507 disk_full [] set()", "200"]


SERVER = """
import asyncio, sys
from pathlib import Path
import uvicorn
from tests.unit.service.files.files_app import FilesApp

async def main() -> None:
    files_app = FilesApp(Path(sys.argv[1]), max_file=1 << 30)
    async with files_app.run():
        await uvicorn.Server(uvicorn.Config(files_app.app(), uds=sys.argv[2], log_level="error", ws="none")).serve()

asyncio.run(main())
"""


def answers(path: Path) -> bool:
    """Whether somebody listens there; that the file is there says only that it is bound."""
    with socket.socket(socket.AF_UNIX) as asking:
        return asking.connect_ex(str(path)) == 0


@contextmanager
def serving(home: Path) -> Iterator[tuple[Path, int]]:
    """A process that serves the routes: its socket and its id."""
    place = home / "s"
    server = subprocess.Popen([sys.executable, "-c", SERVER, str(home), str(place)])
    try:
        deadline = time.monotonic() + 240
        while not answers(place):
            assert time.monotonic() < deadline
            assert server.poll() is None
            time.sleep(0.05)
        yield place, server.pid
    finally:
        server.kill()
        server.wait(60)


@pytest.mark.sqlite
async def test_kill_9_in_the_middle_of_an_upload_leaves_nothing(tmp_path: Path) -> None:
    incoming = tmp_path / "files" / ".incoming"
    with serving(tmp_path) as (place, pid):
        transport = httpx.AsyncHTTPTransport(uds=str(place))
        async with httpx.AsyncClient(
            transport=transport, base_url="http://test", headers=bearer(ADMIN_KEY), timeout=60
        ) as http:
            kept = await http.post("/v1/files", data={"purpose": "evals"}, files={"file": b"whole"})

            async def killing() -> AsyncIterator[bytes]:
                yield form(("purpose", None, b"evals"), ("file", "a", b""))["content"][:-9]
                while True:
                    yield b"x" * MIB
                    if any(path.stat().st_size > 4 * MIB for path in incoming.iterdir()):
                        os.kill(pid, signal.SIGKILL)

            headers = {"content-type": "multipart/form-data; boundary=b"}
            with pytest.raises(httpx.TransportError):
                await http.post("/v1/files", content=killing(), headers=headers)
    assert any(incoming.iterdir()), "it was killed in the middle"
    async with FilesApp(tmp_path).run() as files_app:
        assert await files_app.listed() == [kept.json()["id"]]
        assert files_app.on_disk() == {kept.json()["id"]}


async def test_bytes_that_no_row_names_go_at_the_next_start(tmp_path: Path) -> None:
    async with FilesApp(tmp_path).run() as files_app:
        kept = await files_app.made()
        (files_app.root / "file-lost").write_bytes(b"renamed, and then the power went")
    async with FilesApp(tmp_path).run() as files_app:
        assert files_app.on_disk() == {kept}
        assert (await files_app.http.get(f"/v1/files/{kept}/content")).content == LINE
