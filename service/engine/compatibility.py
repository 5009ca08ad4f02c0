"""Checks whether a running engine is compatible with this gateway's settings, using the plugin's report."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from adapters.base import Fingerprint
from service.engine.config import EngineConfig
from service.engine.contract import PLUGIN_PROTOCOL

ENGINE_COMMAND = "`hatrack engine`"


class IncompatibleEngine(Exception):
    """The engine is incompatible with this gateway; the message lists every difference and its remedy."""


def check_compatibility(report: Mapping[str, Any], config: EngineConfig, base: Fingerprint, store_id: str) -> None:
    """Compare the plugin's report with the gateway's settings.

    Args:
        report: The plugin's report.
        config: The engine as the gateway's settings have it.
        base: The identity of the base model, as the gateway reads it.
        store_id: The id of the gateway's adapter store.

    Raises:
        IncompatibleEngine: Something differs.
    """
    if report.get("protocol") != PLUGIN_PROTOCOL:
        raise IncompatibleEngine(
            f"its plugin uses protocol {report.get('protocol')!r}, this gateway {PLUGIN_PROTOCOL}: "
            "run the same version of Hatrack on both sides"
        )
    problems = [
        *_base(report, config, base),
        *_version(report, base),
        *_store(report, config, store_id),
        *_limits(report, config),
    ]
    if problems:
        raise IncompatibleEngine("; ".join(problems))


def _base(report: Mapping[str, Any], config: EngineConfig, base: Fingerprint) -> list[str]:
    names = report.get("names")
    if not isinstance(names, list) or config.base_name not in names:
        return [
            f"it serves {_listed(names)}, not the base `{config.base_name}` (HATRACK_BASE_MODEL, HATRACK_BASE_NAME)"
        ]
    reported = report.get("base")
    if not isinstance(reported, dict):
        return [f"it does not report its base model: start it with {ENGINE_COMMAND}"]
    expected = base.model_dump(exclude={"engine_version"})
    parts = [part for part, value in expected.items() if reported.get(part) != value]
    if parts:
        setting = "HATRACK_ENGINE_DTYPE" if parts == ["dtype"] else "HATRACK_BASE_MODEL"
        return [f"its base `{config.base_name}` is a different model: {', '.join(parts)} differ ({setting})"]
    return []


def _version(report: Mapping[str, Any], base: Fingerprint) -> list[str]:
    """A version is judged against the engine's, so both sides must mean the same; "unknown" where none is installed."""
    reported = str(report.get("vllm")).split("+")[0]
    if base.engine_version in ("unknown", reported):
        return []
    return [f"it runs vLLM {reported}, but {base.engine_version} is installed here"]


def _store(report: Mapping[str, Any], config: EngineConfig, store_id: str) -> list[str]:
    if report.get("store_id") == store_id:
        return []
    return [
        f"it reads the adapter store {report.get('store')}, not {config.store}: "
        "both must use the same directory (HATRACK_HOME)"
    ]


def _limits(report: Mapping[str, Any], config: EngineConfig) -> list[str]:
    problems = []
    if report.get("slots") != config.slots:
        problems.append(f"it has {report.get('slots')} adapter slots, HATRACK_ENGINE_SLOTS is {config.slots}")
    if not _at_least(report.get("max_rank"), config.max_rank):
        problems.append(f"it takes ranks up to {report.get('max_rank')}, HATRACK_ENGINE_MAX_RANK is {config.max_rank}")
    if config.context is not None and not _at_least(report.get("context"), config.context):
        problems.append(f"its context is {report.get('context')} tokens, HATRACK_ENGINE_CONTEXT is {config.context}")
    return problems


def _at_least(value: object, minimum: int) -> bool:
    return isinstance(value, int) and value >= minimum


def _listed(names: object) -> str:
    return ", ".join(f"`{name}`" for name in names) if isinstance(names, list) and names else "nothing"
