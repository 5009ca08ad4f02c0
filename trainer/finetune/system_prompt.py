"""The system prompt that a version will be served with, checked against those of its training examples."""

from __future__ import annotations

from adapters.protocol.requests import MAX_PROMPT_CHARS
from trainer.data.prepare import Prepared
from trainer.errors import InvalidHyperparameter


def resolve_system_prompt(requested: str | None, prepared: Prepared) -> str | None:
    """The requested system prompt, or else the one that all examples share.

    Raises:
        InvalidHyperparameter: It is too long; or every example has a different one, so that the version would be served
            with a prompt that it was not trained with.
    """
    prompt = requested or prepared.report.system_prompt
    if prompt is not None and len(prompt) > MAX_PROMPT_CHARS:
        raise InvalidHyperparameter(
            "system_prompt",
            f"the examples' system message has {len(prompt)} characters; the maximum is {MAX_PROMPT_CHARS}",
        )
    if prepared.training.examples and len(lines_with_other_prompt(requested, prepared)) == len(
        prepared.training.examples
    ):
        raise InvalidHyperparameter(
            "system_prompt",
            "it differs from the system message of every example, so the version would be served with a prompt that it "
            "was not trained with. Omit the option, or remove the examples' system messages",
        )
    return prompt


def lines_with_other_prompt(requested: str | None, prepared: Prepared) -> list[int]:
    """The lines of the training examples whose system message differs from the requested prompt."""
    if requested is None:
        return []
    firsts = ((example.line, example.messages[0]) for example in prepared.training.examples)
    return [line for line, first in firsts if first.role == "system" and first.content != requested]
