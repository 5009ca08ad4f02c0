"""A batch from its creation to its result files, in OpenAI's form."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import orjson
import pytest
import sqlalchemy as sa
from openai.types import Batch as OpenAIBatch

from service.access.tables import audit
from service.files.tables import file_holds
from tests.unit.service.batches.batches_app import CHAT, BatchesApp, line, reply, text_of
from tests.unit.service.files.files_app import bearer, error_of
from tests.unit.service.inference.fakes import EMBEDDER, until
from tests.unit.service.inference.test_embedding import FakeEmbedder


async def test_every_request_is_answered_and_the_files_have_openai_s_form(gateway: BatchesApp) -> None:
    gateway.engine.replies["bad"] = [reply("no", status=400)]
    batch_id = await gateway.start("one", "bad", "two", metadata={"night": "1"})
    batch = await gateway.ended(batch_id)
    assert (batch["status"], batch["model"], batch["errors"], batch["waiting"]) == ("completed", "smol", None, None)
    assert batch["request_counts"] == {"total": 3, "completed": 2, "failed": 1}
    assert (batch["usage"]["input_tokens"], batch["usage"]["output_tokens"]) == (22, 10)
    assert batch["usage"]["total_tokens"] == 32
    assert batch["metadata"] == {"night": "1"}
    times = [batch[name] for name in ("created_at", "in_progress_at", "finalizing_at", "completed_at")]
    assert times == sorted(times)
    assert batch["expires_at"] == batch["created_at"] + 86_400
    assert not any(batch[name] for name in ("failed_at", "expired_at", "cancelling_at", "cancelled_at"))
    OpenAIBatch.model_validate(batch, strict=True)

    output = await gateway.lines_of(batch["output_file_id"])
    assert {custom_id: text_of(result) for custom_id, result in output.items()} == {"one": "one!", "two": "two!"}
    result = output["one"]
    assert set(result) == {"id", "custom_id", "response", "error"}
    assert set(result["response"]) == {"status_code", "request_id", "body"}
    assert result["id"].startswith("batch_req_")
    assert (result["response"]["status_code"], result["error"]) == (200, None)
    assert result["response"]["request_id"] in {record.request_id for record in gateway.world.records}
    (failed,) = (await gateway.lines_of(batch["error_file_id"])).values()
    assert (failed["custom_id"], failed["response"]["status_code"], failed["error"]) == ("bad", 400, None)
    assert failed["response"]["body"]["error"]["type"] == "invalid_request_error"

    for name in ("output", "error"):
        file = (await gateway.http.get(f"/v1/files/{batch[f'{name}_file_id']}")).json()
        assert (file["purpose"], file["filename"]) == ("batch_output", f"{batch_id}_{name}.jsonl")
    assert list((gateway.home / "batches").iterdir()) == [], "what it wrote meanwhile is gone"


async def test_requests_yield_to_callers_and_count_as_their_creator_s(gateway: BatchesApp) -> None:
    key = await gateway.key("infer")
    key_id = (await gateway.http.get("/v1/keys")).json()["data"][0]["id"]
    await gateway.ended(await gateway.start("one", "two", key=key))
    assert [(asked.background, asked.key_id) for asked in gateway.admitted] == [(True, key_id)] * 2
    callers = [record.caller for record in gateway.world.records]
    assert [(caller.key_id, caller.project) for caller in callers if caller] == [(key_id, "default")] * 2
    assert gateway.world.records[0].tokens == 16


async def test_no_more_requests_are_in_the_gateway_than_the_setting_says(gateway: BatchesApp) -> None:
    gateway.engine.held = asyncio.Event()
    several = [await gateway.start(*(f"{batch}-{n}" for n in range(6))) for batch in range(3)]
    waiting = lambda: len(gateway.context.slots._waiters or ())  # noqa: E731
    await gateway.comes_to(several[0], lambda _: gateway.engine.in_flight == 4 and waiting() >= 2)
    gateway.engine.held.set()
    for batch_id in several:
        assert (await gateway.ended(batch_id))["request_counts"]["completed"] == 6
    assert gateway.engine.most_in_flight == 4
    assert {question[0] for question in gateway.engine.asked[4:10]} >= {"1", "2"}, "batches take turns"


async def test_results_are_counted_while_it_runs(gateway: BatchesApp) -> None:
    held = gateway.engine.held = asyncio.Event()
    gateway.engine.holds = lambda question: int(question) >= 3
    batch_id = await gateway.start(*map(str, range(8)))
    batch = await gateway.comes_to(batch_id, lambda batch: batch["request_counts"]["completed"] == 3)
    assert (batch["status"], batch["request_counts"]["total"], batch["usage"]["total_tokens"]) == ("in_progress", 8, 48)
    held.set()
    await gateway.ended(batch_id)
    families = {family.name: family for family in await gateway.batches.families()}
    answered = {sample.labels["result"]: sample.value for sample in families["hatrack_batch_requests"].samples}
    assert answered == {"completed": 8, "failed": 0}
    assert sum(sample.value for sample in families["hatrack_batches"].samples) == 0


async def test_a_batch_without_failures_has_no_error_file_and_one_without_answers_no_output(
    gateway: BatchesApp,
) -> None:
    good = await gateway.ended(await gateway.start("one"))
    assert good["error_file_id"] is None
    gateway.engine.replies["bad"] = [reply("no", status=400)]
    bad = await gateway.ended(await gateway.start("bad"))
    assert (bad["status"], bad["output_file_id"]) == ("completed", None)


async def test_different_models_may_be_in_one_batch(gateway: BatchesApp) -> None:
    file_id = await gateway.upload([line("one"), line("two", model="voice")])
    batch = await gateway.ended(str((await gateway.create(file_id))["id"]))
    assert (batch["status"], batch["model"]) == ("completed", None)
    output = await gateway.lines_of(batch["output_file_id"])
    assert output["two"]["response"]["body"]["model"] == "voice"


async def test_texts_are_embedded_by_the_embedder(tmp_path: Path) -> None:
    embedder = FakeEmbedder()
    gateway = BatchesApp(tmp_path, embedder=embedder)
    lines = [
        {"custom_id": text, "method": "POST", "url": "/v1/embeddings", "body": {"model": EMBEDDER, "input": text}}
        for text in ("two words", "one")
    ]
    gateway.trouble = "it was killed by signal 9"  # which the embedder does not need
    async with gateway.run():
        made = await gateway.create(await gateway.upload(lines), endpoint="/v1/embeddings")
        batch = await gateway.ended(made["id"])
        output = await gateway.lines_of(batch["output_file_id"])
        wrong = [{**lines[0], "body": lines[0]["body"] | {"input": 7}}, line("chat") | {"url": "/v1/embeddings"}]
        made = await gateway.create(await gateway.upload(wrong), endpoint="/v1/embeddings")
        refused = await gateway.ended(made["id"])
    assert (batch["status"], batch["model"], set(output)) == ("completed", EMBEDDER, {"two words", "one"})
    assert {each["response"]["body"]["object"] for each in output.values()} == {"list"}
    assert sorted(texts[0] for texts, _ in embedder.asked) == ["one", "two words"]
    assert sum(record.tokens for record in gateway.world.records) == 3, "as any caller's: counted by the embedder"
    assert [error["param"] for error in refused["errors"]["data"]] == ["body.input", "body.messages"]


async def test_a_cancelled_batch_keeps_the_answers_that_were_coming(gateway: BatchesApp) -> None:
    gateway.engine.held = asyncio.Event()
    batch_id = await gateway.start(*map(str, range(20)))
    await gateway.comes_to(batch_id, lambda _: gateway.engine.in_flight == 4)
    cancelled = await gateway.http.post(f"/v1/batches/{batch_id}/cancel")
    assert cancelled.json()["status"] == "cancelling"
    again = await gateway.http.post(f"/v1/batches/{batch_id}/cancel")
    assert (again.status_code, again.json()["cancelling_at"]) == (200, cancelled.json()["cancelling_at"])
    gateway.engine.held.set()
    batch = await gateway.ended(batch_id)
    assert batch["status"] == "cancelled"
    assert batch["cancelled_at"] >= batch["cancelling_at"]
    assert len(await gateway.lines_of(batch["output_file_id"])) == 4 == batch["request_counts"]["completed"]
    assert len(gateway.engine.asked) == 4, "no request was begun after it"
    assert batch["error_file_id"] is None


async def test_a_batch_that_has_ended_cannot_be_cancelled(gateway: BatchesApp) -> None:
    batch_id = await gateway.start("one")
    await gateway.ended(batch_id)
    answer = await gateway.http.post(f"/v1/batches/{batch_id}/cancel")
    assert (answer.status_code, error_of(answer)["code"]) == (409, "batch_final")


async def test_at_the_end_of_the_window_the_rest_is_in_the_error_file(
    gateway: BatchesApp, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = SimpleNamespace(time=time.time, monotonic=time.monotonic)
    monkeypatch.setattr("service.batches.asker.time", clock)
    gateway.engine.replies["0"] = [reply("zero")]
    gateway.engine.held = asyncio.Event()
    gateway.engine.holds = lambda question: question != "0"
    batch_id = await gateway.start(*map(str, range(10)))
    await gateway.comes_to(batch_id, lambda batch: batch["request_counts"]["completed"] == 1)
    clock.time = lambda: time.time() + 86_400
    batch = await gateway.ended(batch_id)
    assert batch["status"] == "expired"
    assert batch["expired_at"] >= batch["finalizing_at"]
    assert batch["request_counts"] == {"total": 10, "completed": 1, "failed": 9}
    assert list(await gateway.lines_of(batch["output_file_id"])) == ["0"]
    rest = await gateway.lines_of(batch["error_file_id"])
    assert set(rest) == set(map(str, range(1, 10)))
    assert {(each["response"], each["error"]["code"]) for each in rest.values()} == {(None, "batch_expired")}
    assert gateway.engine.in_flight == 0


async def test_the_input_is_kept_while_the_batch_needs_it(gateway: BatchesApp) -> None:
    gateway.engine.held = asyncio.Event()
    file_id = await gateway.upload([line("one"), line("two")])
    batch = await gateway.create(file_id)
    assert (await gateway.http.delete(f"/v1/files/{file_id}")).status_code == 200
    assert (gateway.root / file_id).exists()
    gateway.engine.held.set()
    assert (await gateway.ended(batch["id"]))["request_counts"]["completed"] == 2
    await until(lambda: not (gateway.root / file_id).exists())
    assert await gateway.database.run(lambda db: db.scalar(sa.select(sa.func.count()).select_from(file_holds))) == 0


async def test_result_files_expire_if_asked_to(gateway: BatchesApp) -> None:
    expiry = {"anchor": "created_at", "seconds": 7200}
    batch = await gateway.ended(await gateway.start("one", output_expires_after=expiry))
    file = (await gateway.http.get(f"/v1/files/{batch['output_file_id']}")).json()
    assert file["expires_at"] == file["created_at"] + 7200


async def test_results_are_stored_where_the_disk_has_no_links(
    gateway: BatchesApp, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_links(*_: object) -> None:
        raise PermissionError("the disk has none")

    monkeypatch.setattr("os.link", no_links)
    batch = await gateway.ended(await gateway.start("one"))
    assert text_of((await gateway.lines_of(batch["output_file_id"]))["one"]) == "one!"


async def test_what_happens_to_a_batch_is_in_the_audit(gateway: BatchesApp) -> None:
    batch_id = await gateway.start("one")
    await gateway.ended(batch_id)
    query = sa.select(audit.c.action, audit.c.key_id).where(audit.c.target == batch_id).order_by(audit.c.id)
    rows = await gateway.database.run(lambda db: [tuple(row) for row in db.execute(query)])
    assert rows == [("batch.create", "admin"), ("batch.end", "system")]


# who may see what


async def test_batches_of_another_project_do_not_exist(gateway: BatchesApp) -> None:
    batch_id = await gateway.start("one")
    batch = await gateway.ended(batch_id)
    stranger = await gateway.key("infer", project="other")
    for method, path in (("GET", ""), ("POST", "/cancel")):
        answer = await gateway.http.request(method, f"/v1/batches/{batch_id}{path}", headers=bearer(stranger))
        assert (answer.status_code, error_of(answer)["code"]) == (404, "batch_not_found")
    body = {"input_file_id": batch["input_file_id"], "endpoint": CHAT, "completion_window": "24h"}
    answer = await gateway.http.post("/v1/batches", json=body, headers=bearer(stranger))
    assert (answer.status_code, error_of(answer)["code"]) == (404, "file_not_found")
    assert (await gateway.http.get("/v1/batches", headers=bearer(stranger))).json()["data"] == []
    output = await gateway.http.get(f"/v1/files/{batch['output_file_id']}", headers=bearer(stranger))
    assert output.status_code == 404


async def test_a_key_with_globs_sees_its_own_batches_and_their_results(gateway: BatchesApp) -> None:
    of_others = await gateway.start("one")
    narrow = await gateway.key("infer", adapters=["voice"])
    own = await gateway.start("two", key=narrow)
    batch = await gateway.ended(own)
    assert text_of((await gateway.lines_of(batch["output_file_id"], narrow))["two"]) == "two!"
    listed = (await gateway.http.get("/v1/batches", headers=bearer(narrow))).json()["data"]
    assert [each["id"] for each in listed] == [own]
    answer = await gateway.http.get(f"/v1/batches/{of_others}", headers=bearer(narrow))
    assert answer.status_code == 404


async def test_a_key_with_filters_reaches_no_batch_and_no_batch_file_but_its_own(gateway: BatchesApp) -> None:
    mine, twin = [await gateway.key("infer", filters={"customer": name}) for name in ("c-1", "c-2")]
    batches = {key: await gateway.ended(await gateway.start("one", key=key)) for key in (None, mine, twin)}
    own = batches[mine]
    assert text_of((await gateway.lines_of(own["output_file_id"], mine))["one"]) == "one!"
    listed = (await gateway.http.get("/v1/batches", headers=bearer(mine))).json()["data"]
    assert [each["id"] for each in listed] == [own["id"]]
    assert set(await gateway.listed(mine)) == {own["input_file_id"], own["output_file_id"]}
    for theirs in (batches[None], batches[twin]):
        for method, path in (("GET", ""), ("POST", "/cancel")):
            answer = await gateway.http.request(method, f"/v1/batches/{theirs['id']}{path}", headers=bearer(mine))
            assert (answer.status_code, error_of(answer)["code"]) == (404, "batch_not_found")
        for file_id in (theirs["input_file_id"], theirs["output_file_id"]):
            for method, path in (("GET", ""), ("GET", "/content"), ("DELETE", "")):
                answer = await gateway.http.request(method, f"/v1/files/{file_id}{path}", headers=bearer(mine))
                assert (answer.status_code, error_of(answer)["code"]) == (404, "file_not_found")
        body = {"input_file_id": theirs["input_file_id"], "endpoint": CHAT, "completion_window": "24h"}
        answer = await gateway.http.post("/v1/batches", json=body, headers=bearer(mine))
        assert (answer.status_code, error_of(answer)["code"]) == (404, "file_not_found")
    answer = await gateway.http.delete(f"/v1/files/{own['output_file_id']}", headers=bearer(mine))
    assert answer.status_code == 200
    assert set(await gateway.listed()) > {batches[None]["output_file_id"], batches[twin]["output_file_id"]}


@pytest.mark.parametrize("scope", ["train", "knowledge", "adapters"])
async def test_batches_need_the_scope_infer(gateway: BatchesApp, scope: str) -> None:
    answer = await gateway.http.get("/v1/batches", headers=bearer(await gateway.key(scope)))
    assert (answer.status_code, error_of(answer)["code"]) == (403, "insufficient_scope")


async def test_the_list_has_pages(gateway: BatchesApp) -> None:
    several = [await gateway.start(str(n)) for n in range(3)]
    for batch_id in several:
        await gateway.ended(batch_id)
    first = (await gateway.http.get("/v1/batches?limit=2")).json()
    assert ([each["id"] for each in first["data"]], first["has_more"]) == (several[:0:-1], True)
    second = (await gateway.http.get("/v1/batches", params={"after": first["last_id"]})).json()
    assert ([each["id"] for each in second["data"]], second["has_more"]) == (several[:1], False)
    answer = await gateway.http.get("/v1/batches?after=batch_nobodys")
    assert (answer.status_code, error_of(answer)["param"]) == (400, "after")


# what is refused


@pytest.mark.parametrize(
    ("change", "param", "code"),
    [
        ({"endpoint": "/v1/moderations"}, "endpoint", "invalid_value"),
        ({"completion_window": "1h"}, "completion_window", "invalid_value"),
        ({"input_file_id": None}, "input_file_id", "invalid_value"),
        ({"metadata": {"a": 1}}, "metadata.a", "invalid_value"),
        ({"output_expires_after": {"anchor": "created_at", "seconds": 1}}, "output_expires_after.seconds", None),
        ({"priority": 1}, "priority", "unknown_parameter"),
    ],
)
async def test_a_request_that_is_not_allowed(
    gateway: BatchesApp, change: dict[str, Any], param: str, code: str | None
) -> None:
    file_id = await gateway.upload([line("one")])
    body = {"input_file_id": file_id, "endpoint": CHAT, "completion_window": "24h", **change}
    answer = await gateway.http.post("/v1/batches", json=body)
    error = error_of(answer)
    assert (answer.status_code, error["param"]) == (400, param)
    assert code in (None, error["code"])


async def test_a_file_for_something_else_or_too_large(gateway: BatchesApp) -> None:
    body = {"endpoint": CHAT, "completion_window": "24h"}
    wrong = await gateway.made(purpose="fine-tune")
    answer = await gateway.http.post("/v1/batches", json=body | {"input_file_id": wrong})
    assert (answer.status_code, error_of(answer)["param"]) == (400, "input_file_id")
    large = await gateway.upload([b" " * (600 * 1024) + b"\n"])
    answer = await gateway.http.post("/v1/batches", json=body | {"input_file_id": large})
    assert (answer.status_code, error_of(answer)["param"]) == (413, "input_file_id")
    assert "HATRACK_BATCH_FILE_MIB" in error_of(answer)["message"]


async def test_a_project_has_a_bounded_number_of_batches_at_once(gateway: BatchesApp) -> None:
    gateway.trouble = "it is asleep"
    several = [await gateway.start(str(n)) for n in range(3)]
    file_id = await gateway.upload([line("one")])
    body = {"input_file_id": file_id, "endpoint": CHAT, "completion_window": "24h"}
    answer = await gateway.http.post("/v1/batches", json=body)
    assert (answer.status_code, error_of(answer)["code"]) == (429, "too_many_batches")
    other = await gateway.key("infer", project="other")
    assert await gateway.start("theirs", key=other), "another project has its own"
    await gateway.http.post(f"/v1/batches/{several[0]}/cancel")
    await gateway.ended(several[0])
    assert await gateway.create(file_id)


async def test_result_lines_keep_any_text(gateway: BatchesApp) -> None:
    odd = 'line\nbreaks " \\ \u2028 \U0001f9e2'
    gateway.engine.replies["one"] = [reply(odd)]
    file_id = await gateway.upload([line("one", custom_id=odd)])
    batch = await gateway.ended(str((await gateway.create(file_id))["id"]))
    content = (await gateway.http.get(f"/v1/files/{batch['output_file_id']}/content")).content
    (text,) = content.split(b"\n")[:-1]
    result = orjson.loads(text)
    assert (result["custom_id"], text_of(result)) == (odd, odd)


async def test_a_large_answer_is_a_result_byte_for_byte_and_is_not_parsed(gateway: BatchesApp) -> None:
    """JSON has no NaN: whoever parses the log-probabilities of this answer fails."""
    _, small = cast("tuple[int, dict[str, Any]]", reply("ahoy"))
    numbers = b'{"1":{"logprob":NaN}},\n' * 10_000
    large = orjson.dumps(small)[:-1] + b',"prompt_logprobs":[null,' + numbers + b'null],"prompt_token_ids":null}'
    gateway.engine.replies["one"] = [large]
    batch = await gateway.ended(await gateway.start("one", "two"))
    assert batch["request_counts"] == {"total": 2, "completed": 2, "failed": 0}
    assert batch["usage"]["total_tokens"] == 32
    content = (await gateway.http.get(f"/v1/files/{batch['output_file_id']}/content")).content
    assert content.count(b"\n") == 2
    assert large.replace(b"\n", b" ") in content
