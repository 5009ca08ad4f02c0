"""A backup of a trainer's part of the home: its database and the folders of its runs belong together."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import sqlalchemy as sa

from service.storage import backup as backup_module
from service.storage.backup import make_backup
from service.storage.errors import BackupError
from service.storage.references import References
from tests.unit.service.storage.storage_home import RUN, StorageHome, end_run
from tests.unit.service.storage.test_backup import QUIET, back_up, restored, rows
from trainer.evaluate.evaluations.look_store import looks
from trainer.runs.tables import runs


def test_a_run_that_ends_while_it_is_copied_has_ended_in_the_backup(
    home: StorageHome, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else the restored run would go on with a key that is revoked, and fail."""
    original, ended = backup_module.references, []

    def read(path: Path) -> References:
        ended.append(path)
        return original(path)

    copied = backup_module._Maker._copy_folder

    def copy(maker: backup_module._Maker, folder: Path) -> None:
        copied(maker, folder)
        if folder.name == RUN and not ended:
            end_run(home)

    monkeypatch.setattr(backup_module, "references", read)
    monkeypatch.setattr(backup_module._Maker, "_copy_folder", copy)
    monkeypatch.setattr(backup_module, "ROUND_PAUSE_S", 0)
    other = restored(home, back_up(home, tmp_path / "b.tar"), tmp_path / "elsewhere")
    assert len(ended) == 2
    assert any("'succeeded'" in line for line in rows(other.path / "trainer" / "jobs.db"))
    assert (other.path / "trainer" / "jobs" / RUN / "result.json").exists()


def while_copied(monkeypatch: pytest.MonkeyPatch, work: Callable[[], object]) -> list[Path]:
    """Do something once, right after the run's folder was copied; returns the trainer's databases as each round copied
    them."""
    copied, snapshot, rounds = backup_module._Maker._copy_folder, backup_module.snapshot, []

    def copy(maker: backup_module._Maker, folder: Path) -> None:
        copied(maker, folder)
        if folder.name == RUN and len(rounds) == 1:
            work()

    def take(source: Path, target: Path, moved: Callable[[int], None]) -> None:
        if source.name == "jobs.db":
            rounds.append(source)
        snapshot(source, target, moved)

    monkeypatch.setattr(backup_module._Maker, "_copy_folder", copy)
    monkeypatch.setattr(backup_module, "snapshot", take)
    monkeypatch.setattr(backup_module, "ROUND_PAUSE_S", 0)
    return rounds


def test_a_look_at_held_out_examples_is_copied_with_the_folder_of_its_run(
    home: StorageHome, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else the restored trainer would take a second look at the same examples for a first one."""
    look = {"project": "default", "run": RUN, "digest": "d", "examples": b"12345678", "created_at": 1}
    rounds = while_copied(monkeypatch, lambda: home.trainer(lambda db: db.execute(looks.insert().values(look))))
    other = restored(home, back_up(home, tmp_path / "b.tar"), tmp_path / "elsewhere")
    assert len(rounds) == 2
    assert other.trainer(lambda db: db.scalar(sa.select(looks.c.run)))[0] == RUN


def test_a_run_that_ends_after_its_folder_was_copied_is_copied_again(
    home: StorageHome, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also while the gateway has not revoked its key yet."""

    def end() -> None:
        home.trainer(lambda db: db.execute(runs.update().values(status="succeeded", finished_at=2)))

    rounds = while_copied(monkeypatch, end)
    backup = make_backup(home.settings, tmp_path / "b.tar", QUIET)
    assert (len(rounds), backup.manifest.faults) == (2, ())
    other = restored(home, backup.path, tmp_path / "elsewhere")
    assert other.trainer(lambda db: db.scalar(sa.select(runs.c.status)))[0] == "succeeded"


def test_the_first_run_of_all_is_copied_with_its_row(
    home: StorageHome, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else its folder would lie beside a database without runs, and the restored trainer take that for a lost one."""
    (row,) = home.trainer(lambda db: dict(db.execute(sa.select(runs)).one()._mapping))
    home.trainer(lambda db: db.execute(runs.delete()))
    rounds = while_copied(monkeypatch, lambda: home.trainer(lambda db: db.execute(runs.insert().values(row))))
    backup = make_backup(home.settings, tmp_path / "b.tar", QUIET)
    assert (len(rounds), backup.manifest.faults) == (2, ())


def test_a_run_whose_files_change_all_the_time_is_named(home: StorageHome, tmp_path: Path) -> None:
    events = home.path / "trainer" / "jobs" / RUN / "events.jsonl"

    def write(_done: int, _total: int | None, doing: str) -> None:
        if doing == "copying":
            with events.open("a") as file:
                file.write("{}\n")

    backup = make_backup(home.settings, tmp_path / "b.tar", write)
    (fault,) = backup.manifest.faults
    assert fault.startswith(f"trainer/jobs/{RUN} was still changing when it was copied")


def test_a_file_that_goes_while_its_folder_is_copied_again_is_not_in_the_backup(
    home: StorageHome, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a file that was copied before and is gone, no earlier content may come back."""
    monkeypatch.setattr(backup_module, "MAX_ROUNDS", 2)
    checkpoint = home.path / "trainer" / "jobs" / RUN / "checkpoints" / "step-00000003" / "state.pt"
    listed = backup_module.layout.file_states
    counts: list[int] = []

    def files_of(folder: Path) -> dict[str, tuple[int, int]]:
        if folder.name != RUN:
            return listed(folder)
        counts.append(1)
        if len(counts) == 2:  # it has been copied once
            checkpoint.write_bytes(b"replaced")
        files = listed(folder)
        if len(counts) == 2:
            checkpoint.unlink()
        return files

    monkeypatch.setattr(backup_module.layout, "file_states", files_of)
    backup = make_backup(home.settings, tmp_path / "b.tar", QUIET)
    names = {member.path for member in backup.manifest.members}
    assert f"trainer/jobs/{RUN}/spec.json" in names
    assert not any(name.endswith("state.pt") for name in names)


@pytest.mark.parametrize("is_new", [False, True], ids=["missing", "new"])
def test_runs_without_their_database_are_said(home: StorageHome, tmp_path: Path, is_new: bool) -> None:
    for path in (home.path / "trainer").glob("jobs.db*"):
        path.unlink()
    if is_new:
        home.trainer()
    (fault,) = make_backup(home.settings, tmp_path / "b.tar", QUIET).manifest.faults
    assert fault == "trainer/jobs.db is missing in the home, or has no runs, beside 1 folder of a run"


def test_a_home_that_has_only_a_trainer_is_backed_up(home: StorageHome, tmp_path: Path) -> None:
    alone = home.at(tmp_path / "alone")
    shutil.copytree(home.path / "trainer", alone.path / "trainer")
    made = make_backup(alone.settings, tmp_path / "b.tar", QUIET)
    assert made.manifest.faults == ()
    assert {member.path.partition("/")[0] for member in made.manifest.members} == {"trainer"}
    other = restored(alone, made.path, tmp_path / "elsewhere")
    assert rows(other.path / "trainer" / "jobs.db") == rows(alone.path / "trainer" / "jobs.db")
    assert (other.path / "trainer" / "jobs" / RUN / "spec.json").is_file()

    (home.path / "hatrack.db").unlink()
    with pytest.raises(BackupError, match="nothing to back up"):  # a gateway that has lost its database is no trainer
        back_up(home, tmp_path / "c.tar")
