"""What the engine's own metrics say of its work."""

from __future__ import annotations

TOKENS = ("vllm:generation_tokens_total", "vllm:prompt_tokens_total")


def tokens_made(metrics: str) -> float:
    """How many tokens the engine has read and written since its start, from its Prometheus text."""
    total = 0.0
    for line in metrics.splitlines():
        if line.startswith(TOKENS):
            name, _, value = line.rpartition(" ")
            if name.split("{", 1)[0] in TOKENS:
                total += float(value)
    return total
