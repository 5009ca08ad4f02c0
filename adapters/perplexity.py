"""An adapter's effect on plain text: its perplexity over one packaged text, as a multiple of the base's.

A proof shows that the engine applies an adapter; this shows whether the result is still a language model. Pure
arithmetic: the gateway supplies the log-probabilities. PROOF.md describes how the bounds were measured.
"""

import hashlib
import math
from collections.abc import Sequence
from typing import Annotated, Any, ClassVar, Final

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from adapters.errors import LogprobsNotFinite, ProbeTokensDiffer

PLAIN_TEXT: Final = """\
User: My kitchen tap has started to drip. Do I need a plumber, or can I fix it myself?
Assistant: In most cases you can fix it yourself in under an hour. A drip usually means that a small rubber washer \
inside the tap has worn out. Turn off the water under the sink first, and open the tap to let the rest run out. Then \
take off the handle, unscrew the nut below it, and lift out the old washer. Take it with you to the shop, so that \
you buy one of the same size. Put everything back together in the same order and turn the water on slowly.
User: And if it still drips after that?
Assistant: Then the metal seat below the washer may be damaged, and I would call a plumber.

The town lies where the river leaves the hills and begins to wind across the plain. For a long time it lived from \
its mills. There were eleven of them in the year of the great flood, and only four were rebuilt. When the railway \
came, the owners of the other mills sold their land and moved to the city, and their children rarely came back. \
Today most people work in the hospital or at the school, and in summer a few hundred visitors walk along the water, \
look at the old bridge, and drink coffee in the square.

Anna opened the letter at the table by the window. She read it twice, put it back into the envelope, and looked out \
at the garden. It had stopped raining. "They want me to start on the first of March," she said at last. Her brother \
did not answer at once. He had known for weeks that she would go, and he still had not found the right thing to say. \
"Then we should paint the boat before you leave," he said, and she laughed for the first time that day.

Water expands when it freezes, which is unusual, because most liquids become smaller as they turn solid. In ice the \
molecules are held in an open pattern that takes up more room than when they move freely. This is why ice floats, \
why a full bottle breaks in the freezer, and why lakes freeze from the top down. The layer of ice keeps the water \
below it from losing heat, so that fish can live through the winter at the bottom.

Dear Mr Hill,
thank you for your order of the third of May. We are sorry to tell you that the blue chairs will not be in stock \
before the end of the month. If you do not want to wait, we can send you the same chairs in grey this week, or \
return your money. Please let us know by Friday what you would like us to do.
"""
"""A chat, a description, a story, an explanation and a letter, written for this purpose; about 600 tokens, so that one
request is both the measure of plain language and a prompt longer than LONG_PROMPT. Rendered through no template."""

PLAIN_ID: Final = hashlib.sha256(PLAIN_TEXT.encode()).hexdigest()[:16]
"""Identifies the text: perplexities over different texts are never compared."""

LONG_PROMPT: Final = 512
"""Tokens. Kernels that fail on long prompts alone have failed from token 128 and from token 400 on."""

HOLD_BACK_RATIO: Final = 10.0
"""A version whose perplexity is at least this many times the base's is held back from `live`."""

REFUSE_RATIO: Final = 10_000.0
"""From this many times the base's perplexity on an upload is refused. Guessing among all tokens alike has 2,200 times
with the sample base, and up to 20,000 with a larger vocabulary and a better base. A factor of 100 would seem enough,
but an adapter that was trained until it forgot has 950, may still do what it was trained for, and must stay reachable
for its verdict: it is held back. PROOF.md has the measurements."""

_MAX_EXPONENT: Final = 700.0
"""exp() of more is no longer a finite double."""


class Perplexity(BaseModel):
    """The perplexity of PLAIN_TEXT under the base and under the adapter, both in the engine.

    `tokens`: tokens of the text that were scored; fewer than it has if the engine's context is shorter.
    """

    model_config: ClassVar[ConfigDict] = ConfigDict(frozen=True, extra="ignore", allow_inf_nan=False)

    text_id: str
    tokens: Annotated[int, Field(ge=2)]
    base: Annotated[float, Field(ge=0)]
    adapter: Annotated[float, Field(ge=0)]
    ratio: Annotated[float, Field(ge=0)]

    @property
    def holds_back(self) -> bool:
        """Whether `live` must not move to the adapter unless it is forced."""
        return self.ratio >= HOLD_BACK_RATIO

    @property
    def refuses(self) -> bool:
        """Whether the adapter must be refused."""
        return self.ratio >= REFUSE_RATIO

    @property
    def is_long(self) -> bool:
        """Whether the prompt had more than LONG_PROMPT tokens."""
        return self.tokens > LONG_PROMPT


def compare_perplexity(base: Sequence[float], adapter: Sequence[float]) -> Perplexity:
    """Weigh the log-probabilities (nats) of PLAIN_TEXT's tokens but the first, under the base and under the adapter.

    Raises ProbeTokensDiffer if they are of different tokens, LogprobsNotFinite if a value is not a log-probability.
    """
    if len(base) != len(adapter) or not base:
        raise ProbeTokensDiffer("The engine tokenized the plain text differently in two requests.")
    if not all(map(is_logprob, (*base, *adapter))):
        raise LogprobsNotFinite("A log-probability of the plain text is missing, NaN, infinite or positive.")
    nats = -math.fsum(base) / len(base), -math.fsum(adapter) / len(adapter)
    return Perplexity(
        text_id=PLAIN_ID,
        tokens=len(base) + 1,
        base=_exp(nats[0]),
        adapter=_exp(nats[1]),
        ratio=_exp(nats[1] - nats[0]),
    )


def is_logprob(value: float) -> bool:
    """Whether an engine's number can be a log-probability: finite, and above zero by no more than rounding."""
    return math.isfinite(value) and value <= 1e-3


def measured(proof: dict[str, Any] | None) -> Perplexity | None:
    """The perplexity in a version's stored proof; None if there is none over the current text."""
    stored = (proof or {}).get("perplexity")
    try:
        perplexity = None if stored is None else Perplexity.model_validate(stored)
    except ValidationError:
        return None
    return perplexity if perplexity is not None and perplexity.text_id == PLAIN_ID else None


def _exp(nats: float) -> float:
    return math.exp(min(nats, _MAX_EXPONENT))
