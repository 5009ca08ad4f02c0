"""What a PromQL expression asks for: the metrics by name, and the labels that it matches or groups by."""

from __future__ import annotations

from typing import Any

import promql_parser

from service.telemetry import metrics

REPO_LABELS = frozenset({"job", "instance"})
"""Put on by Prometheus itself."""
OF_ENGINES = ("hatrack_engine_", "hatrack_admission_")
"""Beginnings of the metrics that have the label `engine` where there are several."""
OTHERS: dict[str, tuple[str, ...]] = {"up": (), **dict.fromkeys(metrics.PROCESS_NAMES, ())}


def known_series() -> dict[str, frozenset[str]]:
    """The labels of every series that `/metrics` can show, by its name."""
    found: dict[str, frozenset[str]] = {name: frozenset(labels) for name, labels in OTHERS.items()}
    for metric in metrics.ALL:
        if metric.kind != "histogram":
            found[metric.name] = frozenset(metric.labels)
            continue
        for suffix in ("_sum", "_count"):
            found[metric.name + suffix] = frozenset(metric.labels)
        found[f"{metric.name}_bucket"] = frozenset({*metric.labels, "le"})
    of_engines = {name: {"engine"} for name in found if name.startswith(OF_ENGINES)}
    return {name: labels | REPO_LABELS | of_engines.get(name, set()) for name, labels in found.items()}


def asked(expression: str) -> dict[str, set[str]]:
    """Names of the series in an expression, each with the labels that are matched on it or grouped by around it.

    Raises ValueError where it is not PromQL.
    """
    found: dict[str, set[str]] = {}
    _walk(promql_parser.parse(expression), frozenset(), found)
    return found


def _walk(node: Any, grouped: frozenset[str], found: dict[str, set[str]]) -> None:
    match node:
        case promql_parser.AggregateExpr():
            if node.modifier is not None:
                grouped = grouped | set(node.modifier.labels)
            _walk(node.expr, grouped, found)
        case promql_parser.BinaryExpr():
            _walk(node.lhs, grouped, found)
            _walk(node.rhs, grouped, found)
        case promql_parser.Call():
            for argument in node.args:
                _walk(argument, grouped, found)
        case promql_parser.ParenExpr() | promql_parser.UnaryExpr() | promql_parser.SubqueryExpr():
            _walk(node.expr, grouped, found)
        case promql_parser.MatrixSelector():
            _walk(node.vector_selector, grouped, found)
        case promql_parser.VectorSelector():
            assert node.name, "a selector without a metric's name"
            labels = {matcher.name for matcher in node.matchers.matchers}
            found.setdefault(node.name, set()).update(labels | grouped)
        case promql_parser.NumberLiteral() | promql_parser.StringLiteral():
            return
        case _:
            raise AssertionError(f"an expression of a kind that this test does not know: {type(node).__name__}")


def check(expression: str) -> set[str]:
    """The series that an expression names. Fails where one does not exist, or has not a label that is asked of it."""
    known = known_series()
    for name, labels in asked(expression).items():
        assert name in known, f"{name} is no metric of ours: {expression}"
        assert labels <= known[name], f"{name} has no label {sorted(labels - known[name])}: {expression}"
    return set(asked(expression))
