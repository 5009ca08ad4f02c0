"""The rungs with retrieval: what is put into the store of examples, and what the versions are served with."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, cast

import pytest

from service.grounding.config import GroundingSettings
from tests.unit.trainer.ladder.test_kind import LADDER, LadderRun, ladder
from trainer.data.format import parse_chat
from trainer.errors import GatewayRefused
from trainer.ladder import spec
from trainer.ladder.pipeline import LadderPipeline, example_lines
from trainer.ladder.preparing import filters_of_all
from trainer.ladder.spec import Rungs
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

    def push_settings(self, adapter: str, settings: dict[str, Any], _metadata: dict[str, str]) -> dict[str, Any]:
        self.pushed.append(settings)
        return {"adapter": adapter, "version": len(self.pushed)}


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
        ([{"customer": "c-1", "region": "eu"}, {"customer": "*"}], ("customer",)),
        ([{"customer": "c-1"}, {}], ()),
        ([{"b": 1, "a": True}], ("a", "b")),
        ([], ()),
    ],
)
def test_a_filter_is_demanded_that_all_can_give(filters: list[dict[str, Any]], demanded: tuple[str, ...]) -> None:
    rows = [{**ROWS[0], "filters": each} for each in filters]
    assert filters_of_all(parse_chat(lines(*rows)) if rows else ()) == demanded


def test_what_cannot_be_a_turn_is_not_put_into_the_store(ladder: LadderRun) -> None:
    stored = example_lines(parse_chat(lines(ROWS[0], CALLING)))
    assert [json.loads(line)["group"] for line in stored.splitlines()] == ["ticket-1"]
    gateway = FakeGateway(lines(CALLING))
    skipped = {each.key: each.reason for each in climbed(ladder, gateway).skipped}
    assert "without tool calls" in skipped["retrieved_examples"]
    assert not gateway.uploaded


def test_a_store_that_cannot_be_made_costs_its_rung_alone(ladder: LadderRun) -> None:
    gateway = FakeGateway(lines(*ROWS))
    gateway.failed = 1
    rungs = climbed(ladder, gateway)
    assert "could not be put into a store" in {each.key: each.reason for each in rungs.skipped}["retrieved_examples"]
    assert [rung.key for rung in rungs.rungs] == ["base", "instructions"]


def test_a_key_without_knowledge_is_told_so(ladder: LadderRun) -> None:
    class Forbidding(FakeGateway):
        def create_store(self, name: str, file_id: str) -> str:
            raise GatewayRefused(403, "missing_scope", "The API key is missing the scope `knowledge`.")

    skipped = {each.key: each.reason for each in climbed(ladder, Forbidding(lines(*ROWS))).skipped}
    assert "`knowledge`" in skipped["retrieved_examples"]
