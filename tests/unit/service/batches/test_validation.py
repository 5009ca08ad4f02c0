"""An input file is checked as a whole before any of its requests is asked."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import orjson
import pytest

from service.batches.lines import ENVELOPE_BYTES, PART_BYTES, InputLines
from service.batches.run import BatchRun
from tests.unit.service.batches.batches_app import BatchesApp, line
from tests.unit.service.files.files_app import error_of


async def failed(gateway: BatchesApp, *lines: dict[str, Any] | bytes, **more: Any) -> list[dict[str, Any]]:
    """The errors of a batch of these lines, of which none was asked."""
    batch = await gateway.ended(str((await gateway.create(await gateway.upload(lines), **more))["id"]))
    assert (batch["status"], batch["failed_at"] is not None) == ("failed", True)
    assert (batch["output_file_id"], batch["error_file_id"], batch["in_progress_at"]) == (None, None, None)
    assert gateway.engine.asked == []
    assert batch["errors"]["object"] == "list"
    errors: list[dict[str, Any]] = batch["errors"]["data"]
    return errors


def changed(**fields: Any) -> dict[str, Any]:
    return {**line("one"), **fields}


def without(name: str) -> dict[str, Any]:
    return {key: value for key, value in line("one").items() if key != name}


@pytest.mark.parametrize(
    ("bad", "param", "code"),
    [
        (b"{broken\n", None, "invalid_json_line"),
        (b"[1, 2]\n", None, "invalid_json_line"),
        (b"\xff\xfe\n", None, "invalid_json_line"),
        (b"[" * 500 + b"]" * 500 + b"\n", None, "invalid_json_line"),
        (without("custom_id"), "custom_id", "missing_required_parameter"),
        (without("body"), "body", "missing_required_parameter"),
        (changed(custom_id=""), "custom_id", "invalid_value"),
        (changed(custom_id=7), "custom_id", "invalid_value"),
        (changed(custom_id="x" * 513), "custom_id", "invalid_value"),
        (changed(method="GET"), "method", "invalid_value"),
        (changed(url="/v1/completions"), "url", "invalid_value"),
        (changed(body=[]), "body", "invalid_value"),
        (changed(priority=1), "priority", "unknown_parameter"),
        (line("one", stream=True), "body.stream", "invalid_value"),
        (line("one", model="nobody"), "body.model", "model_not_found"),
        (line("one", model="unborn"), "body.model", "no_live_version"),
        (line("one", model="voice@2"), "body.model", "version_other_base"),
        (line("one", model="secret"), "body.model", "model_not_found"),
        (line("one", temperature="hot"), "body.temperature", "invalid_value"),
        (line("one", wishes=3), "body.wishes", "unknown_parameter"),
        (line("one", cache_salt="x"), "body.cache_salt", "parameter_refused"),
        (line("one", messages=[]), "body.messages", "invalid_value"),
        (line("one", user="u" * 5000), "body", "request_too_large"),
        (line("one", user="u" * (ENVELOPE_BYTES + 5000)), None, "line_too_long"),
        (changed(body={"messages": [{"role": "user", "content": "hi"}]}), "body.model", "missing_required_parameter"),
    ],
)
async def test_a_line_that_is_not_what_it_must_be(
    gateway: BatchesApp, bad: dict[str, Any] | bytes, param: str | None, code: str
) -> None:
    (error,) = await failed(gateway, line("good"), bad)
    assert (error["line"], error["param"], error["code"]) == (2, param, code), error["message"]
    assert len(error["message"]) < 400


async def test_all_faults_are_named_at_once_with_their_lines(gateway: BatchesApp) -> None:
    lines = [line("one"), b"\n", b"{\n", line("one"), line("two", stream=True), line("three", model="nobody"), b"  \n"]
    errors = await failed(gateway, *lines)
    assert [(error["line"], error["code"]) for error in errors] == [
        (3, "invalid_json_line"),
        (4, "duplicate_custom_id"),
        (5, "invalid_value"),
        (6, "model_not_found"),
    ]
    assert "line 1" in errors[1]["message"]


async def test_a_key_s_rights_count_for_every_line(gateway: BatchesApp) -> None:
    narrow = await gateway.key("infer", adapters=["young*"])
    file_id = await gateway.upload([line("one", model="younger"), line("two", model="voice")], key=narrow)
    made = await gateway.create(file_id, key=narrow)
    batch = await gateway.ended(made["id"])
    assert [(error["line"], error["code"]) for error in batch["errors"]["data"]] == [(2, "model_not_found")]


async def test_very_many_faults_are_counted(gateway: BatchesApp, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("service.batches.validation.MAX_REPORTED", 20)
    errors = await failed(gateway, *[b"{\n"] * 27)
    assert (len(errors), errors[-1]["code"]) == (21, "too_many_errors")
    assert errors[-1]["message"].startswith("7 more faults")


async def test_too_many_requests(gateway: BatchesApp) -> None:
    errors = await failed(gateway, *(line(str(number)) for number in range(101)))
    assert [(error["line"], error["code"]) for error in errors] == [(101, "too_many_requests")]
    assert "HATRACK_BATCH_REQUESTS" in errors[0]["message"]


async def test_a_file_without_requests(gateway: BatchesApp) -> None:
    assert [error["code"] for error in await failed(gateway, b"\n \n")] == ["empty_file"]


async def test_a_key_that_is_revoked_meanwhile(gateway: BatchesApp) -> None:
    key = await gateway.key("infer")
    file_id = await gateway.upload([line("one")], key=key)
    made = await gateway.create(file_id, key=key)
    gateway.keys.authenticator.load({})
    batch = await gateway.ended(made["id"])
    assert [error["code"] for error in batch["errors"]["data"]] == ["invalid_api_key"]


async def test_the_other_endpoints(gateway: BatchesApp) -> None:
    text = {"custom_id": "t", "method": "POST", "url": "/v1/completions", "body": {"model": "smol", "prompt": 7}}
    errors = await failed(gateway, text, endpoint="/v1/completions")
    assert [error["param"] for error in errors] == ["body.prompt"]
    body = {"model": "smol", "input": "x", "store": True}
    response = {"custom_id": "r", "method": "POST", "url": "/v1/responses", "body": body}
    errors = await failed(gateway, response, endpoint="/v1/responses")
    assert [error["param"] for error in errors] == ["body.store"]


async def test_a_batch_can_be_cancelled_while_its_file_is_checked(
    gateway: BatchesApp, monkeypatch: pytest.MonkeyPatch
) -> None:
    never = asyncio.Event()

    async def slow(*_: Any) -> None:
        await never.wait()

    monkeypatch.setattr("service.batches.run.check_input", slow)
    batch_id = await gateway.start("one")
    assert (await gateway.batch(batch_id))["status"] == "validating"
    await gateway.http.post(f"/v1/batches/{batch_id}/cancel")
    batch = await gateway.ended(batch_id)
    assert (batch["status"], batch["request_counts"]["total"], batch["output_file_id"]) == ("cancelled", 0, None)


async def test_a_batch_that_is_about_to_fail_cannot_be_cancelled(
    gateway: BatchesApp, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its lines are wrong, and that is written down: a cancellation would be promised and not kept."""
    decided, goes_on = asyncio.Event(), asyncio.Event()
    finish = BatchRun._finish

    async def slow_finish(self: BatchRun) -> None:
        decided.set()
        await goes_on.wait()
        await finish(self)

    monkeypatch.setattr(BatchRun, "_finish", slow_finish)
    batch_id = await gateway.start("one", "one")
    await decided.wait()
    answer = await gateway.http.post(f"/v1/batches/{batch_id}/cancel")
    assert (answer.status_code, error_of(answer)["code"]) == (409, "batch_final")
    assert "about to be `failed`" in error_of(answer)["message"]
    goes_on.set()
    batch = await gateway.ended(batch_id)
    assert (batch["status"], batch["errors"]["data"][0]["code"]) == ("failed", "duplicate_custom_id")


def test_a_large_file_is_read_in_parts(tmp_path: Path) -> None:
    path = tmp_path / "input.jsonl"
    lines = [orjson.dumps({"n": number, "text": "x" * 2000}) + b"\n" for number in range(200)]
    path.write_bytes(b"\xef\xbb\xbf" + b"\r\n".join([b"".join(lines), b"{}"]))
    reader = InputLines(path, 4096)
    parts = list(iter(reader.next_part, []))
    assert len(parts) > 5
    assert all(sum(len(each.text or b"") for each in part) <= PART_BYTES + 4096 for part in parts)
    found = [each for part in parts for each in part]
    assert [each.number for each in found] == [*range(1, 201), 202]
    assert found[0].text == lines[0], "the mark at the beginning is no part of the line"


def test_a_line_that_is_too_long_is_passed_over_in_bounded_memory(tmp_path: Path) -> None:
    path = tmp_path / "input.jsonl"
    path.write_bytes(b"a\n" + b"x" * 5_000_000 + b"\nb")
    found = list(InputLines(path, 1000).next_part())
    assert [(each.number, each.text) for each in found] == [(1, b"a\n"), (2, None), (3, b"b")]
