"""The trainer's settings: every one documented, every mistake named, the environment read in one place."""

from __future__ import annotations

import ast
import os
from pathlib import Path

import pytest

import trainer
from trainer.config import NOT_INHERITED, Settings, load_settings, visible_gpus, worker_environment
from trainer.errors import SettingsError

PACKAGE = Path(trainer.__file__).parent


def test_every_setting_is_documented_as_the_code_has_it() -> None:
    documented = {}
    for line in (PACKAGE / "SETTINGS.md").read_text().splitlines():
        cells = [cell.strip() for cell in line.strip("|").split(" | ")]
        if line.startswith("| `HATRACK_"):
            documented[cells[0].strip("` ")] = (cells[1], cells[2])
    for name, field in Settings.model_fields.items():
        default = "unset" if field.default is None else str(field.default)
        assert documented.pop(f"HATRACK_TRAINER_{name.upper()}") == (default, field.description)
    assert documented == {}


@pytest.mark.parametrize(
    ("name", "value"),
    [("DEVICE", "tpu"), ("DEVICE", "cuda:x"), ("YIELD_ABOVE", "-1"), ("KEEP_DAYS", "long"), ("MAX_QUEUED", "0")],
)
def test_a_wrong_value_is_named(monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    monkeypatch.setenv(f"HATRACK_TRAINER_{name}", value)
    with pytest.raises(SettingsError) as caught:
        load_settings()
    assert f"HATRACK_TRAINER_{name}" in str(caught.value)
    assert value in str(caught.value)


def test_the_secret_is_never_in_a_message_and_no_worker_inherits_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HATRACK_TRAINER_SECRET", "too-short")
    with pytest.raises(SettingsError) as caught:
        load_settings()
    assert "too-short" not in str(caught.value)
    for name in NOT_INHERITED:
        monkeypatch.setenv(name, f"{'https://' if name.endswith('URL') else ''}a-very-secret-key-0123")
    assert "a-very-secret" not in repr(load_settings())
    assert not any("a-very-secret" in value for value in worker_environment().values())
    assert worker_environment()["PATH"] == os.environ["PATH"]


def test_the_gpus_that_this_process_may_use(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert visible_gpus() is None
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2, GPU-8a56")
    assert visible_gpus() == ("2", "GPU-8a56")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert visible_gpus() == ()


def test_nothing_else_reads_the_environment() -> None:
    readers = [
        path.relative_to(PACKAGE).as_posix()
        for path in PACKAGE.rglob("*.py")
        if path.name != "config.py"
        and any(
            isinstance(node, ast.Attribute) and node.attr in ("environ", "getenv")
            for node in ast.walk(ast.parse(path.read_text()))
        )
    ]
    assert readers == []
