"""What the two dialects say differently means the same on both: the same rows, asked in a file and on a server."""

from __future__ import annotations

import json
from fnmatch import fnmatchcase
from typing import Any

import pytest
import sqlalchemy as sa

from adapters.database.sql import insert, json_object_has, json_object_is_missing, json_values, matches_glob
from service.access.tables import projects
from service.database import Database
from service.usage.engine_time import engine_time

NAMES = (
    "brand-voice",
    "brand.voice",
    "brandXvoice",
    "Brand-voice",
    "brand",
    "b",
    "über-voice",
    "a\nb",
    "a+b",
    "a[b]",
    "",
)
GLOBS = ("*", "brand*", "brand.voice", "brand?voice", "b*e", "?", "", "a?b", "a+b", "BRAND*", "*voice", "?ber*")
DOCUMENTS: tuple[dict[str, Any], ...] = (
    {"metadata": {"team": "blue", "it's": 'a "quote"'}},
    {"metadata": {}},
    {"metadata": None},
    {"metadata": "team"},
    {},
    {"metadata": {"team": "red", "team.blue": "blue"}},
)


@pytest.fixture(params=["in_file", "on_server"])
def database(request: pytest.FixtureRequest) -> Database:
    found: Database = request.getfixturevalue(request.param)
    return found


async def test_globs_match_as_fnmatch_does(database: Database) -> None:
    def work(db: sa.Connection) -> dict[str, set[str]]:
        db.execute(projects.insert(), [{"id": name, "created_at": 0} for name in NAMES])
        chosen = sa.select(projects.c.id)
        return {glob: set(db.scalars(chosen.where(matches_glob(projects.c.id, glob)))) for glob in GLOBS}

    found = await database.run(work)
    names = (*NAMES, "default")
    assert found == {glob: {name for name in names if fnmatchcase(name, glob)} for glob in GLOBS}


async def test_an_insert_that_meets_a_row_adds_to_it_or_leaves_it(database: Database) -> None:
    def work(db: sa.Connection) -> tuple[float, float, float]:
        for _ in range(2):
            statement = insert(db, engine_time).values(hour=3600, up_s=1.5, busy_s=1, own_s=0)
            counted = {"up_s": engine_time.c.up_s + statement.excluded.up_s}
            db.execute(statement.on_conflict_do_update(index_elements=["hour"], set_=counted))
        db.execute(insert(db, engine_time).values(hour=3600, up_s=9, busy_s=9, own_s=9).on_conflict_do_nothing())
        row = db.execute(sa.select(engine_time.c.up_s, engine_time.c.busy_s, engine_time.c.own_s)).one()
        return row.up_s, row.busy_s, row.own_s

    assert await database.run(work) == (3.0, 1.0, 0.0)


async def test_json_is_looked_into(database: Database) -> None:
    rows = sa.Table(
        "documents", sa.MetaData(), sa.Column("id", sa.Integer, primary_key=True), sa.Column("body", sa.JSON)
    )

    def work(db: sa.Connection) -> tuple[list[int], list[int], list[int]]:
        rows.create(db)
        db.execute(rows.insert(), [{"id": number, "body": body} for number, body in enumerate(DOCUMENTS)])
        chosen = sa.select(rows.c.id).order_by(rows.c.id)
        blue = json_object_has(rows.c.body, "metadata", "team", "blue")
        quoted = json_object_has(rows.c.body, "metadata", "it's", 'a "quote"')
        missing = json_object_is_missing(rows.c.body, "metadata")
        return tuple(list(db.scalars(chosen.where(condition))) for condition in (blue, quoted, missing))  # type: ignore[return-value]

    assert await database.run(work) == ([0], [0], [2, 3, 4])


async def test_the_strings_of_an_array_are_rows(database: Database) -> None:
    rows = sa.Table("lists", sa.MetaData(), sa.Column("names", sa.JSON(none_as_null=True)))

    def work(db: sa.Connection) -> list[str]:
        rows.create(db)
        db.execute(rows.insert(), [{"names": ["a", "b"]}, {"names": []}, {"names": None}, {"names": ["c"]}])
        name = json_values(rows.c.names).table_valued("value")
        return sorted(db.scalars(sa.select(name.c.value).select_from(rows.join(name, sa.true()))))

    assert await database.run(work) == ["a", "b", "c"]


async def test_a_document_keeps_the_order_of_its_keys_and_its_numbers(database: Database) -> None:
    body = {"z": 1, "a": [1.5, 2**70, -0.0, 1e300], "m": {"y": None, "b": "ü\u2028"}, "z ": True}
    rows = sa.Table("ordered", sa.MetaData(), sa.Column("body", sa.JSON))

    def work(db: sa.Connection) -> Any:
        rows.create(db)
        db.execute(rows.insert().values(body=body))
        return db.scalar(sa.select(rows.c.body))

    assert json.dumps(await database.run(work)) == json.dumps(body)


async def test_text_that_the_server_cannot_hold_is_stored_with_a_replacement(on_server: Database) -> None:
    rows = sa.Table("texts", sa.MetaData(), sa.Column("id", sa.Text), sa.Column("body", sa.JSON))
    body = {"a\0": ["b\0c", "\ud800", "\ud83d\ude00", "\\u0000", "NaN"], "n": float("nan"), "i": float("inf")}

    def work(db: sa.Connection) -> Any:
        rows.create(db)
        db.execute(rows.insert().values(id="a\0b", body=body))
        assert db.scalar(sa.select(rows.c.id).where(rows.c.id == "a\0b")) == "a\ufffdb"
        assert db.scalar(sa.select(rows.c.body["n"].as_string())) is None
        return db.scalar(sa.select(rows.c.body))

    assert await on_server.run(work) == {
        "a\ufffd": ["b\ufffdc", "\ufffd", "\U0001f600", "\\u0000", "NaN"],
        "n": None,
        "i": None,
    }
