"""What differs between two versions, on files as people write them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import orjson
import pytest

from service.datasets import service as datasets_service
from service.datasets.diff import compare, count_rows, describe
from tests.unit.service.datasets.datasets_app import DatasetsApp, rows
from tests.unit.service.files.files_app import error_of

SAMPLES = Path(__file__).parents[4] / "trainer/samples/pemberton.jsonl"


def lines(*values: Any) -> bytes:
    return b"".join(orjson.dumps(value) + b"\n" for value in values)


def chat(asked: str, answer: str, **more: Any) -> dict[str, Any]:
    return {
        "messages": [{"role": "user", "content": asked}, {"role": "assistant", "content": answer, **more}],
    }


@pytest.fixture
def differ(tmp_path: Path) -> Any:
    """Writes two files and returns (added, removed, changed, unchanged) of the first against the second."""

    def call(new: bytes, old: bytes) -> tuple[Any, ...]:
        paths = tmp_path / "new", tmp_path / "old"
        for path, content in zip(paths, (new, old), strict=True):
            path.write_bytes(content)
        found = compare(*paths)
        return found.added, found.removed, found.changed, found.unchanged

    return call


def test_rows_are_added_removed_and_answered_differently(differ: Any) -> None:
    old = rows(("a", "1"), ("b", "2"), ("c", "3"))
    new = rows(("c", "3"), ("b", "22"), ("d", "4"))
    assert differ(new, old) == ([3], [1], [(2, 2)], 1)
    assert differ(old, new) == ([1], [3], [(2, 2)], 1)


@pytest.mark.parametrize("odd", ['"\\ud800"', "1e999", "123456789012345678901234567890", "NaN"])
def test_what_only_a_lenient_decoder_reads_is_compared(differ: Any, odd: str) -> None:
    row = orjson.dumps(chat("a", "1")).decode()
    with_odd = (row[:-1] + f', "id": {odd}}}\n').encode()
    assert differ(with_odd, with_odd) == ([], [], [], 1)
    assert differ(with_odd, lines(chat("a", "1"))) == ([1], [1], [], 0)
    assert differ((row[:-1] + ', "id": "\\ud800x"}\n').encode(), with_odd)[3] == 0


def test_order_spelling_and_a_byte_order_mark_do_not_count(differ: Any) -> None:
    old = b'\xef\xbb\xbf{"prompt": "\\u00e4", "completion": "1"}\n{"prompt":"b","completion":"2"}'
    new = '{"completion":"2","prompt":"b"}\r\n{"completion" : "1", "prompt": "ä"}\n'.encode()
    assert differ(new, old) == ([], [], [], 2)


def test_equal_rows_are_counted(differ: Any) -> None:
    once, thrice = rows(("a", "1"), ("b", "2")), rows(("a", "1"), ("b", "2"), ("a", "1"), ("a", "1"))
    assert differ(thrice, once) == ([3, 4], [], [], 2)
    assert differ(once, thrice) == ([], [3, 4], [], 2)


def test_of_several_answers_to_one_question_each_changes_once(differ: Any) -> None:
    old = rows(("a", "1"), ("a", "2"), ("a", "3"))
    assert differ(rows(("a", "2"), ("a", "4")), old) == ([], [3], [(2, 1)], 1)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (chat("q", "one"), chat("q", "two")),
        (chat("q", "one"), chat("q", "one", weight=0)),
        ({"instruction": "i", "input": "x", "output": "1"}, {"instruction": "i", "input": "x", "output": "2"}),
        (
            {"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "1"}]},
            {"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "2"}]},
        ),
    ],
)
def test_an_answer_is_told_from_its_question_in_every_format(differ: Any, old: Any, new: Any) -> None:
    assert differ(lines(new), lines(old)) == ([], [], [(1, 1)], 0)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (chat("q", "a"), chat("another", "a")),
        ({"instruction": "i", "input": "x", "output": "1"}, {"instruction": "i", "input": "y", "output": "1"}),
        (chat("q", "a"), {"prompt": "q", "completion": "a"}),
    ],
)
def test_another_question_is_another_row(differ: Any, old: Any, new: Any) -> None:
    assert differ(lines(new), lines(old)) == ([1], [1], [], 0)


def test_the_curated_samples_with_three_edits(differ: Any, tmp_path: Path) -> None:
    before = SAMPLES.read_bytes().splitlines(keepends=True)
    edited = orjson.loads(before[4])
    edited["messages"][-1]["content"] = "Quite so."
    after = [*before[1:4], orjson.dumps(edited) + b"\n", *before[5:], lines(chat("Why?", "x" * 300))]
    assert differ(b"".join(after), b"".join(before)) == ([len(before)], [1], [(4, 5)], len(before) - 2)
    paths = tmp_path / "new", tmp_path / "old"
    assert (count_rows(paths[0]), count_rows(paths[1])) == (len(before), len(before))
    shown = describe(*paths, compare(*paths), 20)
    assert shown["added"] == [{"line": len(before), "question": "Why?", "answer": "x" * 199 + "…"}]
    (change,) = shown["changed"]
    was = orjson.loads(before[4])["messages"]
    assert (change["question"], change["answer"]) == (was[-2]["content"][:199] + "…"
        if len(was[-2]["content"]) > 200 else was[-2]["content"], "Quite so.")  # fmt: skip
    assert change["against_answer"].rstrip("…") in was[-1]["content"]
    assert (change["line"], change["against_line"]) == (4, 5)


async def test_the_route_shows_counts_and_the_first_rows(app: DatasetsApp) -> None:
    await app.pushed("support", rows(("a", "1"), ("b", "2"), ("c", "3")))
    await app.pushed("support", rows(("a", "1"), ("b", "22"), ("d", "4"), ("e", "5")))
    diff = (await app.get("/support/versions/2/diff", against=1)).json()
    assert diff == {
        "object": "dataset.diff",
        "dataset": "support",
        "version": 2,
        "against": 1,
        "counts": {"added": 2, "removed": 1, "changed": 1, "unchanged": 1},
        "added": [{"line": 3, "question": "d", "answer": "4"}, {"line": 4, "question": "e", "answer": "5"}],
        "removed": [{"line": 3, "question": "c", "answer": "3"}],
        "changed": [{"line": 2, "question": "b", "answer": "22", "against_line": 2, "against_answer": "2"}],
    }
    first = (await app.get("/support/versions/2/diff", against=1, limit=1)).json()
    assert (len(first["added"]), first["counts"]["added"]) == (1, 2)
    none = (await app.get("/support/versions/2/diff", against=2, limit=0)).json()
    assert none["counts"] == {"added": 0, "removed": 0, "changed": 0, "unchanged": 4}
    for params, param in (({}, "against"), ({"against": 0}, "against"), ({"against": 1, "limit": 101}, "limit")):
        refused = await app.get("/support/versions/2/diff", **params)
        assert (refused.status_code, error_of(refused)["param"]) == (400, param)


async def test_versions_that_are_too_large_are_not_compared(app: DatasetsApp, monkeypatch: pytest.MonkeyPatch) -> None:
    await app.pushed("support", rows(("a", "1")))
    await app.pushed("support", rows(("a", "1"), ("b", "2")))
    monkeypatch.setattr(datasets_service, "MAX_DIFF_ROWS", 1)
    refused = await app.get("/support/versions/1/diff", against=2)
    assert (refused.status_code, error_of(refused)["code"]) == (422, "dataset_too_large")
    assert "`support@2` has 2 rows" in error_of(refused)["message"]
    assert (await app.get("/support/versions/1/diff", against=1)).status_code == 200
