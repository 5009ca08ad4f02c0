"""`hatrack ls` and `hatrack show`: what a person asks first, and what scripts rely on."""

from __future__ import annotations

import json

from tests.unit.service.cli.conftest import Hatrack
from tests.unit.service.wire import Gateway


def test_ls_is_a_table_or_json(hatrack: Hatrack, gateway: Gateway) -> None:
    assert "No adapters yet" in hatrack("ls").stdout
    assert json.loads(hatrack("ls", "--json").stdout) == []
    gateway.add("a" * 64)
    gateway.add("a" * 64, "canary")
    result = hatrack("ls")
    header, row = result.stdout.splitlines()
    assert header.split() == ["ADAPTER", "VERDICT", "ALIASES", "VERSIONS", "JUDGED", "PINNED", "CREATED"]
    assert row.split() == ["a" * 64, "-", "canary→2", "live→1", "2", "-", "-", "2026-01-01", "00:00Z"]
    assert json.loads(hatrack("ls", "--json").stdout)[0]["aliases"] == {"live": 1, "canary": 2}


def test_show_an_adapter_a_version_and_an_alias(hatrack: Hatrack, gateway: Gateway) -> None:
    gateway.add("voice")
    more = {"system_prompt": "Be \x1b[31mkind"}
    gateway.add("voice", "canary", settings=more, proof={"effect": 0.5, "base": [0.1, 0.2]}, warnings=["weak"])
    lines = hatrack("show", "voice").stdout.splitlines()
    assert lines[0] == "voice   canary→2 live→1"
    assert lines[2].split()[:8] == ["@1", "-", "ready", "live", "-", "2.0", "KiB,", "rank"]
    shown = hatrack("show", "voice@2").stdout
    assert "system prompt  Be [31mkind" in shown  # an escape from the wire does not reach the terminal
    assert "none; `hatrack evaluate voice@2 --held-out FILE` judges it" in shown
    assert "2.0 KiB, rank 8, alpha 16, of q_proj" in shown
    assert "weak" in shown
    assert hatrack("show", "voice:canary").stdout == shown
    everything = hatrack("show", "voice@2", "--full").stdout
    assert "settings.system_prompt  Be [31mkind" in everything
    assert "proof.effect" in everything
    assert "2 values (see --json --full)" in everything
    missing = hatrack("show", "voice:gone")
    assert (missing.exit_code, missing.stderr) == (1, "hatrack: voice has no alias gone. [not_found]\n")
    assert hatrack("show", "nobody").exit_code == 1


def test_show_json_has_what_scripts_need_and_full_has_all(hatrack: Hatrack, gateway: Gateway) -> None:
    verdict = {"verdict": "pass", "sentence": "Better.", "metric": "f1", "base": {"weights": "1"}, "created_at": 5}
    gateway.add("voice", verdict=verdict, metadata={"lineage": {"job": "ftjob-1"}}, proof={"base": [0.1] * 64})
    slim = json.loads(hatrack("show", "voice:live", "--json").stdout)
    assert (slim["version"], slim["verdict"]["verdict"], slim["verdict"]["sentence"]) == (1, "pass", "Better.")
    assert (slim["job"], slim["servable"], slim["aliases"]) == ("ftjob-1", "ok", ["live"])
    assert not {"proof", "metadata", "base"} & (slim.keys() | slim["verdict"].keys())
    assert json.loads(hatrack("show", "voice", "--json").stdout)["versions"][0]["job"] == "ftjob-1"
    everything = json.loads(hatrack("show", "voice@1", "--json", "--full").stdout)
    assert everything["proof"]["base"] == [0.1] * 64
    assert everything["metadata"] == {"lineage": {"job": "ftjob-1"}}


def test_ls_has_the_verdict_on_what_is_live_first(hatrack: Hatrack, gateway: Gateway) -> None:
    gateway.add("voice", verdict={"verdict": "not_enough_evidence"})
    gateway.add("voice", verdict={"verdict": "pass"})
    assert hatrack("ls").stdout.splitlines()[1].split()[:5] == ["voice", "not", "enough", "evidence", "live→1"]
    hatrack("promote", "voice@2")
    assert hatrack("ls").stdout.splitlines()[1].split()[:3] == ["voice", "pass", "live→2"]


def test_what_is_held_back_is_shown_and_takes_force(hatrack: Hatrack, gateway: Gateway) -> None:
    reason = {"code": "perplexity_too_high", "message": "35 times", "ratio": 35.0, "limit": 10.0}
    gateway.add("voice")
    gateway.add("voice", held_back=reason)
    assert hatrack("show", "voice").stdout.splitlines()[3].split()[:4] == ["@2", "-", "held", "back"]
    assert "35 times; `hatrack promote voice@2 --force` makes it live" in hatrack("show", "voice@2").stdout
    refused = hatrack("promote", "voice@2")
    assert (refused.exit_code, refused.stderr) == (1, "hatrack: It is held back. [version_held_back]\n")
    assert hatrack("split", "voice", "1=9", "2=1").exit_code == 1
    assert hatrack("promote", "voice@2", "--force").stdout == "voice:live now points to voice@2\n"
    assert hatrack("split", "voice", "1=9", "2=1", "--force").exit_code == 0
