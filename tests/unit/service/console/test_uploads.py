"""What is dropped, how its upload shows, and a proof that fails: in a real Chromium, on answers written here."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.support.browser import Browser
from tests.unit.service.console.conftest import NONE, Answers, Held, models, show, version

UPLOAD, FILES = "POST /v1/adapters", "POST /v1/files"
BAR = "document.querySelector('dialog progress')"
BIG = 24 * 2**20
"""More than the sockets between browser and gateway hold."""


def saved(folder: Path, weights: bytes = b"weights") -> Path:
    """A folder as PEFT saves it, with what else a training leaves there, below another one."""
    folder.mkdir(parents=True)
    (folder / "adapter_config.json").write_text('{"r": 8}')
    (folder / "adapter_model.safetensors").write_bytes(weights)
    (folder / "README.md").write_text("a voice")
    (folder / "settings.json").write_text('{"system_prompt": "Be brief."}')
    (folder / "checkpoint-9").mkdir()
    (folder / "checkpoint-9" / "adapter_model.safetensors").write_bytes(b"an earlier step")
    (folder / "optimizer.pt").write_bytes(b"not asked for")
    return folder


def parts(body: bytes) -> dict[str, bytes]:
    """The fields of a form, by name."""
    boundary = body.split(b"\r\n", 1)[0]
    made = {}
    for part in body.split(boundary)[1:-1]:
        head, content = part.strip(b"\r\n").split(b"\r\n\r\n", 1)
        made[head.split(b'name="')[1].split(b'"')[0].decode()] = content
    return made


def open_dialog(page: Browser, answers: Answers, **told: Any) -> None:
    answers.told = {"GET /v1/models": [models("large")], **told}
    show(page, "upload.js", "UploadDialog", kind="upload")
    page.wait("document.querySelector('dialog .drop')")
    page.fill("dialog input", "voice")


def test_a_dropped_folder_is_walked_and_what_an_adapter_needs_is_sent(
    page: Browser, answers: Answers, tmp_path: Path
) -> None:
    saved(tmp_path / "runs" / "voice")
    open_dialog(page, answers, **{UPLOAD: [version(1, aliases=["live"])]})
    page.drop("dialog .drop", tmp_path / "runs")
    page.wait("document.querySelectorAll('.files li').length === 4")
    page.click("Upload and prove", "dialog")
    page.wait_for_text("voice@1 is ready")
    sent = parts(answers.bodies[UPLOAD])
    assert sent == {
        "name": b"voice",
        "config": b'{"r": 8}',
        "weights": b"weights",
        "readme": b"a voice",
        "settings": b'{"system_prompt": "Be brief."}',
    }
    assert answers.queries[UPLOAD] == [{"wait": "false"}]
    assert page.problems == []


def test_dropped_files_without_weights_are_refused_before_anything_is_sent(
    page: Browser, answers: Answers, tmp_path: Path
) -> None:
    folder = saved(tmp_path / "voice")
    open_dialog(page, answers)
    page.drop("dialog .drop", folder / "adapter_config.json", folder / "README.md")
    page.wait_for_text("This is not a whole adapter")
    page.wait_for_text("Missing: adapter_model.safetensors.")
    assert page.run("document.querySelector('dialog footer button').disabled")
    assert UPLOAD not in answers.asked


def test_several_documents_and_a_folder_of_them_are_added_one_by_one(
    page: Browser, answers: Answers, tmp_path: Path
) -> None:
    (tmp_path / "more").mkdir()
    names = [*(f"more/{number}.txt" for number in range(3)), "policy.md"]
    for name in names:
        (tmp_path / name).write_text(f"the text of {name}")
    counts = {"total": 0, "in_progress": 0, "completed": 0, "failed": 0, "cancelled": 0}
    answers.told = {
        "GET /v1/vector_stores/vs_1": [{"id": "vs_1", "name": "shop", "usage_bytes": 0, "file_counts": counts}],
        "GET /v1/vector_stores/vs_1/files": [NONE],
        FILES: [{"id": f"file-{number}"} for number in range(4)],
        "POST /v1/vector_stores/vs_1/files": [{}],
    }
    show(page, "stores.js", "StoreView", id="vs_1")
    page.wait_for_text("Drop documents here")
    page.drop(".drop", tmp_path / "policy.md", tmp_path / "more")
    page.wait("performance.getEntriesByType('resource').filter((e) => e.name.endsWith('/v1/files')).length === 4")
    page.wait("document.querySelector('.drop')")
    assert answers.asked.count(FILES) == answers.asked.count("POST /v1/vector_stores/vs_1/files") == 4
    assert parts(answers.bodies[FILES])["purpose"] == b"assistants"


def test_an_upload_shows_how_far_it_is_and_then_what_the_gateway_does(
    page: Browser, answers: Answers, tmp_path: Path
) -> None:
    held = Held(version(1))
    open_dialog(page, answers, **{UPLOAD: [held]})
    try:
        page.drop("dialog .drop", saved(tmp_path / "voice", bytes(BIG)))
        page.click("Upload and prove", "dialog")
        page.wait(f"{BAR}?.position > 0")
        page.wait_for_text(" of 24.0 MiB")
        assert page.run(f"{BAR}.position") < 1, "the gateway has not read it all"
        assert "The gateway inspects the files" not in page.text
        held.read.set()
        page.wait(f"{BAR}.position === 1")
        page.wait_for_text("Sending: 24.0 MiB of 24.0 MiB")
        page.wait_for_text("Sent. The gateway inspects the files")
    finally:
        held.read.set()
        held.answer.set()
    page.wait_for_text("voice@1 is ready")


def test_a_corrupt_version_that_is_sent_again_is_not_ready_before_its_proof(
    page: Browser, answers: Answers, tmp_path: Path
) -> None:
    open_dialog(page, answers, **{UPLOAD: [version(1, aliases=["live"], servable="corrupt")]})
    page.drop("dialog .drop", saved(tmp_path / "voice"))
    page.click("Upload and prove", "dialog")
    page.wait_for_text("voice@1 is corrupt, and is being proven again")
    assert "is ready" not in page.text
    assert "It is live" not in page.text
    page.click("Show it", "dialog")
    page.wait("window.called.length === 1")


def test_a_version_whose_proof_fails_was_refused_and_another_is_tried(
    page: Browser, answers: Answers, tmp_path: Path
) -> None:
    reason = {"message": "the engine sees no effect of `lora_A`", "code": "no_effect"}
    told = {UPLOAD: [version(1, state="proving")]}
    told["GET /v1/adapters/voice/versions/1"] = [version(1, state="rejected", reason=reason)]
    open_dialog(page, answers, **told)
    page.drop("dialog .drop", saved(tmp_path / "voice"))
    page.click("Upload and prove", "dialog")
    page.wait_for_text("Proving voice@1")
    page.wait_for_text("voice@1 was refused")
    page.wait_for_text("the engine sees no effect of lora_A")
    assert "is ready" not in page.text
    page.click("Try another", "dialog")
    page.wait("document.querySelector('dialog .drop')")
    assert page.run("document.querySelector('dialog input').value") == "voice", "the name is kept"
    assert page.run("document.querySelector('dialog footer button').disabled"), "no files yet"
    assert page.run("window.called") == []
