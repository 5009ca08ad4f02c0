"""What goes wrong around a batch: the engine, limits, budgets, the key, the disk, and the gateway itself."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from pathlib import Path
from types import MappingProxyType, SimpleNamespace
from typing import Any

import pytest
import sqlalchemy as sa

from service.access.tables import audit
from service.batches.asking import MAX_ATTEMPTS, Answer
from service.batches.pace import Pace
from service.batches.results import ResultLog
from service.errors import DiskFull, EngineCut, EngineUnavailable, HatrackError, QuotaSpent, Timeout, Unavailable
from service.files.service import AdoptedFile
from tests.unit.service.batches.batches_app import CHAT, LIMIT_S, BatchesApp, line, reply, text_of
from tests.unit.service.files.files_app import bearer, error_of
from tests.unit.service.inference.fakes import until

OTHER_ADMIN_KEY = "another-admin-key"


async def test_without_an_engine_a_batch_waits_and_asks_nobody(gateway: BatchesApp) -> None:
    gateway.trouble = "it was killed by signal 9"
    batch_id = await gateway.start("one", "two")
    batch = await gateway.comes_to(batch_id, lambda batch: batch["waiting"])
    assert batch["waiting"] == {
        "code": "engine_unavailable",
        "message": "the engine is not ready: it was killed by signal 9",
        "until": None,
    }
    assert (batch["status"], gateway.world.records) == ("in_progress", []), "no request was made only to fail"
    gateway.trouble = None
    batch = await gateway.ended(batch_id)
    assert (batch["request_counts"]["completed"], batch["waiting"]) == (2, None)


async def test_an_engine_that_is_gone_when_it_is_asked_is_waited_for(gateway: BatchesApp) -> None:
    gateway.engine.down = EngineUnavailable("it has just gone", retry_after=1)
    batch_id = await gateway.start("one")
    batch = await gateway.comes_to(batch_id, lambda batch: batch["waiting"])
    assert batch["waiting"]["code"] == "engine_unavailable"
    assert batch["waiting"]["until"] >= batch["in_progress_at"] + 1
    gateway.engine.down = None
    assert (await gateway.ended(batch_id))["request_counts"]["completed"] == 1


@pytest.fixture
def large(gateway: BatchesApp) -> str:
    """The name of a second base."""
    catalog = gateway.world.catalog
    catalog.bases = MappingProxyType({**catalog.bases, "large": 1})
    return "large"


async def mixed(gateway: BatchesApp, large: str) -> str:
    """The id of a batch whose first lines, more than are asked at once, are for the second base."""
    lines = [*(line(f"large-{number}", model=large) for number in range(8)), line("one"), line("two")]
    return str((await gateway.create(await gateway.upload(lines)))["id"])


async def test_a_base_that_is_away_holds_up_no_line_for_another(gateway: BatchesApp, large: str) -> None:
    gateway.base_troubles[large] = "it was killed by signal 9"
    batch_id = await mixed(gateway, large)
    batch = await gateway.comes_to(batch_id, lambda batch: batch["waiting"])
    assert batch["request_counts"]["completed"] == 2
    assert batch["waiting"]["message"] == "no engine of the base `large` is ready: it was killed by signal 9"
    assert gateway.engine.asked == ["one", "two"], "nothing was asked only to fail"
    gateway.base_troubles.clear()
    batch = await gateway.ended(batch_id)
    assert (batch["request_counts"]["completed"], batch["waiting"]) == (10, None)
    assert len(gateway.engine.asked) == 10


async def test_a_base_that_goes_while_it_is_asked_holds_up_no_line_for_another(gateway: BatchesApp, large: str) -> None:
    def killed(question: str) -> None:
        if question.startswith("large") and question not in lost:
            lost.add(question)
            gateway.base_troubles[large] = "it was killed"

    lost: set[str] = set()
    gateway.engine.on_asked = killed
    for number in range(8):
        gateway.engine.replies[f"large-{number}"] = [EngineUnavailable("it has just gone")]
    batch_id = await mixed(gateway, large)
    batch = await gateway.comes_to(batch_id, lambda batch: batch["waiting"] and not gateway.engine.in_flight)
    assert batch["request_counts"]["completed"] == 2
    gateway.engine.replies.clear()
    gateway.engine.on_asked = lambda question: None
    gateway.base_troubles.clear()
    assert (await gateway.ended(batch_id))["request_counts"]["completed"] == 10


async def test_a_batch_that_waits_for_a_base_can_be_cancelled(gateway: BatchesApp, large: str) -> None:
    gateway.base_troubles[large] = "it was killed"
    batch_id = await mixed(gateway, large)
    await gateway.comes_to(batch_id, lambda batch: batch["waiting"])
    await gateway.http.post(f"/v1/batches/{batch_id}/cancel", headers=bearer(None))
    batch = await gateway.ended(batch_id)
    assert (batch["status"], batch["request_counts"]["completed"]) == ("cancelled", 2)


@pytest.mark.parametrize("fault", [EngineCut("it is gone"), Timeout("too long"), b"{not json"])
async def test_a_request_without_an_answer_is_sent_a_bounded_number_of_times(
    gateway: BatchesApp, monkeypatch: pytest.MonkeyPatch, fault: HatrackError | bytes
) -> None:
    monkeypatch.setattr("service.batches.asking.RETRY_STEP_S", 0.001)
    gateway.engine.replies["twice"] = [fault, fault, reply("well")]
    gateway.engine.replies["always"] = [fault] * 5
    batch = await gateway.ended(await gateway.start("twice", "always"))
    assert text_of((await gateway.lines_of(batch["output_file_id"]))["twice"]) == "well"
    failed = (await gateway.lines_of(batch["error_file_id"]))["always"]
    code = fault.code if isinstance(fault, HatrackError) else "engine_error"
    assert failed["response"]["body"]["error"]["code"] == code
    assert gateway.engine.asked.count("always") == MAX_ATTEMPTS == 3
    assert batch["usage"]["total_tokens"] == 16


async def test_an_answer_that_another_try_would_not_change_is_the_result(gateway: BatchesApp) -> None:
    gateway.engine.replies["one"] = [reply("oh", status=500)]
    batch = await gateway.ended(await gateway.start("one"))
    failed = (await gateway.lines_of(batch["error_file_id"]))["one"]
    assert (failed["response"]["status_code"], failed["response"]["body"]["error"]["code"]) == (502, "engine_error")
    assert gateway.engine.asked == ["one"]


async def test_a_limit_of_the_key_is_waited_for(gateway: BatchesApp, monkeypatch: pytest.MonkeyPatch) -> None:
    """A key with 60 requests a minute gets one a second; the batch waits as long as the answer says."""
    now = [0.0]
    monkeypatch.setattr(gateway.limiter, "_clock", lambda: now[0])
    key = await gateway.key("infer", limits={"requests_per_minute": 2})
    batch_id = await gateway.start("one", "two", "three", key=key)
    batch = await gateway.comes_to(batch_id, lambda batch: batch["waiting"] and len(gateway.engine.asked) == 2)
    assert batch["waiting"]["code"] == "rate_limit_exceeded"
    assert batch["waiting"]["until"] - batch["in_progress_at"] >= 25, "as long as Retry-After says"
    assert len(gateway.engine.asked) == 2
    now[0] += 30  # the batch looks again long before its own clock says so: a limit that is raised is noticed, too
    assert (await gateway.ended(batch_id))["request_counts"] == {"total": 3, "completed": 3, "failed": 0}


async def test_a_request_above_a_whole_days_tokens_ends_in_its_error_line(gateway: BatchesApp) -> None:
    key = await gateway.key("infer", limits={"tokens_per_day": 400})
    small = {"max_tokens": 16}
    lines = [line("one", **small), line("much", max_tokens=900), line("two", **small)]
    batch = await gateway.ended(str((await gateway.create(await gateway.upload(lines, key=key), key=key))["id"]))
    assert (batch["status"], batch["request_counts"]["completed"]) == ("completed", 2)
    refused = (await gateway.lines_of(batch["error_file_id"]))["much"]["response"]
    assert (refused["status_code"], refused["body"]["error"]["code"]) == (429, "request_over_quota")
    assert set(gateway.engine.asked) == {"one", "two"}


async def test_a_long_wait_is_tried_again_soon(gateway: BatchesApp) -> None:
    """A day's tokens are used up until midnight, or until an admin raises the limit, which nobody tells the batch."""
    caller = gateway.keys.authenticator.caller_with_id("admin", "default")
    pace = Pace(lambda: caller, lambda _: None, lambda: None)
    pace.pause(3600.0, "rate_limit_exceeded", "the day is used up")
    assert pace.now() is None
    assert pace.waiting is not None
    assert (pace.waiting.until or 0) >= time.time() + 3000, "what is shown is what the limit says"
    async with asyncio.timeout(LIMIT_S):
        await pace.turn()
    assert pace.waiting is None


async def test_of_a_keys_concurrent_requests_one_is_left_to_its_callers(gateway: BatchesApp) -> None:
    key = await gateway.key("infer", limits={"concurrent": 3})
    batch = await gateway.ended(await gateway.start(*map(str, range(8)), key=key))
    assert (batch["request_counts"]["completed"], gateway.engine.most_in_flight) == (8, 2)


async def test_a_spent_budget_is_waited_for(gateway: BatchesApp) -> None:
    gateway.engine.held = asyncio.Event()
    batch_id = await gateway.start(*map(str, range(6)))
    await gateway.comes_to(batch_id, lambda _: gateway.engine.in_flight == 4)
    gateway.budget = QuotaSpent("the budget is spent", headers={"retry-after": "86400"})
    gateway.engine.held.set()
    batch = await gateway.comes_to(batch_id, lambda batch: batch["waiting"])
    assert (batch["waiting"]["code"], len(gateway.engine.asked)) == ("insufficient_quota", 4)
    gateway.budget = None
    assert (await gateway.ended(batch_id))["request_counts"]["completed"] == 6


async def test_a_revoked_key_ends_its_batch_with_words(gateway: BatchesApp) -> None:
    key = await gateway.key("infer")
    key_id = (await gateway.http.get("/v1/keys")).json()["data"][0]["id"]
    gateway.engine.held = asyncio.Event()
    batch_id = await gateway.start(*map(str, range(10)), key=key)
    await gateway.comes_to(batch_id, lambda _: gateway.engine.in_flight == 4)
    await gateway.http.delete(f"/v1/keys/{key_id}")
    gateway.engine.held.set()
    batch = await gateway.ended(batch_id)
    assert batch["status"] == "failed"
    (error,) = batch["errors"]["data"]
    assert error["code"] == "invalid_api_key"
    assert error["message"] == f"the API key {key_id} was revoked; 4 of 10 requests have a result"
    assert batch["request_counts"] == {"total": 10, "completed": 4, "failed": 6}
    assert len(await gateway.lines_of(batch["output_file_id"])) == 4, "what was answered is kept"
    rest = await gateway.lines_of(batch["error_file_id"])
    assert {each["error"]["code"] for each in rest.values()} == {"batch_failed"}
    assert len(gateway.engine.asked) == 4


async def test_a_key_that_is_revoked_while_the_batch_waits_ends_it(gateway: BatchesApp) -> None:
    key = await gateway.key("infer")
    key_id = (await gateway.http.get("/v1/keys")).json()["data"][0]["id"]
    gateway.trouble = "it is asleep"
    batch_id = await gateway.start("one", key=key)
    await gateway.comes_to(batch_id, lambda batch: batch["waiting"])
    await gateway.http.delete(f"/v1/keys/{key_id}")
    assert (await gateway.ended(batch_id))["errors"]["data"][0]["code"] == "invalid_api_key"


@pytest.mark.parametrize("waits", [True, False])
async def test_a_batch_of_the_admin_key_ends_with_that_key(gateway: BatchesApp, waits: bool) -> None:
    gateway.trouble = "it is asleep" if waits else None
    gateway.engine.held = asyncio.Event()
    batch_id = await gateway.start(*map(str, range(10)))
    await gateway.comes_to(batch_id, lambda batch: batch["waiting"] if waits else gateway.engine.in_flight == 4)
    gateway.keys.authenticator.set_admin_key(OTHER_ADMIN_KEY)  # as a rotation does
    gateway.http.headers["authorization"] = f"Bearer {OTHER_ADMIN_KEY}"
    gateway.trouble = None
    gateway.engine.held.set()
    batch = await gateway.ended(batch_id)
    (error,) = batch["errors"]["data"]
    assert (batch["status"], error["code"]) == ("failed", "invalid_api_key")
    assert error["message"].startswith("the admin key was replaced; ")
    assert len(gateway.engine.asked) == (0 if waits else 4)
    assert (await gateway.ended(await gateway.start("one")))["status"] == "completed", "the new key's go on"


async def test_a_batch_does_not_outlive_an_admin_key_that_was_replaced_while_the_gateway_was_off(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gateway = BatchesApp(tmp_path)
    gateway.trouble = "it is asleep"
    async with gateway.run():
        batch_id = await gateway.start("one")
        await gateway.comes_to(batch_id, lambda batch: batch["waiting"])
    monkeypatch.setattr("tests.unit.service.files.files_app.ADMIN_KEY", OTHER_ADMIN_KEY)
    async with (gateway := BatchesApp(tmp_path)).run():
        assert (await gateway.ended(batch_id))["errors"]["data"][0]["code"] == "invalid_api_key"
    assert gateway.engine.asked == []


async def test_an_adapter_that_is_deleted_meanwhile_fails_its_requests_alone(gateway: BatchesApp) -> None:
    gateway.trouble = "it is asleep"
    file_id = await gateway.upload([line("one", model="voice"), line("two")])
    batch_id = str((await gateway.create(file_id))["id"])
    await gateway.comes_to(batch_id, lambda batch: batch["waiting"])
    gateway.world.catalog.replace(type(gateway.world.catalog.snapshot)())
    gateway.trouble = None
    batch = await gateway.ended(batch_id)
    failed = (await gateway.lines_of(batch["error_file_id"]))["one"]
    assert failed["response"]["body"]["error"]["code"] == "model_not_found"
    assert batch["request_counts"] == {"total": 2, "completed": 1, "failed": 1}


async def test_answers_wait_for_room_on_the_disk(gateway: BatchesApp, monkeypatch: pytest.MonkeyPatch) -> None:
    append, full = ResultLog.append, [True]

    def append_if_room(self: ResultLog, results: Any) -> None:
        if full[0]:
            raise DiskFull("the disk is full; the results of batches wait for room")
        append(self, results)

    monkeypatch.setattr(ResultLog, "append", append_if_room)
    batch_id = await gateway.start(*map(str, range(6)))
    batch = await gateway.comes_to(batch_id, lambda batch: batch["waiting"])
    assert batch["waiting"]["code"] == "disk_full"
    assert len(gateway.engine.asked) <= 4, "no more is asked than can be kept"
    full[0] = False
    batch = await gateway.ended(batch_id)
    assert batch["request_counts"]["completed"] == 6
    assert len(gateway.engine.asked) == 6, "no request was asked again for it"


async def test_results_are_charged_to_the_projects_files_as_they_are_written(
    gateway: BatchesApp, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A batch of large answers fills the project: it pauses and says so, and nobody else's does."""
    monkeypatch.setattr("service.batches.results.DISK_RETRY_S", 0.01)
    monkeypatch.setattr("service.files.service.CHARGE_STEP", 1)
    gateway.engine.replies = {str(number): [reply("a" * 50_000)] for number in range(12)}
    file_id = await gateway.upload(line(str(number)) for number in range(12))
    used = (await gateway.http.get(f"/v1/files/{file_id}")).json()["bytes"]
    monkeypatch.setattr(gateway.files, "_max_project_bytes", used + 250_000)
    batch_id = str((await gateway.create(file_id))["id"])
    batch = await gateway.comes_to(batch_id, lambda batch: batch["waiting"])
    assert (batch["waiting"]["code"], batch["request_counts"]["completed"]) == ("project_storage_full", 4)
    assert "HATRACK_MAX_FILES_GIB" in batch["waiting"]["message"]
    assert len(gateway.engine.asked) <= 4 + 4, "no more is asked than can be kept"
    asked = len(gateway.engine.asked)
    upload = await gateway.http.post(
        "/v1/files", files={"file": ("a.jsonl", b'{"a": 1}\n' * 10_000)}, data={"purpose": "batch"}
    )
    assert (upload.status_code, error_of(upload)["code"]) == (413, "project_storage_full"), "its results are counted"

    other = await gateway.key("infer", project="other")
    theirs = await gateway.ended(await gateway.start("x", "y", key=other), key=other)
    assert theirs["request_counts"]["completed"] == 2, "the places in the engine are not held by what waits for room"

    await gateway.http.post(f"/v1/batches/{batch_id}/cancel")
    batch = await gateway.ended(batch_id)
    assert (batch["status"], batch["request_counts"]["completed"]) == ("cancelled", asked), "what was answered is kept"
    refused = await gateway.http.post(
        "/v1/batches", json={"input_file_id": file_id, "endpoint": CHAT, "completion_window": "24h"}
    )
    assert (refused.status_code, error_of(refused)["code"]) == (413, "project_storage_full")


async def test_a_batch_goes_on_once_files_were_deleted(gateway: BatchesApp, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("service.batches.results.DISK_RETRY_S", 0.01)
    in_the_way = await gateway.upload([line("x")] * 1000)
    file_id = await gateway.upload(line(str(number)) for number in range(6))
    stored = sum(file["bytes"] for file in (await gateway.http.get("/v1/files")).json()["data"])
    monkeypatch.setattr(gateway.files, "_max_project_bytes", stored + 100)
    batch_id = str((await gateway.create(file_id))["id"])
    await gateway.comes_to(batch_id, lambda batch: batch["waiting"])
    assert (await gateway.http.delete(f"/v1/files/{in_the_way}")).status_code == 200
    batch = await gateway.ended(batch_id)
    assert (batch["status"], batch["request_counts"]["completed"]) == ("completed", 6)
    assert len(gateway.engine.asked) == 6, "no request was asked again for it"
    await until(lambda: not gateway.files._reservations._projects)  # nothing is charged twice once its file is listed


async def test_answers_that_wait_for_room_when_the_window_ends_are_kept(
    gateway: BatchesApp, monkeypatch: pytest.MonkeyPatch
) -> None:
    append, full, waiting = ResultLog.append, [True], [0]

    def append_if_room(self: ResultLog, results: Any) -> None:
        waiting[0] = len(results)
        if full[0]:
            raise DiskFull("the disk is full; the results of batches wait for room")
        append(self, results)

    monkeypatch.setattr(ResultLog, "append", append_if_room)
    clock = SimpleNamespace(time=time.time, monotonic=time.monotonic)
    monkeypatch.setattr("service.batches.asker.time", clock)
    gateway.engine.replies["0"] = [reply("no", status=400)]
    batch_id = await gateway.start(*map(str, range(6)))
    await gateway.comes_to(batch_id, lambda _: waiting[0] == 4)
    answered = set(gateway.engine.asked)
    clock.time = lambda: time.time() + 86_400
    await gateway.comes_to(batch_id, lambda batch: batch["status"] == "finalizing")
    full[0] = False
    batch = await gateway.ended(batch_id)
    output, rest = [await gateway.lines_of(batch[f"{name}_file_id"]) for name in ("output", "error")]
    assert output.keys() | rest.keys() == set(map(str, range(6)))
    assert output.keys() & rest.keys() == set(), "no request has two results"
    assert set(output) == answered - {"0"}
    assert (rest["0"]["response"] or {}).get("status_code") == 400, "an answer that failed is one, too"
    assert batch["request_counts"] == {"total": 6, "completed": len(output), "failed": len(rest)}


async def test_a_fault_of_the_gateway_is_tried_again_and_then_said(
    gateway: BatchesApp, caplog: pytest.LogCaptureFixture
) -> None:
    faults = [RuntimeError("once")]

    async def faulty(*given: Any) -> Answer:
        if faults:
            raise faults.pop()
        return await ask(*given)

    ask = gateway.batches._context.ask
    object.__setattr__(gateway.context, "ask", faulty)
    faulty.check = ask.check  # type: ignore[attr-defined]
    faulty.base_of = ask.base_of  # type: ignore[attr-defined]
    batch = await gateway.ended(await gateway.start("one", "two"))
    assert batch["request_counts"]["completed"] == 2
    assert "a batch failed unexpectedly" in caplog.text
    faults.extend([RuntimeError("again and again")] * 100)
    batch = await gateway.ended(await gateway.start("one", "two"))
    assert (batch["status"], batch["errors"]["data"][0]["code"]) == ("failed", "internal_error")
    assert set(await gateway.lines_of(batch["error_file_id"])) == {"one", "two"}


@pytest.mark.parametrize("fault", [DiskFull("the disk is full"), RuntimeError("once")])
async def test_an_end_that_is_tried_again_leaves_no_copy_of_its_files(
    gateway: BatchesApp, monkeypatch: pytest.MonkeyPatch, fault: Exception
) -> None:
    adopt, adopted = gateway.files.adopt, []

    async def adopt_one_at_first(source: Path) -> AdoptedFile:
        adopted.append(source)
        if len(adopted) == 2:
            raise fault
        return await adopt(source)

    monkeypatch.setattr(gateway.files, "adopt", adopt_one_at_first)
    gateway.engine.replies["bad"] = [reply("no", status=400)]
    batch = await gateway.ended(await gateway.start("one", "bad"))
    assert (batch["status"], len(adopted)) == ("completed", 4)
    assert gateway.on_disk() == {batch[f"{name}_file_id"] for name in ("input", "output", "error")}


async def test_callers_traffic_is_not_refused_for_a_batch(gateway: BatchesApp) -> None:
    """The key's own requests go on while its batch waits."""
    key = await gateway.key("infer")
    gateway.engine.held = asyncio.Event()
    gateway.engine.holds = lambda question: question.isdigit()
    batch_id = await gateway.start(*map(str, range(6)), key=key)
    await gateway.comes_to(batch_id, lambda _: gateway.engine.in_flight == 4)
    body = {"model": "smol", "messages": [{"role": "user", "content": "hello"}]}
    answer = await gateway.world.ask("/v1/chat/completions", body, headers=bearer(key))
    assert answer.status == 200
    gateway.engine.held.set()
    await gateway.ended(batch_id)


@pytest.mark.parametrize("comes_back", [True, False], ids=["asked", "not asked"])
async def test_results_that_were_listed_all_the_same_keep_their_bytes(
    gateway: BatchesApp, monkeypatch: pytest.MonkeyPatch, comes_back: bool
) -> None:
    """The connection is lost in the moment of saving, and for the next question, too, or not."""
    run, lost = gateway.database.run, 0

    async def instead(work: Callable[[sa.Connection], Any], **more: Any) -> Any:
        nonlocal lost
        result = await run(work, **more)
        name = work.__qualname__.partition("<locals>.")[2]
        if "_finish" in work.__qualname__ and (name == "work" or not comes_back) and lost < 2 - comes_back:
            lost += 1
            raise Unavailable("the metadata database cannot be reached now; try again")
        return result

    monkeypatch.setattr(gateway.database, "run", instead)
    batch = await gateway.ended(await gateway.start("one", "two"))
    assert batch["status"] == "completed"
    await until(lambda: lost == 2 - comes_back and not gateway.batches._runs)
    assert len(await gateway.lines_of(batch["output_file_id"])) == 2
    listed = await gateway.listed()
    assert len(listed) == 2, "the input and one output"
    assert set(listed) <= gateway.on_disk()
    assert gateway.on_disk() - set(listed) == set(), "of the attempts that listed nothing there are no bytes"
    ended = await gateway.database.run(
        lambda db: db.scalar(sa.select(sa.func.count()).where(audit.c.action == "batch.end"))
    )
    assert ended == 1
