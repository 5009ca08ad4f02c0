"""The base from a hub: huggingface_hub's own client against the stand-in, which so is held to the real client."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.sources import FileServer, Hub, running
from trainer.base_model import main, prepare, slug
from trainer.errors import BaseModelUnavailable, BaseModelUnknown

FILES = {
    "config.json": b'{"model_type": "llama"}',
    "tokenizer.json": b"{}",
    "model.safetensors": bytes(300_000),
    "README.md": b"# Base",
    "pytorch_model.bin": b"a pickle",
}
NEEDED = {"config.json", "tokenizer.json", "model.safetensors", "prepared.json"}


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    monkeypatch.setenv("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    hub = Hub()
    hub.cdn = FileServer()
    hub.put("acme/Base", FILES)
    with running(hub, hub.cdn):
        yield hub


@pytest.mark.parametrize("source", ["hf://acme/Base", "hf://acme/Base@main", "acme/Base"])
def test_it_is_pinned_to_a_commit_and_only_what_is_needed_comes(hub: Hub, tmp_path: Path, source: str) -> None:
    model = prepare(source, tmp_path, lambda _line: None, hub_url=hub.url)
    assert (model, {path.name for path in model.iterdir()}) == (tmp_path / "base", NEEDED)
    assert (model / "model.safetensors").read_bytes() == FILES["model.safetensors"]
    record = json.loads((model / "prepared.json").read_text())
    commit = hub.repositories["acme/Base"].branches["main"]
    assert record == {"source": source.removeprefix("hf://"), "revision": commit}
    asked = len(hub.seen)
    assert prepare(source, tmp_path, lambda _line: None, hub_url=hub.url) == model
    assert len(hub.seen) == asked


def test_a_file_with_another_digest_is_removed_and_fetched_again(hub: Hub, tmp_path: Path) -> None:
    hub.digests["model.safetensors"] = "0" * 64
    with pytest.raises(BaseModelUnavailable, match=r"model\.safetensors .* SHA-256"):
        prepare("hf://acme/Base", tmp_path, lambda _line: None, hub_url=hub.url)
    assert not (tmp_path / "base").exists()
    hub.digests.clear()
    model = prepare("hf://acme/Base", tmp_path, lambda _line: None, hub_url=hub.url)
    assert (model / "model.safetensors").read_bytes() == FILES["model.safetensors"]
    fetched = [seen for seen in hub.cdn.seen if seen.method == "GET"]
    assert len(fetched) == 2


def test_what_is_not_there_is_said(hub: Hub, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(BaseModelUnavailable, match="acme/Nothing"):
        prepare("hf://acme/Nothing", tmp_path, lambda _line: None, hub_url=hub.url)
    with pytest.raises(BaseModelUnknown):
        prepare("hf://acme", tmp_path, lambda _line: None, hub_url=hub.url)
    assert main(["--dest", str(tmp_path), "--source", "hf://acme/Base@nowhere", "--hub", hub.url]) == 1
    assert "base_model_unavailable" in capsys.readouterr().err


def test_the_name_is_the_repositorys() -> None:
    assert slug("hf://acme/My.Base@v1.0") == "my.base"
