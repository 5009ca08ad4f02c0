"""The `hatrack` command against a gateway in a thread."""

from __future__ import annotations

import json
import re
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from service.access.authentication import key_in
from service.cli import terminal
from service.client.types.adapters import AdapterVersion
from service.errors import Unauthenticated
from tests.unit.service.cli.conftest import Hatrack, at_terminal
from tests.unit.service.wire import Gateway

COMMANDS = (
    *("up", "serve", "engine", "down", "status", "push", "ls", "show", "promote", "rollback", "rm", "chat", "usage"),
    *("split", "pin", "unpin", "revalidate", "train", "jobs", "job", "lineage", "version"),
    *("login", "logout", "profiles", "apply", "doctor"),
)


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    root = tmp_path / "adapter"
    root.mkdir()
    (root / "adapter_config.json").write_bytes(b"{}")
    (root / "adapter_model.safetensors").write_bytes(b"w" * 3000)
    (root / "settings.json").write_text('{"system_prompt": "file", "sampling": {"temperature": 0.2}}')
    return root


def test_push_says_what_became_of_it(hatrack: Hatrack, directory: Path) -> None:
    result = hatrack("push", "brand-voice", str(directory))
    assert result.exit_code == 0
    assert result.stdout == "brand-voice@1 is ready (rank 8, 2.9 KiB, alias live)\n"
    assert result.stderr == "warning: The config names another base.\n"


def test_push_of_a_corrupt_version_does_not_call_it_ready(
    hatrack: Hatrack, gateway: Gateway, directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With --no-wait such a version is answered as it is, while it is being proven again."""
    add = gateway.add
    monkeypatch.setattr(
        gateway, "add", lambda *given, **more: add(*given, **more | {"state": "ready", "servable": "corrupt"})
    )
    result = hatrack("push", "voice", str(directory), "--no-wait")
    assert result.stdout == (
        "voice@1 is corrupt, and is being proven again (rank 8, 2.9 KiB, alias live)\n"
        "To follow the proof, run `hatrack show voice@1`.\n"
    )


def test_push_json_is_the_version(hatrack: Hatrack, gateway: Gateway, directory: Path, tmp_path: Path) -> None:
    (tmp_path / "m.json").write_text('{"run": 7}')
    result = hatrack(
        "push", "a", str(directory), "--no-alias", "--no-wait", "--system-prompt", "given", "--json",
        "--metadata", str(tmp_path / "m.json"),
    )  # fmt: skip
    assert result.exit_code == 0
    version = json.loads(result.stdout)
    assert (version["version"], version["state"], version["aliases"]) == (1, "proving", [])
    assert json.loads(gateway.parts["settings"]) == {"system_prompt": "given", "sampling": {"temperature": 0.2}}
    assert json.loads(gateway.parts["metadata"]) == {"run": 7}


def test_push_settings_file_takes_the_place_of_the_directorys(
    hatrack: Hatrack, gateway: Gateway, directory: Path, tmp_path: Path
) -> None:
    (tmp_path / "s.json").write_text('{"sampling": {"top_p": 0.5}}')
    result = hatrack("push", "a", str(directory), "--settings", str(tmp_path / "s.json"), "--alias", "canary")
    assert "alias canary" in result.stdout
    assert json.loads(gateway.parts["settings"]) == {"sampling": {"top_p": 0.5}}


FEW = '{"prompt": "Do you ship abroad?", "completion": "Aye."}\n{"prompt": "By card?", "completion": "Any card."}\n'


def test_push_without_a_directory_is_a_version_without_weights(
    hatrack: Hatrack, gateway: Gateway, tmp_path: Path
) -> None:
    (tmp_path / "prompt.txt").write_text("You are the shop.\n")
    (tmp_path / "few.jsonl").write_text(FEW)
    result = hatrack(
        "push", "support", "--system-prompt", str(tmp_path / "prompt.txt"),
        "--examples", str(tmp_path / "few.jsonl"), "--temperature", "0.2",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    assert result.stdout == "support@1 is ready (no weights, a prompt of 78 tokens, alias live)\n"
    assert gateway.version("support", 1)["settings"] == {
        "system_prompt": "You are the shop.",
        "examples": [
            {"user": "Do you ship abroad?", "assistant": "Aye."},
            {"user": "By card?", "assistant": "Any card."},
        ],
        "sampling": {"temperature": 0.2},
    }
    row = hatrack("show", "support").stdout.splitlines()[-1]
    assert "no weights" in row
    shown = hatrack("show", "support@1").stdout
    assert "rank" not in shown
    assert "system prompt  You are the shop." in shown
    assert "2 before every conversation" in shown
    assert "no weights: the base answers" in shown
    assert "its prompt has 78 of 2048 tokens" in shown


def test_push_demands_filters_beside_the_grounding_of_the_settings(
    hatrack: Hatrack, gateway: Gateway, tmp_path: Path
) -> None:
    (tmp_path / "s.json").write_text('{"grounding": {"vector_store_ids": ["vs_1"], "max_num_results": 2}}')
    options = ("--required-filter", "customer", "--required-filter", "region", "--kb-as", "turns")
    result = hatrack("push", "support", "--settings", str(tmp_path / "s.json"), *options)
    assert result.exit_code == 0, result.output
    assert gateway.version("support", 1)["settings"]["grounding"] == {
        "vector_store_ids": ["vs_1"],
        "max_num_results": 2,
        "insert_as": "turns",
        "required_filters": ["customer", "region"],
    }


@pytest.mark.parametrize(
    ("arguments", "exit_code", "reason"),
    [
        ((), 1, "nothing_to_push"),
        (("--system-prompt", "promt.txt"), 2, "there is no file promt.txt"),
        (("--system-prompt", "prompts/support"), 2, "there is no file prompts/support"),
        (
            ("--examples", "two.jsonl"),
            1,
            "line 1: must be one question and its answer; got user, assistant",
        ),
        (("--examples", "system.jsonl"), 1, "line 1: a system message belongs in the version's system prompt"),
        (("--examples", "broken.jsonl"), 1, "line 2: "),
        (("--examples", "empty.jsonl"), 1, "it has no examples"),
    ],
)
def test_push_says_what_is_wrong_with_settings_before_anything_is_sent(
    hatrack: Hatrack,
    gateway: Gateway,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    arguments: tuple[str, ...],
    exit_code: int,
    reason: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    turns = [{"role": role, "content": "Hi"} for role in ("user", "assistant")]
    system = {"role": "system", "content": "Be kind."}
    (tmp_path / "two.jsonl").write_text(json.dumps({"messages": turns * 2}))
    (tmp_path / "system.jsonl").write_text(json.dumps({"messages": [system, *turns]}))
    (tmp_path / "broken.jsonl").write_text(json.dumps({"messages": turns}) + "\n{\n")
    (tmp_path / "empty.jsonl").write_text("")
    result = hatrack("push", "support", *arguments)
    assert result.exit_code == exit_code, result.output
    assert reason in " ".join(result.stderr.split())
    assert gateway.versions == {}


def test_a_refusal_leaves_with_1_and_its_reason(hatrack: Hatrack, directory: Path) -> None:
    (directory / "adapter_model.safetensors").write_bytes(b"nan")
    result = hatrack("push", "a", str(directory))
    assert result.exit_code == 1
    assert result.stdout == ""
    assert result.stderr == "hatrack: A weight is not a number. [weights_not_finite]\n"
    result = hatrack("push", "a", str(directory), "--json")
    assert result.exit_code == 1
    assert json.loads(result.stderr)["error"] == {
        "message": "A weight is not a number.",
        "code": "weights_not_finite",
        "param": "weights",
        "status": 422,
    }


def test_alias_rm(hatrack: Hatrack, gateway: Gateway) -> None:
    gateway.add("voice")
    gateway.add("voice", "canary")
    assert hatrack("alias", "rm", "voice:canary").stdout == "Deleted the alias voice:canary.\n"
    assert gateway.adapter("voice")["aliases"] == {"live": 1}
    assert hatrack("alias", "rm", "voice:canary").exit_code == 1
    assert hatrack("alias", "rm", "voice@2").exit_code == 2
    code, out = at_terminal(gateway, "alias", "rm", "voice:live", typed=b"n\n")
    assert code == 1
    assert b"Requests for it will fail" in out
    assert gateway.adapter("voice")["aliases"] == {"live": 1}


def test_promote_and_roll_back(hatrack: Hatrack, gateway: Gateway) -> None:
    gateway.add("voice")
    gateway.add("voice")
    assert hatrack("promote", "voice@2").stdout == "voice:live now points to voice@2\n"
    assert hatrack("promote", "voice@1", "--alias", "canary").stdout == "voice:canary now points to voice@1\n"
    assert gateway.adapter("voice")["aliases"] == {"live": 2, "canary": 1}
    assert json.loads(hatrack("rollback", "voice", "--json").stdout)["version"] == 1
    again = hatrack("rollback", "voice")
    assert again.exit_code == 1
    assert "nothing_to_roll_back" in again.stderr


def test_a_second_store_of_a_name_is_refused(hatrack: Hatrack, gateway: Gateway) -> None:
    assert "vs_1 is policies" in hatrack("kb", "create", "policies").stdout
    again = hatrack("kb", "create", "policies")
    assert again.exit_code == 1
    assert "There is already a store named policies (vs_1)" in again.stderr
    assert "[vector_store_exists]" in again.stderr
    assert [store["name"] for store in gateway.stores] == ["policies"]


def test_a_store_that_was_probably_meant_is_named(hatrack: Hatrack) -> None:
    hatrack("kb", "create", "policies")
    assert "There is no vector store named policis. Did you mean `policies`?" in hatrack("kb", "list", "policis").stderr
    assert hatrack("kb", "list", "orders").stderr.startswith("hatrack: There is no vector store named orders. [")


def test_rm_in_a_script_does_not_ask(hatrack: Hatrack, gateway: Gateway) -> None:
    gateway.add("voice")
    gateway.add("voice")
    assert hatrack("rm", "voice@2").stdout == "Deleted voice@2.\n"
    assert hatrack("rm", "voice").exit_code == 1
    assert json.loads(hatrack("rm", "voice", "--force", "--json").stdout) == {"deleted": "voice"}
    assert gateway.versions == {}


@pytest.mark.parametrize(
    "arguments",
    [
        ("push", "Brand Voice", "."),
        ("push", "voice", ".", "--alias", "live", "--no-alias"),
        ("push", "voice", ".", "--alias", ""),
        ("push", "voice", ".", "--settings", "no-such-file.json"),
        ("show", "voice@0"),
        ("promote", "voice"),
        ("promote", "voice:canary"),
        ("rollback", "voice@3"),
        ("rm", "voice:live"),
        ("chat", "voice"),
        ("chat", "voice", "hi", "--max-tokens", "0"),
        ("ls", "--nonsense"),
        ("nonsense",),
    ],
)
def test_wrong_usage_leaves_with_2_and_sends_nothing(
    hatrack: Hatrack, gateway: Gateway, arguments: tuple[str, ...]
) -> None:
    result = hatrack(*arguments)
    assert result.exit_code == 2
    assert "Error" in result.stderr
    assert gateway.requests == []


@pytest.mark.parametrize("arguments", [("ls",), ("status",), ("rm", "voice"), ("chat", "voice", "hi")])
def test_nobody_there_leaves_with_3(hatrack: Hatrack, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str]) -> None:
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        monkeypatch.setenv("HATRACK_URL", f"http://127.0.0.1:{held.getsockname()[1]}")
        result = hatrack(*arguments)
    assert result.exit_code == 3
    assert "hatrack up" in result.stderr
    assert "Traceback" not in result.output


def test_status_tells_ready_from_not_ready(hatrack: Hatrack, gateway: Gateway) -> None:
    gateway.add("voice")
    result = hatrack("status")
    assert result.exit_code == 0
    assert "tiny-base" in result.stdout
    assert "live→1" in result.stdout
    assert "trainer" not in result.stdout, "a gateway that says nothing of one"
    engine = {"state": "starting", "reason": "loading weights"}
    gateway.readiness = (503, {"status": "starting", "engine": engine, "trainer": {"state": "down"}})
    result = hatrack("status")
    assert result.exit_code == 1
    assert "starting  (loading weights)" in result.stdout
    assert "down  (it has stopped answering; jobs wait, requests go on)" in result.stdout
    shown = json.loads(hatrack("status", "--json").stdout)
    assert (shown["ready"], shown["readiness"]["engine"]["state"]) == (False, "starting")


def test_status_without_a_key_still_shows_readiness(
    hatrack: Hatrack, gateway: Gateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HATRACK_KEY", "hk-wrong")
    result = hatrack("status")
    assert result.exit_code == 1
    assert f"{gateway.url}  ready" in result.stdout
    assert "[invalid_api_key]" in result.stderr
    assert "HATRACK_KEY" in result.stderr


def test_chat_gives_the_values_of_filters(hatrack: Hatrack, gateway: Gateway) -> None:
    gateway.add("voice")
    gateway.say("Good day")
    result = hatrack("chat", "voice", "hi", "--filter", "customer=c-1", "--filter", "n=7", "--filter", 'm="7"')
    assert result.exit_code == 0, result.output
    conditions = json.loads(gateway.requests[-1][3])["grounding"]["filters"]
    values = [(each["key"], each["value"]) for each in conditions["filters"]]
    assert values == [("customer", "c-1"), ("n", 7), ("m", "7")]
    assert {each["type"] for each in conditions["filters"]} == {"eq"}
    assert conditions["type"] == "and"
    assert hatrack("chat", "voice", "hi", "--filter", "customer").exit_code == 2


def test_rm_asks_at_a_terminal(gateway: Gateway) -> None:
    gateway.add("voice", "")
    code, out = at_terminal(gateway, "rm", "voice", typed=b"n\n")
    assert code == 1
    assert b"Delete voice and all its versions?" in out
    assert gateway.requests == []
    assert at_terminal(gateway, "rm", "voice", typed=b"y\n")[0] == 0
    assert gateway.versions == {}
    gateway.add("voice", "")
    assert at_terminal(gateway, "rm", "voice", "--yes", typed=b"")[0] == 0
    assert gateway.versions == {}


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help_with_examples(hatrack: Hatrack, command: str) -> None:
    result = hatrack(command, "--help")
    assert result.exit_code == 0
    assert f"Examples:\n    hatrack {command}" in result.stdout


def test_help_and_version(hatrack: Hatrack) -> None:
    shown = hatrack("--help").stdout
    assert all(f"\n  {command} " in shown for command in COMMANDS)
    assert "HATRACK_URL" in shown
    assert hatrack("version").stdout == hatrack("--version").stdout == "hatrack 0.1.0\n"
    assert json.loads(hatrack("version", "--json").stdout) == {"version": "0.1.0"}


def test_start_up_imports_nothing_heavy() -> None:
    heavy = "{'torch', 'vllm', 'numpy', 'fastapi', 'sqlalchemy', 'aiohttp', 'service.client.types'}"
    code = f"import sys, service.cli.main; print(sorted({heavy} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=240)
    assert done.stdout == "[]\n"


@pytest.mark.parametrize(
    ("count", "text"), [(0, "0 B"), (1023, "1023 B"), (1024, "1.0 KiB"), (5 << 20, "5.0 MiB"), (3 << 40, "3072.0 GiB")]
)
def test_size(count: int, text: str) -> None:
    assert terminal.size(count) == text


@pytest.mark.parametrize(
    ("version", "text"),
    [
        ({"servable": "ok", "held_back": None}, "ok"),
        ({"servable": "ok", "held_back": {"code": "perplexity_too_high"}}, "held back"),
        ({"servable": "corrupt", "held_back": {"code": "perplexity_too_high"}}, "corrupt"),
        ({}, "-"),
    ],
)
def test_servable(version: AdapterVersion, text: str) -> None:
    assert terminal.servable(version) == text


def refusal_without_a_key() -> dict[str, Any]:
    """What a gateway answers a request that brings no key."""
    with pytest.raises(Unauthenticated) as refused:
        key_in({})
    return refused.value.payload()


@pytest.mark.parametrize(
    ("status", "body", "said"),
    [
        (502, b"<html>Bad Gateway</html>", "Something other than Hatrack answered"),
        (404, b'{"error": {"message": "No such route: GET /v1/adapters.", "code": "unknown_route"}}', "older than the"),
        (405, b'{"error": {"message": "GET is not allowed", "code": "method_not_allowed"}}', "older than the command"),
        (200, b"[1]", "is it a Hatrack gateway?"),
        (401, json.dumps(refusal_without_a_key()).encode(), "no API key ["),
    ],
)
def test_errors_are_sentences_without_words_of_http(
    hatrack: Hatrack, gateway: Gateway, status: int, body: bytes, said: str
) -> None:
    gateway.answer_all = (status, body)
    result = hatrack("ls")
    assert result.exit_code == 1
    assert said in result.stderr
    assert not re.search(rf"\b(GET|HTTP|{status}|Bad Gateway|Authorization)\b|/v1", result.stderr)
    assert json.loads(hatrack("ls", "--json").stderr)["error"]["status"] == status
