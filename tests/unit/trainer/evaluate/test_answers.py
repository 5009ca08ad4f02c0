from __future__ import annotations

from pathlib import Path

import pytest

from trainer.evaluate.answers import Answer, Key, RecordFile


def answer(example: str, text: str = "yes") -> Answer:
    return Answer(arm="tuned", example=example, repeat=0, request="r", text=text)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "evaluation" / "answers.jsonl"


def keep(path: Path, *answers: Answer) -> dict[Key, Answer]:
    with RecordFile(path, Answer) as book:
        for each in answers:
            book.add(each)
    with RecordFile(path, Answer) as book:
        return dict(book.records)


def test_added_records_are_read_back(path: Path) -> None:
    found = keep(path, answer("1", "líne\nbreak"), answer("2"))
    assert [each.text for each in found.values()] == ["líne\nbreak", "yes"]
    assert len(path.read_bytes().splitlines()) == 2


def test_the_last_vote_in_a_reply_counts(path: Path) -> None:
    assert [each.text for each in keep(path, answer("1", "old"), answer("1", "new")).values()] == ["new"]


def test_a_truncated_last_line_is_removed(path: Path) -> None:
    keep(path, answer("1"))
    with path.open("ab") as file:
        file.write(b'{"arm":"tuned","exam')
    found = keep(path, answer("2"))
    assert [key[1] for key in found] == ["1", "2"]


def test_a_line_of_another_format_is_skipped(path: Path) -> None:
    path.parent.mkdir()
    path.write_bytes(b'{"something": "else"}\n\xff\n' + answer("1").model_dump_json().encode() + b"\n")
    assert [key[1] for key in keep(path)] == ["1"]


def test_nobody_else_reads_what_customers_asked(path: Path) -> None:
    keep(path, answer("1"))
    assert path.stat().st_mode & 0o077 == 0
