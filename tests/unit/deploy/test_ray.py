"""The Serve config and the KubeRay manifest: they name what there is, and say the same."""

from __future__ import annotations

from importlib import import_module
from typing import Any

import pytest
import yaml

from service.cli.cluster import read_config
from service.cluster.replica import END_S, Arguments
from service.config import Settings
from tests.conftest import REPO

RAY = REPO / "deploy" / "ray"


def manifest() -> list[dict[str, Any]]:
    return list(yaml.safe_load_all((RAY / "rayservice.yaml").read_text()))


def configs() -> dict[str, dict[str, Any]]:
    return {
        "serve.yaml": read_config(RAY / "serve.yaml"),
        "rayservice.yaml": yaml.safe_load(manifest()[0]["spec"]["serveConfigV2"]),
    }


@pytest.mark.parametrize("name", ["serve.yaml", "rayservice.yaml"])
def test_a_serve_config_has_the_settings_of_an_agent_and_names_what_there_is(name: str) -> None:
    config = configs()[name]
    assert config["proxy_location"] == "Disabled", "no request of a caller passes through Serve"
    for application in config["applications"]:
        environment = Arguments(**application["args"]).environment
        assert {variable.removeprefix("HATRACK_").lower() for variable in environment} <= set(Settings.model_fields)
        assert environment["HATRACK_AGENT_ANNOUNCE"]
        assert not {"HATRACK_AGENT_KEY", "HATRACK_ADMIN_KEY"} & environment.keys(), "secrets are the nodes'"
        assert application["import_path"] == "service.cluster.application:agents"
        (deployment,) = application["deployments"]
        assert deployment["name"] == "agent"
        module, _, function = deployment["autoscaling_config"]["policy"]["policy_function"].partition(":")
        assert callable(getattr(import_module(module), function))


def test_the_manifest_scales_as_the_config_does_and_is_closed_to_others() -> None:
    service, policy = manifest()
    (application,) = configs()["serve.yaml"]["applications"]
    (on_kubernetes,) = configs()["rayservice.yaml"]["applications"]
    assert on_kubernetes["deployments"] == application["deployments"]
    cluster = service["spec"]["rayClusterConfig"]
    (workers,) = cluster["workerGroupSpecs"]
    patience_s = workers["template"]["spec"]["terminationGracePeriodSeconds"]
    assert patience_s > Settings.model_fields["drain_s"].default + END_S
    assert workers["maxReplicas"] == application["deployments"][0]["autoscaling_config"]["max_replicas"]
    assert cluster["authOptions"] == {"mode": "token"}
    assert cluster["gcsFaultToleranceOptions"]
    assert policy["kind"] == "NetworkPolicy"
    assert all("podSelector" in source for rule in policy["spec"]["ingress"] for source in rule["from"])
