"""How to reach the trainer, and how the gateway starts its own."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

from service.client.addresses import is_unix
from service.config import Settings
from service.config.secret_names import SECRETS

ITS_OWN: Final = frozenset({"HATRACK_TRAINER_SECRET", "HATRACK_TRAINER_DATABASE_URL"})
NOT_INHERITED: Final = (SECRETS - ITS_OWN) | {"HATRACK_KEY", "OPENAI_API_KEY"}
"""Variables that the trainer does not inherit: it authenticates with each job's own key, which has no more rights."""
DATABASE: Final = "trainer/jobs.db"
"""The trainer's database, under the home."""
ANY_ADDRESS: Final = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104


@dataclass(frozen=True, slots=True)
class TrainerConfig:
    """The settings that concern the trainer.

    Attributes:
        socket: Its Unix socket; None if it is reached at ``url``.
        secret: Sent with each request.
        starts: Whether the gateway starts the trainer, with ``arguments``.
    """

    home: Path
    socket: Path | None
    url: str
    secret: str | None
    starts: bool
    arguments: tuple[str, ...]
    program: tuple[str, ...] = (sys.executable, "-m", "trainer")

    @classmethod
    def from_settings(cls, settings: Settings, others: Sequence[Settings] = ()) -> TrainerConfig:
        """Extract the trainer's settings from the gateway's. ``others``: those of the further bases."""
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
            arguments=_arguments(settings, others, directory / "trainer.sock"),
        )

    @property
    def directory(self) -> Path:
        """State directory of the trainer that the gateway starts; only this user can reach the socket in it."""
        return self.home / "trainer"

    @property
    def log(self) -> Path:
        return self.directory / "trainer.log"

    @property
    def lock(self) -> Path:
        """Lock file, held as long as a trainer started by a gateway is alive; contains its process id."""
        return self.directory / "supervised.lock"

    def argv(self) -> list[str]:
        """The command line."""
        return [*self.program, *self.arguments]

    def environment(self, inherited: Mapping[str, str]) -> dict[str, str]:
        """The trainer's environment: the gateway's without its keys."""
        return {name: value for name, value in inherited.items() if name not in NOT_INHERITED}


def _arguments(settings: Settings, others: Sequence[Settings], socket: Path) -> tuple[str, ...]:
    arguments = ["--home", str(settings.home), "--socket", str(socket), "--gateway", local_url(settings)]
    arguments += ["--base", str(settings.base_dir), "--base-name", settings.base_served_name]
    arguments += ["--max-rank", str(settings.engine_max_rank)]
    arguments += ["--dtype", settings.dtype]
    if settings.context is not None:
        arguments += ["--context", str(settings.context)]
    for other in others:
        base = {"base": str(other.base_dir), "base_name": other.base_served_name, "max_rank": other.engine_max_rank}
        arguments += ["--other-base", json.dumps(base | {"context": other.context, "dtype": other.dtype})]
    return (*arguments, "--engine-device", settings.device, "--engine-memory", str(settings.engine_memory))


def local_url(settings: Settings) -> str:
    """The gateway's URL for processes on this machine."""
    host = ANY_ADDRESS.get(settings.host, settings.host)
    return f"http://[{host}]:{settings.port}" if ":" in host else f"http://{host}:{settings.port}"
