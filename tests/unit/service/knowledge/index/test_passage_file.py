"""The passages of a store: examples keep their turns, and a file of an earlier release is read and written on."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from service.errors import Internal
from service.knowledge.index.passage_records import MAX_SEGMENT, PassageFile
from service.knowledge.text import PassageText
from tests.unit.service.knowledge.index.segments import segment

PLAIN = PassageText(0, "Returns", "Boots go back within 45 days.", 0, {"lang": "en"})
EXAMPLE = PassageText(
    0,
    "",
    "user: Where is it?\nassistant: At sea.",
    turns=[{"role": "user", "content": "Where is it?"}, {"role": "assistant", "content": "At sea."}],
)
FIRST_SCHEMA = """
PRAGMA auto_vacuum = INCREMENTAL;
PRAGMA journal_mode = WAL;
CREATE TABLE documents (number INTEGER PRIMARY KEY AUTOINCREMENT, generation TEXT NOT NULL UNIQUE);
CREATE TABLE segments (
    number INTEGER PRIMARY KEY AUTOINCREMENT,
    document INTEGER NOT NULL REFERENCES documents (number),
    size INTEGER NOT NULL, vectors BLOB NOT NULL, offsets BLOB NOT NULL, terms BLOB NOT NULL, counts BLOB NOT NULL);
CREATE INDEX segments_document ON segments (document);
CREATE TABLE passages (
    id INTEGER PRIMARY KEY, number INTEGER NOT NULL, heading TEXT NOT NULL, text TEXT NOT NULL,
    repeats INTEGER NOT NULL, attributes BLOB);
PRAGMA user_version = 1;
"""
"""As the first release of stores made it."""


def add(file: PassageFile, generation: str, passage: PassageText) -> int:
    return file.add(file.begin(generation), segment([passage.searched]), [passage])


def test_an_example_keeps_its_turns(tmp_path: Path) -> None:
    with closing(PassageFile(tmp_path / "vs.db")) as file:
        places = [(add(file, "a", PLAIN), 0), (add(file, "b", EXAMPLE), 0), (9, 0)]
        assert file.texts(places) == [PLAIN, EXAMPLE, None]
        assert file.document("b") == [EXAMPLE]


def test_one_document_loads_in_the_same_steps_however_many_the_store_has(tmp_path: Path) -> None:
    steps: list[int] = []

    def load_counted(file: PassageFile) -> None:
        steps.append(0)

        def count() -> int:
            steps[-1] += 1
            return 0

        file._reader.set_progress_handler(count, 1)
        loaded = file.load_one("a")
        file._reader.set_progress_handler(None, 0)
        assert (loaded.numbers, loaded.own) == ({"a": 1}, {1: {(1, 0): {"lang": "en"}, (2, 0): {"lang": "en"}}})
        assert [(placement.number, placement.document) for placement in loaded.segments] == [(1, 1), (2, 1)]

    with closing(PassageFile(tmp_path / "vs.db")) as file:
        document = file.begin("a")
        for _ in range(2):
            file.add(document, segment([PLAIN.searched]), [PLAIN])
        load_counted(file)
        for number in range(20):
            add(file, f"later{number}", PLAIN)
        load_counted(file)
        assert {number: set(own) for number, own in file.load({"a", "later19"}).own.items()} == {
            1: {(1, 0), (2, 0)}, 21: {(22, 0)},
        }  # fmt: skip
    assert steps[1] <= steps[0] + 5, steps


def test_a_file_of_the_first_schema_is_read_and_takes_examples(tmp_path: Path) -> None:
    path = tmp_path / "vs.db"
    with closing(sqlite3.connect(path)) as db:
        db.executescript(FIRST_SCHEMA)
        db.execute("INSERT INTO documents (generation) VALUES ('a')")
        arrays = segment([PLAIN.text]).dump()
        db.execute("INSERT INTO segments VALUES (1, 1, 1, ?, ?, ?, ?)", arrays)
        row = (MAX_SEGMENT, 0, PLAIN.heading, PLAIN.text, 0, b'{"lang":"en"}')
        db.execute("INSERT INTO passages VALUES (?, ?, ?, ?, ?, ?)", row)
        db.commit()
    for _ in range(2):  # the second finds it upgraded
        with closing(PassageFile(path)) as file:
            assert file.texts([(1, 0)]) == [PLAIN]
            assert file.load({"a"}).segments[0].segment.rows == 1
            assert file.texts([(add(file, "b", EXAMPLE), 0)]) == [EXAMPLE]
    with closing(sqlite3.connect(path)) as db:
        assert db.execute("PRAGMA user_version").fetchone() == (2,)


def test_a_file_of_a_later_release_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "vs.db"
    PassageFile(path).close()
    with closing(sqlite3.connect(path)) as db:
        db.execute("PRAGMA user_version = 3")
    before = path.read_bytes()
    with pytest.raises(Internal, match="schema 3, not 2"):
        PassageFile(path)
    assert path.read_bytes() == before
