from __future__ import annotations

import json

import pytest

from adapters.dataset.formats import MAX_NAMED_KEYS, Format, IgnoredKey
from trainer.data.formats import read_dataset
from trainer.errors import DataInvalid, DataTooSmall

CHAT = {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]}
ROWS = {
    Format.CHAT: CHAT,
    Format.PROMPT_COMPLETION: {"prompt": "q", "completion": "a"},
    Format.ALPACA: {"instruction": "q", "input": "", "output": "a"},
    Format.SHAREGPT: {"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]},
    Format.PREFERENCE: {
        "input": {"messages": [{"role": "user", "content": "q"}]},
        "preferred_output": [{"role": "assistant", "content": "a"}],
        "non_preferred_output": [{"role": "assistant", "content": "b"}],
    },
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
        (lines({"promt": "q", "completion": "a"}), "promt is not a known key; did you mean `prompt`?"),
        (lines({"prompt": "q", "completion": "a", "messages": []}), "the line has `messages` and `prompt`"),
        (b"{", "not JSON"),
    ],
)
def test_what_has_no_format_is_refused_on_its_first_line(content: bytes, reason: str) -> None:
    with pytest.raises(DataInvalid) as caught:
        read_dataset("f", content)
    assert caught.value.problems[0].line == 1
    assert reason in caught.value.problems[0].reason


@pytest.mark.parametrize(
    ("kind", "row", "reason"),
    [
        (Format.PROMPT_COMPLETION, CHAT, "the key `prompt` is missing, but the lines before have it"),
        (
            Format.PROMPT_COMPLETION,
            {"prompt": "q", "complettion": "a"},
            "complettion is not a known key; did you mean `c",
        ),
        (Format.ALPACA, {"instruction": "q", "inptu": "i", "output": "a"}, "inptu is not a known key; did you mean `i"),
        (Format.SHAREGPT, {"conversations": [{"form": "human", "value": "x"}]}, "did you mean `from`?"),
        (Format.PROMPT_COMPLETION, {"prompt": "q", "completion": 3}, "completion must be a string"),
        (Format.PROMPT_COMPLETION, ["q"], "not a JSON object"),
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
    with pytest.raises(DataTooSmall, match="1 example; at least 2"):
        read_dataset("f", lines(CHAT), min_examples=2)


def test_the_lines_after_one_without_a_format_are_checked_as_well() -> None:
    content = b"{\n" + lines({"text": "q"}, ROWS[Format.ALPACA], {"text": "q"}, {"instruction": "q"}, {"text": ""})
    with pytest.raises(DataInvalid) as caught:
        read_dataset("f", content)
    assert [problem.line for problem in caught.value.problems] == [1, 2, 4, 5, 6]
    with pytest.raises(DataInvalid) as unknown:
        read_dataset("f", lines({"text": "q"}, {"text": "q"}))
    assert unknown.value.problems[1].reason == "unknown format, as in line 1"


def test_other_keys_are_ignored_and_counted() -> None:
    rows = [{**CHAT, "id": n} for n in range(25)]
    rows[3]["messages"] = [{"role": "user", "content": "q", "name": "Bo"}, {**CHAT["messages"][1], "refusal": None}]
    kind, data = read_dataset("f", lines(*rows))
    assert (kind, len(data.examples)) == (Format.CHAT, 25)
    assert data.ignored_keys == (
        IgnoredKey("id", 25, list(range(1, 21))),
        IgnoredKey("messages[].name", 1, [4]),
        IgnoredKey("messages[].refusal", 1, [4]),
    )
    for row, name in (
        ({"prompt": "q", "completion": "a", "created_at": 1, "tools": []}, "created_at"),
        ({"instruction": "q", "output": "a", "text": "…"}, "text"),
        ({"conversations": ROWS[Format.SHAREGPT]["conversations"], "id": "x"}, "id"),
    ):
        assert read_dataset("f", lines(row))[1].ignored_keys[0] == IgnoredKey(name, 1, [1])


def test_any_number_of_other_keys_is_noted_in_bounds() -> None:
    rows = [{**CHAT, **{f"{n}\ud800": 0 for n in range(start, start + 40)}} for start in (0, 10, 20)]
    noted = read_dataset("f", lines(*rows))[1].ignored_keys
    assert len(noted) == MAX_NAMED_KEYS + 1
    assert (noted[-1].name, noted[-1].count) == (None, 3)


@pytest.mark.parametrize("kind", Format)
def test_a_line_of_any_format_gives_values_of_filters(kind: Format) -> None:
    filters = {"customer": "c-1", "year": 2026, "gift": True}
    _, data = read_dataset("f", lines({**ROWS[kind], "filters": filters}, ROWS[kind]))
    assert [example.filters for example in data.examples] == [filters, {}]
    assert data.ignored_keys == ()


@pytest.mark.parametrize(
    "filters",
    [
        *("c-1", ["c-1"], {"": "c-1"}, {"customer": ""}, {"customer": None}, {"customer": ["c-1"]}, {"n" * 65: 1}),
        *({"customer": "x" * 513}, {f"a{number}": 1 for number in range(9)}),
    ],
)
def test_filters_of_another_form_are_refused(filters: object) -> None:
    with pytest.raises(DataInvalid, match=r"line 2.*filters"):
        read_dataset("f", lines(CHAT, {**CHAT, "filters": filters}))
