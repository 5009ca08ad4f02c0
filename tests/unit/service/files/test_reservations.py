"""Uploads in progress count against what a project may have: many at once write no more than one after another."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from service.files.form import MAX_OVERHEAD_BYTES
from service.files.reservations import Reservations
from tests.unit.service.files.files_app import MIB, FilesApp, error_of

HEAD = (
    b'--b\r\ncontent-disposition: form-data; name="purpose"\r\n\r\nevals\r\n'
    b'--b\r\ncontent-disposition: form-data; name="file"; filename="a"\r\n\r\n'
)
TAIL = b"\r\n--b--\r\n"


async def slow_upload(files_app: FilesApp, size: int, go_on: asyncio.Event, *, declares: bool) -> httpx.Response:
    """An upload that stops in the middle until it may go on."""

    async def body() -> AsyncIterator[bytes]:
        yield HEAD + b"x" * (size // 2)
        await go_on.wait()
        yield b"x" * (size - size // 2) + TAIL

    headers = {"content-type": "multipart/form-data; boundary=b"}
    if declares:
        headers["content-length"] = str(len(HEAD) + size + len(TAIL))
    return await files_app.http.post("/v1/files", content=body(), headers=headers)


async def until(condition: Callable[[], Any]) -> None:
    async with asyncio.timeout(30):
        while not condition():  # noqa: ASYNC110 (nothing tells it)
            await asyncio.sleep(0.005)


@pytest.mark.parametrize("declares", [True, False], ids=["declared", "undeclared"])
async def test_many_at_once_are_refused_before_they_write(tmp_path: Path, declares: bool) -> None:
    """As many as fit go on; the others are refused at once, while those still come."""
    async with FilesApp(tmp_path, max_file=MIB, max_project=3 * MIB).run() as files_app:
        go_on = asyncio.Event()
        size = MIB - MAX_OVERHEAD_BYTES
        uploads = [asyncio.create_task(slow_upload(files_app, size, go_on, declares=declares)) for _ in range(8)]
        await until(lambda: sum(upload.done() for upload in uploads) == 5)
        for upload in uploads:
            if upload.done():
                error = error_of(upload.result())
                assert (upload.result().status_code, error["code"]) == (413, "project_storage_full")
                assert "uploads and batches in progress take" in error["message"]
        assert len(files_app.on_disk()) == 3
        go_on.set()
        statuses = [(await upload).status_code for upload in uploads]
        assert sorted(statuses) == [200] * 3 + [413] * 5
        assert not files_app.files._reservations._projects, "nothing stays reserved"


async def test_an_upload_that_breaks_off_gives_its_room_back(tmp_path: Path) -> None:
    async with FilesApp(tmp_path, max_file=MIB, max_project=MIB).run() as files_app:
        upload = asyncio.create_task(slow_upload(files_app, MIB // 2, asyncio.Event(), declares=False))
        await until(files_app.on_disk)
        assert (await files_app.put(b"x", "evals")).status_code == 413
        upload.cancel()
        await asyncio.gather(upload, return_exceptions=True)
        assert (await files_app.put(b"x" * MIB, "evals")).status_code == 200, "alone it may fill all of it"


def test_only_earlier_uploads_of_the_project_count() -> None:
    reservations = Reservations()
    first, elsewhere, second = (reservations.reserve(name, 10) for name in ("a", "b", "a"))
    assert [each.earlier_bytes for each in (first, elsewhere, second)] == [0, 0, 10]
    first.release()
    assert second.earlier_bytes == 0
