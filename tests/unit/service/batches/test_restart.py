"""A gateway that is killed or stopped at any moment keeps what was answered, and goes on at its next start."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections import Counter
from pathlib import Path

import orjson
import pytest
import sqlalchemy as sa

from service.batches.lines import ENVELOPE_BYTES
from service.batches.records import batches
from service.batches.results import ERRORS, OUTPUT, Result, ResultLog, Tally, Usage, answer_line, refused_line
from tests.unit.service.batches.batches_app import BatchesApp, line
from tests.unit.service.batches.killed_gateway import note_in

KILLED_S = 120.0


@pytest.mark.sqlite
async def test_kill_9_loses_no_answer_and_asks_only_what_was_in_flight_again(tmp_path: Path) -> None:
    home, asked = tmp_path / "home", tmp_path / "asked"
    gateway = BatchesApp(home)
    gateway.trouble = "nothing is asked yet"
    async with gateway.run():
        batch_id = await gateway.start(*(f"q{number}" for number in range(40)))
        await gateway.comes_to(batch_id, lambda batch: batch["waiting"])
    module = "tests.unit.service.batches.killed_gateway"
    killed = await asyncio.create_subprocess_exec(sys.executable, "-m", module, str(home), str(asked), "15")
    async with asyncio.timeout(KILLED_S):
        assert await killed.wait() == -signal.SIGKILL, "it is killed in the midst of it"
    recorded = {
        orjson.loads(text)["custom_id"] for text in (home / "batches" / batch_id / OUTPUT).read_bytes().splitlines()
    }
    assert 15 <= len(recorded) < 40

    gateway = BatchesApp(home)
    gateway.engine.on_asked = lambda question: note_in(asked, question)
    async with gateway.run():
        batch = await gateway.ended(batch_id)
        output = await gateway.lines_of(batch["output_file_id"])
    assert (batch["status"], batch["request_counts"]) == ("completed", {"total": 40, "completed": 40, "failed": 0})
    assert batch["usage"]["total_tokens"] == 40 * 16, "answers from before the kill are counted, too"
    assert set(output) == {f"q{number}" for number in range(40)}
    times = Counter(asked.read_text().split())
    assert all(times[question] == 1 for question in recorded), "no recorded answer is asked for again"
    assert sum(times.values()) <= 40 + gateway.context.concurrency, "beyond those in flight, none is asked twice"
    assert set(gateway.engine.asked).isdisjoint(recorded)


async def test_a_gateway_that_stops_goes_on_at_its_next_start(tmp_path: Path) -> None:
    first = BatchesApp(tmp_path)
    first.engine.held = asyncio.Event()
    first.engine.holds = lambda question: int(question) >= 3
    async with first.run():
        batch_id = await first.start(*map(str, range(10)))
        await first.comes_to(batch_id, lambda batch: batch["request_counts"]["completed"] == 3)
    second = BatchesApp(tmp_path)
    async with second.run():
        batch = await second.ended(batch_id)
        assert batch["request_counts"]["completed"] == 10
        assert set(second.engine.asked) == set(map(str, range(3, 10)))


async def test_a_batch_whose_window_ended_while_the_gateway_was_off_expires(tmp_path: Path) -> None:
    first = BatchesApp(tmp_path)
    first.trouble = "it is asleep"
    async with first.run():
        batch_id = await first.start("one", "two")
        await first.comes_to(batch_id, lambda batch: batch["waiting"])
        await first.database.run(lambda db: db.execute(batches.update().values(expires_at=1)) and None)
    second = BatchesApp(tmp_path)
    async with second.run():
        batch = await second.ended(batch_id)
        assert (batch["status"], second.engine.asked) == ("expired", [])
        assert set(await second.lines_of(batch["error_file_id"])) == {"one", "two"}


@pytest.mark.parametrize("expired", [False, True])
async def test_a_line_that_a_lowered_limit_refuses_is_a_result_and_no_trouble(tmp_path: Path, expired: bool) -> None:
    first = BatchesApp(tmp_path)
    object.__setattr__(first.context, "max_body", 4 * ENVELOPE_BYTES)
    first.trouble = "it is asleep"
    async with first.run():
        long = orjson.dumps(line("long"))[:-1] + b" " * 2 * ENVELOPE_BYTES + b"}\n"
        file_id = await first.upload([line("one"), long, line("two")])
        batch_id = str((await first.create(file_id))["id"])
        await first.comes_to(batch_id, lambda batch: batch["waiting"])
        if expired:
            await first.database.run(lambda db: db.execute(batches.update().values(expires_at=1)) and None)
    second = BatchesApp(tmp_path)
    async with second.run():
        batch = await second.ended(batch_id)
        errors = await second.lines_of(batch["error_file_id"])
    found = {custom_id: each["error"]["code"] for custom_id, each in errors.items()}
    if expired:
        assert (batch["status"], found) == ("expired", dict.fromkeys(("one", "long", "two"), "batch_expired"))
    else:
        assert (batch["status"], found) == ("completed", {"long": "line_too_long"})
        assert batch["request_counts"] == {"total": 3, "completed": 2, "failed": 1}


async def test_a_batch_whose_input_is_missing_ends(tmp_path: Path) -> None:
    first = BatchesApp(tmp_path)
    first.trouble = "it is asleep"
    async with first.run():
        batch_id = await first.start("one", "two")
        batch = await first.comes_to(batch_id, lambda batch: batch["waiting"])
    first.files.path(batch["input_file_id"]).unlink()
    second = BatchesApp(tmp_path)
    async with second.run():
        batch = await second.ended(batch_id)
    assert (batch["status"], batch["errors"]["data"][0]["code"]) == ("failed", "internal_error")
    assert (batch["request_counts"]["failed"], batch["error_file_id"]) == (0, None)


@pytest.mark.parametrize(
    ("stored", "status", "answered"),
    [
        ({"status": "validating", "in_progress_at": None}, "completed", 2),
        ({"status": "cancelling", "cancelling_at": 5}, "cancelled", 0),
        ({"status": "cancelling", "cancelling_at": 5, "in_progress_at": None}, "cancelled", 0),
        ({"status": "finalizing", "ending": "expired", "finalizing_at": 5}, "expired", 0),
        ({"status": "finalizing", "ending": "failed", "finalizing_at": 5}, "failed", 0),
        ({"status": "validating", "ending": "failed", "in_progress_at": None}, "failed", 0),
    ],
)
async def test_a_batch_goes_on_from_any_status(
    tmp_path: Path, stored: dict[str, object], status: str, answered: int
) -> None:
    first = BatchesApp(tmp_path)
    first.trouble = "it is asleep"
    async with first.run():
        batch_id = await first.start("one", "two")
        await first.comes_to(batch_id, lambda batch: batch["waiting"])
        await first.database.run(lambda db: db.execute(batches.update().values(stored)) and None)
    second = BatchesApp(tmp_path)
    async with second.run():
        batch = await second.ended(batch_id)
        assert (batch["status"], batch["request_counts"]["completed"]) == (status, answered)
        assert await second.database.run(lambda db: db.scalar(sa.select(batches.c.ended_at))) is not None
    assert list((tmp_path / "batches").iterdir()) == []


async def test_killed_between_the_result_files_and_the_end_of_the_batch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The files are stored, and their rows are not: nobody saw them, the next start removes and stores them again."""
    first = BatchesApp(tmp_path)
    adopt = first.files.adopt

    async def adopt_and_hang(source: Path) -> None:
        await adopt(source)
        await asyncio.Event().wait()

    monkeypatch.setattr(first.files, "adopt", adopt_and_hang)
    async with first.run():
        batch_id = await first.start("one")
        await first.comes_to(batch_id, lambda _: len(first.on_disk()) == 2)
    second = BatchesApp(tmp_path)
    async with second.run():
        batch = await second.ended(batch_id)
        assert (batch["status"], second.engine.asked) == ("completed", [])
        assert set(await second.lines_of(batch["output_file_id"])) == {"one"}
        assert second.on_disk() == {batch["input_file_id"], batch["output_file_id"]}


def test_what_was_cut_off_is_removed(tmp_path: Path) -> None:
    def result(number: int, *, ok: bool = True) -> Result:
        body = {"usage": {"input_tokens": 3, "output_tokens": 2, "output_tokens_details": {"reasoning_tokens": 1}}}
        parts = answer_line(log.id_of(number), f'c{number} \\"', 200, "r", orjson.dumps(body))
        return Result(number, ok, parts, Usage(3, 0, 2, 1))

    log = ResultLog(tmp_path / "batch_1", "batch_1")
    log.open()
    log.append([result(1), result(7, ok=False), result(2000)])
    log.append([result(1)])
    whole = log.path(OUTPUT).read_bytes()
    last = whole.splitlines()[-1]
    torn = last[:-30] + bytes(28) + last[-2:] + b"\n"
    another = refused_line("batch_req_2_3", "c", {})
    for rest in (b'{"id":"batch_req_1_3"', b"\0\0\0\n", torn, another, b"null\n", last[:-1] + b"\n"):
        log.path(OUTPUT).write_bytes(whole + rest)
        again = ResultLog(tmp_path / "batch_1", "batch_1")
        again.open()
        assert log.path(OUTPUT).read_bytes() == whole
        expected = Tally(2, 1, 6, 0, 4, 2)
        assert again.tally.columns == expected.columns
        assert [number for number in range(3000) if again.tally.has(number)] == [1, 7, 2000]
    again.append([result(3)])
    again.sync()
    assert log.path(OUTPUT).read_bytes().startswith(whole)
    assert log.path(OUTPUT).read_bytes().count(b"\n") == 3
    assert log.path(ERRORS).read_bytes().count(b"\n") == 1


def test_of_two_results_of_one_line_the_first_counts(tmp_path: Path) -> None:
    log = ResultLog(tmp_path / "batch_1", "batch_1")
    log.open()
    text = refused_line(log.id_of(1), "a", {})
    log.append([Result(1, True, (text,)), Result(1, False, (text,)), Result(1, True, (text,))])
    assert (log.path(OUTPUT).read_bytes(), log.path(ERRORS).read_bytes()) == (text, b"")
    assert (log.tally.completed, log.tally.failed) == (1, 0)


async def test_a_line_without_room_leaves_no_half_of_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A write that fails in its midst: what it left is overwritten by the next."""
    log = ResultLog(tmp_path / "batch_1", "batch_1")
    log.open()
    write, fails = os.pwrite, [True]

    def half(descriptor: int, data: bytes, offset: int) -> int:
        if fails[0]:
            write(descriptor, data[: len(data) // 2], offset)
            raise OSError(28, "No space left on device")
        return write(descriptor, data, offset)

    monkeypatch.setattr("service.batches.results.os.pwrite", half)
    parts = answer_line(log.id_of(1), "a", 200, "r", b"{}")
    with pytest.raises(Exception, match="disk is full"):
        log.append([Result(1, True, parts)])
    assert not log.tally.has(1)
    fails[0] = False
    short = refused_line(log.id_of(1), "a", {})
    log.append([Result(1, True, (short,))])
    log.sync()
    assert log.path(OUTPUT).read_bytes() == short
