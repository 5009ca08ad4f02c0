"""The public contract is what was accepted: nothing that a client could notice changes unseen."""

from __future__ import annotations

from pathlib import Path
from typing import cast

import pytest

from tests.contract.answers import Recorder, shape_of
from tests.contract.gateway import ContractGateway
from tests.contract.snapshot import HERE, difference, from_code, from_gateway


@pytest.mark.parametrize("name", ["commands", "errors", "inference_fields", "metrics", "settings"])
def test_what_stands_in_the_code_is_what_was_accepted(name: str) -> None:
    assert not (found := difference(name, from_code()[name])), found


async def test_what_the_gateway_answers_is_what_was_accepted(tmp_path: Path) -> None:
    scratch = tmp_path / "a path that leaves no room for the path of a Unix socket, which has 107 bytes"
    scratch.mkdir()
    documents = await from_gateway(scratch)
    found = "\n".join(difference(name, document) for name, document in documents.items())
    assert not found.strip(), found
    everything = {*documents, *from_code()}
    assert {path.stem for path in HERE.glob("*.json")} == everything, "a file that nothing writes any more"


async def test_no_two_requests_have_one_name() -> None:
    recorder = Recorder(cast(ContractGateway, None), {"health": {}})
    with pytest.raises(ValueError, match="'health'"):
        await recorder.send("health", "GET", "/healthz")


def test_a_change_is_shown_with_the_command_that_accepts_it() -> None:
    changed = from_code()["metrics"]
    changed["hatrack_wishes_total"] = changed.pop("hatrack_requests_total")
    found = difference("metrics", changed)
    assert '- "hatrack_requests_total"' in found
    assert '+ "hatrack_wishes_total"' in found
    assert "python -m tests.contract.snapshot --write" in found


def test_a_shape_has_keys_and_types_and_no_values() -> None:
    entries = [{"a": 1, "b": None}, {"a": 2.5, "c": [True]}]
    assert shape_of({"data": entries, "object": "list"}) == {
        "data": [{"a": "number", "b": "null", "c": ["boolean"]}],
        "object": "string",
    }
    assert shape_of([None, "x"]) == ["null|string"]
