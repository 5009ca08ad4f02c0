"""A file is listed with its bytes, or not at all, also where the database does not say whether it has saved it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import sqlalchemy as sa

from service.errors import DiskFull, Unavailable
from tests.unit.service.files.files_app import LINE, FilesApp, error_of

Work = Callable[[sa.Connection], Any]


def lose_the_answer(files_app: FilesApp, monkeypatch: pytest.MonkeyPatch, *, saves: bool, comes_back: bool) -> None:
    """The connection is lost as a file is listed, and comes back for the next unit, or not."""
    run = files_app.database.run
    is_lost = False

    async def instead(work: Work, **more: Any) -> Any:
        nonlocal is_lost
        lists = "_keep" in work.__qualname__ and work.__name__ == "work"
        if is_lost and not comes_back:
            raise Unavailable("the metadata database cannot be reached now; try again")
        if not lists or is_lost:
            return await run(work, **more)
        is_lost = True
        if saves:
            await run(work, **more)
        raise Unavailable("the metadata database cannot be reached now; try again")

    monkeypatch.setattr(files_app.database, "run", instead)


async def test_what_was_saved_all_the_same_is_answered(files_app: FilesApp, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        lose_the_answer(files_app, patch, saves=True, comes_back=True)
        file_id = await files_app.made()
    assert await files_app.listed() == [file_id]
    assert (await files_app.http.get(f"/v1/files/{file_id}/content")).content == LINE


async def test_what_was_not_saved_leaves_no_bytes(files_app: FilesApp, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        lose_the_answer(files_app, patch, saves=False, comes_back=True)
        refused = await files_app.put()
    assert (refused.status_code, error_of(refused)["code"]) == (503, "unavailable")
    assert (await files_app.listed(), files_app.on_disk()) == ([], set())


@pytest.mark.parametrize("saves", [True, False])
async def test_bytes_that_may_be_listed_stay_until_the_next_start(
    files_app: FilesApp, monkeypatch: pytest.MonkeyPatch, saves: bool
) -> None:
    with monkeypatch.context() as patch:
        lose_the_answer(files_app, patch, saves=saves, comes_back=False)
        refused = await files_app.put()
    assert (refused.status_code, "may have saved this" in error_of(refused)["message"]) == (503, True)
    assert len(files_app.on_disk()) == 1
    await files_app.files.close()
    await files_app.files.open()
    assert set(await files_app.listed()) == files_app.on_disk()
    assert len(files_app.on_disk()) == int(saves)


async def test_on_a_full_disk_nobody_asks(files_app: FilesApp, monkeypatch: pytest.MonkeyPatch) -> None:
    run, asked = files_app.database.run, []

    async def full(work: Work, **more: Any) -> Any:
        if asked or ("_keep" in work.__qualname__ and work.__name__ == "work"):
            asked.append(work)
            raise DiskFull("the disk is full; nothing was changed")
        return await run(work, **more)

    with monkeypatch.context() as patch:
        patch.setattr(files_app.database, "run", full)
        assert (await files_app.put()).status_code == 507
    assert (len(asked), files_app.on_disk()) == (1, set())
