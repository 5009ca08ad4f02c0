"""What of a training file can be told while it arrives."""

from __future__ import annotations

import json
import tracemalloc

import pytest

from adapters.dataset.lines import MAX_LINE_BYTES, MAX_PROBLEMS
from service.errors import BadRequest
from service.files.jsonl import LineCheck

CHAT = (
    b'{"messages": [{"role": "user", "content": "Gr\xc3\xbc\xc3\x9fe"}, '
    b'{"role": "assistant", "content": "Moin"}], "id": 7}'
)
GOOD = {
    "chat": CHAT,
    "prompt and completion": b'{"prompt": "a", "completion": "b"}',
    "Alpaca": b'{"instruction": "a", "output": "b"}',
    "ShareGPT": b'{"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]}',
}


def check(content: bytes, size: int = 1 << 20) -> None:
    lines = LineCheck()
    for start in range(0, len(content), size):
        lines.feed(content[start : start + size])
    lines.finish()


@pytest.mark.parametrize("line", GOOD.values(), ids=GOOD.keys())
@pytest.mark.parametrize("end", [b"", b"\n", b"\r\n"])
def test_each_format_is_taken_with_and_without_a_last_newline(line: bytes, end: bytes) -> None:
    check(line + b"\n" + line + end)
    check(b"\xef\xbb\xbf" + line + end)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "line 1: the file is empty"),
        (b"\n", "line 1: the line is empty"),
        (CHAT + b"\n\n" + CHAT, "line 2: the line is empty"),
        (CHAT + b"\n{", "line 2: not JSON"),
        (CHAT + b"\n" + CHAT[:-1] + b"\n" + CHAT, "line 2: not JSON"),
        (CHAT + b"\n[1]", "line 2: not a JSON object"),
        (b"[" + CHAT + b"]", "line 1: the file is a JSON array, but must have one object per line"),
        (b'{"messages": "\xff"}', "line 1: not UTF-8 at byte 15"),
        (b'{"messages": NaN}', "line 1: not JSON"),
        (b'{"text": "a"}', "line 1: unknown format"),
        (b'{"messages": [], "prompt": ""}', "line 1: unknown format"),
        (CHAT + b'\n{"prompt": "a", "completion": "b"}', "line 2: the key `messages` is missing"),
        (b'{"messages":' + b"[" * 5000 + b"]" * 5000 + b"}", "line 1: nested more than 100 levels deep"),
        (CHAT + b'\n{"messages": [{"role": "user", "content": "a"}]}', "line 2: the last message has role user"),
        (b'{"prompt": "a"}', "line 1: completion must be a string"),
        (b'{"prompt": "a", "complettion": "b"}', "line 1: complettion is not a known key; did you mean `completion`?"),
    ],
)
def test_a_line_that_cannot_be_trained_on_is_named(content: bytes, said: str) -> None:
    for size in (1, 7, 1 << 20):
        with pytest.raises(BadRequest) as refused:
            check(content, size)
        assert said in refused.value.message
        assert (refused.value.code, refused.value.param) == ("invalid_training_file", "file")


def test_all_wrong_lines_are_counted_and_no_more_is_read_after_a_thousand() -> None:
    with pytest.raises(BadRequest) as refused:
        check(b"".join(CHAT + b"\nwrong\n" for _ in range(29)), 1000)
    assert [f"line {number}:" in refused.value.message for number in (2, 4, 40, 42)] == [True, True, True, False]
    assert refused.value.message.endswith("; and 9 more")
    lines = LineCheck()
    with pytest.raises(BadRequest, match=f"reading stopped at line {MAX_PROBLEMS}"):
        lines.feed(b"\n" * (MAX_PROBLEMS + 1))


def test_the_wrong_lines_are_named_however_few() -> None:
    with pytest.raises(BadRequest) as refused:
        check(b"one\n" + CHAT + b"\nthree")
    assert "line 1:" in refused.value.message
    assert "line 3:" in refused.value.message


def test_a_line_without_an_end_takes_no_more_memory_than_a_line_may() -> None:
    lines, piece = LineCheck(), b"x" * (1 << 20)
    tracemalloc.start()
    try:
        for _ in range(MAX_LINE_BYTES >> 20):
            lines.feed(piece)
        with pytest.raises(BadRequest, match=f"line 1: longer than {MAX_LINE_BYTES} bytes"):
            lines.feed(piece)
        assert tracemalloc.get_traced_memory()[1] < 3 * MAX_LINE_BYTES
    finally:
        tracemalloc.stop()


def test_a_line_of_the_most_bytes_is_taken() -> None:
    head, tail = b'{"prompt": "', b'", "completion": "b"}'
    line = head + b"x" * (MAX_LINE_BYTES - len(head) - len(tail)) + tail
    check(line + b"\n" + json.dumps({"prompt": "a", "completion": "b"}).encode())
    with pytest.raises(BadRequest, match="line 1: longer"):
        check(b" " + line + b"\n")
