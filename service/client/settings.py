"""Where the client finds its gateway and its key."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import Self

from pydantic import Field, SecretStr
from pydantic_settings import BaseSettings, SettingsConfigDict

from service.client.addresses import on_this_machine, without_v1
from service.client.profiles import Profile, Profiles, chosen_profile

DEFAULT_URL = "http://127.0.0.1:8000"


class ClientSettings(BaseSettings):
    """Where the `hatrack` command and the Python client find a gateway, and the key that they show it.

    What counts first: `hatrack --profile`, then `HATRACK_URL` and `HATRACK_KEY`, the profile that `hatrack login`
    saved, `OPENAI_BASE_URL` with `OPENAI_API_KEY` where `HATRACK_KEY` is not set, and a gateway on this machine. A
    profile's key is sent to the profile's URL only, `OPENAI_API_KEY` to `OPENAI_BASE_URL` only. `HATRACK_KEY` is
    sent to the gateway that `HATRACK_URL`, a profile or the caller names, or to the one on this machine, and never to
    an address that only `OPENAI_BASE_URL` names: that may be OpenAI's.

    Properties and methods raise ClientError where the profiles are needed and cannot be read.
    """

    model_config = SettingsConfigDict(frozen=True, extra="ignore", env_ignore_empty=True)

    url: str | None = Field(None, validation_alias="HATRACK_URL")
    key: SecretStr | None = Field(None, validation_alias="HATRACK_KEY")
    project: str | None = Field(None, validation_alias="HATRACK_PROJECT")
    profile_name: str | None = Field(None, validation_alias="HATRACK_PROFILE")
    openai_url: str | None = Field(None, validation_alias="OPENAI_BASE_URL")
    openai_key: SecretStr | None = Field(None, validation_alias="OPENAI_API_KEY")
    openai_organization: str | None = Field(None, validation_alias="OPENAI_ORG_ID")
    openai_project: str | None = Field(None, validation_alias="OPENAI_PROJECT_ID")
    home: Path = Field(Path("var"), validation_alias="HATRACK_HOME")
    config_home: Path | None = Field(None, validation_alias="XDG_CONFIG_HOME")

    @cached_property
    def profiles(self) -> Profiles:
        """All saved gateways."""
        return Profiles.read(self.config_home)

    @cached_property
    def profile(self) -> Profile | None:
        """The saved gateway that counts; None if none is saved, or none is the current one."""
        return self.profiles.get(chosen_profile.get() or self.profile_name)

    @property
    def openai_pair(self) -> tuple[str, str] | None:
        """`OPENAI_BASE_URL` and `OPENAI_API_KEY`; None unless both are set, and `HATRACK_KEY` is not.

        Whoever has set that one has a gateway's key of their own, and the two may be for OpenAI itself.
        """
        if self.key is not None or self.openai_url is None or self.openai_key is None:
            return None
        return self.openai_url, self.openai_key.get_secret_value()

    def without_openai(self) -> Self:
        """The settings of a program that talks to OpenAI, too: `OPENAI_BASE_URL` and `OPENAI_API_KEY` do not count."""
        return self.model_copy(update={"openai_url": None, "openai_key": None})

    @property
    def gateway_url(self) -> str:
        """The gateway's address, perhaps with `/v1` at its end."""
        return self.named_url or DEFAULT_URL

    @property
    def named_url(self) -> str | None:
        """The address that a variable or a profile names; None if none does."""
        if self.url is not None and chosen_profile.get() is None:
            return self.url
        if self.profile is not None:
            return self.profile.url
        return self.openai_pair[0] if self.openai_pair is not None else None

    def gateway_key(self, url: str) -> str | None:
        """The key for `url`: `HATRACK_KEY`, a profile's, the `openai` client's, or the admin key of a gateway on this
        machine. None if there is none for it."""
        if self.key is not None and chosen_profile.get() is None:
            return self.key.get_secret_value()
        if self.profile is not None and self.profile.key is not None and self.profile.url == url:
            return self.profile.key
        if self.openai_pair is not None and without_v1(self.openai_pair[0]) == url:
            return self.openai_pair[1]
        if not on_this_machine(url):
            return None
        try:
            return (self.home.expanduser() / "admin.key").read_text(encoding="ascii").strip() or None
        except (OSError, UnicodeDecodeError):
            return None  # the gateway says what is missing, in its own words

    def gateway_project(self, url: str) -> str | None:
        """The project that an admin's key acts in at `url`; None: the gateway's `default`."""
        given = self.project is not None or (self.url is not None and self.key is not None)
        if given and chosen_profile.get() is None:
            return self.project
        return self.profile.project if self.profile is not None and self.profile.url == url else None
