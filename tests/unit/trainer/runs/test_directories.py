"""A run's directory as the trainer sees it: events that are read line by line, whatever a killed worker left."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import pytest

from trainer.installation import Installation
from trainer.runs import directories, process, protocol
from trainer.runs.directories import RunDirectories
from trainer.runs.directory import RunDirectory
from trainer.runs.protocol import Control, RunResult
from trainer.runs.spec import TrainingRunSpec

RUN = "run-1"


@pytest.fixture
def runs(tmp_path: Path) -> RunDirectories:
    found = RunDirectories(tmp_path / "runs", tmp_path / "spent", ())
    found.open()
    found.create(RUN, RunResult(status="succeeded"), "hk_run")
    return found


def test_events_are_read_once_each_and_torn_lines_left_out(runs: RunDirectories) -> None:
    assert runs.tail(RUN, 0) == ([], 0)
    path = runs.path_of(RUN) / protocol.EVENTS
    with RunDirectory(runs.path_of(RUN)) as directory:
        directory.emit_event("one")
        directory.emit_event("two")
        found, offset = runs.tail(RUN, 0)
        assert ([event.message for event in found], offset) == (["one", "two"], path.stat().st_size)
    with path.open("a") as file:
        file.write('{"at": 1, "mess')
    assert runs.tail(RUN, offset) == ([], offset)
    with RunDirectory(runs.path_of(RUN)) as directory:
        directory.emit_event("three")
    found, offset = runs.tail(RUN, offset)
    assert [event.message for event in found] == ["three"]
    assert offset == path.stat().st_size


def test_many_events_are_read_a_piece_at_a_time(runs: RunDirectories, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(directories, "MAX_TAIL_BYTES", 300)
    with RunDirectory(runs.path_of(RUN)) as directory:
        for number in range(20):
            directory.emit_event(str(number))
    seen, offset = [], 0
    while found := runs.tail(RUN, offset)[0]:
        seen += [event.message for event in found]
        offset = runs.tail(RUN, offset)[1]
    assert seen == [str(number) for number in range(20)]


def test_a_line_without_an_end_is_not_waited_for_for_ever(
    runs: RunDirectories, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(directories, "MAX_TAIL_BYTES", 300)
    monkeypatch.setattr(directories, "MAX_LINE_BYTES", 200)
    (runs.path_of(RUN) / protocol.EVENTS).write_text("x" * 1000)
    assert runs.tail(RUN, 0) == ([], 300)


def test_the_worker_is_known_by_its_lock(runs: RunDirectories) -> None:
    assert runs.worker(RUN) is None
    with RunDirectory(runs.path_of(RUN)):
        assert runs.worker(RUN) is not None
        (runs.path_of(RUN) / protocol.LOCK).write_text("")
        assert runs.worker(RUN) == 0
    assert runs.worker(RUN) is None


def test_orders_are_read_by_the_worker(runs: RunDirectories) -> None:
    with RunDirectory(runs.path_of(RUN)) as directory:
        for control in Control:
            runs.set_control(RUN, control)
            assert directory.control() is control


def test_a_log_that_has_grown_too_long_is_put_aside_under_the_name_that_is_cleared(
    runs: RunDirectories, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(process, "MAX_LOG_BYTES", 0)
    folder = runs.path_of(RUN)
    for _ in range(2):
        child = process.spawn(folder, [sys.executable, "-c", "print(1)"])
        while child.poll() is None:
            time.sleep(0.01)
    assert (folder / protocol.OLD_LOG).exists()
    runs.clear(RUN)
    assert not [path for path in folder.iterdir() if "log" in path.name]


def test_of_a_file_that_is_shorter_than_was_read_the_new_lines_are_read_whole(runs: RunDirectories) -> None:
    path = runs.path_of(RUN) / protocol.EVENTS
    with RunDirectory(runs.path_of(RUN)) as directory:
        directory.emit_event("one")
    kept = path.stat().st_size
    found, offset = runs.tail(RUN, kept + 1000)  # the power went before the rest was on the disk
    assert (found, offset) == ([], kept)
    with RunDirectory(runs.path_of(RUN)) as directory:
        directory.emit_event("two")
    assert [event.message for event in runs.tail(RUN, offset)[0]] == ["two"]


def test_events_are_on_the_disk_before_it_is_noted_that_they_were_read(
    runs: RunDirectories, monkeypatch: pytest.MonkeyPatch
) -> None:
    flushed: list[int] = []
    monkeypatch.setattr(directories.os, "fsync", flushed.append)
    with RunDirectory(runs.path_of(RUN)) as directory:
        directory.emit_event("one")
    _, offset = runs.tail(RUN, 0)
    assert len(flushed) == 1
    runs.tail(RUN, offset)
    assert len(flushed) == 1


def test_what_a_killed_worker_left_of_a_directory_is_cleared_too(tmp_path: Path) -> None:
    runs = RunDirectories(tmp_path / "runs", tmp_path / "spent", ("output", "train.jsonl"))
    runs.open()
    runs.create(RUN, RunResult(status="succeeded"), "hk_run")
    for name in ("output", ".output.partial", ".output.retired"):
        (runs.path_of(RUN) / name).mkdir()
        (runs.path_of(RUN) / name / "weights").write_text("w")
    (runs.path_of(RUN) / ".train.jsonl.partial").write_text("{}")
    runs.clear(RUN)
    assert [path.name for path in runs.path_of(RUN).iterdir() if "output" in path.name or "train" in path.name] == []


def test_a_run_is_pointed_at_the_gateway_and_the_base_of_the_machine_that_it_goes_on_at(tmp_path: Path) -> None:
    """As after a restore on another machine: another port, another home, and the base under it."""
    base, old_base = tmp_path / "new" / "base", tmp_path / "old" / "base"
    base.mkdir(parents=True)
    (base / "config.json").write_text("{}")
    here = Installation(home=tmp_path, gateway="http://127.0.0.1:9000", base=base, base_name="b", max_rank=32)
    runs = RunDirectories(tmp_path / "runs", tmp_path / "spent", (), here)
    runs.open()
    spec = TrainingRunSpec(
        id=RUN, project="default", created_at=1, gateway="http://10.0.0.1:8000", base_name="b", base_dir=old_base,
        max_rank=32, context=None,
    )  # fmt: skip
    runs.create(RUN, spec, "hk_run")
    runs.relocate(RUN)
    moved = runs.read(RUN, protocol.SPEC, TrainingRunSpec)
    assert moved == spec.model_copy(update={"gateway": here.gateway, "base_dir": base})

    old_base.mkdir(parents=True)
    (old_base / "config.json").write_text("{}")
    runs.write(RUN, protocol.SPEC, spec)
    runs.relocate(RUN)
    kept = runs.read(RUN, protocol.SPEC, TrainingRunSpec)
    assert kept == spec.model_copy(update={"gateway": here.gateway}), "a base that is still there is the run's own"
