"""The quality report of a file that is sent for it, made by a process of its own."""

from __future__ import annotations

import errno
import json
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from tests.unit.trainer.finetune.conftest import FakeGateway, jsonl, rows
from tests.unit.trainer.finetune.trainers import Client, Running, installation, running
from trainer.config import Settings
from trainer.data import check, checking
from trainer.data.checking import CheckOptions, DataChecks
from trainer.data.child_process import REFUSED
from trainer.data.report import Report
from trainer.errors import RequestError

CHECK = "/v1/fine_tuning/data_check"
LONG = {"prompt": "why " * 100, "completion": "so"}


@pytest.fixture
async def trainer(tmp_path: Path, base_dir: Path, gateway: FakeGateway) -> AsyncIterator[Running]:
    async with running(tmp_path, base_dir, gateway, max_file_mib=1) as found:
        yield found


@pytest.fixture
def client(trainer: Running) -> Client:
    return trainer.client()


def nothing_left(trainer: Running) -> bool:
    return not any(trainer.trainer.jobs.directories.directory.parent.glob(".scratch-*"))


async def test_a_file_is_looked_at_and_not_kept(client: Client, trainer: Running) -> None:
    files = {"file": ("voices é\n.jsonl", jsonl([*rows(), LONG]))}
    answer = await client.http.post(f"{CHECK}?max_length=200&strict=true", files=files)
    assert answer.status_code == 200, answer.text
    told = answer.json()
    assert told.pop("refused") is True
    report = Report.model_validate(told)
    assert (report.format, report.examples, report.max_length) == ("prompt_completion", 25, 200)
    assert report.file.startswith("voices é")
    found = {finding.code: finding.severity for finding in report.findings}
    assert found["too_long"] == "refused"
    assert found.pop("too_few_held_out") == "warning"
    assert set(found.values()) == {"refused"}
    assert any(piece.trained for piece in report.shown[0].pieces)
    assert nothing_left(trainer)


def test_what_is_too_long_is_left_out_where_that_was_asked_for(
    tmp_path: Path, base_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "data"
    path.write_bytes(jsonl([*rows(), LONG]))
    place = ["--base", str(base_dir), "--context", "256"]
    assert check.main([str(path), *place, "--overflow", "drop"]) == 0
    report = Report.model_validate_json(capsys.readouterr().out)
    assert (report.refused, report.dropped, report.max_length) == (False, 1, 256)
    assert check.main([str(path), *place, "--max-length", "4096"]) == REFUSED
    assert json.loads(capsys.readouterr().out)["param"] == "max_length"


async def test_lines_that_cannot_be_read_are_told_each(client: Client) -> None:
    answer = await client.http.post(CHECK, content=jsonl(rows()) + b"{\nnonsense\n[1]\n")
    error = answer.json()["error"]
    assert (answer.status_code, error["code"], error["param"]) == (400, "invalid_training_file", "file")
    assert all(f"line {line}: " in error["message"] for line in (25, 26, 27))


@pytest.mark.parametrize(
    ("asked", "status", "code"),
    [
        ({"content": b""}, 400, "invalid_value"),
        ({"content": b"x" * (2**20 + 1)}, 413, "request_too_large"),
        ({"files": {"file": ("f", b"x" * (2**20 + 1))}}, 413, "request_too_large"),
        ({"files": {"data": ("f", b"x")}}, 400, "invalid_value"),
        ({"data": {"file": "text"}, "files": {"other": b"x"}}, 400, "invalid_value"),
        ({"content": b"x", "headers": {"content-type": "multipart/form-data"}}, 400, "invalid_value"),
        ({"content": b"x", "headers": {"content-type": "multipart/form-data; boundary=b"}}, 400, "invalid_value"),
    ],
)
async def test_what_is_no_file_or_too_large_a_one(
    client: Client, trainer: Running, asked: dict[str, Any], status: int, code: str
) -> None:
    answer = await client.http.post(CHECK, **asked)
    assert (answer.status_code, answer.json()["error"]["code"]) == (status, code)
    assert nothing_left(trainer)


async def test_a_check_is_bounded_in_time_in_number_and_in_what_it_may_break(
    tmp_path: Path, base_dir: Path, gateway: FakeGateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = installation(tmp_path, base_dir, gateway)
    place.directory.mkdir(parents=True)
    checks = DataChecks(Settings(), place)
    code = "import time; time.sleep(600)"
    monkeypatch.setattr(DataChecks, "_command", lambda *_: [sys.executable, "-c", code])

    async def content() -> AsyncIterator[bytes]:
        yield b"x"

    async def status(of: DataChecks = checks) -> tuple[int, str]:
        with pytest.raises(RequestError) as refused:
            await of.check("f", content(), CheckOptions(None, False, False))
        return refused.value.status, refused.value.shown_code

    # the short time is for this one alone: where the machine is busy, Python takes longer than that to start
    assert await status(DataChecks(Settings(check_timeout_s=0.3), place)) == (504, "data_check_timeout")
    code = "import sys; sys.exit(1)"
    assert await status() == (500, "internal_error")
    code = f'import sys; print(\'{{"code": "c", "message": "m", "param": null}}\'); sys.exit({REFUSED})'
    assert await status() == (400, "c")
    monkeypatch.setattr(checking, "MAX_WAITING", 0)
    assert await status() == (429, "too_many_jobs")
    assert list(place.directory.iterdir()) == []


async def test_what_a_killed_trainer_left_of_a_check_is_removed_at_the_next_start(
    tmp_path: Path, base_dir: Path, gateway: FakeGateway
) -> None:
    async with running(tmp_path, base_dir, gateway) as found:
        home = found.trainer.jobs.directories.directory.parent
    for name in (".scratch-x", ".check-y", ".estimate-z"):
        (home / name).mkdir()
        (home / name / "data").write_text("Jane Doe, 078-05-1120")
    async with running(tmp_path, base_dir, gateway):
        assert [path.name for path in home.iterdir() if path.name.startswith(".")] == []


async def test_a_full_disk_refuses_a_check_as_such(
    client: Client, trainer: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def full(_self: DataChecks, _path: Path, _content: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(DataChecks, "_receive", full)
    answer = await client.http.post(CHECK, files={"file": ("f.jsonl", jsonl(rows()))})
    assert (answer.status_code, answer.json()["error"]["code"]) == (507, "disk_full")
    assert nothing_left(trainer)
