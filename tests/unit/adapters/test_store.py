import contextlib
import errno
import hashlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from adapters.base import BaseDescription
from adapters.errors import Damaged, DiskFull, NotInStore, TooLarge
from adapters.manifest import Manifest
from adapters.store import CONFIG_FILE, WEIGHTS_FILE, Staging, Store, digest_of
from tests.support.adapters import AdapterFiles, make_adapter

ROOT = Path(__file__).parents[3]


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "adapters")


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory, base: BaseDescription) -> AdapterFiles:
    return make_adapter(tmp_path_factory.mktemp("adapter"), base)


def manifest_of(files: AdapterFiles) -> Manifest:
    return Manifest.parse(files.config, max_rank=64)


def put(store: Store, files: AdapterFiles, chunk: int = 1000) -> str:
    with store.stage() as staging:
        for start in range(0, len(files.weights), chunk):
            staging.weights.write(files.weights[start : start + chunk])
        return staging.commit(manifest_of(files))


def leftovers(store: Store) -> list[Path]:
    return list((store.root / ".staging").iterdir())


def test_what_was_committed_is_there_whole(store: Store, files: AdapterFiles) -> None:
    digest = put(store, files)
    assert (store.path(digest) / WEIGHTS_FILE).read_bytes() == files.weights
    assert (store.path(digest) / CONFIG_FILE).read_bytes() == manifest_of(files).canonical()
    assert sorted(path.name for path in store.path(digest).iterdir()) == [CONFIG_FILE, WEIGHTS_FILE]
    assert store.digests() == [digest]
    store.check(digest)
    store.verify(digest)
    assert leftovers(store) == []


def test_the_digest_is_the_documented_one(store: Store, files: AdapterFiles) -> None:
    weights = hashlib.sha256(files.weights).hexdigest()
    text = b"hatrack-adapter-v1\n" + manifest_of(files).canonical() + b"\n" + weights.encode()
    assert put(store, files) == hashlib.sha256(text).hexdigest() == digest_of(manifest_of(files).canonical(), weights)


def test_the_digest_covers_config_and_weights_and_not_the_base(store: Store, files: AdapterFiles) -> None:
    def digest(changes: dict[str, Any], weights: bytes = files.weights) -> str:
        config = json.dumps({**json.loads(files.config), **changes}).encode()
        with store.stage() as staging:
            staging.weights.write(weights)
            return staging.commit(Manifest.parse(config, max_rank=64))

    first = digest({})
    assert digest({"base_model_name_or_path": "another", "lora_dropout": 0.5}) == first
    assert digest({"lora_alpha": 9}) != first
    assert digest({}, files.weights + b"\0") != first


def test_committing_again_changes_nothing(store: Store, files: AdapterFiles) -> None:
    digest = put(store, files)
    inode = (store.path(digest) / WEIGHTS_FILE).stat().st_ino
    assert put(store, files) == digest
    assert (store.path(digest) / WEIGHTS_FILE).stat().st_ino == inode
    assert leftovers(store) == []


def test_many_threads_may_commit_the_same(store: Store, files: AdapterFiles) -> None:
    barrier = threading.Barrier(8)

    def one() -> str:
        barrier.wait(timeout=240)
        return put(store, files)

    with ThreadPoolExecutor(8) as pool:
        digests = {future.result(timeout=240) for future in [pool.submit(one) for _ in range(8)]}
    assert store.digests() == sorted(digests)
    assert len(digests) == 1
    store.verify(digests.pop())
    assert leftovers(store) == []


def test_committing_again_repairs_a_damaged_adapter(store: Store, files: AdapterFiles) -> None:
    digest = put(store, files)
    (store.path(digest) / WEIGHTS_FILE).write_bytes(b"x")
    assert put(store, files) == digest
    store.verify(digest)
    assert leftovers(store) == []


def flip_last(path: Path) -> None:
    content = path.read_bytes()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))


def test_damage_is_found(store: Store, files: AdapterFiles) -> None:
    digest = put(store, files)
    weights, config = store.path(digest) / WEIGHTS_FILE, store.path(digest) / CONFIG_FILE
    flip_last(weights)
    store.check(digest)  # the length is right: only a hash tells
    with pytest.raises(Damaged):
        store.verify(digest)
    breakages: list[Callable[[], None]] = [lambda: os.truncate(weights, 100), weights.unlink, config.unlink]
    for breakage in breakages:
        breakage()
        with pytest.raises(Damaged):
            store.check(digest)
        with pytest.raises(Damaged):
            store.verify(digest)


@pytest.mark.parametrize("digest", ["0" * 64, "", "..", "../x", ".staging", "A" * 64, "0" * 63, "0" * 64 + "\n"])
def test_what_is_not_in_the_store_is_not_found(store: Store, digest: str) -> None:
    assert not store.exists(digest)
    for ask in (store.path, store.check, store.verify, store.remove):
        with pytest.raises(NotInStore):
            ask(digest)


def test_the_bound_on_bytes_holds_while_writing(store: Store) -> None:
    with store.stage(max_weights_bytes=1000) as staging:
        staging.weights.write(b"x" * 600)
        staging.weights.write(b"x" * 400)
        with pytest.raises(TooLarge):
            staging.weights.write(b"x")
        assert staging.weights.path.stat().st_size == 1000
    assert leftovers(store) == []
    assert store.digests() == []


def test_an_upload_that_is_given_up_leaves_nothing(store: Store, files: AdapterFiles) -> None:
    with store.stage() as staging:
        staging.weights.write(files.weights)
    with pytest.raises(KeyboardInterrupt), store.stage():
        raise KeyboardInterrupt
    staging.discard()
    assert leftovers(store) == []
    assert store.digests() == []


def held_open(root: Path) -> list[str]:
    """What this process has open under `root`, deleted files too. Elsewhere other tests' threads come and go."""
    found = []
    for descriptor in Path("/dev/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):  # that of this listing
            found.append(str(descriptor.readlink()))
    return sorted(path for path in found if path.startswith(str(root.resolve())))


def test_no_descriptor_stays_open(store: Store, files: AdapterFiles) -> None:
    with store.stage() as staging:
        staging.weights.write(b"x")
        assert held_open(store.root) != []  # they are seen
    for _ in range(5):
        put(store, files)
        with store.stage() as staging:
            staging.weights.write(b"x")
    store.recover()
    assert held_open(store.root) == []


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG])
@pytest.mark.parametrize("call", ["write", "fsync"])
def test_a_full_disk_is_its_own_error_and_leaves_nothing(
    store: Store, files: AdapterFiles, monkeypatch: pytest.MonkeyPatch, call: str, number: int
) -> None:
    def full(*_: object) -> int:
        raise OSError(number, os.strerror(number))

    with monkeypatch.context() as patched:
        patched.setattr(os, call, full)
        with pytest.raises(DiskFull):
            put(store, files)
        assert leftovers(store) == []
        assert store.digests() == []
    put(store, files)


def test_the_systems_own_file_size_limit_is_a_full_disk(store: Store, files: AdapterFiles) -> None:
    """A real refusal by the kernel: RLIMIT_FSIZE in a process of its own."""
    program = """
import resource, sys
from pathlib import Path
from adapters.errors import DiskFull
from adapters.store import Store
store = Store(Path(sys.argv[1]))
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
try:
    with store.stage() as staging:
        staging.weights.write(b"x" * 10_000)
except DiskFull:
    print("full")
"""
    result = run_python(program, str(store.root))
    assert result.stdout == "full\n", result.stderr
    assert leftovers(store) == []


def test_other_disk_errors_are_not_hidden(store: Store, files: AdapterFiles, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> int:
        raise OSError(errno.EIO, "input/output error")

    monkeypatch.setattr(os, "write", broken)
    with pytest.raises(OSError, match="input/output"):
        put(store, files)
    assert leftovers(store) == []


def test_short_writes_are_continued(store: Store, files: AdapterFiles, monkeypatch: pytest.MonkeyPatch) -> None:
    write = os.write
    monkeypatch.setattr(os, "write", lambda fd, data: write(fd, data[:7]))
    store.verify(put(store, files))


def test_removing_and_collecting(store: Store, files: AdapterFiles, base: BaseDescription, tmp_path: Path) -> None:
    digests = [put(store, make_adapter(tmp_path / str(seed), base, seed=seed)) for seed in range(3)]
    store.remove(digests[0])
    assert not store.exists(digests[0])
    assert store.collect({digests[1]}, min_age_s=3600) == []
    assert store.collect({digests[1]}) == [digests[2]]
    assert store.digests() == [digests[1]]
    assert leftovers(store) == []


def test_committing_again_makes_an_old_one_young(store: Store, files: AdapterFiles) -> None:
    digest = put(store, files)
    long_ago = time.time() - 10_000
    os.utime(store.path(digest), (long_ago, long_ago))
    put(store, files)
    assert store.collect(set(), min_age_s=60) == []
    os.utime(store.path(digest), (long_ago, long_ago))
    assert store.collect(set(), min_age_s=60) == [digest]


def test_foreign_files_in_the_root_are_left_alone(store: Store) -> None:
    (store.root / "README").write_text("x")
    (store.root / ("0" * 64)).write_text("a file, no directory")
    assert store.digests() == []
    assert store.collect(set()) == []
    assert (store.root / "README").exists()


def test_recover_spares_an_upload_that_runs(store: Store, files: AdapterFiles) -> None:
    (store.root / ".staging" / "dead").mkdir()
    (store.root / ".staging" / "dead" / WEIGHTS_FILE).write_text("x")
    (store.root / ".staging" / "stray").write_text("x")
    with store.stage() as staging:
        staging.weights.write(files.weights)
        assert Store(store.root).recover() == 2
        digest = staging.commit(manifest_of(files))
    store.verify(digest)
    assert leftovers(store) == []


UPLOADER = """
import sys
from pathlib import Path
from adapters.manifest import Manifest
from adapters.store import Store
store, config, weights = Store(Path(sys.argv[1])), Path(sys.argv[2]).read_bytes(), Path(sys.argv[3]).read_bytes()
manifest = Manifest.parse(config, max_rank=64)
print("ready", flush=True)
number = 0
while True:
    number += 1
    with store.stage() as staging:
        for start in range(0, len(weights), 512):
            staging.weights.write(weights[start:start + 512])
        staging.weights.write(number.to_bytes(8, "big"))
        digest = staging.commit(manifest)
    print(digest, flush=True)
    if number % 3 == 0:
        store.remove(digest)
"""


def run_python(program: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", program, *arguments], cwd=ROOT, capture_output=True, text=True, timeout=240, check=False
    )


def kill_while_uploading(store: Store, files: AdapterFiles, after_s: float) -> list[str]:
    """Run UPLOADER, kill -9 it `after_s` seconds into its uploads, and return the digests that it reported."""
    command = [sys.executable, "-c", UPLOADER, str(store.root), str(files.config_path), str(files.weights_path)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        time.sleep(after_s)
        process.send_signal(signal.SIGKILL)
        reported = process.stdout.read().split("\n")
        assert process.wait(timeout=240) == -signal.SIGKILL
    return [line for line in reported if len(line) == 64]


def test_kill_9_at_any_moment_leaves_a_valid_store(store: Store, files: AdapterFiles) -> None:
    """Whatever is listed is whole, whatever was reported (and not removed) is listed, and recover() clears the rest."""
    seen_leftovers = 0
    for round_number in range(60):
        if round_number >= 12 and seen_leftovers:
            break  # the others are for a machine so busy that no kill has fallen into an upload yet
        reported = kill_while_uploading(store, files, after_s=0.003 * round_number)
        for digest in store.digests():
            assert digest_is_true(store, digest)
        kept = [digest for number, digest in enumerate(reported, start=1) if number % 3]
        assert set(kept) <= set(store.digests())
        seen_leftovers += len(leftovers(store))
        store.recover()
        assert leftovers(store) == []
        store.collect(set())
    assert seen_leftovers > 0, "no kill fell into an upload: the test tested nothing"


def digest_is_true(store: Store, digest: str) -> bool:
    """A directory's name against its content, without the store's own code."""
    directory = store.root / digest
    weights = hashlib.sha256((directory / WEIGHTS_FILE).read_bytes()).hexdigest()
    text = b"hatrack-adapter-v1\n" + (directory / CONFIG_FILE).read_bytes() + b"\n" + weights.encode()
    return hashlib.sha256(text).hexdigest() == digest


STEPS = ["config written", "config durable", "directory durable", "renamed"]


@pytest.mark.parametrize("step", range(len(STEPS)), ids=STEPS)
def test_kill_9_at_each_step_of_a_commit(store: Store, files: AdapterFiles, step: int) -> None:
    """The process kills itself right after the step; the adapter is there after the last one and not before."""
    program = """
import os, signal, sys
from pathlib import Path
from adapters import store as module
from adapters.manifest import Manifest
store = module.Store(Path(sys.argv[1]))
staging = store.stage()
staging.weights.write(Path(sys.argv[3]).read_bytes())
staging.weights.finish()
def dying(function):
    def wrapped(*arguments, **options):
        function(*arguments, **options)
        os.kill(os.getpid(), signal.SIGKILL)
    return wrapped
step = int(sys.argv[4])
if step == 0: module.Writer.write = dying(module.Writer.write)
if step == 1: module.os.fsync = dying(os.fsync)
if step == 2: module._fsync_directory = dying(module._fsync_directory)
if step == 3: Path.rename = dying(Path.rename)
staging.commit(Manifest.parse(Path(sys.argv[2]).read_bytes(), max_rank=64))
"""
    paths = [str(store.root), str(files.config_path), str(files.weights_path)]
    assert run_python(program, *paths, str(step)).returncode == -signal.SIGKILL
    there = store.digests()
    assert len(there) == (1 if STEPS[step] == "renamed" else 0)
    for digest in there:
        store.verify(digest)
    assert store.recover() == 1 - len(there)
    assert put(store, files) == (there[0] if there else store.digests()[0])


def test_a_staging_can_be_committed_without_a_with(store: Store, files: AdapterFiles) -> None:
    staging = Staging(store, max_weights_bytes=10**6)
    staging.weights.write(files.weights)
    store.verify(staging.commit(manifest_of(files)))
    assert leftovers(store) == []
