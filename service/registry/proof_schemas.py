"""The proof of a version with weights, as the API shows it; `readiness.SettingsProof` is that of one without."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from adapters.perplexity import HOLD_BACK_RATIO, LONG_PROMPT
from adapters.proof import Effect
from service.http.schema import ApiModel


class ReferenceAgreement(ApiModel):
    """The adapter's effect in the engine against what the trainer measured (`metadata.proof`); nats per token."""

    disagreement: float = Field(description="How far the two effects lie apart.")
    tolerance: float = Field(description="How far they may.")
    base_gap: float = Field(description="How far the base's own answers lie apart.")
    effect: float = Field(description="The effect that the trainer measured.")
    conclusive: bool = Field(
        description="Whether that effect is larger than the tolerance; else agreement shows nothing."
    )


class PlainTextPerplexity(ApiModel):
    """The perplexity of one long plain text under the base and under the adapter, both asked of the engine."""

    text_id: str = Field(description="Perplexities are comparable only over the same text.")
    tokens: int = Field(
        description=f"How many of the text's tokens the engine's context took; up to {LONG_PROMPT}, no long prompt was "
        "asked."
    )
    base: float
    adapter: float
    ratio: float = Field(description=f"`adapter` over `base`. From {HOLD_BACK_RATIO:g} on, the version is held back.")


class MixedBatchProof(ApiModel):
    """How far each model's answers moved when all were asked in one batch instead of alone; nats per token."""

    base: float
    adapter: float
    neighbour: float | None = Field(None, description="Another adapter that was loaded; null where there was none.")


class AdapterProof(ApiModel):
    """The proof that the engine answers with this adapter: log-probabilities over probe texts, in nats per token."""

    format: Literal[1]
    probes_id: str = Field(description="Numbers are comparable only over the same probe texts.")
    tokens: int
    noise: float = Field(description="How far the base lies from itself when asked twice.")
    distance: float = Field(description="How far the adapter lies from the base: the mean over tokens.")
    largest: float = Field(description="How far it lies at the token where that is most.")
    effect: Effect
    reference: ReferenceAgreement | None = Field(None, description="Null where `metadata.proof` was not sent.")
    perplexity: PlainTextPerplexity | None = Field(None, description="Missing where an older gateway proved it.")
    mixed_batch: MixedBatchProof | None = Field(None, description="Missing where an older gateway proved it.")
    warnings: list[str]
