"""How many tokens a request will take, guessed before anybody has counted them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

BYTES_A_TOKEN = 4
"""English text in today's tokenizers; other languages take more tokens, which the engine's own count then settles."""
USUAL_ANSWER = 256
"""Tokens of an answer whose request names no bound."""


def estimate(body: Mapping[str, Any], size: int, context: int | None, *, answers: bool = True) -> int:
    """Tokens of prompt and answer together, at least 1.

    Args:
        body: The checked request.
        size: Bytes of its JSON.
        context: The engine's context in tokens: no prompt with one answer is longer.
        answers: The route generates an answer.
    """
    prompts = body.get("prompt")
    many = len(prompts) if isinstance(prompts, list) and prompts and isinstance(prompts[0], (str, list)) else 1
    if isinstance(prompts, list) and many == 1 and isinstance(prompts[0], int):
        size = len(prompts) * BYTES_A_TOKEN
    if isinstance(body.get("tokens"), list):
        return max(1, len(body["tokens"]))
    if not answers:
        return max(1, size // BYTES_A_TOKEN)
    candidates: int = body.get("n", 1)
    one = size // BYTES_A_TOKEN // many + answer_tokens(body) * candidates
    if context is not None:
        one = min(one, context * candidates)
    return max(1, many * one)


def answer_tokens(body: Mapping[str, Any]) -> int:
    """The bound on one answer that a request names, else a usual answer's length."""
    for name in ("max_completion_tokens", "max_tokens", "max_output_tokens"):
        if name in body:
            most: int = body[name]
            return most
    return USUAL_ANSWER
