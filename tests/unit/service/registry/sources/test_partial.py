"""Partial files: what counts after a crash, and what is removed."""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from service.registry.sources import partial as partial_module
from service.registry.sources.partial import MAX_PARTIALS, MAX_PROJECT_PARTIALS, Partials, key_of
from tests.support.sources import FileServer, git_hash
from tests.unit.service.registry.sources.conftest import WEIGHTS, Fetching

REPO = Path(__file__).parents[5]
FETCH = """
import asyncio, sys
from service.config import Settings
from service.registry.sources.fetch import FetchRequest, SourceFetcher

def tell(step):
    if step.bytes:
        print(step.bytes, flush=True)

async def main(home, url):
    fetcher = SourceFetcher(Settings(home=home, sources=(url,)))
    request = FetchRequest("default", fetcher.parse(url), None, lambda _config: None, tell)
    await fetcher.fetch(request, lambda _piece: None)

asyncio.run(main(*sys.argv[1:]))
"""


def test_what_was_written_counts_after_it_was_closed(tmp_path: Path) -> None:
    partials = Partials(tmp_path)
    partial = partials.open("key")
    partial.restart(10, '"tag"')
    partial.write(b"abc")
    partials.close(partial)
    again = partials.open("key")
    assert (again.offset, again.total, again.etag, b"".join(again.pieces())) == (3, 10, '"tag"', b"abc")
    again.write(b"def")
    sums = again.checksums()
    assert (sums.sha256, sums.git) == (hashlib.sha256(b"abcdef").hexdigest(), git_hash(b"abcdef"))
    again.discard()
    partials.close(again)
    assert list(tmp_path.iterdir()) == []


def test_of_a_crash_only_what_was_made_durable_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(partial_module, "CHECKPOINT_BYTES", 4)
    partial = Partials(tmp_path).open("key")
    partial.restart(100, None)
    partial.write(b"abcd")  # a checkpoint
    partial.write(b"efg")
    again = Partials(tmp_path).open("key")  # another process, without a close
    assert (again.offset, b"".join(again.pieces())) == (4, b"abcd")


def test_a_file_that_was_begun_anew_has_nothing_of_the_old_one(tmp_path: Path) -> None:
    partials = Partials(tmp_path)
    partial = partials.open("key")
    partial.write(b"old")
    partial.checkpoint()
    partial.restart(5, '"new"')
    partial.write(b"n")
    again = Partials(tmp_path).open("key")
    assert (again.offset, again.etag) == (0, '"new"')


@pytest.mark.parametrize(
    "record", [b"", b"{", b"[]", b'{"offset": -1, "total": null, "etag": null}', b'{"offset": "x"}']
)
def test_a_damaged_record_counts_for_nothing(tmp_path: Path, record: bytes) -> None:
    (tmp_path / "key.part").write_bytes(b"abc")
    (tmp_path / "key.json").write_bytes(record)
    assert Partials(tmp_path).open("key").offset == 0


def test_a_record_that_says_too_much_is_cut_to_the_file(tmp_path: Path) -> None:
    (tmp_path / "key.part").write_bytes(b"abc")
    (tmp_path / "key.json").write_bytes(b'{"offset": 9, "total": 9, "etag": null}')
    assert Partials(tmp_path).open("key").offset == 3


def test_old_files_are_swept_and_open_ones_stay(tmp_path: Path) -> None:
    partials = Partials(tmp_path)
    for key in ("old", "new", "open"):
        partial = partials.open(key)
        partial.write(b"abc")
        if key != "open":
            partials.close(partial)
    past = time.time() - 2 * partial_module.MAX_AGE_S
    for path in tmp_path.iterdir():
        if path.stem != "new":
            os.utime(path, (past, past))
    assert partials.sweep() == 1
    assert {path.stem for path in tmp_path.iterdir()} == {"new", "open"}


def kept_of(root: Path, project: str, ages: Sequence[float]) -> list[str]:
    """Files of a project, this many seconds old; returns their keys."""
    keys = [key_of(project, str(age)) for age in ages]
    for key, age in zip(keys, ages, strict=True):
        path = root / f"{key}.part"
        path.write_bytes(b"abc")
        os.utime(path, (time.time() - age, time.time() - age))
    return keys


def keys_in(root: Path) -> set[str]:
    return {path.stem for path in root.iterdir()}


def test_of_a_projects_too_many_files_its_oldest_go(tmp_path: Path) -> None:
    other = kept_of(tmp_path, "other", [5000.0])
    keys = kept_of(tmp_path, "shop", [10.0 * age for age in range(MAX_PROJECT_PARTIALS + 3)])
    assert Partials(tmp_path).sweep() == 3
    assert keys_in(tmp_path) == {*other, *keys[:MAX_PROJECT_PARTIALS]}


def test_where_all_have_too_many_a_project_loses_its_own_oldest(tmp_path: Path) -> None:
    projects = [f"p{number}" for number in range(MAX_PARTIALS // MAX_PROJECT_PARTIALS)]
    old = [key for name in projects for key in kept_of(tmp_path, name, [500.0, 1000.0, 2000.0, 3000.0])]
    partials = Partials(tmp_path)
    own = kept_of(tmp_path, "late", [100.0])
    assert partials.sweep(for_key=key_of("late", "another")) == 1
    assert keys_in(tmp_path) == set(old), "the late project's own goes first, though it is the newest of all"
    partials.open(key_of("late", "another"))
    assert own[0] not in keys_in(tmp_path)
    assert len(keys_in(tmp_path)) == MAX_PARTIALS, "one of a project with the most makes room for a project with none"


def test_an_earlier_releases_files_are_bounded_too(tmp_path: Path) -> None:
    for number in range(MAX_PROJECT_PARTIALS + 1):
        (tmp_path / f"{number:064x}.part").write_bytes(b"abc")
    assert Partials(tmp_path).sweep() == 1


def fetch_until_killed(home: Path, url: str, *, at: int) -> None:
    """Fetch in another process, and kill it once so many bytes have come."""
    command = [sys.executable, "-c", FETCH, str(home), url]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=REPO) as process:
        assert process.stdout is not None
        while int(process.stdout.readline()) < at:
            pass
        process.send_signal(signal.SIGKILL)


async def test_a_gateway_that_was_killed_goes_on_after_its_restart(tmp_path: Path, web: FileServer) -> None:
    """`kill -9` in the middle of the weights, which are behind two checkpoints; the new process asks for the rest."""
    released = threading.Event()
    weights = WEIGHTS + bytes(40_000_000)
    web.files["/voices/brand/adapter_model.safetensors"] = weights
    web.faults.stalls, web.faults.stall_at = released, 35_000_000
    url = f"{web.url}/voices/brand"
    fetch_until_killed(tmp_path / "home", url, at=34_500_000)
    released.set()
    web.faults.stalls = None
    fetching = Fetching(tmp_path / "home", {"sources": (url,)}, web.faults)
    await fetching.fetch(url)
    assert bytes(fetching.written) == weights
    start = int((web.seen[-1].range or "").removeprefix("bytes=").removesuffix("-"))
    assert 2 * partial_module.CHECKPOINT_BYTES <= start <= 35_000_000
    assert fetching.leftovers() == []
