"""A batch whose requests need passages: it waits for what finds them, and is fenced as its key is."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import orjson
import pytest

from service.batches.asking import Answer, GroundingPatience, retry_of
from service.grounding.provider import Passage, Query
from tests.unit.service.batches.batches_app import BatchesApp, line, text_of
from tests.unit.service.grounding.fakes import hook
from tests.unit.service.grounding.test_required_filters import EQ, MINE, OTHER, POLICY, shop

PASSAGE = Passage(id="p1", text="Orders sail on Tuesdays.", score=0.9, source="faq.md", store_id="vs_a")


class Starting:
    """Finds a passage once it has failed ``failures`` times, as a provider whose embedder starts."""

    def __init__(self, failures: int) -> None:
        self.failures = failures

    async def retrieve(self, query: Query, deadline: float) -> Sequence[Passage]:
        if self.failures:
            self.failures -= 1
            raise ConnectionError("it is starting")
        return [PASSAGE]


def grounded(on_failure: str) -> dict[str, Any]:
    return line("when", grounding={"vector_store_ids": ["vs_a"], "on_failure": on_failure})


async def answered(home: Path, provider: Starting, on_failure: str) -> tuple[dict[str, Any], dict[str, Any], int]:
    """A batch of one grounded request once it has ended, its result, and how often it was sent to the engine."""
    gateway = BatchesApp(home, hook=hook(provider))
    async with gateway.run():
        made = await gateway.create(await gateway.upload([grounded(on_failure)]))
        batch = await gateway.ended(made["id"])
        (result,) = (await gateway.lines_of(batch["output_file_id"] or batch["error_file_id"])).values()
    return batch, result, len(gateway.engine.asked)


async def test_a_batch_is_fenced_as_its_key_is(tmp_path: Path) -> None:
    stores = {"vector_store_ids": ["vs_a"]}
    gateway = BatchesApp(tmp_path, hook=hook(shop()))
    async with gateway.run():
        mine = await gateway.key("infer", filters={"customer": "c-1"})
        made = await gateway.create(await gateway.upload([line("when", grounding=stores)], key=mine), key=mine)
        batch = await gateway.ended(made["id"])
        (result,) = (await gateway.lines_of(batch["output_file_id"], mine)).values()
        assert [each["id"] for each in result["response"]["body"]["citations"]] == [MINE.id, POLICY.id]
        for filters, code in ((OTHER, "filter_not_allowed"), ({**EQ, "value": "*"}, "filter_not_allowed")):
            asking = line("when", grounding={**stores, "filters": filters})
            made = await gateway.create(await gateway.upload([asking], key=mine), key=mine)
            refused = await gateway.ended(made["id"])
            assert (refused["status"], [each["code"] for each in refused["errors"]["data"]]) == ("failed", [code])
        demanded = line("when", grounding={**stores, "required_filters": ["customer"]})
        refused = await gateway.ended((await gateway.create(await gateway.upload([demanded])))["id"])
        assert [each["code"] for each in refused["errors"]["data"]] == ["required_filter_missing"]
    assert len(gateway.engine.asked) == 1


def refusal(code: str, message: str, headers: dict[str, str]) -> Answer:
    return Answer(503, orjson.dumps({"error": {"code": code, "message": message}}), headers)


@pytest.fixture
def short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("service.batches.asking.GROUNDING_STEP_S", 0.01)
    monkeypatch.setattr("service.batches.asking.GROUNDING_WAIT_S", 1.0)


@pytest.mark.usefixtures("short_waits")
@pytest.mark.parametrize("on_failure", ["fail_open", "fail_closed"])
async def test_no_request_is_answered_without_its_passages_while_the_embedder_starts(
    tmp_path: Path, on_failure: str
) -> None:
    batch, result, _ = await answered(tmp_path, Starting(4), on_failure)
    assert batch["request_counts"] == {"total": 1, "completed": 1, "failed": 0}
    assert [each["text"] for each in result["response"]["body"]["citations"]] == [PASSAGE.text]


@pytest.mark.usefixtures("short_waits")
async def test_what_never_finds_a_passage_is_not_waited_for_without_end(tmp_path: Path) -> None:
    batch, result, asked = await answered(tmp_path / "open", Starting(10_000), "fail_open")
    assert (batch["request_counts"]["completed"], result["response"]["body"]["citations"]) == (1, [])
    assert text_of(result), "the answer without passages is kept"
    assert asked > 1
    batch, result, asked = await answered(tmp_path / "closed", Starting(10_000), "fail_closed")
    assert (batch["status"], batch["request_counts"]["failed"], asked) == ("completed", 1, 0)
    assert result["response"]["body"]["error"]["code"] == "grounding_unavailable"


def test_the_waits_of_a_batch_are_bounded_together(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr("service.batches.asking.time", SimpleNamespace(monotonic=lambda: now[0]))
    patience, waits = GroundingPatience(), []
    starting = refusal("embedder_unavailable", "it is starting", {})
    late = Answer(200, b"{}", {"x-hatrack-grounding": "late"})
    while (retry := retry_of(late if len(waits) % 2 else starting, 1, patience)) is not None:
        assert retry.whole_batch
        together = retry_of(late, 1, patience)
        assert together is not None
        assert together.after_s == retry.after_s, "what was asked at the same time waits no longer"
        waits.append(retry.after_s)
        now[0] += retry.after_s
    assert (waits[:5], sum(waits)) == ([5, 10, 20, 40, 60], 600)
    assert retry_of(Answer(200, b"{}", {"x-hatrack-grounding": "empty"}), 1, GroundingPatience()) is None


def test_an_object_store_that_does_not_answer_is_waited_for() -> None:
    away = refusal("store_unavailable", "try again", {"retry-after": "5"})
    retry = retry_of(away, 9, GroundingPatience())
    assert retry is not None
    assert (retry.after_s, retry.whole_batch, retry.code) == (5, True, "store_unavailable")
