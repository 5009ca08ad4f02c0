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

import os
import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic_core import ErrorDetails

from adapters.validation import faults, message, settings_message, shown
from service.config import Settings
from service.config.cluster import ANNOUNCED
from service.config.engine import EngineSettings
from service.config.secret_names import SECRETS
from service.errors import SettingsError

NAME: Final = re.compile(r"[a-z0-9][a-z0-9-]{0,31}", re.ASCII)
MAX_ENGINES: Final = 64
SOCKET: Final = "engine.sock"
"""Of an engine that the gateway starts, in its folder."""
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


KEYS: Final = {PREFIX + key: key for key in OWN} | {"base_model": "base", "base_name": "base_name"}
"""The keys of an entry, by the settings that they become."""
SAME_IN_GROUP: Final = {"dtype": "dtype", "context": "context", "engine_max_rank": "max_rank"}
"""Settings that all engines of a base share, with their keys: what the gateway checks holds for whichever answers."""
MAX_SOCKET_BYTES: Final = 107
"""Of a Unix socket's path, in Linux."""


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


def named_engine(settings: Settings, name: str | None) -> Settings:
    """The settings of the entry ``name`` (given as `--name`) of the file that HATRACK_ENGINES names; as they are, where
    there is no file.

    Raises:
        SettingsError: There is no such entry, or the file is wrong.
    """
    if settings.engines is None:
        return settings
    entries = {str(vars(each)["engine_name"]): each for each in engine_settings(settings)}
    if name not in entries:
        raise SettingsError(
            f"HATRACK_ENGINES is set: --name must be one of its engines, {', '.join(entries)}; "
            f"got {'none' if name is None else repr(name[:80])}"
        )
    return entries[name]


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
        raise SettingsError(f"HATRACK_ENGINES: {path}: {_described(faults(error)[0], content)}") from error


def _described(fault: ErrorDetails, content: Mapping[str, Any]) -> str:
    """What is wrong with the file: which entry and key, what is allowed, and what was given; no value of an entry that
    may be a key."""
    top, *below = fault["loc"]
    if top != "engine":
        return f"the key `{top}` is not known; the file has entries `[[engine]]` alone"
    given = "" if fault["type"] == "missing" else f"; got {shown(fault['input'])}"
    if not below:
        return f"it must have 1 to {MAX_ENGINES} entries `[[engine]]`: {message(fault)}{given}"
    number, *keys = below
    entry = content["engine"][number]
    name = entry.get("name") if isinstance(entry, Mapping) else None
    which = f"engine {int(number) + 1}{f' (`{name[:40]}`)' if isinstance(name, str) else ''}"
    return f"{which}: {f'`{keys[0]}`: ' if keys else ''}{message(fault)}{given}"


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
        detail = settings_message(error, prefix="HATRACK_", secrets=SECRETS | {"key"}, names=KEYS)
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
        if first.base_dir.resolve() != engine.base_dir.resolve():
            raise SettingsError(
                f"HATRACK_ENGINES: {path}: the engines `{first.engine_name}` and `{engine.engine_name}` serve "
                f"different bases under the name `{engine.base_served_name}`; give one of them a `base_name`"
            )
        for field, key in SAME_IN_GROUP.items():
            values = getattr(first, field), getattr(engine, field)
            if values[0] != values[1]:
                raise SettingsError(
                    f"HATRACK_ENGINES: {path}: the engines `{first.engine_name}` and `{engine.engine_name}` serve "
                    f"`{engine.base_served_name}` with different `{key}` ({values[0]}, {values[1]}); an adapter may be "
                    "answered by either of them, so give both the same"
                )
    directories = {engine.base_dir.resolve(): name for name, engine in bases.items()}
    for name, engine in bases.items():
        other = directories[engine.base_dir.resolve()]
        if other != name:
            raise SettingsError(
                f"HATRACK_ENGINES: {path}: `{name}` and `{other}` are two names of one base; give both engines the "
                "same `base_name`"
            )
    _check_addresses(engines, path)
    _check_memory(engines, path)


def _check_addresses(engines: tuple[NamedEngineSettings, ...], path: Path) -> None:
    urls: dict[str, NamedEngineSettings] = {}
    for engine in engines:
        for key, address in (("url", engine.engine_url), ("agent", engine.engine_agent)):
            first = urls.setdefault(address, engine) if address not in ("", ANNOUNCED) else engine
            if first is not engine:
                raise SettingsError(
                    f"HATRACK_ENGINES: {path}: the engines `{first.engine_name}` and `{engine.engine_name}` have the "
                    f"same `{key}` ({address}); each must be an engine of its own"
                )
        if engine.engine_is_elsewhere:
            continue
        length = len(os.fsencode(engine.engine_dir / SOCKET))
        if length > MAX_SOCKET_BYTES:
            raise SettingsError(
                f"HATRACK_ENGINES: {path}: the engine `{engine.engine_name}`: the path of its socket, "
                f"{engine.engine_dir / SOCKET}, has {length} bytes, and at most {MAX_SOCKET_BYTES} are allowed; "
                "choose a shorter name, or another HATRACK_HOME"
            )


def _check_memory(engines: tuple[NamedEngineSettings, ...], path: Path) -> None:
    """Raise SettingsError where engines do not fit on a GPU; one without `devices` may be on any."""
    shares: dict[str, float] = {}
    for engine in engines:
        if engine.device == "cuda" and not engine.engine_is_elsewhere:
            if re.fullmatch(r"[0-9,]*-[0-9,-]*", engine.engine_devices):
                raise SettingsError(
                    f"HATRACK_ENGINES: {path}: the engine `{engine.engine_name}`: `devices` must list GPUs one by one, "
                    f"such as `0,1`; got {engine.engine_devices!r}"
                )
            for device in dict.fromkeys(engine.engine_devices.split(",")):
                shares[device] = shares.get(device, 0.0) + engine.engine_memory
    anywhere = shares.get("", 0.0)
    for device, own in shares.items():
        share = own + anywhere if device else own
        if share > 1:
            raise SettingsError(
                f"HATRACK_ENGINES: {path}: the engines on GPU {device or '(any)'} would take {share:.2f} of its "
                "memory; give each a `memory` that sums up to at most 1, or other `devices`"
            )
