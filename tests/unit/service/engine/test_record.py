"""What makes two starts of an engine the same, and what is on record of one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import orjson
import pytest

from service.engine.record import EngineRecord, Signature, read_record
from tests.unit.service.engine.fake import BASE, config_for

INHERITED = {"PATH": "/bin", "HF_TOKEN": "secret-token", "VLLM_CPU_OMP_THREADS_BIND": "0-1", "SSH_TTY": "/dev/pts/1"}


def signature(home: Path, inherited: dict[str, str] = INHERITED, **settings: Any) -> Signature:
    return Signature.of(config_for(home, **settings), BASE, inherited)


def test_two_starts_with_the_same_settings_are_the_same(tmp_path: Path) -> None:
    elsewhere = {**INHERITED, "SSH_TTY": "/dev/pts/7", "PWD": "/", "HF_TOKEN": "another", "HATRACK_PORT": "9000"}
    mine, theirs = signature(tmp_path), signature(tmp_path, elsewhere, engine_canary_s=9, port=9000)
    assert mine.differences(theirs) == []
    assert mine.digest == theirs.digest


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"engine_slots": 4}, ["the flag --max-loras"]),
        ({"engine_max_rank": 64, "engine_dtype": "float16"}, ["the flag --dtype", "the flag --max-lora-rank"]),
        ({"engine_args": ("--enforce-eager",)}, ["the flag --enforce-eager"]),
        ({"engine_kv_gib": 2}, ["the variable VLLM_CPU_KVCACHE_SPACE"]),
        ({"engine_tool_parser": ""}, ["the flag --enable-auto-tool-choice", "the flag --tool-call-parser"]),
        ({"base_name": "other"}, ["the flag --served-model-name"]),
    ],
)
def test_a_changed_setting_of_the_engine_is_named(tmp_path: Path, settings: dict[str, Any], said: list[str]) -> None:
    mine, theirs = signature(tmp_path, **settings), signature(tmp_path)
    assert mine.differences(theirs) == said
    assert mine.digest != theirs.digest


@pytest.mark.parametrize("name", ["VLLM_CPU_OMP_THREADS_BIND", "CUDA_VISIBLE_DEVICES", "LD_PRELOAD", "PYTHONPATH"])
def test_a_changed_variable_of_the_engine_is_named_and_never_shown(tmp_path: Path, name: str) -> None:
    mine, theirs = signature(tmp_path, {**INHERITED, name: "new-value"}), signature(tmp_path)
    assert mine.differences(theirs) == [f"the variable {name}"]
    assert "new-value" not in mine.model_dump_json()


def test_another_version_base_or_store_is_named_with_both_values(tmp_path: Path) -> None:
    mine = signature(tmp_path)
    theirs = mine.model_copy(
        update={
            "versions": {**mine.versions, "torch": "2.0", "the plugin": "old"},
            "base": {**mine.base, "weights": "x"},
            "store": "/elsewhere",
        }
    )
    plugin, torch = mine.versions["the plugin"], mine.versions["torch"]
    assert mine.differences(theirs) == [
        f"the plugin ({plugin}, was old)",
        f"torch ({torch}, was 2.0)",
        f"the base's weights ({'w' * 16}, was x)",
        f"the store ({tmp_path / 'adapters'}, was /elsewhere)",
    ]


def test_a_record_comes_back_as_it_was_written_for_its_owner_alone(tmp_path: Path) -> None:
    record, path = EngineRecord("token", 4711, signature(tmp_path)), tmp_path / "engine.json"
    record.write(path)
    assert read_record(path) == record
    assert path.stat().st_mode & 0o777 == 0o600
    assert b"secret-token" not in path.read_bytes()


@pytest.mark.parametrize("more", [{}, {"argv": ["x"], "pid": "?"}, {"signature": {"argv": [], "new-part": 1}}])
def test_a_record_of_another_version_still_names_its_engine(tmp_path: Path, more: dict[str, Any]) -> None:
    path = tmp_path / "engine.json"
    path.write_bytes(orjson.dumps({"token": "token", **more}))
    assert read_record(path) == EngineRecord("token")
