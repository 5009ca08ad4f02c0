"""The system prompt that a version will be served with, against those that its examples were written with."""

from __future__ import annotations

from adapters.protocol.requests import MAX_PROMPT_CHARS
from trainer.data.prepare import Prepared
from trainer.errors import WishRefused


def prompt_of(asked: str | None, prepared: Prepared) -> str | None:
    """The option's, else the one that every example has.

    Raises:
        WishRefused: No version may hold it; or every example has another one, so that what is trained would never be
            what is served.
    """
    prompt = asked or prepared.report.system_prompt
    if prompt is not None and len(prompt) > MAX_PROMPT_CHARS:
        raise WishRefused(
            "system_prompt", f"the examples' has {len(prompt)} characters; a version holds {MAX_PROMPT_CHARS}"
        )
    if prepared.training.examples and len(others(asked, prepared)) == len(prepared.training.examples):
        raise WishRefused(
            "system_prompt",
            "every example has a system message of its own that differs from it: the version would be served with "
            "another prompt than it is trained with. Leave the option out, or take the examples' messages out",
        )
    return prompt


def others(asked: str | None, prepared: Prepared) -> list[int]:
    """The lines of the training examples that bring another system message than the option's."""
    if asked is None:
        return []
    firsts = ((example.line, example.messages[0]) for example in prepared.training.examples)
    return [line for line, first in firsts if first.role == "system" and first.content != asked]
