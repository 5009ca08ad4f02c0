from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path

import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext

from service.access import grants, tables
from service.access.audit import SYSTEM
from service.access.caller import Caller, Limits, Scope
from service.access.keys import key_secret, write_secret
from service.access.limits import KeyLimiter
from service.access.records import KeyDraft
from service.database import metadata
from service.errors import (
    BadRequest,
    Conflict,
    Forbidden,
    Internal,
    NotFound,
    QuotaSpent,
    RequestsLimited,
    SettingsError,
    Unauthenticated,
)
from service.http.stream import TokenUsage
from service.registry.catalog import Target
from service.telemetry.record import Record
from service.usage.account import UsageAccount
from tests.unit.service.access.clock import Clock
from tests.unit.service.access.keys_app import KeysApp

INFER = frozenset({Scope.INFER})


def asks(keys_app: KeysApp, key: str, **headers: str) -> Caller:
    return keys_app.keys.authenticator.authenticate({"authorization": f"Bearer {key}", **headers})


async def mint(keys_app: KeysApp, parent: str | None = None, **given: object) -> tuple[str, str]:
    """A key's id and the key."""
    draft = KeyDraft(**({"name": "k", "project": "acme", "scopes": INFER} | given), parent_key_id=parent)  # type: ignore[arg-type]
    made, key = await keys_app.keys.mint(SYSTEM, draft)
    return made["id"], key


async def test_a_key_survives_a_restart_with_all_it_may_do(tmp_path: Path) -> None:
    limits = Limits(tokens_per_day=5, concurrent=2)
    ends = int(time.time()) + 1000
    async with KeysApp(tmp_path).run() as keys_app:
        _, plain = await mint(keys_app)
        _, narrow = await mint(
            keys_app,
            scopes=frozenset({Scope.ADAPTERS, Scope.TRAIN}),
            adapters=("brand-*",),
            stores=(),
            limits=limits,
            background=True,
            expires_at=ends,
        )
        before = asks(keys_app, plain), asks(keys_app, narrow), keys_app.admin_key
    async with KeysApp(tmp_path).run() as keys_app:
        assert (asks(keys_app, plain), asks(keys_app, narrow), keys_app.admin_key) == before
        found = asks(keys_app, narrow)
        assert (found.project, found.scopes) == ("acme", {Scope.ADAPTERS, Scope.TRAIN})
        assert (found.adapters, found.stores, found.limits, found.background) == (("brand-*",), (), limits, True)
        assert (asks(keys_app, plain).adapters, asks(keys_app, plain).stores) == (None, None)
        assert asks(keys_app, keys_app.admin_key).may(Scope.TRAIN)


async def test_a_keys_filters_survive_a_restart_and_go_to_its_children(tmp_path: Path) -> None:
    filters = {"customer": "c-1", "year": 2026.0, "gift": True}
    async with KeysApp(tmp_path).run() as keys_app:
        parent, plain = await mint(keys_app, filters=filters)
        _, child = await mint(keys_app, parent, filters={"customer": "c-2", "region": "eu"})
    async with KeysApp(tmp_path).run() as keys_app:
        assert asks(keys_app, plain).filters == filters
        assert asks(keys_app, child).filters == {**filters, "region": "eu"}
        assert hash(asks(keys_app, plain)) is not None


async def test_a_revoked_key_stays_dead_after_a_restart(tmp_path: Path) -> None:
    async with KeysApp(tmp_path).run() as keys_app:
        key_id, key = await mint(keys_app)
        assert asks(keys_app, key).key_id == key_id
        await keys_app.keys.delete(SYSTEM, key_id)
        with pytest.raises(Unauthenticated):
            asks(keys_app, key)
        with pytest.raises(NotFound):
            await keys_app.keys.delete(SYSTEM, key_id)
        left = await keys_app.database.run(lambda db: db.execute(sa.select(tables.keys.c.id, tables.keys.c.hmac)).all())
        assert [tuple(row) for row in left] == [(key_id, None)], "its row says whose it was, and tells no key"
    async with KeysApp(tmp_path).run() as keys_app:
        with pytest.raises(Unauthenticated):
            asks(keys_app, key)


@pytest.mark.sqlite
async def test_neither_the_key_nor_its_secret_is_in_the_database(tmp_path: Path) -> None:
    async with KeysApp(tmp_path).run() as keys_app:
        key_id, key = await mint(keys_app)
        digest = await keys_app.database.run(
            lambda db: db.scalar(sa.select(tables.keys.c.hmac).where(tables.keys.c.id == key_id))
        )
        assert digest == keys_app.keys.authenticator.hmac(key)
    secret = key_secret(tmp_path)[0]
    stored = b"".join(path.read_bytes() for path in tmp_path.glob("hatrack.db*"))
    assert key_id.encode() in stored
    for hidden in (key.encode(), key[8:].encode(), secret, secret.hex().encode()):
        assert hidden not in stored


async def test_what_is_derived_from_the_secret_outlives_a_start_and_follows_the_secret(tmp_path: Path) -> None:
    async with KeysApp(tmp_path).run() as keys_app:
        first = keys_app.keys.derived_secret("a")
        assert len(first) == 32
        assert first not in (keys_app.keys.derived_secret("b"), key_secret(tmp_path)[0])
    async with KeysApp(tmp_path).run() as keys_app:
        assert keys_app.keys.derived_secret("a") == first
    (tmp_path / "key.secret").unlink()
    async with KeysApp(tmp_path).run() as keys_app:
        assert keys_app.keys.derived_secret("a") != first


async def test_secrets_are_for_their_owner_alone(tmp_path: Path) -> None:
    async with KeysApp(tmp_path).run():
        for name in ("key.secret", "admin.key"):
            assert (tmp_path / name).stat().st_mode & 0o777 == 0o600, name
    assert list(tmp_path.glob(".*")) == []


@pytest.mark.parametrize("content", ["", "abcd", "no hex at all", "é" * 64])
def test_a_broken_secret_is_named_and_nothing_starts(tmp_path: Path, content: str) -> None:
    (tmp_path / "key.secret").write_text(content)
    with pytest.raises(SettingsError, match=r"key\.secret"):
        key_secret(tmp_path)


async def test_a_lost_secret_is_said_loudly(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async with KeysApp(tmp_path).run() as keys_app:
        _, key = await mint(keys_app)
    assert caplog.text == ""
    (tmp_path / "key.secret").unlink()
    async with KeysApp(tmp_path).run() as keys_app:
        with pytest.raises(Unauthenticated):
            asks(keys_app, key)
        assert asks(keys_app, keys_app.admin_key).key_id == "admin"
    assert "1 API keys can no longer be verified" in caplog.text


async def test_a_project_comes_into_being_with_its_first_key(keys_app: KeysApp) -> None:
    def names(db: sa.Connection) -> set[str]:
        return set(db.scalars(sa.select(sa.column("id")).select_from(sa.table("projects"))))

    asks(keys_app, keys_app.admin_key, **{"openai-project": "elsewhere"})
    assert await keys_app.database.run(names) == {"default"}
    await mint(keys_app)
    await mint(keys_app)
    assert await keys_app.database.run(names) == {"default", "acme"}


async def test_rotating_the_admin_key(tmp_path: Path) -> None:
    async with KeysApp(tmp_path).run() as keys_app:
        old = keys_app.admin_key
        _, of_admin = await mint(keys_app, parent="admin")
        _, other = await mint(keys_app)
        new = await keys_app.keys.rotate_admin(SYSTEM)
        assert (tmp_path / "admin.key").read_text() == new + "\n"
        assert (tmp_path / "admin.key").stat().st_mode & 0o777 == 0o600
        assert asks(keys_app, new).key_id == "admin"
        assert asks(keys_app, other).project == "acme"
        for dead in (old, of_admin):
            with pytest.raises(Unauthenticated):
                asks(keys_app, dead)
    async with KeysApp(tmp_path).run() as keys_app:
        assert asks(keys_app, new).key_id == "admin"


async def test_another_given_admin_key_revokes_the_keys_of_the_one_before(tmp_path: Path) -> None:
    async with KeysApp(tmp_path, given="given-in-the-settings").run() as keys_app:
        _, of_admin = await mint(keys_app, parent="admin")
        _, other = await mint(keys_app)
    async with KeysApp(tmp_path, given="given-in-the-settings").run() as keys_app:
        assert asks(keys_app, of_admin).project == "acme"
    for _ in range(2):
        async with KeysApp(tmp_path, given="another-in-the-settings").run() as keys_app:
            assert asks(keys_app, other).project == "acme"
            with pytest.raises(Unauthenticated):
                asks(keys_app, of_admin)
            rows = (await keys_app.keys.audit_page(after=None, limit=9))["data"]
    assert [row["action"] for row in rows] == ["key.rotate_admin", "key.create", "key.create"]


async def test_a_rotation_that_cannot_be_written_changes_nothing(keys_app: KeysApp) -> None:
    old = keys_app.admin_key
    _, child = await mint(keys_app, parent="admin")
    (keys_app.home / "admin.key").unlink()
    (keys_app.home / "admin.key").mkdir()  # a file cannot take the place of a directory
    with pytest.raises(Internal, match="the old admin key stays valid"):
        await keys_app.keys.rotate_admin(SYSTEM)
    assert asks(keys_app, old).key_id == "admin"
    assert asks(keys_app, child).project == "acme"
    assert [row["action"] for row in (await keys_app.keys.audit_page(after=None, limit=9))["data"]] == ["key.create"]
    assert [path.name for path in keys_app.home.glob(".*")] == []


async def test_a_given_admin_key_is_not_rotated_here(tmp_path: Path) -> None:
    async with KeysApp(tmp_path, given="given-in-the-settings").run() as keys_app:
        with pytest.raises(Conflict, match="HATRACK_ADMIN_KEY") as caught:
            await keys_app.keys.rotate_admin(SYSTEM)
        assert caught.value.code == "admin_key_given"
        assert asks(keys_app, "given-in-the-settings").key_id == "admin"
    assert not (tmp_path / "admin.key").exists()


def test_a_secret_replaces_the_old_one_whole(tmp_path: Path) -> None:
    path = tmp_path / "a.key"
    write_secret(path, "first\n")
    with path.open() as reader:
        write_secret(path, "second\n")
        assert reader.read() == "first\n", "who had it open reads the old one to its end"
    assert path.read_text() == "second\n"


# keys under keys


async def test_a_key_dies_with_the_key_it_was_made_under(keys_app: KeysApp) -> None:
    parent_id, parent = await mint(keys_app)
    child_id, child = await mint(keys_app, parent=parent_id)
    grandchild_id, grandchild = await mint(keys_app, parent=child_id)
    _, stranger = await mint(keys_app)
    assert await keys_app.keys.delete(SYSTEM, parent_id) == sorted([parent_id, child_id, grandchild_id])
    for dead in (parent, child, grandchild):
        with pytest.raises(Unauthenticated):
            asks(keys_app, dead)
    assert asks(keys_app, stranger).project == "acme"
    with pytest.raises(Unauthenticated, match="no longer valid"):
        await mint(keys_app, parent=parent_id)


async def test_a_key_under_another_inherits_what_it_leaves_open(keys_app: KeysApp) -> None:
    ends = int(time.time()) + 1000
    limits = Limits(concurrent=2, tokens_per_day=100)
    parent_id, _ = await mint(keys_app, adapters=("a-*",), stores=("docs",), limits=limits, expires_at=ends)
    _, child = await mint(keys_app, parent=parent_id, limits=Limits(concurrent=5, requests_per_minute=7))
    found = asks(keys_app, child)
    assert (found.adapters, found.stores) == (("a-*",), ("docs",))
    assert found.limits == Limits(concurrent=2, tokens_per_day=100, requests_per_minute=7)
    for wanted, got in ((ends + 1000, ends), (ends - 500, ends - 500), (None, ends)):
        made, _ = await keys_app.keys.mint(
            SYSTEM, KeyDraft("k", "acme", INFER, expires_at=wanted, parent_key_id=parent_id)
        )
        assert made["expires_at"] == got


async def test_a_key_under_another_uses_up_that_one_s_limits(keys_app: KeysApp) -> None:
    """Else each job that a key makes would have the key's limits once more."""
    clock = Clock()
    limiter = KeyLimiter(clock=clock.monotonic, wall=clock.wall)
    parent_id, parent = await mint(keys_app, limits=Limits(requests_per_minute=3, tokens_per_day=100))
    children = [(await mint(keys_app, parent=parent_id, background=True))[1] for _ in range(2)]
    for key in (*children, parent):
        limiter.enter(asks(keys_app, key)).close(10)
    for key in (*children, parent):
        with pytest.raises(RequestsLimited):
            limiter.enter(asks(keys_app, key))
    _, of_admin = await mint(keys_app, parent="admin", limits=Limits(requests_per_minute=1))
    assert asks(keys_app, of_admin).limited_as is None

    account = UsageAccount(keys_app.database, wall=clock.wall, flush_s=3600)
    for key, tokens in ((parent, 30), (children[0], 40), (children[1], 30)):
        used = TokenUsage(tokens, 0)
        account(Record("r", "/v1/x", asks(keys_app, key), Target("smol", "smol"), usage=used))
    await account.flush()
    assert await account.charged_today() == {parent_id: 100}
    restarted = KeyLimiter(clock=clock.monotonic, wall=clock.wall)
    restarted.restore(await account.charged_today())
    with pytest.raises(QuotaSpent):
        restarted.enter(asks(keys_app, children[0]))


async def test_what_yields_makes_nothing_that_does_not(keys_app: KeysApp) -> None:
    parent_id, _ = await mint(keys_app, background=True)
    _, child = await mint(keys_app, parent=parent_id)
    assert asks(keys_app, child).background


@pytest.mark.parametrize(
    "more",
    [
        {"scopes": frozenset({Scope.INFER, Scope.TRAIN})},
        {"scopes": frozenset({Scope.ADMIN}), "project": "default"},
        {"project": "globex"},
        {"adapters": ("a-*", "*")},
        {"adapters": ("b",)},
        {"stores": ("other",)},
    ],
)
async def test_a_key_under_another_cannot_do_more(keys_app: KeysApp, more: dict[str, object]) -> None:
    parent_id, _ = await mint(keys_app, adapters=("a-*",), stores=("docs",))
    with pytest.raises(Forbidden):
        await mint(keys_app, parent=parent_id, **more)
    assert len((await keys_app.keys.page(None, None, 10))["data"]) == 1
    _, child = await mint(keys_app, parent=parent_id, adapters=("a-1", "a-?x*"))
    assert asks(keys_app, child).adapters == ("a-1", "a-?x*")


async def test_a_key_under_an_expired_one_is_refused(keys_app: KeysApp) -> None:
    parent_id, _ = await mint(keys_app, expires_at=int(time.time()) + 1000)
    await keys_app.database.run(lambda db: db.execute(tables.keys.update().values(expires_at=int(time.time()) - 1)))
    with pytest.raises(Unauthenticated):
        await mint(keys_app, parent=parent_id)


@pytest.mark.parametrize(
    ("wide", "narrow", "covered"),
    [
        (None, None, True),
        (None, ("*",), True),
        (("*",), None, False),
        (("*",), ("*", "a?", "b"), True),
        ((), (), True),
        ((), ("a",), False),
        (("a*", "b"), ("ab*", "b"), True),
        (("a?",), ("a?", "ab"), True),
        (("a?",), ("a*",), False),
        (("a?c",), ("a*c",), False),
        (("*-v?",), ("x*-v1", "*-v?"), True),
        (("a*",), ("*a",), False),
    ],
)
def test_which_globs_cover_which(wide: tuple[str, ...] | None, narrow: tuple[str, ...] | None, covered: bool) -> None:
    assert grants.covers(wide, narrow) is covered


async def test_keys_that_make_no_sense(keys_app: KeysApp) -> None:
    for param, given in {
        "expires_at": {"expires_at": int(time.time())},
        "adapters": {"scopes": frozenset({Scope.ADMIN}), "adapters": ("a",)},
        "stores": {"scopes": frozenset({Scope.ADMIN}), "stores": ()},
    }.items():
        with pytest.raises(BadRequest) as caught:
            await mint(keys_app, **given)  # type: ignore[arg-type]
        assert caught.value.param == param


async def test_the_migrations_make_the_tables_that_the_code_uses(keys_app: KeysApp) -> None:
    ours = {tables.keys.name, tables.audit.name}

    def differences(db: sa.Connection) -> list[object]:
        def ours_alone(name: str | None, kind: str, _: object) -> bool:
            return kind != "table" or name in ours

        context = MigrationContext.configure(db, opts={"include_name": ours_alone, "compare_type": True})
        subset = sa.MetaData(naming_convention=metadata.naming_convention)
        for name in {*ours, "projects"}:
            metadata.tables[name].to_metadata(subset)
        return [found for found in compare_metadata(context, subset) if "projects" not in repr(found)]

    assert await keys_app.database.run(differences) == []


async def test_no_key_outlives_its_maker(tmp_path: Path) -> None:
    soon = int(time.time()) + 3600
    async with KeysApp(tmp_path).run() as keys_app:
        maker, _ = await mint(keys_app, scopes=frozenset({Scope.ADMIN}), expires_at=soon)
        actor = replace(SYSTEM, key_id=maker)
        draft = KeyDraft(name="child", project="default", scopes=frozenset({Scope.ADMIN}))
        shown, _ = await keys_app.keys.mint(actor, draft)
        assert shown["expires_at"] == soon
        earlier, _ = await keys_app.keys.mint(actor, replace(draft, expires_at=soon - 60))
        assert earlier["expires_at"] == soon - 60
        with pytest.raises(BadRequest, match="outlive"):
            await keys_app.keys.mint(actor, replace(draft, expires_at=soon + 1))
