"""A home whose database is on a server is left alone by whoever is run without that server, or with another one."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner

from adapters.database.marker import MARKER
from service.cli.main import app
from service.cli.run import unusable_data
from service.config import Settings
from service.database import Database
from service.errors import SettingsError
from service.storage.archive import Progress
from service.storage.backup import make_backup
from service.storage.errors import BackupError, TargetNotEmpty
from service.storage.garbage import GRACE_S, find_garbage, remove_garbage
from service.storage.move import move_databases
from service.storage.move_store import move_content
from service.storage.restore import restore
from tests.support.postgresql import TestServer
from tests.unit.service.storage.storage_home import StorageHome
from trainer.database import Database as TrainerDatabase
from trainer.errors import SettingsError as TrainerSettingsError

MakeUrl = Callable[[], str]


def quiet(_done: int, _total: int | None, _doing: str) -> None:
    """No bar."""


QUIET: Progress = quiet


@pytest.fixture
def new_url(postgresql: TestServer) -> Iterator[MakeUrl]:
    """Makes databases without any table; returns their URLs."""
    names: list[str] = []

    def make() -> str:
        names.append(postgresql.create())
        return postgresql.url(names[-1])

    yield make
    for name in names:
        postgresql.drop(name)


def at(settings: Settings, url: str | None) -> Settings:
    return Settings(**{**dict(settings), "database_url": url, "trainer_database_url": url})


@pytest.fixture
def moved(home: StorageHome, new_url: MakeUrl) -> Settings:
    """The settings of a home that was moved to a server, and has got a file since."""
    settings = at(home.settings, new_url())
    move_databases(settings)
    (home.path / "files" / "file-since-the-move").write_bytes(b"a caller's")
    return settings


@pytest.fixture
def _aged(monkeypatch: pytest.MonkeyPatch) -> None:
    now = time.time
    monkeypatch.setattr("service.storage.garbage.time.time", lambda: now() + 2 * GRACE_S)


def everything(home: StorageHome) -> set[str]:
    """All of it but what a look at a database or at an object store may leave."""
    return home.content().keys() - {"installation-id"}


def is_refused(settings: Settings, folder: Path, reason: str) -> None:
    """Nothing that removes by what the database says, or starts on it, goes on."""
    objects = folder / "objects"
    objects.mkdir()
    for refused in (
        lambda: find_garbage(settings),
        lambda: remove_garbage(settings, removed=lambda each: pytest.fail(f"{each} is gone")),
        lambda: move_content(settings.model_copy(update={"store_url": f"file://{objects}"}), QUIET),
    ):
        with pytest.raises(BackupError, match=reason):
            refused()
    assert len(unusable_data(settings)) == 2, "of the gateway and of the trainer"


@pytest.mark.usefixtures("_aged")
async def test_without_the_variable_nothing_is_removed_backed_up_or_started(
    home: StorageHome, moved: Settings, tmp_path: Path
) -> None:
    before = everything(home)
    to_do = rf"Set HATRACK_DATABASE_URL.*delete {home.path}"
    is_refused(home.settings, tmp_path, to_do)
    with pytest.raises(BackupError, match=to_do):
        make_backup(home.settings, tmp_path / "b.tar", QUIET)
    database = Database(home.path / "hatrack.db")
    with pytest.raises(SettingsError, match="HATRACK_DATABASE_URL is not set"):
        await database.open()
    await database.close()
    trainer = TrainerDatabase(home.path / "trainer" / "jobs.db")
    with pytest.raises(TrainerSettingsError, match="HATRACK_TRAINER_DATABASE_URL is not set"):
        await trainer.open()
    await trainer.close()
    assert everything(home) == before
    assert json.loads((home.path / MARKER).read_bytes())["place"].startswith("postgresql:///")
    assert unusable_data(moved) == []


@pytest.mark.usefixtures("_aged")
def test_another_place_is_refused_until_the_marker_is_deleted(
    home: StorageHome, moved: Settings, new_url: MakeUrl, tmp_path: Path
) -> None:
    elsewhere = at(home.settings, new_url())
    is_refused(elsewhere, tmp_path, "names postgresql://.*delete ")
    make_backup(elsewhere, tmp_path / "b.tar", QUIET)  # has nothing of the database, which may have another name here
    for name in (MARKER, "hatrack.db", f"trainer/{MARKER}", "trainer/jobs.db"):
        (home.path / name).unlink()
    assert unusable_data(moved) == [], "as if its server had got another name"


async def start(settings: Settings) -> None:
    """What a gateway and its trainer do first."""
    for database in (
        Database(settings.home / "hatrack.db", settings.database_address),
        TrainerDatabase(settings.home / "trainer" / "jobs.db", settings.trainer_database_address),
    ):
        try:
            await database.open()
        finally:
            await database.close()


@pytest.mark.usefixtures("_aged")
async def test_a_start_marks_a_home_that_an_earlier_release_has_moved(
    home: StorageHome, moved: Settings, postgresql: TestServer
) -> None:
    database = str(moved.database_address).partition("?")[0].rpartition("/")[2]
    for name in (MARKER, f"trainer/{MARKER}"):
        (home.path / name).unlink()
    for schema in ("hatrack", "hatrack_trainer"):
        postgresql.execute(f"COMMENT ON COLUMN {schema}.alembic_version.version_num IS NULL", database)
    with pytest.raises(BackupError, match="Start the gateway on it once"):
        find_garbage(moved)
    await start(moved)
    assert {each.paths[0].name for each in find_garbage(moved)} == {"file-since-the-move", "batch_1"}
    assert len(unusable_data(home.settings)) == 2


@pytest.mark.usefixtures("_aged")
async def test_another_installation_s_database_names_nothing_here(
    home: StorageHome, moved: Settings, new_url: MakeUrl, tmp_path: Path
) -> None:
    """Even at the same address; and where the home has never been on a server."""
    other = at(Settings(home=tmp_path / "other"), new_url())
    await start(other)
    stranger = at(home.settings, other.database_address)
    for name in (MARKER, f"trainer/{MARKER}"):
        marker = home.path / name
        there = json.loads((tmp_path / "other" / name).read_bytes())
        marker.write_text(json.dumps(json.loads(marker.read_bytes()) | {"place": there["place"]}))
    with pytest.raises(BackupError, match="the database of another installation"):
        find_garbage(stranger)
    assert len(unusable_data(stranger)) == 2
    with pytest.raises(SettingsError, match="the database of another installation"):
        await start(stranger)
    for name in (MARKER, f"trainer/{MARKER}"):
        (home.path / name).unlink()
    with pytest.raises(BackupError, match="run `hatrack move-database`"):
        find_garbage(stranger)
    with pytest.raises(SettingsError, match="run `hatrack move-database`"):
        await start(stranger)


def test_a_move_that_fails_leaves_no_marker(home: StorageHome, new_url: MakeUrl, postgresql: TestServer) -> None:
    settings = at(home.settings, new_url())
    database = str(settings.database_address).partition("?")[0].rpartition("/")[2]
    postgresql.execute("CREATE SCHEMA hatrack_trainer CREATE TABLE somebodys (id INT)", database)
    with pytest.raises(TargetNotEmpty):
        move_databases(settings)
    assert not (home.path / MARKER).exists()
    assert unusable_data(home.settings) == []


async def test_a_restored_home_without_its_database_waits_for_one(
    home: StorageHome, moved: Settings, tmp_path: Path
) -> None:
    """A new file would name nothing of it; any server will do, as the dump may have been restored on another one."""
    make_backup(moved, tmp_path / "b.tar", QUIET)
    there = home.settings.model_copy(update={"home": tmp_path / "restored"})
    restore(there, tmp_path / "b.tar", QUIET)
    assert len(unusable_data(there)) == 2
    with pytest.raises(TargetNotEmpty, match=MARKER):
        restore(there, tmp_path / "b.tar", QUIET)
    again = at(there, moved.database_address)
    with pytest.raises(BackupError, match="Start the gateway on it once"):
        find_garbage(again)
    await start(again)
    assert json.loads((there.home / MARKER).read_bytes()) == json.loads((home.path / MARKER).read_bytes())
    find_garbage(again)


def test_a_restore_that_was_cut_off_leaves_no_marker(home: StorageHome, moved: Settings, tmp_path: Path) -> None:
    make_backup(moved, tmp_path / "b.tar", QUIET)
    there = home.settings.model_copy(update={"home": tmp_path / "restored"})

    def stopped(_home: Path, _entries: object) -> None:
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("service.storage.restore._move_into_place", stopped)
        with pytest.raises(KeyboardInterrupt):
            restore(there, tmp_path / "b.tar", QUIET)
    (there.home / ".restore" / MARKER).rename(there.home / MARKER)  # as if killed in the middle
    restore(there, tmp_path / "b.tar", QUIET)
    assert (there.home / MARKER).exists()


@pytest.mark.parametrize("elsewhere", [{"trainer_url": "unix:/nonexistent.sock"}, {"trainer": "off"}])
def test_a_trainer_elsewhere_keeps_no_gateway_from_starting(
    home: StorageHome, moved: Settings, elsewhere: dict[str, str]
) -> None:
    """Its settings say where its database is; the gateway needs them for a backup and for garbage alone."""
    settings = moved.model_copy(update={**elsewhere, "trainer_database_url": None})
    assert unusable_data(settings) == []
    with pytest.raises(BackupError, match="HATRACK_TRAINER_DATABASE_URL is not set"):
        find_garbage(settings)


def test_the_commands_say_what_to_do(
    home: StorageHome, moved: Settings, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("HATRACK_HOME", str(home.path))
    monkeypatch.setenv("HATRACK_BASE_MODEL", home.settings.base_model)
    monkeypatch.setenv("HATRACK_ENGINE_DEVICE", "cpu")
    monkeypatch.chdir(tmp_path)
    advice = "Set HATRACK_DATABASE_URL"
    for command in (["gc", "--yes"], ["backup"], ["up"], ["serve"]):
        refused = CliRunner().invoke(app, command)
        assert (refused.exit_code, advice in " ".join(refused.output.split())) == (1, True), refused.output
    checks = json.loads(CliRunner().invoke(app, ["doctor", "--json"]).stdout)["checks"]
    (found,) = [check for check in checks if check["check"] == "database"]
    assert (found["result"], advice in found["found"]) == ("failed", True)
    monkeypatch.setenv("HATRACK_DATABASE_URL", str(moved.database_address))
    checks = json.loads(CliRunner().invoke(app, ["doctor", "--json"]).stdout)["checks"]
    (found,) = [check for check in checks if check["check"] == "database"]
    assert (found["result"], "PostgreSQL" in found["found"]) == ("ok", True)
