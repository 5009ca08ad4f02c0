"""Where the client finds its gateway and its key."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field, SecretStr
from pydantic_settings import BaseSettings, SettingsConfigDict

from service.client.addresses import on_this_machine, without_v1


class ClientSettings(BaseSettings):
    """Where the `hatrack` command and the Python client find a gateway, and the key that they show it.

    The `openai` client's own variables count too, as a pair: a key for somebody else's service must not be sent here.
    """

    model_config = SettingsConfigDict(frozen=True, extra="ignore", env_ignore_empty=True)

    url: str | None = Field(None, validation_alias="HATRACK_URL")
    key: SecretStr | None = Field(None, validation_alias="HATRACK_KEY")
    project: str | None = Field(None, validation_alias="HATRACK_PROJECT")
    openai_url: str | None = Field(None, validation_alias="OPENAI_BASE_URL")
    openai_key: SecretStr | None = Field(None, validation_alias="OPENAI_API_KEY")
    home: Path = Field(Path("var"), validation_alias="HATRACK_HOME")

    @property
    def gateway_url(self) -> str:
        """The gateway's address, perhaps with `/v1` at its end."""
        return self.url or self.openai_url or "http://127.0.0.1:8000"

    def gateway_key(self, url: str) -> str | None:
        """The key for `url`: `HATRACK_KEY`, the `openai` client's, or the admin key of a gateway on this machine."""
        if self.key is not None:
            return self.key.get_secret_value()
        if self.openai_key is not None and self.openai_url is not None and without_v1(self.openai_url) == url:
            return self.openai_key.get_secret_value()
        if not on_this_machine(url):
            return None
        try:
            return (self.home.expanduser() / "admin.key").read_text(encoding="ascii").strip() or None
        except (OSError, UnicodeDecodeError):
            return None  # the gateway says what is missing, in its own words
