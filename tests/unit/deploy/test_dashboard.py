"""The Grafana dashboard asks for metrics that exist, and leaves none out."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
import yaml

from service.telemetry import metrics
from tests.conftest import REPO
from tests.unit.deploy.promql import asked, check

GRAFANA = REPO / "deploy" / "grafana"
DASHBOARD: dict[str, Any] = json.loads((GRAFANA / "dashboards" / "hatrack.json").read_text())
PANELS = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]
QUERIES = [(panel["title"], target["expr"]) for panel in PANELS for target in panel["targets"]]
LEGEND, TOOLTIP = ("displayMode", "placement", "showLegend", "calcs"), ("mode", "sort")
REQUIRED: dict[str, dict[str, tuple[str, ...]]] = {
    "timeseries": {"legend": LEGEND, "tooltip": TOOLTIP},
    "state-timeline": {"": ("showValue", "rowHeight"), "legend": LEGEND, "tooltip": TOOLTIP},
    "stat": {
        "": (
            *("graphMode", "colorMode", "justifyMode", "textMode", "orientation", "reduceOptions"),
            *("wideLayout", "showPercentChange", "percentChangeColorMode"),
        ),
        "reduceOptions": ("calcs",),
    },
    "table": {"": ("showHeader", "frameIndex")},
}
"""The options that Grafana's published schema of each panel (foundation SDK, June 2026) requires, by the option that
they are in."""
ELSEWHERE = {"hatrack_engine_resident_limit"}
"""Named in a panel's description, or in METRICS.md alone."""


def plain(expression: str) -> str:
    """A query with Grafana's variables filled in."""
    filled = expression.replace("$__rate_interval", "1m")
    return re.sub(r"\$(project|adapter)\b", ".*", filled)


@pytest.mark.parametrize(("title", "expression"), QUERIES)
def test_every_query_names_metrics_and_labels_that_exist(title: str, expression: str) -> None:
    filled = plain(expression)
    assert "$" not in filled, "a variable that the dashboard does not have"
    assert check(filled)


def test_every_metric_is_on_the_dashboard() -> None:
    shown = {re.sub(r"_(bucket|sum|count)$", "", name) for _, query in QUERIES for name in asked(plain(query))}
    assert {metric.name for metric in metrics.ALL} - shown == ELSEWHERE


def test_annotations_and_variables_name_metrics_that_exist() -> None:
    for annotation in DASHBOARD["annotations"]["list"]:
        assert check(annotation["expr"])
    queried = {entry["name"]: entry["query"] for entry in DASHBOARD["templating"]["list"]}
    assert set(queried) == {"datasource", "project", "adapter"}
    for name in ("project", "adapter"):
        inner = re.fullmatch(rf"label_values\((.*), {name}\)", queried[name]["query"])
        assert inner is not None
        assert name in next(iter(metric.labels for metric in metrics.ALL if inner[1].startswith(metric.name)))
        assert check(plain(inner[1]))


def test_panels_do_not_overlap_and_say_what_their_numbers_are() -> None:
    taken: set[tuple[int, int]] = set()
    for panel in DASHBOARD["panels"]:
        at = panel["gridPos"]
        cells = {(x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])}
        assert max(x for x, _ in cells) < 24
        assert not cells & taken, panel["title"]
        taken |= cells
    assert len({panel["id"] for panel in DASHBOARD["panels"]}) == len(DASHBOARD["panels"])
    for panel in PANELS:
        assert panel["datasource"] == {"type": "prometheus", "uid": "${datasource}"}
        if panel["type"] in ("stat", "timeseries"):
            assert panel["fieldConfig"]["defaults"]["unit"]


def test_panels_have_the_options_that_grafanas_schema_requires() -> None:
    assert {panel["type"] for panel in PANELS} == set(REQUIRED)
    for panel in PANELS:
        for part, names in REQUIRED[panel["type"]].items():
            options = panel["options"][part] if part else panel["options"]
            assert set(names) <= set(options), panel["title"]


def test_the_provisioning_leads_to_the_dashboard() -> None:
    [provider] = yaml.safe_load((GRAFANA / "provisioning" / "dashboards" / "hatrack.yaml").read_text())["providers"]
    compose = yaml.safe_load((REPO / "deploy" / "compose.yaml").read_text())["services"]["grafana"]
    assert f"./grafana/dashboards:{provider['options']['path']}:ro" in compose["volumes"]
    sources = yaml.safe_load((GRAFANA / "provisioning" / "datasources" / "prometheus.yaml").read_text())["datasources"]
    config = yaml.safe_load((REPO / "deploy" / "prometheus" / "prometheus.yml").read_text())
    assert [source["jsonData"]["timeInterval"] for source in sources] == [config["global"]["scrape_interval"]]
