"""Where the trainer is, and how one of our own is started."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

from service.client.addresses import is_unix
from service.config import Settings

KEPT_BACK: Final = ("HATRACK_ADMIN_KEY", "HATRACK_ENGINE_KEY", "HATRACK_METRICS_KEY", "HATRACK_KEY", "OPENAI_API_KEY")
"""Variables that a trainer does not inherit: it shows the gateway a key of its job's, and none that can do more."""
ANY_ADDRESS: Final = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104


@dataclass(frozen=True, slots=True)
class TrainerConfig:
    """The trainer's part of the settings.

    ``socket`` is its Unix socket; None where it is reached at ``url``. ``secret`` is shown to it with each request.
    ``starts`` says whether the gateway starts it, with ``arguments``.
    """

    home: Path
    socket: Path | None
    url: str
    secret: str | None
    starts: bool
    arguments: tuple[str, ...]
    program: tuple[str, ...] = (sys.executable, "-m", "trainer")

    @classmethod
    def from_settings(cls, settings: Settings) -> TrainerConfig:
        """Take the trainer's part of the settings."""
        directory = settings.home / "trainer"
        socket: Path | None = directory / "trainer.sock"
        if settings.trainer_url:
            socket = Path(urlsplit(settings.trainer_url).path) if is_unix(settings.trainer_url) else None
        return cls(
            home=settings.home,
            socket=socket,
            url="http://trainer" if socket else settings.trainer_url,
            secret=settings.trainer_secret.get_secret_value() if settings.trainer_secret else None,
            starts=settings.trainer == "on" and not settings.trainer_url,
            arguments=_arguments(settings, directory / "trainer.sock"),
        )

    @property
    def directory(self) -> Path:
        """Of the trainer that the gateway starts; its socket's place is ours alone."""
        return self.home / "trainer"

    @property
    def log(self) -> Path:
        return self.directory / "trainer.log"

    @property
    def lock(self) -> Path:
        """Locked as long as a trainer that a gateway has started lives; its process id is inside."""
        return self.directory / "supervised.lock"

    def argv(self) -> list[str]:
        """The command line."""
        return [*self.program, *self.arguments]

    def environment(self, inherited: Mapping[str, str]) -> dict[str, str]:
        """The trainer's environment: the gateway's own without its keys."""
        return {name: value for name, value in inherited.items() if name not in KEPT_BACK}


def _arguments(settings: Settings, socket: Path) -> tuple[str, ...]:
    found = ["--home", str(settings.home), "--socket", str(socket), "--gateway", local_url(settings)]
    found += ["--base", str(settings.base_dir), "--base-name", settings.base_served_name]
    found += ["--max-rank", str(settings.engine_max_rank)]
    if settings.engine_dtype != "auto":  # the base is described as bfloat16 then, and so is the trainer's
        found += ["--dtype", settings.engine_dtype]
    if settings.context is not None:
        found += ["--context", str(settings.context)]
    return (*found, "--engine-device", settings.device, "--engine-memory", str(settings.engine_memory))


def local_url(settings: Settings) -> str:
    """Where processes of this machine reach the gateway."""
    host = ANY_ADDRESS.get(settings.host, settings.host)
    return f"http://[{host}]:{settings.port}" if ":" in host else f"http://{host}:{settings.port}"
