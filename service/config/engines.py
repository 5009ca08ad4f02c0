"""Several engines on one machine: the file that `HATRACK_ENGINES` names, and each engine's settings.

    [[engine]]
    name = "small"                          # in metrics, in `/readyz`, and of its folder
    base = "smollm2-135m-instruct"          # as HATRACK_BASE_MODEL

    [[engine]]
    name = "large-0"
    base = "hf://Qwen/Qwen3-4B-Instruct-2507@main"
    base_name = "qwen"
    devices = "1"                           # CUDA_VISIBLE_DEVICES; on a CPU its cores, such as "0-7"
    slots = 16                              # as HATRACK_ENGINE_SLOTS: every setting of an engine may stand here

Engines of one base are a group: an adapter is loaded by one of them, chosen by its digest. The first engine's base is
the default: that of a push or of a job that names none.
"""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any, Final

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from adapters.validation import settings_message
from service.config import Settings
from service.config.engine import EngineSettings
from service.config.secret_names import SECRETS
from service.errors import SettingsError

NAME: Final = re.compile(r"[a-z0-9][a-z0-9-]{0,31}", re.ASCII)
MAX_ENGINES: Final = 64
PREFIX: Final = "engine_"
OWN: Final = frozenset(name.removeprefix(PREFIX) for name in EngineSettings.model_fields if name.startswith(PREFIX))
"""Settings of an engine that an entry may have, besides its name and its base."""
REPLACED: Final = {
    "base_model": "HATRACK_BASE_MODEL",
    "base_name": "HATRACK_BASE_NAME",
    "engine_url": "HATRACK_ENGINE_URL",
    "engine_agent": "HATRACK_ENGINE_AGENT",
}
"""Settings that say which engine there is; beside a file they would contradict it."""


class NamedEngineSettings(Settings):
    """The settings of one of several engines: the gateway's, with what its entry says instead.

    ``engine_name`` is None for the one engine of a gateway without a file.
    """

    engine_name: str | None = None

    @property
    def engine_dir(self) -> Path:
        """Its socket, log and record; those of different engines are apart."""
        return self.home / "engine" if self.engine_name is None else self.home / "engines" / self.engine_name


class _Entry(BaseModel):
    model_config = ConfigDict(frozen=True, extra="allow", strict=True)

    name: str = Field(pattern=rf"^{NAME.pattern}$")
    base: str = Field(min_length=1)
    base_name: str = ""


class _File(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    engine: tuple[_Entry, ...] = Field(min_length=1, max_length=MAX_ENGINES)


def engine_settings(settings: Settings) -> tuple[Settings, ...]:
    """The settings of each engine, in the file's order; of the only one, where there is no file.

    Raises:
        SettingsError: The file cannot be read, or an entry is not allowed; the message names the entry and the key.
    """
    if settings.engines is None:
        return (settings,)
    for field, variable in REPLACED.items():
        if getattr(settings, field):
            raise SettingsError(
                f"HATRACK_ENGINES and {variable} are both set: the file says which engines there are; unset {variable}"
            )
    path = settings.engines
    made = tuple(_settings_of(settings, entry, path) for entry in _read(path).engine)
    _check(made, path)
    return made


def engine_dirs(settings: Settings) -> list[Path]:
    """Every folder under the home in which an engine of this gateway may have left something."""
    others = settings.home / "engines"
    return [settings.home / "engine", *(sorted(others.iterdir()) if others.is_dir() else [])]


def _read(path: Path) -> _File:
    try:
        content = tomllib.loads(path.read_text("utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError(f"HATRACK_ENGINES: {path} cannot be read: {error}") from error
    except tomllib.TOMLDecodeError as error:
        raise SettingsError(f"HATRACK_ENGINES: {path} is not TOML: {error}") from error
    try:
        return _File.model_validate(content)
    except ValidationError as error:
        fault = error.errors()[0]
        where = ".".join(map(str, fault["loc"]))
        raise SettingsError(f"HATRACK_ENGINES: {path}: {where}: {fault['msg']} (found {fault['input']!r})") from error


def _settings_of(settings: Settings, entry: _Entry, path: Path) -> NamedEngineSettings:
    given: dict[str, Any] = dict(entry.model_extra or {})
    unknown = sorted(given.keys() - OWN)
    if unknown:
        raise SettingsError(
            f"HATRACK_ENGINES: {path}: the engine `{entry.name}` has the key `{unknown[0]}`, which is not known; "
            f"allowed are name, base, base_name, {', '.join(sorted(OWN))}"
        )
    own = {PREFIX + key: value for key, value in given.items()}
    base = entry.base
    if not Path(base).is_absolute() and (path.parent / base).is_dir():
        base = str(path.parent / base)  # relative to the file, as a reader of it expects
    values = {
        **settings.model_dump(),
        **own,
        "engines": None,
        "base_model": base,
        "base_name": entry.base_name,
        "engine_name": entry.name,
    }
    try:
        return NamedEngineSettings(**values)
    except ValidationError as error:
        detail = settings_message(error, prefix="HATRACK_", secrets=SECRETS)
        raise SettingsError(f"HATRACK_ENGINES: {path}: the engine `{entry.name}`: {detail}") from error


def _check(engines: tuple[NamedEngineSettings, ...], path: Path) -> None:
    """Raise SettingsError where two engines are in each other's way."""
    names = [engine.engine_name for engine in engines]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise SettingsError(f"HATRACK_ENGINES: {path}: two engines have the name `{twice}`")
    bases: dict[str, NamedEngineSettings] = {}
    for engine in engines:
        first = bases.setdefault(engine.base_served_name, engine)
        if first.base_dir != engine.base_dir:
            raise SettingsError(
                f"HATRACK_ENGINES: {path}: the engines `{first.engine_name}` and `{engine.engine_name}` serve "
                f"different bases under the name `{engine.base_served_name}`; give one of them a `base_name`"
            )
        if first.dtype != engine.dtype:
            raise SettingsError(
                f"HATRACK_ENGINES: {path}: the engines `{first.engine_name}` and `{engine.engine_name}` serve "
                f"`{engine.base_served_name}` in different data types ({first.dtype}, {engine.dtype}); an adapter's "
                "proof and verdict hold for one"
            )
    directories = {engine.base_dir: name for name, engine in bases.items()}
    if len(directories) < len(bases):
        name = next(name for name, engine in bases.items() if directories[engine.base_dir] != name)
        raise SettingsError(
            f"HATRACK_ENGINES: {path}: `{name}` and `{directories[bases[name].base_dir]}` are two names of one base; "
            "give both engines the same `base_name`"
        )
    _check_memory(engines, path)


def _check_memory(engines: tuple[NamedEngineSettings, ...], path: Path) -> None:
    shares: dict[str, float] = {}
    for engine in engines:
        if engine.device == "cuda" and not engine.engine_is_elsewhere:
            for device in engine.engine_devices.split(","):
                shares[device] = shares.get(device, 0.0) + engine.engine_memory
    for device, share in shares.items():
        if share > 1:
            raise SettingsError(
                f"HATRACK_ENGINES: {path}: the engines on GPU {device or '(any)'} would take {share:.2f} of its "
                "memory; give each a `memory` that sums up to at most 1, or other `devices`"
            )
