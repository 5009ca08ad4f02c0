"""The loss of a batch: logits only at predicting positions, and a shared prefix computed once."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor

from trainer.data.render import TokenSequence
from trainer.tune.batches import shared_prefix

WIDTH_MULTIPLE: Final = 8
"""Widths and prefixes are multiples of this: CPU kernels are rebuilt for every new shape, which costs more than
padding."""

CHUNK_ROWS: Final = 32
"""Rows of logits in float32 at a time: 6 MB for a vocabulary of 50,000."""


@dataclass(frozen=True, slots=True)
class Batch:
    """B rows, padded on the right to T tokens, whose first `prefix` tokens are equal.

    tokens, attention: [B, T], the token ids, and 1 where there is a token. predicting: [B, T], true at the
    position *before* each trained token. targets: [N], those trained tokens in the order of `predicting`.
    """

    tokens: Tensor
    attention: Tensor
    predicting: Tensor
    targets: Tensor
    prefix: int
    positions: Tensor | None = None
    """[1, T], restarting at 0 with each example of a packed row, which keeps attention within examples."""


def pack(rows: Sequence[TokenSequence], device: torch.device) -> Batch:
    """Concatenate `rows` into one row [1, sum of their lengths], with positions that restart at 0 for each.

    transformers builds a block-diagonal causal mask from such positions where no mask is given, so that no example
    sees another.
    """
    tokens = torch.tensor([[token for row in rows for token in row.tokens]])
    positions = torch.cat([torch.arange(len(row.tokens)) for row in rows]).unsqueeze(0)
    # the last token of a row predicts nothing: the next token belongs to another example
    flags = [flag for row in rows for flag in (*row.trained[1:], False)]
    predicting = torch.tensor([flags], dtype=torch.bool)
    return Batch(
        tokens=tokens.to(device),
        attention=torch.ones_like(tokens, device=device),
        predicting=predicting.to(device),
        targets=tokens.roll(-1, dims=1)[predicting].to(device),
        prefix=0,
        positions=positions.to(device),
    )


def collate(rows: Sequence[TokenSequence], *, share_prefix: bool, device: torch.device) -> Batch:
    """Pad `rows` and find their shared prefix, which never includes a position that predicts a trained token."""
    longest = max(len(row.tokens) for row in rows)
    width = math.ceil(longest / WIDTH_MULTIPLE) * WIDTH_MULTIPLE
    tokens = torch.zeros(len(rows), width, dtype=torch.long)
    attention = torch.zeros_like(tokens)
    predicting = torch.zeros(len(rows), width, dtype=torch.bool)
    for index, row in enumerate(rows):
        length = len(row.tokens)
        tokens[index, :length] = torch.tensor(row.tokens)
        attention[index, :length] = 1
        predicting[index, : length - 1] = torch.tensor(row.trained[1:], dtype=torch.bool)
    targets = tokens.roll(-1, dims=1)[predicting]
    prefix = 0
    if share_prefix and len(rows) > 1:
        common = shared_prefix([row.tokens for row in rows], min(row.first_trained for row in rows) - 1)
        prefix = common // WIDTH_MULTIPLE * WIDTH_MULTIPLE
    return Batch(
        tokens=tokens.to(device),
        attention=attention.to(device),
        predicting=predicting.to(device),
        targets=targets.to(device),
        prefix=prefix,
    )


def can_share_prefix(config: Any) -> bool:
    """Whether the model keeps plain keys and values for every token: no sliding window, no recurrent layers."""
    kinds = getattr(config, "layer_types", None)
    if kinds is not None:
        return set(kinds) == {"full_attention"}
    return config.model_type in {"llama", "mistral", "qwen2", "qwen3", "smollm3"} and not getattr(
        config, "sliding_window", None
    )


def batch_loss(model: Any, batch: Batch) -> tuple[Tensor, int]:
    """Mean cross-entropy in nats over the trained tokens (a float32 scalar), and the number predicted correctly.

    With a shared prefix the model runs twice: over one copy of the prefix, then over the rest of every row with the
    prefix's keys and values. Under causal attention this is the same function, so the gradients are the same, too.
    """
    cache = None
    if batch.prefix:
        cache = model(input_ids=batch.tokens[:1, : batch.prefix], use_cache=True, logits_to_keep=1).past_key_values
        cache.batch_repeat_interleave(batch.tokens.shape[0])
    with _logits_at(model, batch.predicting[:, batch.prefix :]):
        if batch.positions is not None:
            output = model(input_ids=batch.tokens, position_ids=batch.positions, use_cache=False)
        else:
            output = model(
                input_ids=batch.tokens[:, batch.prefix :],
                attention_mask=batch.attention,
                past_key_values=cache,
                use_cache=cache is not None,
            )
    loss: Tensor
    right: Tensor
    loss, right = _MeanCrossEntropy.apply(output.logits[0], batch.targets)  # type: ignore[no-untyped-call]
    return loss, int(right)


@contextmanager
def _logits_at(model: Any, positions: Tensor) -> Iterator[None]:
    """Let the output layer see only the hidden states at `positions` ([B, T] of bool): logits are [1, N, V].

    The output layer is a fifth of a small model's work. A hook keeps the model's own forward pass, including what it
    does to the logits afterwards (scaling, soft caps).
    """

    def select(module: object, arguments: tuple[Tensor, ...]) -> tuple[Tensor]:
        return (arguments[0][positions].unsqueeze(0),)

    handle = model.get_output_embeddings().register_forward_pre_hook(select)
    try:
        yield
    finally:
        handle.remove()


class _MeanCrossEntropy(torch.autograd.Function):
    """Cross-entropy that overwrites the logits with their gradient, a few rows at a time.

    The standard one keeps a float32 copy of all logits and writes another in the backward pass: 13% of a step here.
    The gradient of the mean over N rows is (softmax(z) - onehot) / N. Overwriting is safe because nothing else reads
    the logits; second derivatives become impossible, but nobody needs them.
    """

    @staticmethod
    def forward(ctx: Any, logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """logits: [N, V] in any float type; targets: [N]. Returns loss and number of correct predictions (scalars)."""
        count = logits.shape[0]
        right = torch.zeros((), dtype=torch.long, device=logits.device)
        total = torch.zeros((), dtype=torch.float32, device=logits.device)
        gradient = logits.detach()
        for start in range(0, count, CHUNK_ROWS):
            rows = gradient[start : start + CHUNK_ROWS]
            target = targets[start : start + CHUNK_ROWS].unsqueeze(1)
            scores = rows.float()
            normalizer = scores.logsumexp(dim=1, keepdim=True)
            target_scores = scores.gather(1, target)
            total += (normalizer - target_scores).sum()
            right += (target_scores[:, 0] >= scores.amax(dim=1)).sum()
            # For float32 logits `scores` shares their memory, which may be overwritten as well.
            probabilities = scores.sub_(normalizer).exp_()
            probabilities.scatter_add_(1, target, torch.full_like(normalizer, -1.0))
            rows.copy_(probabilities.div_(count))
        ctx.save_for_backward(gradient)
        ctx.mark_non_differentiable(right)
        return total / count, right

    @staticmethod
    def backward(ctx: Any, *outputs: Tensor) -> tuple[Tensor, None]:
        """The gradient for the logits; none for the targets."""
        (gradient,) = ctx.saved_tensors
        return gradient.mul_(outputs[0]), None
