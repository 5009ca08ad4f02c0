"""The settings of sources, a part of ``service.config.Settings``: where the gateway may fetch adapters from."""

from __future__ import annotations

import re
from typing import Annotated, Final
from urllib.parse import urlsplit

from pydantic import Field, SecretStr, field_validator
from pydantic_settings import BaseSettings, NoDecode

from adapters.errors import SourceInvalid
from adapters.sources import HUB, Source, parse_prefix

DEFAULT_HUB: Final = "https://huggingface.co"
_REDIRECT: Final = re.compile(r"(\*\.)?[a-z0-9-]+(\.[a-z0-9-]+)*", re.ASCII)


class SourceSettings(BaseSettings):
    """The settings ``HATRACK_SOURCES``, ``HATRACK_SOURCE_REDIRECTS`` and ``HATRACK_HUB_*``."""

    sources: Annotated[tuple[str, ...], NoDecode] = Field(
        (),
        description=(
            "What `hatrack push NAME SOURCE` may fetch, as prefixes separated by spaces: `hf://ORG`, `hf://ORG/REPO`, "
            "`s3://BUCKET/FOLDER`, `https://HOST/FOLDER`; `hf://` is the whole hub. Unset: nothing."
        ),
    )
    source_redirects: Annotated[tuple[str, ...], NoDecode] = Field(
        ("*.hf.co", "*.huggingface.co"),
        description=(
            "Hosts that a source may redirect to besides those of `sources`, separated by spaces; `*.` stands for "
            "subdomains. The default names the hub's CDNs."
        ),
    )
    hub_url: str = Field(DEFAULT_HUB, description="The hub of `hf://` sources: Hugging Face, or a mirror of it.")
    hub_token: SecretStr | None = Field(
        None, description="Token for private repositories; it is sent to `hub_url` only, never to a redirect."
    )

    @field_validator("sources", "source_redirects", mode="before")
    @classmethod
    def _words(cls, value: object) -> object:
        return tuple(value.split()) if isinstance(value, str) else value

    @field_validator("sources")
    @classmethod
    def _prefixes(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for text in value:
            try:
                prefix = parse_prefix(text)
            except SourceInvalid as error:
                raise ValueError(error.message) from None
            if prefix.scheme != HUB and not prefix.host:
                raise ValueError(f"{text} must name a host or a bucket")
        return value

    @field_validator("source_redirects")
    @classmethod
    def _hosts(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for text in value:
            if _REDIRECT.fullmatch(text) is None:
                raise ValueError(f"must be hosts such as `cdn.example.com` or `*.example.com`; got {text}")
        return value

    @field_validator("hub_url")
    @classmethod
    def _hub(cls, value: str) -> str:
        parts = urlsplit(value)
        if parts.scheme in ("http", "https") and parts.hostname and not (parts.query or parts.username):
            return value.rstrip("/")
        raise ValueError("must be https://host or http://host, with or without a path")

    @property
    def source_prefixes(self) -> tuple[Source, ...]:
        """The prefixes in ``sources``, parsed."""
        return tuple(parse_prefix(text) for text in self.sources)
