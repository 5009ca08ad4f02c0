"""How rungs, scores and differences are named in a ladder's sentences."""

from __future__ import annotations

from adapters.protocol.reports import ArmDifference, ArmMean
from trainer.ladder.spec import HELD_OUT_SHARE, RungKey, SubsetKey


def title(key: RungKey | SubsetKey, *, inside: bool = False) -> str:
    """A rung's name in a sentence; ``inside``: not at its beginning."""
    names: dict[RungKey | SubsetKey, str] = {
        "base": "The base as it is",
        "instructions": "The base with instructions",
        "examples": "The base with fixed examples",
        "retrieved_examples": "The base with retrieved examples",
        "documents": "The base with retrieved documents",
        "lora": "The LoRA",
        "lora_examples": "The LoRA with retrieved examples",
        "lora_documents": "The LoRA with retrieved documents",
        "distilled": "The LoRA that learnt from the teacher",
        "half": "The LoRA on a half of the examples",
        "quarter": "The LoRA on a quarter of the examples",
        "cleanest_half": "The LoRA on the cleanest half of the examples",
    }
    name = names[key]
    return name[0].lower() + name[1:] if inside else name


def points(mean: ArmMean) -> str:
    """A score and its interval, of 100: `81.2 (74.0 to 86.9)`."""
    return f"{100 * mean.mean:.1f} ({100 * mean.low:.1f} to {100 * mean.high:.1f})"


def span(each: ArmDifference) -> str:
    """A difference and its interval, in points: `+3.1 (-0.4 to +6.6)`."""
    return f"{100 * each.estimate:+.1f} ({100 * each.low:+.1f} to {100 * each.high:+.1f})"


def percent(share: float) -> str:
    """A share as it was given: `94.5%`."""
    return f"{100 * share:g}%"


def in_all(held_out: int) -> int:
    """Of how many examples so many are held out, to two digits."""
    return int(float(f"{held_out / HELD_OUT_SHARE:.2g}"))
