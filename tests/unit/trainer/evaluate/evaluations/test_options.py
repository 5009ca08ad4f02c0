"""What is looked up before an evaluation is made, of what needs the operator's settings or the gateway's context."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from adapters.protocol.runs import EvaluationContext, FileRef
from trainer.config import Settings
from trainer.errors import InvalidField
from trainer.evaluate.evaluations.options import check_options
from trainer.evaluate.evaluations.schemas import read_request

TOML = '[endpoints.big]\nurl = "https://models.example/v1"\n'
OURS = {"label": "ours", "model": "voice@3"}
BASE = {"label": "base", "model": "tiny"}
BIG = {"label": "big", "model": "large", "endpoint": "big"}


def file(digest: str) -> FileRef:
    return FileRef(id="file-1", filename="f.jsonl", bytes=9, sha256=digest)


def check(tmp_path: Path, arms: list[dict[str, Any]], context: dict[str, Any] | None = None, **more: Any) -> None:
    (tmp_path / "endpoints.toml").write_text(TOML)
    body = read_request({"held_out": "file-1", "arms": arms} | more)
    told = {"held_out": file("1"), "candidate": "voice@3", "records": True} | (context or {})
    check_options(body, EvaluationContext(**told), Settings(endpoints=tmp_path / "endpoints.toml"))


def test_suites_are_put_to_the_gateway_s_own_alone(tmp_path: Path) -> None:
    elsewhere = {"candidate": "big", "bases": ["base"]}
    with pytest.raises(InvalidField, match="`candidate` is at the endpoint 'big'") as refused:
        check(tmp_path, [BIG, BASE], {"candidate": None}, **elsewhere)
    assert refused.value.param == "candidate"
    check(tmp_path, [BIG, BASE], {"candidate": None}, **elsewhere, suites=[])
    against = {"candidate": "ours", "bases": ["big"]}
    with pytest.raises(InvalidField, match="`bases` are all at outside endpoints") as refused:
        check(tmp_path, [OURS, BIG], {"records": False}, **against)
    assert refused.value.param == "bases"
    check(tmp_path, [OURS, BIG], **against)  # the base at its best is put beside it
    check(tmp_path, [OURS, BIG, BASE], {"records": False}, candidate="ours", bases=["big", "base"])


def test_the_file_that_the_candidate_was_trained_on_is_no_held_out(tmp_path: Path) -> None:
    taught = {"training_files": [file("1")]}
    with pytest.raises(InvalidField, match="`held_out` is the file that voice@3 was trained on") as refused:
        check(tmp_path, [OURS, BASE], taught, candidate="ours", bases=["base"])
    assert (refused.value.param, refused.value.shown_code) == ("held_out", "held_out_in_training")
    check(tmp_path, [OURS, BASE], {"training_files": [file("2")]}, candidate="ours", bases=["base"])
    check(tmp_path, [OURS, BASE], taught | {"candidate": None})  # a comparison is no verdict


@pytest.mark.parametrize(
    "metric",
    [
        {"name": "regex", "pattern": "(?:(?:a{999}){999}){999}"},
        {"name": "regex", "pattern": "[a-{reference}]"},
        {"name": "json_exact", "schema": {"$schema": {}}},
        {"name": "json_exact", "schema": {"$schema": "http://[::1"}},
        {"name": "json_exact", "schema": {"$ref": "#"}},
    ],
)
def test_a_metric_that_could_not_be_applied_is_the_request_s_fault(tmp_path: Path, metric: dict[str, Any]) -> None:
    with pytest.raises(InvalidField) as refused:
        check(tmp_path, [OURS, BASE], candidate="ours", bases=["base"], metric=metric)
    assert (refused.value.param, refused.value.status) == ("metric", 400)
