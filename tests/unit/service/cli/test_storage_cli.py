"""`hatrack backup`, `restore` and `gc`: what a person sees, and what a script reads."""

from __future__ import annotations

import errno
import json
import time
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from service.cli.main import app
from service.storage.restore import MARKER
from tests.support.adapters import make_base
from tests.unit.service.storage.storage_home import StorageHome, make_home


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> StorageHome:
    directory = tmp_path_factory.mktemp("cli")
    return make_home(directory / "home", make_base(directory / "base"))


@pytest.fixture(autouse=True)
def _settings(home: StorageHome, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HATRACK_HOME", str(home.path))
    monkeypatch.setenv("HATRACK_BASE_MODEL", home.settings.base_model)
    monkeypatch.setenv("HATRACK_ENGINE_DEVICE", "cpu")
    monkeypatch.chdir(tmp_path)


def hatrack(*arguments: str) -> Result:
    return CliRunner().invoke(app, list(arguments))


def test_a_person_is_told_what_is_in_it_and_that_it_holds_secrets(home: StorageHome, tmp_path: Path) -> None:
    done = hatrack("backup")
    assert done.exit_code == 0, done.output
    (path,) = tmp_path.glob("hatrack-*Z.tar")
    assert f"{path}: Hatrack " in done.stdout
    assert "1 adapters' weights, 1 files, 1 vector stores, 1 runs, verified" in done.stdout
    assert "mode 0600" in done.stdout
    assert "whole" in hatrack("backup", "--verify", str(path)).stdout


def test_a_script_reads_json_and_exit_codes(home: StorageHome, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done = json.loads(hatrack("backup", "b.tar", "--json").stdout)
    assert (done["path"], done["format"], done["notes"]) == (str(tmp_path / "b.tar"), 1, [])
    assert done["base"]["source"] == home.settings.base_model
    again = hatrack("backup", "b.tar", "--json")
    assert (again.exit_code, json.loads(again.stderr)["error"]["code"]) == (1, "backup_failed")
    assert hatrack("backup", "c.tar", "--verify", "b.tar").exit_code == 2

    refused = hatrack("restore", "b.tar", "--json")
    assert (refused.exit_code, json.loads(refused.stderr)["error"]["code"]) == (1, "home_not_empty")
    monkeypatch.setenv("HATRACK_HOME", str(tmp_path / "elsewhere"))
    restored = hatrack("restore", "b.tar")
    assert restored.exit_code == 0, restored.output
    assert "hatrack doctor" in restored.stdout
    content = bytearray((tmp_path / "b.tar").read_bytes())
    content[len(content) // 3] ^= 1
    (tmp_path / "b.tar").write_bytes(content)
    damaged = hatrack("backup", "--verify", "b.tar", "--json")
    assert (damaged.exit_code, json.loads(damaged.stderr)["error"]["code"]) == (1, "backup_damaged")


def test_no_gateway_starts_where_a_restore_was_cut_off(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HATRACK_HOME", str(tmp_path / "half"))
    (tmp_path / "half").mkdir()
    (tmp_path / "half" / MARKER).write_text("")
    for command in ("up", "serve"):
        refused = hatrack(command)
        assert refused.exit_code == 1
        assert "hatrack restore FILE" in " ".join(refused.output.split())
    checks = json.loads(hatrack("doctor", "--json").stdout)["checks"]
    (found,) = [check for check in checks if check["check"] == "data"]
    assert (found["result"], "hatrack restore" in found["found"]) == ("failed", True)


def test_garbage_is_listed_and_goes_only_with_consent(home: StorageHome, monkeypatch: pytest.MonkeyPatch) -> None:
    now = time.time
    monkeypatch.setattr("service.storage.garbage.time.time", lambda: now() + 48 * 3600)
    orphan = home.path / "files" / "file-unlisted"
    orphan.write_bytes(b"x" * 2048)
    listed = hatrack("gc")
    assert listed.exit_code == 0, listed.output
    assert "files/file-unlisted" in listed.stdout
    assert "2.0 KiB" in listed.stdout
    assert "hatrack gc --yes" in listed.stdout
    assert hatrack("gc", "--dry-run", "--yes").exit_code == 0
    assert orphan.exists()
    done = json.loads(hatrack("gc", "--yes", "--json").stdout)
    assert done["freed_bytes"] >= 2048
    removed = {each["kind"]: each["removed"] for each in done["garbage"]}
    assert removed == {"file": True, "batch": True}
    assert not orphan.exists()
    assert "nothing that nothing names" in hatrack("gc").stdout


def test_garbage_that_stays_is_an_error(home: StorageHome, monkeypatch: pytest.MonkeyPatch) -> None:
    now = time.time
    monkeypatch.setattr("service.storage.garbage.time.time", lambda: now() + 48 * 3600)
    orphan = home.path / "files" / "file-stuck"
    orphan.write_bytes(b"x" * 2048)
    unlink = Path.unlink

    def refuse(path: Path, missing_ok: bool = False) -> None:
        if path == orphan:
            raise PermissionError(errno.EPERM, "Operation not permitted", str(path))
        unlink(path, missing_ok)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "unlink", refuse)
        shown = hatrack("gc", "--yes")
        assert (shown.exit_code, f"Not removed: {orphan}: Operation not permitted" in shown.output) == (1, True)
        done = hatrack("gc", "--yes", "--json")
        answer = json.loads(done.stdout)
        (each,) = answer["garbage"]
        assert (done.exit_code, answer["freed_bytes"], each["removed"]) == (1, 0, False)
        assert each["error"] == f"{orphan}: Operation not permitted"
    assert hatrack("gc", "--yes").exit_code == 0
    assert not orphan.exists()
