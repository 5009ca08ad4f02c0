"""What SQLite and PostgreSQL say differently: inserts that may meet a row, globs, and what is inside JSON."""

from __future__ import annotations

import re
from typing import Any, TypeAlias

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.sql.functions import FunctionElement

Insert: TypeAlias = sqlite.Insert | postgresql.Insert


def insert(db: sa.Connection, table: sa.Table) -> Insert:
    """An INSERT that has ``on_conflict_do_update`` and ``on_conflict_do_nothing``."""
    return insert_for(db.dialect.name, table)


def insert_for(dialect: str, table: sa.Table) -> Insert:
    """As `insert`, for a connection whose dialect has this name: for a statement that is built once."""
    return postgresql.insert(table) if dialect == "postgresql" else sqlite.insert(table)


class matches_glob(FunctionElement[bool]):
    """Whether text matches a glob as `fnmatch.fnmatchcase` does: `*` is any number of characters, `?` one.

    Args:
        text: A column.
        glob: Without `[`.
    """

    type = sa.Boolean()
    inherit_cache = True

    def __init__(self, text: sa.ColumnElement[str], glob: str) -> None:
        super().__init__(text, sa.literal(glob, sa.Text), sa.literal(_as_regex(glob), sa.Text))


def _as_regex(glob: str) -> str:
    parts = {"*": ".*", "?": "."}
    return "^" + "".join(parts.get(character, re.escape(character)) for character in glob) + "$"


@compiles(matches_glob)
def _sqlite_glob(element: matches_glob, compiler: SQLCompiler, **options: Any) -> str:
    text, glob, _ = element.clauses
    return f"({compiler.process(text, **options)} GLOB {compiler.process(glob, **options)})"


@compiles(matches_glob, "postgresql")
def _postgresql_glob(element: matches_glob, compiler: SQLCompiler, **options: Any) -> str:
    text, _, regex = element.clauses
    return f"({compiler.process(text, **options)} ~ {compiler.process(regex, **options)})"


class json_values(FunctionElement[str]):
    """The values of a JSON array, as rows of text: ``json_values(column).table_valued("value")``; none if it is null.
    Of an array within, `json_values` gives the values in turn.
    """

    inherit_cache = True


@compiles(json_values)
def _sqlite_values(element: json_values, compiler: SQLCompiler, **options: Any) -> str:
    return f"json_each({compiler.process(element.clauses, **options)})"


@compiles(json_values, "postgresql")
def _postgresql_values(element: json_values, compiler: SQLCompiler, **options: Any) -> str:
    return f"json_array_elements_text(({compiler.process(element.clauses, **options)})::json)"


class json_object_is_missing(FunctionElement[bool]):
    """Whether a JSON object has no object under a name.

    Args:
        document: A column with a JSON object.
        name: Plain letters.
    """

    type = sa.Boolean()
    inherit_cache = True

    def __init__(self, document: sa.ColumnElement[Any], name: str) -> None:
        super().__init__(document, sa.literal(f"$.{name}", sa.Text), sa.literal(name, sa.Text))


@compiles(json_object_is_missing)
def _sqlite_missing(element: json_object_is_missing, compiler: SQLCompiler, **options: Any) -> str:
    document, path, _ = element.clauses
    arguments = f"{compiler.process(document, **options)}, {compiler.process(path, **options)}"
    return f"(json_type({arguments}) IS NOT 'object')"


@compiles(json_object_is_missing, "postgresql")
def _postgresql_missing(element: json_object_is_missing, compiler: SQLCompiler, **options: Any) -> str:
    document, _, name = element.clauses
    member = f"{compiler.process(document, **options)} -> {compiler.process(name, **options)}"
    return f"(json_typeof({member}) IS DISTINCT FROM 'object')"


class json_object_has(FunctionElement[bool]):
    """Whether the object under a name in a JSON object has a member with this string.

    Args:
        document: A column with a JSON object.
        name: Plain letters.
        key: Any text.
        value: The string.
    """

    type = sa.Boolean()
    inherit_cache = True

    def __init__(self, document: sa.ColumnElement[Any], name: str, key: str, value: str) -> None:
        texts = (sa.literal(text, sa.Text) for text in (f"$.{name}", name, key, value))
        super().__init__(document, *texts)


@compiles(json_object_has)
def _sqlite_has(element: json_object_has, compiler: SQLCompiler, **options: Any) -> str:
    document, path, _, key, value = element.clauses
    each = f"json_each({compiler.process(document, **options)}, {compiler.process(path, **options)})"
    condition = f"key = {compiler.process(key, **options)} AND value = {compiler.process(value, **options)}"
    return f"EXISTS (SELECT 1 FROM {each} WHERE {condition})"  # noqa: S608 (all values are parameters)


@compiles(json_object_has, "postgresql")
def _postgresql_has(element: json_object_has, compiler: SQLCompiler, **options: Any) -> str:
    document, _, name, key, value = element.clauses
    inner = f"{compiler.process(document, **options)} -> {compiler.process(name, **options)}"
    member = f"({inner}) ->> {compiler.process(key, **options)}"
    return f"({member} IS NOT DISTINCT FROM {compiler.process(value, **options)})"
