from __future__ import annotations

import hashlib
import json
import time
from pathlib import Path

import pytest

from adapters.dataset.lines import MAX_PROBLEMS, similar_key
from trainer.data.format import Message, parse_chat, read_chat
from trainer.errors import DataInvalid, DataTooSmall

GOOD = '{"messages":[{"role":"user","content":"hi"},{"role":"assistant","content":"Ahoy!"}]}'


def turns(*messages: dict[str, object]) -> bytes:
    return json.dumps({"messages": list(messages)}).encode()


USER = {"role": "user", "content": "hi"}
ANSWER = {"role": "assistant", "content": "Ahoy!"}
HALF = {"name": "look", "arguments": {"x": "\ud800"}}


def test_good_lines_become_examples_with_their_line_numbers() -> None:
    first, second = parse_chat(f"\ufeff{GOOD}\r\n{GOOD}\n".encode())
    assert (first.line, second.line) == (1, 2)
    assert first.messages == (Message("user", "hi", trained=False), Message("assistant", "Ahoy!", trained=True))


def test_a_line_of_very_many_keys_is_refused_at_once() -> None:
    line = json.dumps({str(number): 0 for number in range(50_000)}).encode()
    start = time.process_time()
    with pytest.raises(DataInvalid):
        parse_chat(line)
    assert time.process_time() - start < 5  # to look for each among all of them takes a minute


def test_an_answer_of_weight_zero_is_context_only() -> None:
    (example,) = parse_chat(turns(USER, {**ANSWER, "weight": 0}, USER, {**ANSWER, "weight": 1}))
    assert [message.trained for message in example.messages] == [False, False, False, True]


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b"", "empty"),
        (b"{", "not JSON"),
        (b"\xff\xfe", "not UTF-8 at byte 1"),
        (b"[" * 100_000, "nested more than 100 levels deep"),
        (b'{"messages":' + b"[" * 101 + b"]" * 101 + b"}", "nested more than 100 levels deep"),
        (b'{"messages":[],"n":' + b"1" * 5000 + b"}", "a number has too many digits"),
        (b'{"messages":NaN}', "not JSON: NaN"),
        (b'{"messages":[],"messages":[]}', "duplicate key 'messages'"),
        (b"[]", "not a JSON object"),
        (b"{}", "the key `messages` is missing"),
        (b'{"messages":[]}', "messages must be a non-empty list"),
        (b'{"prompt":"a","completion":"b"}', "the key `messages` is missing"),
        (b'{"mesages":[]}', "mesages is not a known key; did you mean `messages`?"),
        (b'{"Messages":[]}', "Messages is not a known key; did you mean `messages`?"),
        (b'{"messages":[],"tools":[{"type":"function"}]}', "tools[0] must be"),
        (b'{"messages":[],"functions":[{}]}', "functions is not supported here: use `tools`"),
        (b'{"messages":["hi"]}', "messages[0] is not an object"),
        (turns({"role": "tool", "content": "x"}, ANSWER), "messages[0]: a tool message must follow the tool calls"),
        (turns({"role": ["user"], "content": "x"}, ANSWER), "messages[0].role is ['user']"),
        (turns({"role": "user", "content": None}, ANSWER), "messages[0].content must be a string"),
        (turns({"role": "user", "content": " \n"}, ANSWER), "messages[0].content is empty"),
        (turns({"role": "user", "content": "\ud800"}, ANSWER), "an unpaired surrogate"),
        (turns(USER, {**ANSWER, "tool_calls": [{"id": "1"}]}), "messages[1].tool_calls[0] must be"),
        (turns({**USER, "tool_calls": [{"id": "1"}]}, ANSWER), "messages[0].tool_calls is not supported here"),
        (
            turns(USER, {"role": "assistant", "contnet": "x"}),
            "messages[1].contnet is not a known key; did you mean `con",
        ),
        (turns(USER, {**ANSWER, "wieght": 0}), "messages[1].wieght is not a known key; did you mean `weight`?"),
        (turns(USER, {**ANSWER, "weigh\ud800t": 0}), "messages[1].weigh\\ud800t is not a known key"),
        (turns(USER, {**ANSWER, "tool_calls": [{"type": "function", "function": HALF}]}), "an unpaired surrogate"),
        (
            GOOD.encode()[:-1] + b', "filters": {"n": ' + b"9" * 400 + b"}}",
            "filters.n must be a string of 1 to",
        ),
        (turns({**USER, "weight": 1}, ANSWER), "is allowed for assistant messages only"),
        (turns(USER, {**ANSWER, "weight": 2}), "messages[1].weight must be 0 or 1"),
        (turns(USER, {**ANSWER, "weight": True}), "messages[1].weight must be 0 or 1"),
        (turns(USER, {**ANSWER, "weight": [1]}), "messages[1].weight must be 0 or 1"),
        (turns(USER, {**ANSWER, "weight": 0}), "nothing to train on"),
        (turns(USER), "the last message has role user"),
        (turns(USER, {"role": "system", "content": "Be kind."}, ANSWER), "messages[1]: only the first message"),
    ],
)
def test_a_bad_line_is_refused_with_number_and_reason(line: bytes, reason: str) -> None:
    with pytest.raises(DataInvalid) as caught:
        parse_chat(GOOD.encode() + b"\n" + line + b"\n" + GOOD.encode())
    (problem,) = caught.value.problems
    assert problem.line == 2
    assert reason in problem.reason


def test_every_bad_line_is_named_at_once() -> None:
    with pytest.raises(DataInvalid) as caught:
        parse_chat(b"\n".join([b"{", GOOD.encode(), *[b"[]"] * 7]))
    assert [problem.line for problem in caught.value.problems] == [1, 3, 4, 5, 6, 7, 8, 9]
    assert caught.value.message.count("line ") == 8
    assert caught.value.code == "invalid_training_file"


def test_a_file_knows_its_digest_and_its_least_size(tmp_path: Path) -> None:
    path = tmp_path / "voice.jsonl"
    path.write_text(GOOD + "\n")
    data = read_chat(path)
    assert (data.name, len(data.examples)) == ("voice.jsonl", 1)
    assert data.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    with pytest.raises(DataTooSmall):
        read_chat(path, min_examples=2)
    path.write_text("")
    with pytest.raises(DataTooSmall):
        read_chat(path)


def test_a_message_lists_twenty_lines_and_counts_the_others() -> None:
    with pytest.raises(DataInvalid) as caught:
        parse_chat(b"{\n" * 25)
    assert caught.value.message.count("line ") == 20
    assert caught.value.message.endswith("line 20: not JSON: Expecting property name enclosed in double quotes at "
                                         "character 2; and 5 more")  # fmt: skip
    with pytest.raises(DataInvalid) as endless:
        parse_chat(b"{\n" * (MAX_PROBLEMS + 5))
    assert endless.value.message.endswith("and 980 more; reading stopped at line 1000")


@pytest.mark.parametrize(
    ("key", "known", "meant"),
    [
        ("mesages", ("messages",), "messages"),
        ("massage", ("messages",), "messages"),
        ("promt", ("prompt", "completion"), "prompt"),
        ("complettion", ("prompt", "completion"), "completion"),
        ("Role ", ("role",), "role"),
        ("form", ("from",), "from"),
        ("wieght", ("weight",), "weight"),
        ("id", ("input", "role"), None),
        ("name", ("role", "content", "weight"), None),
        ("metadata", ("messages",), None),
        ("context", ("input", "system"), None),
        ("right", ("weight",), None),
        ("source", ("prompt", "messages", "instruction", "conversations"), None),
    ],
)
def test_a_typing_error_of_a_known_key_is_told_from_another_key(
    key: str, known: tuple[str, ...], meant: str | None
) -> None:
    assert similar_key(key, known) == meant
