"""Gateways that `hatrack login` has saved: a URL, a key and a project under a name, in one file that only its owner
may read."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from contextvars import ContextVar
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from service.client.wire import ClientError

DEFAULT_PROFILE: Final = "default"
FILE: Final = "profiles.json"
MAX_FILE_BYTES: Final = 1 << 20

chosen_profile: ContextVar[str | None] = ContextVar("chosen_profile", default=None)
"""The profile that the command line names (`hatrack --profile`), which counts before every variable."""


@dataclass(frozen=True, slots=True)
class Profile:
    """A saved gateway. ``url`` is without `/v1`; ``project`` is the one that an admin's key acts in, or None."""

    url: str
    key: str | None = None
    project: str | None = None


@dataclass(frozen=True, slots=True)
class Profiles:
    """All saved gateways, and which one counts where none is named. Reading and writing raise ClientError."""

    path: Path | None
    """The file; None for a user without a home, where nothing can be saved."""
    saved: Mapping[str, Profile]
    current: str | None

    @classmethod
    def read(cls, config_home: Path | None) -> Profiles:
        """What is saved; empty where nothing is.

        Args:
            config_home: `XDG_CONFIG_HOME`; None: `~/.config`.

        Raises:
            ClientError: `profiles_unreadable`.
        """
        try:
            path = (config_home or Path.home() / ".config") / "hatrack" / FILE
        except RuntimeError:  # a user without a home, as in a container
            return cls(None, {}, None)
        try:
            with path.open("rb") as file:
                document = json.loads(file.read(MAX_FILE_BYTES))
            saved = {name: _profile(value) for name, value in document["profiles"].items()}
            current = document.get("current")
            current = current if current in saved else None
        except FileNotFoundError:
            return cls(path, {}, None)
        except OSError as error:
            raise _unreadable(path, error.strerror or str(error)) from error
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise _unreadable(path, "it is damaged; delete it, and run `hatrack login` again") from error
        return cls(path, saved, current)

    def get(self, name: str | None) -> Profile | None:
        """The profile of a name; None as the name: the current one, if there is one.

        Raises:
            ClientError: `profile_not_found`.
        """
        if name is None:
            return None if self.current is None else self.saved[self.current]
        if name in self.saved:
            return self.saved[name]
        known = f"saved: {', '.join(sorted(self.saved))}" if self.saved else "none is saved"
        message = f"There is no profile {name} ({known}). Run `hatrack login URL --profile {name}` to save it."
        raise ClientError(0, "profile_not_found", message, "profile")

    def with_profile(self, name: str, profile: Profile) -> Profiles:
        """With a profile more, or replaced, which becomes the current one."""
        return Profiles(self.path, {**self.saved, name: profile}, name)

    def without(self, name: str) -> Profiles:
        """Without a profile; where it was the current one, none is."""
        self.get(name)
        left = {known: profile for known, profile in self.saved.items() if known != name}
        return Profiles(self.path, left, None if self.current == name else self.current)

    def using(self, name: str) -> Profiles:
        """With another current profile."""
        self.get(name)
        return Profiles(self.path, self.saved, name)

    def write(self) -> None:
        """Replace the file, which only its owner may read (0600).

        Raises:
            ClientError: `profiles_not_writable`.
        """
        if self.path is None:
            message = "Nothing can be saved: this user has no home directory. Set XDG_CONFIG_HOME to a directory."
            raise ClientError(0, "profiles_not_writable", message)
        document = {"current": self.current, "profiles": {name: asdict(each) for name, each in self.saved.items()}}
        part = self.path.with_name(f"{FILE}.{os.getpid()}.part")
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            try:
                descriptor = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
                with os.fdopen(descriptor, "w", encoding="utf-8") as file:
                    json.dump(document, file, ensure_ascii=False, indent=2)
                part.replace(self.path)
            finally:
                part.unlink(missing_ok=True)
        except OSError as error:
            message = f"{self.path} cannot be written: {error.strerror or error}."
            raise ClientError(0, "profiles_not_writable", message) from error


def _profile(value: Any) -> Profile:
    fields = {name: value.get(name) for name in ("key", "project")}
    if not isinstance(value["url"], str) or not all(isinstance(each, str | None) for each in fields.values()):
        raise TypeError
    return Profile(value["url"], **fields)


def _unreadable(path: Path, reason: str) -> ClientError:
    return ClientError(0, "profiles_unreadable", f"{path} cannot be read: {reason}.")
