"""Records as the data path makes them, and metrics as Prometheus reads them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from prometheus_client.metrics_core import Metric as Family
from prometheus_client.parser import text_string_to_metric_families

from service.access.caller import Caller, Scope
from service.http.stream import TokenUsage
from service.registry.catalog import Target
from service.telemetry.record import Record

CHAT = "/v1/chat/completions"
VOICE = Target("voice", "d" * 64, "voice", 3, "d" * 64)
BASE_TARGET = Target("smol", "smol")


def caller(project: str = "shop") -> Caller:
    return Caller("key_1", project, frozenset({Scope.INFER}))


def record(**fields: Any) -> Record:
    """A good, streamed answer of `voice@3` for the project `shop`, but for what ``fields`` say."""
    made: dict[str, Any] = {
        "request_id": "r1",
        "route": CHAT,
        "caller": caller(),
        "target": VOICE,
        "stream": True,
        "status": 200,
        "usage": TokenUsage(10, 5, 4),
        "first_byte_s": 0.3,
        "total_s": 1.5,
        "queue_s": 0.02,
        "sent_s": 0.03,
        "reached": True,
        "gaps": [0.03, 0.03, 0.4],
    }
    return Record(**(made | fields))


def refused(code: str = "model_not_found", **fields: Any) -> Record:
    """A request that came to nothing before it had a target."""
    nothing = {"target": None, "usage": None, "first_byte_s": None, "queue_s": None, "sent_s": None, "reached": False}
    return record(**({"status": 404, "outcome": "refused", "code": code, "gaps": [], **nothing} | fields))


Samples = dict[tuple[str, frozenset[tuple[str, str]]], float]


def read(families: Iterable[Family]) -> Samples:
    """Every sample by its name and labels."""
    samples = (sample for family in families for sample in family.samples)
    return {(sample.name, frozenset(sample.labels.items())): sample.value for sample in samples}


def parse(text: bytes) -> Samples:
    """The same from Prometheus' text."""
    return read(text_string_to_metric_families(text.decode()))


def value(samples: Samples, name: str, **labels: str) -> float:
    """The sum of a metric's samples that have these labels. Fails where there is none."""
    wanted = set(labels.items())
    found = [number for (known, having), number in samples.items() if known == name and wanted <= having]
    assert found, f"no {name} with {labels}"
    return sum(found)
