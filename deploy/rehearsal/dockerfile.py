"""What stands in the Dockerfile: its instructions in order, values as Docker reads them, and the build's context."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Final

from dockerfile_parse import DockerfileParser

REPO: Final = Path(__file__).resolve().parents[2]
DOCKERFILE: Final = REPO / "deploy" / "Dockerfile"
_VARIABLE: Final = re.compile(r"\$(?:\{(\w+)\}|(\w+))")
_UNITS_S: Final = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}


@dataclass(frozen=True, slots=True)
class Health:
    """The image's health check: its command, and seconds."""

    command: tuple[str, ...]
    interval_s: float
    timeout_s: float


def instructions(path: Path = DOCKERFILE) -> list[tuple[str, str]]:
    """The instructions and their values, in order, without comments."""
    structure = DockerfileParser(path=str(path), cache_content=True).structure
    return [(each["instruction"], each["value"]) for each in structure if each["instruction"] != "COMMENT"]


def expand(text: str, values: Mapping[str, str]) -> str:
    """The text with `$NAME` and `${NAME}` replaced; unset ones are empty, as in a build."""
    return _VARIABLE.sub(lambda found: values.get(found[1] or found[2], ""), text)


def ignore_lines(path: Path = DOCKERFILE) -> list[str]:
    """The lines of a Dockerfile's own ignore file."""
    lines = path.with_name(f"{path.name}.dockerignore").read_text().splitlines()
    return [line for line in lines if line and not line.startswith("#")]


def is_sent(path: str, ignore: Sequence[str]) -> bool:
    """Whether the build's context has a file: of the ignore file's lines the last one that matches it, or a folder that
    it is in, decides."""
    parts = Path(path).parts
    ways = ["/".join(parts[:end]) for end in range(1, len(parts) + 1)]
    sent = True
    for line in ignore:
        pattern = line.removeprefix("!")
        deep = pattern.removeprefix("**/")
        names = parts if deep != pattern else ways
        if any(fnmatch(name, deep) for name in names):
            sent = line.startswith("!")
    return sent


def parse_health(value: str) -> Health:
    """A HEALTHCHECK with its command in exec form."""
    options, _, command = value.partition("CMD")
    given = dict(re.findall(r"--([a-z-]+)=(\S+)", options))
    return Health(tuple(json.loads(command)), seconds(given["interval"]), seconds(given["timeout"]))


def seconds(duration: str) -> float:
    """Docker's `1m30s` in seconds."""
    return sum(float(number) * _UNITS_S[unit] for number, unit in re.findall(r"([\d.]+)(ms|s|m|h)", duration))
