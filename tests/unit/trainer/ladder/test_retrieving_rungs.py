"""The rungs with retrieval: what is put into the store of examples, and what the versions are served with."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest

from adapters.dataset.chat import MAX_PASSAGE_CHARS
from service.grounding.config import GroundingSettings
from service.grounding.filters import Column, check_filters, mask
from tests.unit.trainer.ladder.test_kind import LADDER, LadderRun, ladder
from trainer.data.format import parse_chat
from trainer.errors import DataInvalid, GatewayRefused
from trainer.ladder import spec
from trainer.ladder.pipeline import LadderPipeline
from trainer.ladder.preparing import filters_of_all
from trainer.ladder.spec import Rungs
from trainer.ladder.stores import any_value_of, example_lines
from trainer.runs.directory import RunDirectory
from trainer.runs.gateway import Gateway

__all__ = ["ladder"]
ROWS: tuple[dict[str, Any], ...] = tuple(
    {
        "messages": [
            {"role": "user", "content": f"Where is order {number}?"},
            {"role": "assistant", "content": f"Order {number} is at sea."},
        ],
        "group": f"ticket-{number}",
        "filters": {"customer": f"c-{number}"},
    }
    for number in (1, 2)
)
CALLING: dict[str, Any] = {
    "messages": [
        {"role": "user", "content": "Find it"},
        {
            "role": "assistant",
            "content": None,
            "tool_calls": [{"id": "c", "type": "function", "function": {"name": "find", "arguments": "{}"}}],
        },
    ],
    "tools": [{"type": "function", "function": {"name": "find", "parameters": {"type": "object", "properties": {}}}}],
}


def lines(*rows: dict[str, Any]) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


class FakeGateway:
    """Keeps what a worker uploads and pushes; stores are indexed at once."""

    def __init__(self, training: bytes) -> None:
        self.training = training
        self.uploaded: dict[str, bytes] = {}
        self.stores: dict[str, str] = {}
        self.pushed: list[dict[str, Any]] = []
        self.failed = 0
        self.documents: list[dict[str, Any]] = [{"customer": "c-1", "region": "eu"}]
        """The attributes of what the store of documents holds."""

    def fetch(self, _file: Any, path: Path) -> None:
        path.write_bytes(self.training)

    def upload_file(self, name: str, content: bytes, purpose: str) -> str:
        assert purpose == "assistants"
        self.uploaded[name] = content
        return f"file-{name}"

    def store_named(self, name: str) -> str | None:
        return self.stores.get(name)

    def create_store(self, name: str, file_id: str) -> str:
        assert file_id.removeprefix("file-") in self.uploaded
        self.stores[name] = "vs_examples"
        return "vs_examples"

    def store(self, _store: str) -> dict[str, Any]:
        return {"status": "completed", "file_counts": {"failed": self.failed}}

    def indexing_errors(self, _store: str) -> list[str]:
        return ["line 7: user and assistant must take turns"]

    def finds(self, store: str, filters: dict[str, Any]) -> bool:
        assert store == "vs_docs"
        return matches(filters, self.documents)

    def push_settings(self, adapter: str, settings: dict[str, Any], _metadata: dict[str, str]) -> dict[str, Any]:
        self.pushed.append(settings)
        return {"adapter": adapter, "version": len(self.pushed)}


def matches(filters: dict[str, Any], rows: list[dict[str, Any]]) -> bool:
    """Whether a filter of the gateway matches one of the rows."""

    def column(name: str) -> Column:
        values = [None, *(row.get(name) for row in rows)]
        return Column(values, np.array([at + 1 if name in row else 0 for at, row in enumerate(rows)], dtype=np.int32))

    return bool(mask(filters, column).any())


def climbed(ladder: LadderRun, gateway: FakeGateway, **plan: Any) -> Rungs:
    """The rungs that the second CLIMB makes; no instructions were to be chosen."""
    ladder.plan(choosing=None, **plan)
    ladder.ladders.path_of(LADDER).joinpath(spec.DATA).write_bytes(gateway.training)
    with RunDirectory(ladder.ladders.path_of(LADDER)) as directory:
        pipeline = LadderPipeline(ladder.spec, directory, cast(Gateway, gateway), lambda: None)
        assert pipeline.run(spec.CLIMB) is None
        rungs = directory.read(spec.RUNGS, Rungs)
    assert rungs is not None
    return rungs


def test_the_store_has_the_examples_as_they_are_shown_and_the_rung_shows_them_as_turns(ladder: LadderRun) -> None:
    gateway = FakeGateway(lines(*ROWS))
    rungs = climbed(ladder, gateway)
    [(name, stored)] = gateway.uploaded.items()
    assert name == f"{LADDER}-examples.jsonl"
    assert [json.loads(line) for line in stored.splitlines()] == list(ROWS)
    retrieving = next(rung for rung in rungs.rungs if rung.key == "retrieved_examples")
    grounding = {"vector_store_ids": ["vs_examples"], "max_num_results": 4, "insert_as": "turns"}
    assert retrieving.settings["grounding"] == grounding
    assert retrieving.store == "vs_examples"
    assert GroundingSettings.model_validate(grounding).insert_as == "turns"


def test_each_rung_with_retrieval_demands_the_filters_that_every_example_gives(ladder: LadderRun) -> None:
    stores = ladder.spec.context_of_request.model_copy(update={"vector_stores": ("vs_docs",)})
    ladder.spec = ladder.spec.model_copy(update={"context_of_request": stores})
    rungs = climbed(ladder, FakeGateway(lines(*ROWS)), required_filters=("customer",))
    groundings = {rung.key: rung.settings.get("grounding") for rung in rungs.rungs}
    assert groundings.pop("documents") == {
        "vector_store_ids": ["vs_docs"],
        "max_num_results": 4,
        "required_filters": ["customer"],
    }
    retrieving = groundings.pop("retrieved_examples")
    assert retrieving is not None
    assert (retrieving["required_filters"], retrieving["insert_as"]) == (["customer"], "turns")
    assert set(groundings.values()) == {None}


@pytest.mark.parametrize(
    ("filters", "demanded"),
    [
        ([{"customer": "c-1", "region": "eu"}, {"customer": "*", "region": "*"}], ("customer", "region")),
        ([{"b": 1, "a": True}], ("a", "b")),
        ([{}, {}], ()),
        ([], ()),
    ],
)
def test_a_filter_is_demanded_that_all_can_give(filters: list[dict[str, Any]], demanded: tuple[str, ...]) -> None:
    rows = [{**ROWS[0], "filters": each} for each in filters]
    assert filters_of_all(parse_chat(lines(*rows)) if rows else ()) == demanded


def test_a_line_without_a_value_that_others_give_is_refused_as_it_would_be_shown_to_everyone() -> None:
    rows = [{**ROWS[0], "filters": {"customer": f"c-{number}"}} for number in range(3)]
    rows[1]["filters"] = {}
    with pytest.raises(DataInvalid) as refused:
        filters_of_all(parse_chat(lines(*rows)))
    (problem,) = refused.value.problems
    assert problem.line == 2
    assert problem.reason.startswith('no value of `customer`, which other lines give: add "filters": {"customer": …}')


def test_what_cannot_be_a_turn_is_not_put_into_the_store(ladder: LadderRun) -> None:
    stored, too_long = example_lines(parse_chat(lines(ROWS[0], CALLING)))
    assert too_long == 0
    assert [json.loads(line)["group"] for line in stored.splitlines()] == ["ticket-1"]
    gateway = FakeGateway(lines(CALLING))
    skipped = {each.key: each.reason for each in climbed(ladder, gateway).skipped}
    assert "without tool calls" in skipped["retrieved_examples"]
    assert not gateway.uploaded


def test_an_example_that_is_too_long_for_a_store_is_left_out_and_counted(ladder: LadderRun) -> None:
    question, answer = ROWS[0]["messages"]
    frame = len("user: \nassistant: ") + len(question["content"])
    fits, too_long = (
        {"messages": [question, {**answer, "content": "x" * (MAX_PASSAGE_CHARS - frame + more)}]} for more in (0, 1)
    )
    gateway = FakeGateway(lines(ROWS[1], too_long, fits))
    rungs = climbed(ladder, gateway)
    [stored] = gateway.uploaded.values()
    assert [json.loads(line) for line in stored.splitlines()] == [ROWS[1], fits]
    assert "retrieved_examples" in {rung.key for rung in rungs.rungs}
    assert rungs.notes == ("1 example is longer than 32768 characters, and not among those that are retrieved",)


def test_documents_that_no_filter_can_find_are_no_rung(ladder: LadderRun) -> None:
    stores = ladder.spec.context_of_request.model_copy(update={"vector_stores": ("vs_docs",)})
    ladder.spec = ladder.spec.model_copy(update={"context_of_request": stores})
    gateway = FakeGateway(lines(*ROWS))
    gateway.documents = [{}, {"region": "eu"}]
    rungs = climbed(ladder, gateway, required_filters=("customer",))
    assert "documents" not in {rung.key for rung in rungs.rungs}
    assert "retrieved_examples" in {rung.key for rung in rungs.rungs}, "whose LoRA is then trained"
    reason = {each.key: each.reason for each in rungs.skipped}["documents"]
    assert reason.startswith("no document has `customer`")
    assert "hatrack kb add STORE FILE --attribute customer=…" in reason


@pytest.mark.parametrize("value", ["", "*", "c-1", 0, -1.5e300, 7, True, False])
def test_every_value_of_an_attribute_is_found_and_its_absence_is_not(value: Any) -> None:
    filters = check_filters(any_value_of(("customer", "region")))
    assert matches(filters, [{"customer": value, "region": value}])
    assert not matches(filters, [{"customer": value}, {"region": value}, {}])


def test_a_store_that_cannot_be_made_costs_its_rung_alone(ladder: LadderRun) -> None:
    gateway = FakeGateway(lines(*ROWS))
    gateway.failed = 1
    rungs = climbed(ladder, gateway)
    assert {each.key: each.reason for each in rungs.skipped}["retrieved_examples"] == (
        "the examples could not be put into a store: their file could not be indexed: line 7: user and assistant must "
        "take turns"
    )
    assert [rung.key for rung in rungs.rungs] == ["base", "instructions"]


def test_the_rung_of_fixed_examples_is_skipped_with_the_reason_that_the_data_gives(ladder: LadderRun) -> None:
    rungs = climbed(ladder, FakeGateway(lines(*ROWS)), why_no_examples="no example is everyone's")
    assert {each.key: each.reason for each in rungs.skipped} == {"examples": "no example is everyone's"}


def test_a_key_without_knowledge_is_told_so(ladder: LadderRun) -> None:
    class Forbidding(FakeGateway):
        def create_store(self, name: str, file_id: str) -> str:
            raise GatewayRefused(403, "missing_scope", "The API key is missing the scope `knowledge`.")

    skipped = {each.key: each.reason for each in climbed(ladder, Forbidding(lines(*ROWS))).skipped}
    assert "`knowledge`" in skipped["retrieved_examples"]
