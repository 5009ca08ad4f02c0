"""This version beside an earlier one: both benchmarks, the two in turn on one machine, and the ratio of each figure.

    git worktree add ../before COMMIT && make -C ../before setup
    .venv/bin/python -m loadtests.versions --before ../before             # five rounds of both
    .venv/bin/python -m loadtests.versions --before ../before --only engine --rounds 3
    .venv/bin/python -m loadtests.versions --before . --with HATRACK_ENGINE_DTYPE=bfloat16 --only engine    # a setting

*gateway* runs each version's own `loadtests.gateway.run` with its Hatrack alone; *engine* asks each version's
`hatrack serve` with its engine the requests of `loadtests.engine --quick`. In odd rounds the earlier one is first, in
even rounds this one. A ratio over 1 means that this version is better; printed is the median over the rounds, with the
lowest and the highest. The medians are also drawn (``gateway.svg``, ``engine.svg``).
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
import subprocess
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Final

from loadtests import chart
from loadtests.engine import BASE, FIRST, QUICK, REPO, hatrack, measure, random_adapters
from loadtests.support import write_json

BEFORE, NOW = "before", "now"
HIGHER_IS_BETTER: Final = ("requests_per_s", "tokens_per_s")
LOWER_IS_BETTER: Final = ("cpu_us_per_request", "cpu_us_per_chunk")
"""Figures of the gateway's rows; an added latency is a small difference of two large figures, and left out."""

Figures = dict[str, float]
"""By the name of what was measured."""
Round = dict[str, Figures]
"""By version."""


def gateway_figures(checkout: Path, out: Path, _: Mapping[str, str]) -> Figures:
    """One round of the gateway benchmark with the Hatrack of ``checkout`` alone.

    Raises:
        subprocess.CalledProcessError: The benchmark failed.
    """
    command = [str(checkout / ".venv" / "bin" / "python"), "-m", "loadtests.gateway.run"]
    subprocess.run(
        [*command, "--only", "Hatrack", "--rounds", "1", "--out", str(out)],
        cwd=checkout,
        check=True,
        stdout=subprocess.DEVNULL,
    )
    found: Figures = {}
    for row in json.loads((out / "gateway.json").read_text())["rows"]:
        for name in (*HIGHER_IS_BETTER, *LOWER_IS_BETTER):
            if row[name] is not None:
                found[f"{name}, {row['connections']} connections"] = row[name]
    return found


def engine_figures(checkout: Path, out: Path, settings: Mapping[str, str]) -> Figures:
    """The requests of `loadtests.engine --quick`, asked of the ``hatrack serve`` of ``checkout`` with ``settings``."""
    adapters = random_adapters(BASE, REPO / "var" / "loadtests" / "engine" / "adapters", QUICK.adapters)
    with hatrack(out / "home", BASE, adapters, checkout, settings) as server:
        return asyncio.run(measure(server, QUICK))


BENCHMARKS: Final[Mapping[str, Callable[[Path, Path, Mapping[str, str]], Figures]]] = {
    "gateway": gateway_figures,
    "engine": engine_figures,
}


def better(name: str, before: float, now: float) -> float:
    """How many times as good ``now`` is; 1 where both are the same."""
    return before / now if lower_is_better(name) else now / before


def lower_is_better(name: str) -> bool:
    """Whether less of this figure is better."""
    return name.startswith(LOWER_IS_BETTER) or name.endswith(FIRST)


def table(rounds: Sequence[Round]) -> str:
    """Markdown: a line for each figure, with the median of each version and of the ratio."""
    lines = ["| | before | now | ratio (lowest to highest) |", "|---|---:|---:|---:|"]
    for name in rounds[0][NOW]:
        before, now = ([found[version][name] for found in rounds] for version in (BEFORE, NOW))
        ratios = [better(name, *pair) for pair in zip(before, now, strict=True)]
        middle = statistics.median(ratios)
        lines.append(
            f"| {name} | {statistics.median(before):,.1f} | {statistics.median(now):,.1f} "
            f"| {middle:.2f} ({min(ratios):.2f} to {max(ratios):.2f}) |"
        )
    return "\n".join(lines)


def drawing(benchmark: str, rounds: Sequence[Round]) -> str:
    """The medians as an SVG."""
    rows = {
        name: [statistics.median(found[version][name] for found in rounds) for version in (BEFORE, NOW)]
        for name in rounds[0][NOW]
    }
    note = f"medians of {len(rounds)} rounds in turn; {os.cpu_count()} cores"
    return chart.draw(f"The {benchmark}, before and now", note, chart.panels(rows, (BEFORE, NOW), lower_is_better))


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--before", type=Path, required=True, help="checkout of the earlier version, with its .venv")
    parser.add_argument(
        "--with",
        dest="settings",
        metavar="SETTING=VALUE",
        action="append",
        default=[],
        help="a setting of the earlier version's engine",
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", choices=sorted(BENCHMARKS), help="default: both")
    parser.add_argument("--out", type=Path, default=REPO / "var" / "loadtests" / "versions")
    arguments = parser.parse_args()
    if arguments.settings and arguments.only != "engine":
        parser.error("--with needs --only engine: the gateway's benchmark has settings of its own")
    checkouts = {BEFORE: arguments.before.resolve(), NOW: REPO}
    settings: dict[str, dict[str, str]] = {BEFORE: dict(each.split("=", 1) for each in arguments.settings), NOW: {}}
    for benchmark in [arguments.only] if arguments.only else BENCHMARKS:
        rounds: list[Round] = []
        for number in range(arguments.rounds):
            found: Round = {}
            for version in (BEFORE, NOW) if number % 2 == 0 else (NOW, BEFORE):
                print(f"{benchmark}, round {number + 1} of {arguments.rounds}: {version}", flush=True)
                out = arguments.out.resolve() / benchmark / version
                out.mkdir(parents=True, exist_ok=True)
                found[version] = BENCHMARKS[benchmark](checkouts[version], out, settings[version])
            rounds.append(found)
            write_json(arguments.out / f"{benchmark}.json", {"load_average": os.getloadavg(), "rounds": rounds})
        (arguments.out / f"{benchmark}.svg").write_text(drawing(benchmark, rounds))
        print(table(rounds))


if __name__ == "__main__":
    main()
