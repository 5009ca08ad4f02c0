"""Estimates how many tokens a request will take, before the engine has counted them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

BYTES_PER_TOKEN = 4
"""For English in current tokenizers. Other languages take more tokens; the engine's count corrects that later."""
DEFAULT_ANSWER_TOKENS = 256
"""Tokens of an answer whose request sets no limit."""


def estimate(body: Mapping[str, Any], size: int, context: int | None, *, answers: bool = True) -> int:
    """The estimated tokens of prompt and answer together, at least 1.

    Args:
        body: The checked request.
        size: Bytes of its JSON.
        context: The engine's context length in tokens, which bounds a prompt with one answer.
        answers: Whether the route generates an answer.
    """
    prompts = body.get("prompt")
    prompt_count = len(prompts) if isinstance(prompts, list) and prompts and isinstance(prompts[0], (str, list)) else 1
    if isinstance(prompts, list) and prompt_count == 1 and isinstance(prompts[0], int):
        size = len(prompts) * BYTES_PER_TOKEN
    if isinstance(body.get("tokens"), list):
        return max(1, len(body["tokens"]))
    if not answers:
        return max(1, size // BYTES_PER_TOKEN)
    candidates: int = body.get("n", 1)
    per_prompt = size // BYTES_PER_TOKEN // prompt_count + answer_tokens(body) * candidates
    if context is not None:
        per_prompt = min(per_prompt, context * candidates)
    return max(1, prompt_count * per_prompt)


def answer_tokens(body: Mapping[str, Any]) -> int:
    """The request's limit on one answer, else DEFAULT_ANSWER_TOKENS."""
    for name in ("max_completion_tokens", "max_tokens", "max_output_tokens"):
        if name in body:
            max_tokens: int = body[name]
            return max_tokens
    return DEFAULT_ANSWER_TOKENS
