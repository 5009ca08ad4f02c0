"""What every tier shares: the prepared base model, patience, and independence of the terminal."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from xdist.scheduler import LoadScopeScheduling  # type: ignore[import-untyped]

from adapters.database import database
from adapters.database.postgresql import PostgresServer
from tests.support.postgresql import TEMPLATE, TestServer, migrate_template, require_server, running_server

settings.register_profile(
    "hatrack", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow], database=None
)
settings.load_profile("hatrack")
"""The same examples each time, and no limit on one's time: how fast it is on a busy machine is not what is tested."""

REPO = Path(__file__).parent.parent
BASE = "smollm2-135m-instruct"
TERMINAL = (
    *("FORCE_COLOR", "NO_COLOR", "CLICOLOR", "CLICOLOR_FORCE", "PY_COLORS", "GITHUB_ACTIONS"),
    *("TTY_COMPATIBLE", "TTY_INTERACTIVE", "COLUMNS", "LINES", "TERMINAL_WIDTH", "_TYPER_FORCE_DISABLE_TERMINAL"),
)
WITH_ENGINE = ("integration", "crash")
ENGINE_TIMEOUT_S = 1500
"""Whichever test comes first pays for a shared engine, and for the voices that are trained for it."""
SLOW_TIMEOUT_S = 3600
SLOW = (
    *("crash", "integration/engine", "integration/adapters", "integration/trainer"),
    "integration/architectures",
)
"""Folders whose every test has engines, trainings or conversions of its own."""
SLOW_FILES = ("test_suites.py", "test_training.py")
"""Tests in `integration/` that train or answer whole suites: minutes each."""
SLOW_UNIT = (
    *("trainer/test_streaming.py", "trainer/test_loss.py", "trainer/test_run.py", "trainer/test_dpo.py"),
    *("trainer/test_train.py", "trainer/evaluate/test_adversaries.py"),
    *("trainer/finetune/test_checkpoints.py", "trainer/finetune/test_estimates.py"),
)
"""Tests in `unit/` that train tiny models or simulate verdicts: half a minute and more each."""
ONE_ENGINE = "tests/integration/"
"""Its tests share one engine: of several processes, one runs them all, and begins with them."""
LAST = "integration/test_kill_9.py"
"""It kills the gateway that the other tests share."""


def pytest_addoption(parser: pytest.Parser) -> None:
    """On which database the metadata is kept."""
    help_text = "keep metadata in SQLite files (default), or in a PostgreSQL server that is started for the tests"
    parser.addoption("--database", choices=("sqlite", "postgresql"), default="sqlite", help=help_text)


TIERS = {
    "security": (
        "integration/engine/test_containment.py",
        "unit/adapters/test_inspect.py",
        "unit/adapters/test_tensorfile.py",
        "unit/service/access",
        "unit/service/files/test_accessible.py",
        "unit/service/grounding/test_required_filters.py",
        "unit/service/grounding/test_template.py",
        "unit/service/inference/test_hostile_engine.py",
        "unit/service/registry/sources",
        "unit/service/registry/test_corruption.py",
        "unit/service/server",
        "unit/service/structured",
        "unit/service/test_cors.py",
        "unit/service/test_hostile_values.py",
        "unit/service/test_private.py",
        "unit/trainer/evaluate/test_sandbox.py",
    ),
    "fuzz": (
        "unit/service/admission/test_properties.py",
        "unit/service/inference/test_door_fuzz.py",
        "unit/service/test_fuzz_routes.py",
        "unit/service/test_schemathesis.py",
    ),
    "crash": (
        "crash",
        "integration/test_kill_9.py",
        "unit/service/batches/test_restart.py",
        "unit/service/knowledge/index/test_crash.py",
        "unit/trainer/finetune/test_full_disk.py",
    ),
}
"""Marks by file or folder. Long ones among them are slow, too; the others are in every `make test`."""


def _mark_tiers(item: pytest.Item, tests: Path) -> None:
    for tier, places in TIERS.items():
        if any(item.path.is_relative_to(tests / place) for place in places):
            item.add_marker(tier)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Give slow tests and those with an engine more time (theirs depends on the machine), and order the tiers."""
    tests = REPO / "tests"
    not_sqlite = pytest.mark.skip(reason="about SQLite's files")
    for item in items:
        _mark_tiers(item, tests)
        if config.getoption("--database") != "sqlite" and item.get_closest_marker("sqlite"):
            item.add_marker(not_sqlite)
        by_file = item.path.parent == tests / "integration" and item.path.name in SLOW_FILES
        by_file |= any(item.path == tests / "unit" / name for name in SLOW_UNIT)
        if by_file or any(item.path.is_relative_to(tests / folder) for folder in SLOW):
            item.add_marker(pytest.mark.slow)
        slow = item.get_closest_marker("slow") is not None
        with_engine = any(item.path.is_relative_to(tests / tier) for tier in WITH_ENGINE)
        if (slow or with_engine) and not item.get_closest_marker("timeout"):
            item.add_marker(pytest.mark.timeout(SLOW_TIMEOUT_S if slow else ENGINE_TIMEOUT_S))
    items.sort(key=lambda item: item.path == tests / LAST)


def pytest_collection_finish() -> None:
    """What was imported and collected lives to the end: no search for garbage need go through it."""
    gc.collect()
    gc.freeze()


class _OneEngine(LoadScopeScheduling):  # type: ignore[misc]
    """A file's tests stay together and in their order; all that share the engine are one piece of work, the first.

    xdist's own `loadgroup` does as much by a mark, but pytest 9.2 no longer shows it the names that it writes.
    """

    def _split_scope(self, nodeid: str) -> str:
        return ONE_ENGINE if nodeid.startswith(ONE_ENGINE) else str(super()._split_scope(nodeid))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """For `--dist loadscope`."""
    return _OneEngine(config, log) if config.getvalue("dist") == "loadscope" else None


@pytest.fixture(scope="session", autouse=True)
def _no_terminal() -> Iterator[None]:
    """With these rich and typer write escapes, or other widths, into what is no terminal."""
    with pytest.MonkeyPatch.context() as patch:
        for name in TERMINAL:
            patch.delenv(name, raising=False)
        yield


@pytest.fixture(scope="session", autouse=True)
def _no_profiles(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Gateways that `hatrack login` has saved for whoever runs the tests are none of theirs."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CONFIG_HOME", str(tmp_path_factory.mktemp("config")))
        patch.delenv("HATRACK_PROFILE", raising=False)
        yield


@pytest.fixture(scope="session")
def postgresql() -> Iterator[TestServer]:
    """A PostgreSQL server, with a template in which the migrations of gateway and trainer have been made."""
    require_server()
    with running_server() as server:
        server.execute(f"CREATE DATABASE {TEMPLATE} TEMPLATE template0")
        migrate_template(server)
        yield server


@pytest.fixture(scope="session", autouse=True)
def _database(request: pytest.FixtureRequest) -> Iterator[None]:
    """With `--database postgresql`, a database of the server stands for each SQLite file of metadata."""
    if request.config.getoption("--database") == "sqlite":
        yield
        return
    server: TestServer = request.getfixturevalue("postgresql")

    def backend_for(path: Path, url: str | None, schema: str, _state: Sequence[str] = ()) -> PostgresServer:
        return PostgresServer(url or server.url_for(path), schema, path.parent)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(database, "backend_for", backend_for)
        yield


@pytest.fixture(autouse=True)
def _forget_databases(request: pytest.FixtureRequest) -> Iterator[None]:
    """Drop the databases of the test that has ended."""
    if request.config.getoption("--database") == "sqlite" or "tmp_path" not in request.fixturenames:
        yield
        return
    server: TestServer = request.getfixturevalue("postgresql")
    directory: Path = request.getfixturevalue("tmp_path")
    yield
    server.forget(directory)


@pytest.fixture(autouse=True)
def _umask() -> Iterator[None]:
    """Programs that a test runs in its own process set theirs; the next test finds what it would find alone."""
    before = os.umask(0o022)
    os.umask(before)
    yield
    os.umask(before)


@pytest.fixture(scope="session")
def base_dir() -> Path:
    """The real base model's checkpoint, prepared once from its package (about 20 s) and kept under var/."""
    path = REPO / "var" / "base" / BASE
    if not (path / "config.json").exists():
        # Tests run in several processes: the command itself waits for another that prepares the same model.
        command = [sys.executable, "-m", "trainer.base_model", "--source", BASE, "--dest", str(path.parent)]
        subprocess.run(command, check=True, timeout=600, cwd=REPO)
    return path
