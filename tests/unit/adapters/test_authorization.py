"""Who may see an object: the rule in Python, and that the condition of SQL is the same."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import sqlalchemy as sa
from hypothesis import given
from hypothesis import strategies as st

from adapters.authorization import KeyScope, Ownership
from adapters.database.authorization import visible

NAMES = st.sampled_from(["shop", "shop-1", "voice", "vs_1", "public"])
GLOBS = st.none() | st.lists(st.sampled_from(["shop*", "voice", "vs_?", "p*c", "*"]), max_size=2).map(tuple)
KEYS = st.sampled_from(["key_a", "key_b"])
PROJECTS = st.sampled_from(["one", "two"])


@dataclass(frozen=True, slots=True)
class Key(KeyScope):
    key_id: str
    project: str
    adapters: tuple[str, ...] | None = None
    stores: tuple[str, ...] | None = None


METADATA = sa.MetaData()
THINGS = sa.Table(
    "things",
    METADATA,
    sa.Column("project", sa.Text),
    sa.Column("adapters", sa.JSON(none_as_null=True)),
    sa.Column("stores", sa.JSON(none_as_null=True)),
    sa.Column("key_id", sa.Text),
)


def selected(key: Key, thing: Ownership) -> bool:
    columns = THINGS.c
    condition = visible(
        key, project=columns.project, adapters=columns.adapters, stores=columns.stores, key_id=columns.key_id
    )
    engine = sa.create_engine("sqlite://")
    with engine.connect() as db:
        METADATA.create_all(db)
        db.execute(
            THINGS.insert().values(
                project=thing.project, adapters=thing.adapters, stores=thing.stores, key_id=thing.key_id
            )
        )
        found = db.execute(sa.select(THINGS).where(condition)).first() is not None
    engine.dispose()
    return found


@pytest.mark.parametrize(
    ("key", "thing", "sees"),
    [
        (Key("k", "p"), Ownership("p"), True),
        (Key("k", "p"), Ownership("other", ["shop"], []), False),
        (Key("k", "p", ("shop-*",)), Ownership("p", ["shop-1"], []), True),
        (Key("k", "p", ("shop-*",)), Ownership("p", ["shop-1", "voice"], []), False),
        (Key("k", "p", ("shop-*",)), Ownership("p", [], []), False),
        (Key("k", "p", ("shop-*",)), Ownership("p", None, []), False),
        (Key("k", "p", ("shop-*",)), Ownership("p", [], [], "k"), True),
        (Key("k", "p", ("shop-*",)), Ownership("other", [], [], "k"), False),
        (Key("k", "p", ("shop-*",)), Ownership("p", ["voice"], [], "k"), False),
        (Key("k", "p", ("shop-*",)), Ownership("p", None, [], "k"), False),
        (Key("k", "p", None, ("public",)), Ownership("p", [], []), True),
        (Key("k", "p", None, ("public",)), Ownership("p", ["shop"], [("vs_1", "public")]), True),
        (Key("k", "p", None, ("vs_1",)), Ownership("p", ["shop"], [("vs_1", "public")]), True),
        (Key("k", "p", None, ("public",)), Ownership("p", ["shop"], [("vs_1", "public"), ("vs_2",)]), False),
        (Key("k", "p", None, ("public",)), Ownership("p", ["shop"], None), False),
        (Key("k", "p", None, ("public",)), Ownership("p", ["shop"], None, "k"), True),
        (Key("k", "p", (), ()), Ownership("p", ["shop"], []), False),
    ],
)
def test_the_rule(key: Key, thing: Ownership, sees: bool) -> None:
    assert key.may_see(thing) is sees
    assert selected(key, thing) is sees


@given(
    st.builds(Key, KEYS, PROJECTS, GLOBS, GLOBS),
    st.builds(
        Ownership,
        PROJECTS,
        st.none() | st.lists(NAMES, max_size=2),
        st.none() | st.lists(st.lists(NAMES, min_size=1, max_size=2).map(tuple), max_size=2),
        st.none() | KEYS,
    ),
)
def test_sql_says_the_same(key: Key, thing: Ownership) -> None:
    assert selected(key, thing) is key.may_see(thing)
