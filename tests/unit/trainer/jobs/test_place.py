"""A job's folder as the trainer sees it: events that are read line by line, whatever a killed worker left."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

import pytest

from trainer.jobs import place as places
from trainer.jobs import process, spec
from trainer.jobs.folder import Folder
from trainer.jobs.place import Place
from trainer.jobs.spec import Control


@pytest.fixture
def place(make_job: Any) -> Place:
    folder: Path = make_job()
    found = Place(folder.parent, folder.parent.parent / "spent")
    found.open()
    return found


JOB = "ftjob-1"


def test_events_are_read_once_each_and_torn_lines_left_out(place: Place) -> None:
    assert place.tail(JOB, 0) == ([], 0)
    path = place.of(JOB) / spec.EVENTS
    with Folder(place.of(JOB)) as folder:
        folder.say("one")
        folder.say("two")
        found, offset = place.tail(JOB, 0)
        assert ([event.message for event in found], offset) == (["one", "two"], path.stat().st_size)
    with path.open("a") as file:
        file.write('{"at": 1, "mess')
    assert place.tail(JOB, offset) == ([], offset)
    with Folder(place.of(JOB)) as folder:
        folder.say("three")
    found, offset = place.tail(JOB, offset)
    assert [event.message for event in found] == ["three"]
    assert offset == path.stat().st_size


def test_many_events_are_read_a_piece_at_a_time(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(places, "TAIL_BYTES", 300)
    with Folder(place.of(JOB)) as folder:
        for number in range(20):
            folder.say(str(number))
    seen, offset = [], 0
    while found := place.tail(JOB, offset)[0]:
        seen += [event.message for event in found]
        offset = place.tail(JOB, offset)[1]
    assert seen == [str(number) for number in range(20)]


def test_a_line_without_an_end_is_not_waited_for_for_ever(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(places, "TAIL_BYTES", 300)
    monkeypatch.setattr(places, "LONGEST_LINE", 200)
    (place.of(JOB) / spec.EVENTS).write_text("x" * 1000)
    assert place.tail(JOB, 0) == ([], 300)


def test_the_worker_is_known_by_its_lock(place: Place) -> None:
    assert place.worker(JOB) is None
    with Folder(place.of(JOB)):
        assert place.worker(JOB) is not None
        (place.of(JOB) / spec.LOCK).write_text("")
        assert place.worker(JOB) == 0
    assert place.worker(JOB) is None


def test_orders_are_read_by_the_worker(place: Place) -> None:
    with Folder(place.of(JOB)) as folder:
        for control in Control:
            place.order(JOB, control)
            assert folder.control() is control


def test_what_grows_is_cleared_and_what_a_job_is_remembered_by_stays(place: Place) -> None:
    folder = place.of(JOB)
    (folder / spec.CHECKPOINTS).mkdir()
    big = (
        "training.jsonl", "held_out.jsonl", "held_out_questions.jsonl", "answers.jsonl", "scores.jsonl",
        "suite_answers.jsonl", "judgements.jsonl", "worker.log", "worker.log.1",
    )  # fmt: skip
    kept = {
        "spec.json",
        "events.jsonl",
        "report.json",
        "plan.json",
        "evaluation.json",
        "evaluation.html",
        "result.json",
    }
    for name in (*big, *kept):
        (folder / name).touch()
    place.clear(JOB)
    assert kept <= {path.name for path in folder.iterdir()} <= kept | {spec.KEY}
    place.clear(JOB)


def test_a_log_that_has_grown_too_long_is_put_aside_under_the_name_that_is_cleared(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(process, "MOST_LOG_BYTES", 0)
    folder = place.of(JOB)
    for _ in range(2):
        child = process.launch(folder, [sys.executable, "-c", "print(1)"])
        while child.poll() is None:
            time.sleep(0.01)
    assert (folder / places.OLD_LOG).exists()
    place.clear(JOB)
    assert not [path for path in folder.iterdir() if "log" in path.name]


def test_progress_is_what_a_crash_does_not_undo(place: Place) -> None:
    seen = {place.progress(JOB)}
    for name in (spec.TRAINING, spec.PLAN):
        (place.of(JOB) / name).write_text("{}")
        seen.add(place.progress(JOB))
    for step in ("step-00000002", "step-00000010"):
        (place.of(JOB) / spec.CHECKPOINTS / step).mkdir(parents=True)
        seen.add(place.progress(JOB))
    assert len(seen) == 5
    assert place.progress(JOB).endswith(" step-00000010")
    (place.of(JOB) / spec.EVENTS).write_text("more")
    assert place.progress(JOB) in seen


def test_of_a_file_that_is_shorter_than_was_read_the_new_lines_are_read_whole(place: Place) -> None:
    path = place.of(JOB) / spec.EVENTS
    with Folder(place.of(JOB)) as folder:
        folder.say("one")
    kept = path.stat().st_size
    found, offset = place.tail(JOB, kept + 1000)  # the power went before the rest was on the disk
    assert (found, offset) == ([], kept)
    with Folder(place.of(JOB)) as folder:
        folder.say("two")
    assert [event.message for event in place.tail(JOB, offset)[0]] == ["two"]


def test_events_are_on_the_disk_before_it_is_noted_that_they_were_read(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    flushed: list[int] = []
    monkeypatch.setattr(places.os, "fsync", flushed.append)
    with Folder(place.of(JOB)) as folder:
        folder.say("one")
    _, offset = place.tail(JOB, 0)
    assert len(flushed) == 1
    place.tail(JOB, offset)
    assert len(flushed) == 1


@pytest.mark.parametrize("book", places.GROWING)
def test_whatever_is_written_while_it_is_judged_is_progress(place: Place, book: str) -> None:
    (place.of(JOB) / spec.PUSHED).write_text("{}")
    before = place.progress(JOB)
    (place.of(JOB) / book).write_text("more")
    assert place.progress(JOB) != before
