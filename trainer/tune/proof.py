"""Measures an adapter's effect on the probes with PEFT, for the gateway to compare with its engine's.

A module of its own: workers of earlier releases import it late, from these files.
"""

from __future__ import annotations

from importlib.metadata import version
from typing import Any

import torch

from adapters.proof import PROBES, ProbeProof, Proof


def measure(model: Any, tokenizer: Any, *, same_base: Proof | None = None) -> Proof:
    """The log-probabilities of the probes under the base and under the adapter.

    `model` is a PEFT model in the serving dtype, whose base may be streamed (`streaming.stream_base`). Probes are
    tokenized as the engine tokenizes a plain prompt, with the special tokens that the tokenizer puts before a text.

    Args:
        same_base: An earlier result for the same base in the same process, whose half is not measured again.
    """
    was_training = model.training
    model.eval()
    probes = []
    for number, text in enumerate(PROBES):
        tokens: list[int] = tokenizer(text)["input_ids"]
        if same_base is not None:
            base = same_base.probes[number].base
        else:
            with model.disable_adapter():
                base = _logprobs(model, tokens)
        probes.append(ProbeProof(token_ids=tuple(tokens), base=base, adapter=_logprobs(model, tokens)))
    model.train(was_training)
    dtype = str(next(model.parameters()).dtype).removeprefix("torch.")
    stack = f"peft {version('peft')}, transformers {version('transformers')}, {dtype}"
    return Proof(stack=stack, probes=tuple(probes))


@torch.no_grad()
def _logprobs(model: Any, tokens: list[int]) -> tuple[float, ...]:
    """log p(token | previous tokens) in nats for all tokens but the first; the softmax is computed in float32."""
    # the parameters of a streamed base are on no device between passes; those of the adapter always are
    device = next(parameter.device for parameter in model.parameters() if not parameter.is_meta)
    ids = torch.tensor([tokens], device=device)
    logits = model(input_ids=ids, use_cache=False).logits[0, :-1].float()
    chosen = logits.log_softmax(dim=-1).gather(1, ids[0, 1:, None])
    return tuple(chosen[:, 0].tolist())
