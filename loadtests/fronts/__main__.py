"""The command; see the package."""

from __future__ import annotations

import argparse
import sys

from loadtests.fronts import __doc__ as about
from loadtests.fronts import affinity, kills, latency, limits, visible
from loadtests.fronts.installation import installation

MEASURES = ("affinity", "visible", "latency", "limits", "kills")

parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--only", nargs="+", choices=MEASURES, default=MEASURES)
parser.add_argument("--postgresql", action="store_true", help="the gateway's metadata on a server, started for it")
parser.add_argument("--s3", action="store_true", help="adapters in a bucket of an S3 server, started for it")
parser.add_argument("--requests", type=int, default=2000, help="of `affinity`, each time")
parser.add_argument("--rounds", type=int, default=100, help="of `visible`")
parser.add_argument("--pairs", type=int, default=3, help="rounds of `latency`, one process and several in turn")
parser.add_argument("--tokens", type=int, default=128, help="of a stream of `latency`")
parser.add_argument("--kills", type=int, default=20)
parser.add_argument("--seed", type=int, default=1, help="of the kills")
given = parser.parse_args()
faults: list[str] = []
with installation(postgresql=given.postgresql, s3=given.s3, single="latency" in given.only) as made:
    if "affinity" in given.only:
        affinity.measure(made, given.requests)
    if "visible" in given.only:
        visible.measure(made, given.rounds)
    if "latency" in given.only:
        latency.measure(made, given.pairs, given.tokens)
    if "limits" in given.only:
        limits.measure(made, kills=3)
    if "kills" in given.only:
        faults = kills.measure(made, given.kills, given.seed)
sys.exit(1 if faults else 0)
