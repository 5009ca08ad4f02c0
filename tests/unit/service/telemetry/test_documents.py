"""METRICS.md and the metrics' definitions say the same; names follow Prometheus' conventions."""

from __future__ import annotations

import re
from pathlib import Path

from service.telemetry import metrics

PAGE = Path(__file__).parents[4] / "service" / "telemetry" / "METRICS.md"
ROW = re.compile(r"^\| `(?P<name>\w+)` \| (?P<kind>\w+) \| (?P<labels>[^|]*) \| (?P<help>.*) \|$", re.MULTILINE)


def test_every_metric_is_documented_as_the_code_has_it_and_no_other() -> None:
    documented = {
        row["name"]: (row["kind"], tuple(re.findall(r"`(\w+)`", row["labels"])), row["help"])
        for row in ROW.finditer(PAGE.read_text())
    }
    assert documented == {metric.name: (metric.kind, metric.labels, metric.help) for metric in metrics.ALL}
    assert len(metrics.ALL) > 40


def test_the_process_metrics_are_documented() -> None:
    text = PAGE.read_text()
    for name in metrics.PROCESS_NAMES:
        assert f"`{name}`" in text


def test_names_say_their_kind_and_unit() -> None:
    for metric in metrics.ALL:
        assert re.fullmatch(r"hatrack_[a-z][a-z0-9_]*[a-z]", metric.name)
        assert metric.name.endswith("_total") == (metric.kind == "counter")
        assert bool(metric.bounds) == (metric.kind == "histogram")
        if metric.kind == "histogram":
            assert metric.name.endswith("_seconds")
            assert list(metric.bounds) == sorted(set(metric.bounds))
