from __future__ import annotations

import json

import pytest

from trainer.data.formats import Format, detect, read_dataset
from trainer.errors import DataInvalid, DataTooSmall

CHAT = {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]}
ROWS = {
    Format.CHAT: CHAT,
    Format.PROMPT_COMPLETION: {"prompt": "q", "completion": "a"},
    Format.ALPACA: {"instruction": "q", "input": "", "output": "a"},
    Format.SHAREGPT: {"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]},
}


def lines(*rows: object) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


@pytest.mark.parametrize("kind", Format)
def test_every_format_is_told_and_means_the_same(kind: Format) -> None:
    found, data = read_dataset("f", lines(ROWS[kind], ROWS[kind]))
    assert found is kind
    for example in data.examples:
        assert [(m.role, m.content, m.trained) for m in example.messages] == [
            ("user", "q", False),
            ("assistant", "a", True),
        ]


def test_an_alpaca_input_follows_its_instruction() -> None:
    _, data = read_dataset("f", lines({"instruction": "Translate.", "input": "Hallo", "output": "Hello"}))
    assert data.examples[0].messages[0].content == "Translate.\n\nHallo"


def test_sharegpt_keeps_system_turns_and_weights() -> None:
    row = {
        "system": "Be brief.",
        "conversations": [
            {"from": "human", "value": "q"},
            {"from": "gpt", "value": "a", "weight": 0},
            {"from": "user", "value": "q2"},
            {"from": "assistant", "value": "a2"},
        ],
    }
    _, data = read_dataset("f", lines(row))
    assert [(m.role, m.trained) for m in data.examples[0].messages] == [
        ("system", False),
        ("user", False),
        ("assistant", False),
        ("user", False),
        ("assistant", True),
    ]


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "empty"),
        (b'[{"prompt": "q", "completion": "a"}]', "JSON array"),
        (lines({"text": "q"}), "unknown format"),
        (lines({"prompt": "q", "completion": "a", "messages": []}), "unknown format"),
        (b"{", "not JSON"),
    ],
)
def test_what_has_no_format_is_refused_on_its_first_line(content: bytes, reason: str) -> None:
    with pytest.raises(DataInvalid) as caught:
        detect(content)
    assert caught.value.problems[0].line == 1
    assert reason in caught.value.problems[0].reason


@pytest.mark.parametrize(
    ("kind", "row", "reason"),
    [
        (Format.PROMPT_COMPLETION, CHAT, "messages is not supported"),
        (Format.PROMPT_COMPLETION, {"prompt": "q", "completion": 3}, "completion must be a string"),
        (Format.PROMPT_COMPLETION, ["q"], "not an object"),
        (Format.ALPACA, {"instruction": "q", "input": 1, "output": "a"}, "input must be a string"),
        (Format.SHAREGPT, {"conversations": [{"from": "tool", "value": "x"}]}, "conversations[0].from is 'tool'"),
        (Format.SHAREGPT, {"conversations": "x"}, "conversations must be a list"),
        (Format.SHAREGPT, {"conversations": [{"from": "human", "value": "q"}]}, "the last message has role user"),
    ],
)
def test_a_line_at_fault_is_named_with_its_number(kind: Format, row: object, reason: str) -> None:
    with pytest.raises(DataInvalid) as caught:
        read_dataset("f", lines(ROWS[kind], ROWS[kind], row))
    (problem,) = caught.value.problems
    assert problem.line == 3
    assert reason in problem.reason


def test_too_few_examples_are_refused() -> None:
    with pytest.raises(DataTooSmall, match="1 examples; at least 2"):
        read_dataset("f", lines(CHAT), min_examples=2)
