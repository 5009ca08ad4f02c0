"""`adapters.versions.export_merged` and `hatrack export`: whole or absent, of the right base, with its model card."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from typer.testing import CliRunner

from adapters.inspect import inspect_weights
from adapters.manifest import Manifest
from adapters.store import digest_of
from service.cli.main import app
from service.client import ClientError, HatrackClient
from service.client.model_card import base_licence
from tests.support.adapters import AdapterFiles, describe_base, make_adapter, make_base
from tests.support.http import serving

PROMPT = "Answer like a sailor.\n```\nnever | else\n```"


@dataclass
class OneVersion:
    """A gateway that has voice@3, as the registry shows it."""

    files: AdapterFiles
    version: dict[str, Any]
    broken: bytes | None = None
    """What is answered in place of the weights."""
    url: str = ""
    asked: list[str] = field(default_factory=list)

    def answer(self, _method: str, path: str, _body: bytes, _key: str) -> tuple[int, bytes, dict[str, str]]:
        self.asked.append(path)
        place = "/v1/adapters/voice/versions/3"
        contents = {
            place: json.dumps(self.version).encode(),
            f"{place}/files/config": self.files.config,
            f"{place}/files/weights": self.files.weights if self.broken is None else self.broken,
        }
        if path in contents:
            return 200, contents[path], {}
        return 404, json.dumps({"error": {"code": "version_not_found", "message": "no such version"}}).encode(), {}


class Stage(NamedTuple):
    base_dir: Path
    gateway: OneVersion
    client: HatrackClient
    target: Path


def shown(base_dir: Path, files: AdapterFiles) -> dict[str, Any]:
    """The version object of an adapter on a base."""
    base = describe_base(base_dir)
    inspection = inspect_weights(files.weights_path, Manifest.parse(files.config, max_rank=64), base)
    digest = digest_of(inspection.manifest.canonical(), hashlib.sha256(files.weights).hexdigest())
    lineage = {
        "data": [{"name": "orders.jsonl", "sha256": "ab" * 32, "examples": 40}], "base_name": "tiny", "job": "ftjob-1",
        "datasets": {"training_file": "support@2"}, "held_out": None, "parent": "voice@1",
        "recipe": {"epochs": 3, "batch_size": 4, "learning_rate": 0.001, "quantization": "none", "seed": 7},
    }  # fmt: skip
    verdict = {
        "verdict": "pass", "sentence": "Better than the base\nby 12 points.", "metric": "exact_match", "examples": 40,
        "rule": 3,
    }  # fmt: skip
    return {
        "object": "adapter.version", "adapter": "voice", "version": 3, "digest": digest, "state": "ready", "rank": 4,
        "alpha": 8.0, "target_modules": ["q_proj"], "bytes": len(files.weights),
        "base": base.fingerprint.model_dump(), "metadata": {"lineage": lineage}, "settings": {"system_prompt": PROMPT},
        "proof": {"tokens": 300, "distance": 0.4321, "noise": 0.002, "perplexity": {"ratio": 1.08}},
        "verdict": verdict, "revalidation": {"state": "fresh", "reasons": []}, "held_back": None,
    }  # fmt: skip


@pytest.fixture
def stage(tmp_path: Path) -> Iterator[Stage]:
    base_dir = make_base(tmp_path / "base")
    (base_dir / "README.md").write_text("---\nlicense: Apache-2.0\n---\n# Tiny\n")
    (base_dir / "LICENSE").write_text("the terms")
    files = make_adapter(tmp_path / "adapter", describe_base(base_dir))
    gateway = OneVersion(files, shown(base_dir, files))
    with serving(gateway.answer) as gateway.url, HatrackClient(gateway.url, "hk-test") as client:
        yield Stage(base_dir, gateway, client, tmp_path / "out" / "merged")


def test_an_export_is_a_checkpoint_with_its_card(stage: Stage) -> None:
    seen: list[tuple[int, int]] = []
    result = stage.client.adapters.versions.export_merged(
        "voice", 3, stage.target, base=stage.base_dir, progress=lambda done, total: seen.append((done, total))
    )
    names = {path.name for path in stage.target.iterdir()}
    own = {"config.json", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "model.safetensors"}
    assert names == own | {"LICENSE", "README.md"}
    assert (stage.target / "model.safetensors").read_bytes() != (stage.base_dir / "model.safetensors").read_bytes()
    assert seen[-1][0] == seen[-1][1] > 0
    (file,) = result.files
    assert file.sha256 == hashlib.sha256((stage.target / "model.safetensors").read_bytes()).hexdigest()
    assert [path.name for path in stage.target.parent.iterdir()] == ["merged"]
    card = (stage.target / "README.md").read_text()
    assert card.startswith("---\nlicense: apache-2.0\n")
    for fact in (
        *("`voice@3`", "`support@2`", "ab" * 32, "40 examples", "`ftjob-1`", "`voice@1`", "seed 7"),
        *("**pass** (Better than the base by 12 points.)", "0.432 nats", "1.08 times", "`LICENSE`", file.sha256),
        *(stage.gateway.version["digest"], f"````\n{PROMPT}\n````"),
    ):
        assert fact in card, fact


def test_a_version_without_lineage_or_verdict_says_so(stage: Stage) -> None:
    stage.gateway.version |= {"metadata": {}, "settings": {}, "verdict": None, "revalidation": None, "proof": None}
    (stage.base_dir / "README.md").unlink()
    (stage.base_dir / "LICENSE").unlink()
    stage.client.adapters.versions.export_merged("voice", 3, stage.target, base=stage.base_dir)
    card = (stage.target / "README.md").read_text()
    assert "license: other\nlicense_name: see-base-model" in card
    for sentence in ("pushed without a lineage", "it was never evaluated", "The base's files state no licence"):
        assert sentence in card


@pytest.mark.parametrize(
    ("readme", "licence"),
    [("license: mit", None), ("---\nlicense: MIT\n---\n", "mit"), ("---\na: b\n---\nlicense: mit", None), ("", None)],
)
def test_a_licence_is_read_from_the_front_matter_alone(tmp_path: Path, readme: str, licence: str | None) -> None:
    (tmp_path / "README.md").write_text(readme)
    assert base_licence(tmp_path) == licence


def refused(stage: Stage, code: str) -> str:
    """The message of the refusal; nothing is left behind."""
    before = sorted(stage.target.parent.iterdir()) if stage.target.parent.exists() else []
    with pytest.raises(ClientError) as caught:
        stage.client.adapters.versions.export_merged("voice", 3, stage.target, base=stage.base_dir)
    assert caught.value.code == code
    assert (sorted(stage.target.parent.iterdir()) if stage.target.parent.exists() else []) == before
    return caught.value.message


def test_another_base_is_refused(stage: Stage, tmp_path: Path) -> None:
    shutil.rmtree(stage.base_dir)
    make_base(stage.base_dir, seed=1)
    assert "its weights differ" in refused(stage, "other_base")


def test_no_base_at_all_is_refused(stage: Stage) -> None:
    (stage.base_dir / "model.safetensors").unlink()
    refused(stage, "base_invalid")


def test_weights_that_are_not_the_versions_are_refused(stage: Stage) -> None:
    other = make_adapter(stage.base_dir.parent / "other", describe_base(stage.base_dir), seed=9)
    stage.gateway.broken = other.weights
    refused(stage, "damaged")
    stage.gateway.broken = other.weights[:-100]
    refused(stage, "weights_invalid")


def test_only_a_proven_version_is_exported(stage: Stage) -> None:
    stage.gateway.version["state"] = "proving"
    refused(stage, "version_not_ready")


def test_what_is_there_is_never_overwritten(stage: Stage) -> None:
    stage.target.mkdir(parents=True)
    (stage.target / "mine").write_text("precious")
    refused(stage, "target_exists")
    assert (stage.target / "mine").read_text() == "precious"
    (stage.target / "mine").unlink()
    stage.client.adapters.versions.export_merged("voice", 3, stage.target, base=stage.base_dir)
    assert (stage.target / "config.json").exists()


def test_a_disk_without_room_is_told_before_anything_is_written(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    stage.target.parent.mkdir()
    monkeypatch.setattr("service.client.export.HEADROOM_BYTES", 2**60)
    assert "GiB free" in refused(stage, "disk_full")
    assert not any(path.endswith("weights") for path in stage.gateway.asked)


def test_the_command_exports_and_names_what_is_missing(
    stage: Stage, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("HATRACK_URL", stage.gateway.url)
    monkeypatch.setenv("HATRACK_KEY", "hk-test")
    monkeypatch.setenv("HATRACK_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("HATRACK_ENGINE_DEVICE", "cpu")
    merged = ["--merged", str(stage.target)]
    for wrong in (["export", "voice", *merged], ["export", "voice@3", *merged]):  # no version; no base here
        usage = CliRunner().invoke(app, wrong, env={"COLUMNS": "200"})
        assert usage.exit_code == 2, usage.output
    done = CliRunner().invoke(app, ["export", "voice@3", *merged, "--base", str(stage.base_dir)])
    assert done.exit_code == 0, done.output
    assert f"voice@3 is merged in {stage.target}: " in done.output
    again = CliRunner().invoke(app, ["export", "voice@3", *merged, "--base", str(stage.base_dir)])
    assert again.exit_code == 1
    assert "target_exists" in again.output
