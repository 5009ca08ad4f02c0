"""A document of examples: training data in any of its formats, a passage an example."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import orjson
import pytest

from service.knowledge.documents.blocks import Block
from service.knowledge.documents.chunks import split
from service.knowledge.text import PassageText
from tests.unit.service.knowledge.documents.test_kinds import blocks_of, refused

HI = {"role": "user", "content": "Where is my parcel?"}
AYE = {"role": "assistant", "content": "Aye, at sea."}


def lines(*rows: dict[str, Any]) -> bytes:
    return b"".join(orjson.dumps(row) + b"\n" for row in rows)


def passages(blocks: list[Block], size: int = 4) -> list[PassageText]:
    """As an embedding model cuts whose tokens are characters."""
    return list(split(blocks, lambda text: [(at, at + 1) for at in range(len(text))], size=size, overlap=0))


@pytest.mark.parametrize(
    "row",
    [
        {"messages": [HI, AYE]},
        {"messages": [{"role": "system", "content": "Be salty."}, HI, AYE]},
        {"prompt": HI["content"], "completion": AYE["content"]},
        {"instruction": HI["content"], "output": AYE["content"]},
        {"conversations": [{"from": "human", "value": HI["content"]}, {"from": "gpt", "value": AYE["content"]}]},
        {"input": {"messages": [HI]}, "preferred_output": [AYE], "non_preferred_output": [{**AYE, "content": "No."}]},
    ],
)
def test_training_data_is_a_document_of_examples(tmp_path: Path, row: dict[str, Any]) -> None:
    [block] = blocks_of(tmp_path, "shop.jsonl", lines(row))
    assert block.turns == [HI, AYE]
    assert block.text == "user: Where is my parcel?\nassistant: Aye, at sea."
    assert (block.kind, block.attributes) == ("row", None)


def test_of_a_conversation_what_follows_the_answer_that_counts_is_left_out(tmp_path: Path) -> None:
    later = [{"role": "user", "content": "Thanks"}, {**AYE, "content": "Bye", "weight": 0}]
    [block] = blocks_of(tmp_path, "shop.jsonl", lines({"messages": [HI, AYE, *later]}))
    assert block.turns == [HI, AYE]


def test_filters_group_and_metadata_are_its_attributes(tmp_path: Path) -> None:
    row = {"messages": [HI, AYE], "filters": {"customer": "c-1"}, "group": 7, "metadata": {"mood": "calm"}}
    [block, plain] = blocks_of(tmp_path, "shop.jsonl", lines(row, {"messages": [HI, AYE]}))
    assert block.attributes == {"mood": "calm", "customer": "c-1", "group": "7"}
    assert plain.attributes is None


def test_filters_cannot_be_widened_by_metadata(tmp_path: Path) -> None:
    row = {"messages": [HI, AYE], "filters": {"customer": "c-1"}, "metadata": {"customer": "*"}}
    assert blocks_of(tmp_path, "shop.jsonl", lines(row))[0].attributes == {"customer": "c-1"}


@pytest.mark.parametrize(
    ("row", "why"),
    [
        ({"messages": [HI]}, "line 2: the last message has role user; it must be assistant"),
        ({"messages": [HI, HI, AYE]}, "line 2: in an example, user and assistant must take turns, and call no tools"),
        ({"prompt": "a", "completion": "b"}, "line 2: the key `messages` is missing, but the lines before have it"),
        ({"messages": [HI, AYE], "metadata": []}, "line 2: `metadata` must be an object of at most 16 keys"),
        ({"messages": [HI, {**AYE, "content": "x" * 33_000}]}, "line 2: an example may have 32768 characters"),
        ({"text": "a passage"}, "line 2: the key `messages` is missing, but the lines before have it"),
    ],
)
def test_a_line_that_is_no_example_is_named(tmp_path: Path, row: dict[str, Any], why: str) -> None:
    error = refused(tmp_path, "shop.jsonl", lines({"messages": [HI, AYE]}, row))
    assert error.code == "invalid_file"
    assert error.message.startswith(why)


def test_an_example_with_tool_calls_is_refused(tmp_path: Path) -> None:
    call = {"id": "c", "type": "function", "function": {"name": "find", "arguments": "{}"}}
    calling = {"role": "assistant", "content": None, "tool_calls": [call]}
    result = {"role": "tool", "tool_call_id": "c", "content": "{}"}
    tools = [{"type": "function", "function": {"name": "find", "parameters": {"type": "object", "properties": {}}}}]
    row = {"messages": [HI, calling, result, AYE], "tools": tools}
    assert "call no tools" in refused(tmp_path, "shop.jsonl", lines(row)).message


def test_a_line_with_text_is_a_passage_whatever_else_it_has(tmp_path: Path) -> None:
    [block] = blocks_of(tmp_path, "shop.jsonl", lines({"text": "Boots.", "prompt": "a", "completion": "b"}))
    assert (block.text, block.turns) == ("Boots.", None)


def test_an_example_is_never_cut_and_its_question_is_what_is_searched(tmp_path: Path) -> None:
    text = lines({"messages": [HI, AYE]}, {"messages": [HI, AYE, {**HI, "content": "When?"}, AYE]})
    found = passages(blocks_of(tmp_path, "shop.jsonl", text))
    assert [passage.number for passage in found] == [0, 1]
    assert [passage.searched for passage in found] == ["Where is my parcel?", "When?"]
    assert [passage.turns for passage in found] == [[HI, AYE], [HI, AYE, {**HI, "content": "When?"}, AYE]]
