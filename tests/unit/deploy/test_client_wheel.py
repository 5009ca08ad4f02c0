"""The light client's wheel: what is in it, and that it runs where there is nothing but what it requires."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tomllib
import venv
import zipfile
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement

from tests.conftest import REPO
from tests.support.system import in_ci, plain_environment
from tests.unit.service.wire import KEY, Gateway, running

CLIENT = REPO / "deploy" / "client"
PROJECT: dict[str, Any] = tomllib.loads((CLIENT / "pyproject.toml").read_text())["project"]
BUILD = "import sys, backend; print(backend.build_wheel(sys.argv[1]))"
START = "import sys; sys.path += sys.argv.pop(1).split(':'); "
COMMAND = START + "sys.argv[0] = 'hatrack'; from hatrack.cli.main import main; main()"
FOREIGN = ("service", "trainer", "adapters", "torch", "fastapi", "starlette", "uvicorn", "vllm", "numpy", "sqlalchemy")
BESIDE_THE_CLIENT = {
    *("hatrack._version", "hatrack.errors", "hatrack.access.caller"),
    *("hatrack.grounding.config", "hatrack.grounding.provider", "hatrack.grounding.template"),
    *("hatrack.registry.catalog", "hatrack.registry.split", "hatrack.registry.suggest"),
}
"""What the command reads of the gateway's own rules: scopes, limits, and the settings of a version."""
IMPORT_ALL = START + (
    "import importlib, pathlib\n"
    "root = pathlib.Path(sys.path[-2])\n"
    "for path in sorted(root.rglob('*.py')):\n"
    "    module = '.'.join(path.relative_to(root).with_suffix('').parts).removesuffix('.__init__')\n"
    "    if module.endswith('__main__'):\n"
    "        continue\n"
    "    try:\n"
    "        importlib.import_module(module)\n"
    "    except ModuleNotFoundError as error:\n"
    "        print('needs', error.name)\n"
    "for name in sorted({name.split('.')[0] for name in sys.modules}):\n"
    "    print('has', name)\n"
)
TYPED = """
import hatrack

def first_version(client: hatrack.Client) -> int:
    for adapter in client.adapters.list():
        reveal_type(adapter)
        return adapter["versions"][0]["version"]
    raise hatrack.ClientError(404, "none", "there is none")

client: str = hatrack.Client()
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built from this clone."""
    folder = tmp_path_factory.mktemp("dist")
    done = subprocess.run(
        [sys.executable, "-c", BUILD, str(folder)], cwd=CLIENT, capture_output=True, text=True, check=False, timeout=300
    )
    assert done.returncode == 0, done.stderr
    return folder / done.stdout.splitlines()[-1]


@pytest.fixture(scope="module")
def paths(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """Where Python finds the wheel's content, its dependencies and theirs, and an `adapters` that is not ours."""
    site, packages = tmp_path_factory.mktemp("site"), tmp_path_factory.mktemp("packages")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site)
    for distribution in required(PROJECT["dependencies"]):
        for name in {file.parts[0] for file in distribution.files or () if file.parts[0] != ".."}:
            link = packages / name
            if not link.exists():
                link.symlink_to(Path(str(distribution.locate_file(name))))
    (packages / "adapters.py").write_text("raise AssertionError('another package, which nobody asked for')\n")
    return f"{site}:{packages}"


@pytest.fixture
def gateway() -> Iterator[Gateway]:
    with running() as server:
        yield server


def required(requirements: list[str]) -> list[metadata.Distribution]:
    """The distributions that pip would install for these, theirs included."""
    waiting, seen = [Requirement(text) for text in requirements], dict[str, metadata.Distribution]()
    while waiting:
        requirement = waiting.pop()
        if requirement.name in seen or (requirement.marker and not requirement.marker.evaluate({"extra": ""})):
            continue
        seen[requirement.name] = metadata.distribution(requirement.name)
        waiting += [Requirement(text) for text in seen[requirement.name].requires or ()]
    return list(seen.values())


def run(paths: str, code: str, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run Python without the packages of this environment, in a folder that is not the clone."""
    return subprocess.run(
        [sys.executable, "-I", "-S", "-c", code, paths, *arguments],
        cwd="/",
        env={"PATH": os.environ["PATH"], "HOME": "/nonexistent", **environment},
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )


def modules(wheel: Path) -> set[str]:
    names = [Path(name) for name in zipfile.ZipFile(wheel).namelist() if name.endswith(".py")]
    return {".".join(path.with_suffix("").parts) for path in names if path.name != "__init__.py"}


def test_the_wheel_has_one_import_name_and_the_client_and_the_command_under_it(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.split("/")[0] for name in names} == {"hatrack", f"hatrack_client-{released()}.dist-info"}
    assert {"hatrack/py.typed", "hatrack/client/types/training.py", "hatrack/cli/main.py"} <= set(names)
    beside = {
        module
        for module in modules(wheel)
        if not module.startswith(("hatrack.client.", "hatrack.cli.", "hatrack.adapters."))
    }
    assert beside == BESIDE_THE_CLIENT
    for server_side in ("run", "engine", "doctor", "samples", "storage"):
        assert f"hatrack.cli.{server_side}" not in modules(wheel)


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("from .names import x", "imports relatively"),
        ("import adapters.names", "write `from … import …`"),
        ("from \\\n    adapters.names import x", "must follow `from `"),
    ],
)
def test_an_import_that_is_not_rewritten_ends_the_build(tmp_path: Path, line: str, says: str) -> None:
    (tmp_path / "module.py").write_text(f'"""Of adapters.names."""\n{line}\n')
    code = "import re, sys, backend; from pathlib import Path; backend.rewritten(Path(sys.argv[1]), re.compile('x'))"
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "module.py")],
        cwd=CLIENT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert "CannotBuild" in done.stderr
    assert says in done.stderr


def test_the_wheel_says_what_the_project_says(wheel: Path) -> None:
    product = tomllib.loads((REPO / "pyproject.toml").read_text())["project"]
    assert PROJECT["requires-python"] == product["requires-python"]
    for text in [*PROJECT["dependencies"], *PROJECT["optional-dependencies"]["weights"]]:
        assert text in product["dependencies"], f"{text}: the full product has another range"
    with zipfile.ZipFile(wheel) as archive:
        info = f"hatrack_client-{released()}.dist-info"
        assert "hatrack = hatrack.cli.main:main" in archive.read(f"{info}/entry_points.txt").decode()
        assert f"{info}/licenses/LICENSE" in archive.namelist()


def released() -> str:
    version: str = tomllib.loads((REPO / "pyproject.toml").read_text())["project"]["version"]
    return version


def test_every_module_can_be_imported_with_the_dependencies_alone(paths: str) -> None:
    done = run(paths, IMPORT_ALL)
    assert done.returncode == 0, done.stderr
    lines = [line.split() for line in done.stdout.splitlines()]
    assert {name for word, name in lines if word == "needs"} == {"numpy", "ml_dtypes", "jinja2"}
    loaded = {name for word, name in lines if word == "has"}
    assert {"hatrack", "httpx", "typer", "rich"} <= loaded
    assert not loaded & set(FOREIGN)


def test_the_client_reads_a_gateway(paths: str, gateway: Gateway) -> None:
    gateway.add("brand-voice")
    code = START + (
        "import hatrack\n"
        "with hatrack.Client(sys.argv[1], sys.argv[2]) as client:\n"
        "    print(hatrack.__version__, [adapter['name'] for adapter in client.adapters.list()])\n"
        "    print(*(name for name in sys.modules if name.split('.')[0] in ('service', 'adapters', 'numpy')))\n"
    )
    done = run(paths, code, gateway.url, KEY)
    assert (done.returncode, done.stdout) == (0, f"{released()} ['brand-voice']\n\n"), done.stderr


def test_the_command_speaks_to_a_gateway(paths: str, gateway: Gateway) -> None:
    gateway.add("brand-voice")
    assert run(paths, COMMAND, "--version").stdout == f"hatrack {released()}\n"
    listed = run(paths, COMMAND, "ls", HATRACK_URL=gateway.url, HATRACK_KEY=KEY)
    assert listed.returncode == 0, listed.stderr
    assert "brand-voice" in listed.stdout
    refused = run(paths, COMMAND, "ls", HATRACK_URL=gateway.url, HATRACK_KEY="wrong")
    assert (refused.returncode, refused.stdout) == (1, "")
    assert "[invalid_api_key]" in refused.stderr
    assert "OPENAI_API_KEY" in run(paths, COMMAND, "import", "openai", "--help").stdout


def test_help_names_the_commands_of_the_full_product_as_such(paths: str) -> None:
    done = run(paths, COMMAND, "--help", COLUMNS="200")
    assert done.returncode == 0, done.stderr
    lines = {line.split()[0]: line for line in done.stdout.splitlines() if line.startswith("  ")}
    for name in ("up", "serve", "engine", "down", "doctor", "backup", "restore", "gc", "move-database", "move-store"):
        assert "Full product only: " in lines[name], lines[name]
    assert "ull product" not in lines["push"]


@pytest.mark.parametrize(
    "arguments",
    [("up",), ("serve", "--keep-engine"), ("engine", "--port", "8001"), ("down", "x"), ("doctor",), ("backup", "x")],
)
def test_a_command_of_the_full_product_says_so_whatever_follows_it(paths: str, arguments: tuple[str, ...]) -> None:
    done = run(paths, COMMAND, *arguments)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith(f"hatrack: `hatrack {arguments[0]}` comes with the full product, `hatrack`.")
    assert done.stderr.endswith("[full_product_needed]\n")


def test_it_says_so_as_json_to_a_script(paths: str) -> None:
    done = run(paths, COMMAND, "doctor", "--json")
    assert (done.returncode, done.stdout) == (1, "")
    assert json.loads(done.stderr)["error"]["code"] == "full_product_needed"


def test_what_reads_weights_says_what_to_install(paths: str, gateway: Gateway, tmp_path: Path) -> None:
    weights = tmp_path / "weights"
    weights.mkdir()
    (weights / "adapter_config.json").write_text('{"r": 8}')
    (weights / "adapter_model.safetensors").write_bytes(b"weights")
    (tmp_path / "hatrack.yaml").write_text("adapters:\n  voice:\n    weights: weights\n")
    gateway.add("voice")
    environment = {"HATRACK_URL": gateway.url, "HATRACK_KEY": KEY}
    applied = run(paths, COMMAND, "apply", str(tmp_path / "hatrack.yaml"), "--dry-run", **environment)
    exported = run(
        paths, COMMAND, "export", "voice@1", "--merged", str(tmp_path / "out"), "--base", str(weights), **environment
    )
    pulled = run(paths, COMMAND, "pull", "voice@1", str(tmp_path / "pulled"), **environment)
    for done in (applied, exported, pulled):
        assert done.returncode == 1, done.stdout + done.stderr
        assert "install `hatrack-client[weights]`. [packages_missing]" in done.stderr
    unnamed = run(paths, COMMAND, "export", "voice@1", "--merged", str(tmp_path / "out"), **environment)
    assert unnamed.returncode == 2
    assert "give --base" in unnamed.stderr


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_it_is_installed_beside_the_adapters_of_pypi(wheel: Path, gateway: Gateway, tmp_path: Path) -> None:
    venv.create(tmp_path / "venv", with_pip=True)
    binaries = tmp_path / "venv" / "bin"
    pip = [str(binaries / "python"), "-m", "pip", "--disable-pip-version-check", "install", "--quiet"]
    environment = plain_environment() | {"HATRACK_URL": gateway.url, "HATRACK_KEY": KEY}
    environment.pop("PYTHONPATH", None)

    def call(*command: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False, timeout=1000
        )

    theirs = call(*pip, "--no-deps", "adapters")  # what it requires has gigabytes, and no part in this
    if theirs.returncode != 0:
        (pytest.fail if in_ci() else pytest.skip)(f"no package index can be reached: {theirs.stderr[-300:]}")
    ours = call(*pip, str(wheel))
    assert ours.returncode == 0, ours.stderr
    site = next((tmp_path / "venv" / "lib").glob("python*/site-packages"))
    assert (site / "adapters" / "__init__.py").read_bytes() != (REPO / "adapters" / "__init__.py").read_bytes()
    assert not {"service", "trainer", "torch", "fastapi", "numpy"} & {path.name for path in site.iterdir()}
    gateway.add("brand-voice")
    assert call(str(binaries / "hatrack"), "--version").stdout == f"hatrack {released()}\n"
    assert "brand-voice" in call(str(binaries / "hatrack"), "ls").stdout
    (tmp_path / "typed.py").write_text(TYPED)
    checked = call(
        sys.executable, "-m", "mypy", "--strict", "--python-executable", str(binaries / "python"), "typed.py"
    )
    assert "TypedDict(hatrack.client.types.adapters.Adapter, " in checked.stdout, checked.stdout
    assert checked.stdout.count("error:") == 1, "the wrong annotation, and nothing else"
    assert 'has type "HatrackClient", variable has type "str"' in checked.stdout
