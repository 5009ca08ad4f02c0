"""The alerts ask for metrics that exist, are tested one by one, and each has its entry in the runbook."""

from __future__ import annotations

import re
import subprocess
from typing import Any

import pytest
import yaml

from deploy import runbook
from service.cli.main import app
from service.config import Settings
from tests.conftest import REPO
from tests.support.system import program
from tests.unit.deploy.promql import check, known_series

DEPLOY = REPO / "deploy"
PROMETHEUS = DEPLOY / "prometheus"
RUNBOOK = (DEPLOY / "RUNBOOK.md").read_text()
RULES: list[dict[str, Any]] = [
    rule for group in yaml.safe_load((PROMETHEUS / "alerts.yml").read_text())["groups"] for rule in group["rules"]
]
NAMES = [rule["alert"] for rule in RULES]
ENTRIES: dict[str, str] = dict(entry.split("\n", 1) for entry in re.split(r"^## ", RUNBOOK, flags=re.MULTILINE)[1:])
LOGGED = ("a metrics source failed", "restarting the engine", "usage could not be written")
"""Lines of the log that the runbook tells to look for."""


@pytest.mark.parametrize("rule", RULES, ids=NAMES)
def test_an_alert_names_what_exists_and_says_where_its_help_is(rule: dict[str, Any]) -> None:
    assert check(rule["expr"])
    assert rule["labels"]["severity"] in ("critical", "warning")
    assert rule["annotations"]["runbook_url"] == f"{{{{ $externalURL }}}}/consoles/runbook.html#{rule['alert'].lower()}"
    assert rule["annotations"]["summary"]
    entry = ENTRIES[rule["alert"]]
    assert re.search(r"\*\*Means\*\*.*\*\*Look\*\*.*\*\*[Dd]o\*\*", entry, re.DOTALL), "means, look, do"


def test_the_runbook_has_an_entry_for_each_alert_and_no_other() -> None:
    assert len(NAMES) == len(set(NAMES))
    assert set(ENTRIES) == set(NAMES)


def test_prometheus_serves_the_runbook_that_the_alerts_link_to() -> None:
    assert runbook.PAGE.read_text() == runbook.page(RUNBOOK), "run deploy/runbook.py"
    ids = re.findall(r' id="([^"]+)"', runbook.PAGE.read_text())
    assert {name.lower() for name in NAMES} <= set(ids)
    assert set(re.findall(r'href="#([^"]+)"', runbook.PAGE.read_text())) <= set(ids)
    assert not re.search(r'href="(?!#)', runbook.PAGE.read_text()), "Prometheus has no other files"
    flags = yaml.safe_load((DEPLOY / "compose.yaml").read_text())["services"]["prometheus"]
    assert "./prometheus:/etc/prometheus:ro" in flags["volumes"]
    assert f"--web.console.templates=/etc/prometheus/{runbook.PAGE.parent.name}" in flags["command"]


def test_a_runbook_that_prometheus_would_run_as_a_template_is_refused() -> None:
    with pytest.raises(ValueError, match="template"):
        runbook.page("# {{ $value }}")


def test_each_alert_has_a_case_in_which_it_fires() -> None:
    cases = yaml.safe_load((PROMETHEUS / "alerts_test.yml").read_text())["tests"]
    fired = {case["alertname"] for test in cases for case in test["alert_rule_test"] if case.get("exp_alerts")}
    assert fired == set(NAMES)
    for test in cases:
        for series in test["input_series"]:
            assert check(series["series"])


def test_the_runbook_names_commands_settings_metrics_and_entries_that_exist() -> None:
    commands = {command.name or command.callback.__name__ for command in app.registered_commands if command.callback}
    commands |= {group.name for group in app.registered_groups if group.name}
    named = set(re.findall(r"(?:`|^    )hatrack ([a-z-]+)", RUNBOOK, re.MULTILINE))
    assert named
    assert named <= commands
    settings = {f"HATRACK_{name.upper()}" for name in Settings.model_fields}
    assert set(re.findall(r"HATRACK_[A-Z_]+", RUNBOOK)) <= settings
    assert set(re.findall(r"\bhatrack_[a-z_]+", RUNBOOK)) <= set(known_series())
    assert set(re.findall(r"\]\(#(\w+)\)", RUNBOOK)) <= {name.lower() for name in NAMES}


def test_the_runbook_quotes_lines_that_are_logged() -> None:
    code = "".join(path.read_text() for path in (REPO / "service").rglob("*.py"))
    for line in LOGGED:
        assert line in RUNBOOK
        assert line in code


def test_prometheus_is_told_of_the_rules_and_of_a_key_that_is_the_gateways() -> None:
    config = yaml.safe_load((PROMETHEUS / "prometheus.yml").read_text())
    assert config["rule_files"] == ["alerts.yml"]
    [job] = config["scrape_configs"]
    assert job["job_name"] == "hatrack"
    compose = yaml.safe_load((DEPLOY / "compose.yaml").read_text())
    [secret] = compose["services"]["prometheus"]["secrets"]
    assert job["authorization"]["credentials_file"] == f"/run/secrets/{secret}"
    assert compose["secrets"][secret]["environment"] in compose["services"]["gateway"]["environment"]
    assert job["static_configs"] == [{"targets": ["gateway:8000"]}]


def test_promtool_accepts_the_rules_and_computes_their_cases() -> None:
    """The parser above has judged already; promtool also computes the alerts' cases."""
    tool = program("promtool")
    commands = (
        ["check", "rules", "alerts.yml"],
        ["test", "rules", "alerts_test.yml"],
        ["check", "config", "--syntax-only", "prometheus.yml"],
    )
    for command in commands:
        done = subprocess.run([tool, *command], cwd=PROMETHEUS, capture_output=True, text=True, timeout=240)
        assert done.returncode == 0, done.stdout + done.stderr
    assert len(RULES) > 15
