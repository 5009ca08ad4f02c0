"""A step's loss over its micro-batches: logits only at predicting positions, and a shared prefix computed once.

The loss of a step is the mean over all its trained tokens, so that each weighs the same whatever the length of its
example, and however the step is divided (transformers' `num_items_in_batch` of October 2024 does the same). A
micro-batch gives its part: its sum, divided by the trained tokens of the whole step.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor

from trainer.data.render import TokenSequence
from trainer.tune.batches import (
    WIDTH_MULTIPLE,
    packed_micro_batches,
    padded,
    padded_micro_batches,
    shared_prefix,
)
from trainer.tune.recipe import Recipe

PACKED_MULTIPLE: Final = 32
"""A packed row's length is a multiple of this, for the same reason as WIDTH_MULTIPLE; larger, because packed rows have
more different lengths. A choice: not measured."""

CHUNK_ROWS: Final = 32
"""Rows of logits in float32 at a time: 6 MB for a vocabulary of 50,000."""


@dataclass(frozen=True, slots=True)
class Batch:
    """B rows, padded on the right to T tokens, whose first `prefix` tokens are equal; or one packed row.

    tokens: [B, T], the token ids. attention: [B, T], 1 where there is a token; for a packed row with a prefix
    [1, 1, T - prefix, T], true where a query (rows) sees a key (columns). predicting: [B, T], true at the position
    *before* each trained token. targets: [N], those trained tokens in the order of `predicting`.
    """

    tokens: Tensor
    attention: Tensor
    predicting: Tensor
    targets: Tensor
    prefix: int
    positions: Tensor | None = None
    """[1, T] of a packed row: each token's position in its own example, which keeps attention within examples."""


def pack(rows: Sequence[TokenSequence], device: torch.device, *, prefix: int = 0) -> Batch:
    """Concatenate `rows` into one row, their common first `prefix` tokens once: [1, prefix + the rests + padding].

    No example sees another. Without a prefix transformers builds that mask from positions which restart at 0; with one
    it is built here, because transformers' does not reach into the cached prefix. A token of padding sees itself alone.
    """
    rest = [row.tokens[prefix:] for row in rows]
    padding = -sum(map(len, rest)) % PACKED_MULTIPLE
    tokens = torch.tensor([[*rows[0].tokens[:prefix], *(token for part in rest for token in part), *([0] * padding)]])
    starts = [torch.arange(prefix), *(torch.arange(prefix, len(row.tokens)) for row in rows)]
    positions = torch.cat([*starts, torch.zeros(padding, dtype=torch.long)])
    # the last token of a row predicts nothing: the next token belongs to another example
    flags = [flag for row in rows for flag in (*row.trained[prefix + 1 :], False)]
    predicting = torch.tensor([[*([False] * prefix), *flags, *([False] * padding)]], dtype=torch.bool)
    attention = _suffix_mask([len(part) for part in rest], prefix, padding) if prefix else torch.ones_like(tokens)
    return Batch(
        tokens=tokens.to(device),
        attention=attention.to(device),
        predicting=predicting.to(device),
        targets=tokens.roll(-1, dims=1)[predicting].to(device),
        prefix=prefix,
        positions=positions.unsqueeze(0).to(device),
    )


def _suffix_mask(lengths: Sequence[int], prefix: int, padding: int) -> Tensor:
    """[1, 1, S, prefix + S] of bool: each query sees the prefix and its own example so far."""
    owner = torch.cat([torch.full((length,), index) for index, length in enumerate((*lengths, *([1] * padding)))])
    within = (owner.unsqueeze(1) == owner.unsqueeze(0)).tril()
    return torch.cat([torch.ones(len(owner), prefix, dtype=torch.bool), within], dim=1)[None, None]


def collate(rows: Sequence[TokenSequence], *, share_prefix: bool, device: torch.device) -> Batch:
    """Pad `rows` and find their shared prefix, which never includes a position that predicts a trained token."""
    width = padded(max(len(row.tokens) for row in rows))
    tokens = torch.zeros(len(rows), width, dtype=torch.long)
    attention = torch.zeros_like(tokens)
    predicting = torch.zeros(len(rows), width, dtype=torch.bool)
    for index, row in enumerate(rows):
        length = len(row.tokens)
        tokens[index, :length] = torch.tensor(row.tokens)
        attention[index, :length] = 1
        predicting[index, : length - 1] = torch.tensor(row.trained[1:], dtype=torch.bool)
    targets = tokens.roll(-1, dims=1)[predicting]
    return Batch(
        tokens=tokens.to(device),
        attention=attention.to(device),
        predicting=predicting.to(device),
        targets=targets.to(device),
        prefix=common_prefix(rows) if share_prefix else 0,
    )


def common_prefix(rows: Sequence[TokenSequence]) -> int:
    """The length of the prefix that `rows` share and that predicts no trained token, a multiple of WIDTH_MULTIPLE."""
    if len(rows) < 2:
        return 0
    common = shared_prefix([row.tokens for row in rows], min(row.first_trained for row in rows) - 1)
    return common // WIDTH_MULTIPLE * WIDTH_MULTIPLE


class Collator:
    """Divides the examples of a step into micro-batches for `model`.

    Where every layer has full attention, examples are packed behind their shared prefix and nothing is padded. Other
    models get padded rows of similar lengths. `training` is false for an evaluation, which has neither dropout nor
    recomputed activations.
    """

    def __init__(self, model: Any, recipe: Recipe, *, training: bool) -> None:
        full_attention = can_share_prefix(model.config)
        self._device = next(model.parameters()).device
        self._grouped = recipe.group_by_length
        self._packs = recipe.packing or (full_attention and not recipe.group_by_length)
        # a shared prefix would share its dropout mask between rows, and gradient checkpointing keeps no cache
        exact = not training or (recipe.dropout == 0 and not recipe.gradient_checkpointing)
        self._shares = full_attention and exact and not (training and recipe.packing)

    def micro_batches(self, rows: Sequence[TokenSequence], *, max_tokens: int) -> list[list[TokenSequence]]:
        """Divide `rows`; a micro-batch has at most `max_tokens` tokens, or one example."""
        lengths = [len(row.tokens) for row in rows]
        if self._packs:
            prefix = common_prefix(rows) if self._shares else 0
            parts = packed_micro_batches(lengths, max_tokens=max_tokens, prefix=prefix)
        elif self._grouped:
            parts = padded_micro_batches(lengths, max_tokens=max_tokens, max_padding=None)
        else:
            parts = padded_micro_batches(lengths, max_tokens=max_tokens)
        return [[rows[index] for index in part] for part in parts]

    def pair_micro_batches(self, pairs: Sequence[TokenSequence], *, max_tokens: int) -> list[list[TokenSequence]]:
        """Divide pairs; a micro-batch has at most `max_tokens` tokens of both answers, or one pair."""
        if self._packs:
            parts = packed_micro_batches([pair.size for pair in pairs], max_tokens=max_tokens)
        else:
            # two rows a pair, as long as the longer one
            widths = [pair.longest for pair in pairs]
            parts = padded_micro_batches(widths, max_tokens=max(1, max_tokens // 2), max_padding=None)
        return [[pairs[index] for index in part] for part in parts]

    def collate(self, rows: Sequence[TokenSequence]) -> Batch:
        """The tensors of one micro-batch."""
        if self._packs:
            return pack(rows, self._device, prefix=common_prefix(rows) if self._shares else 0)
        return collate(rows, share_prefix=self._shares, device=self._device)


def can_share_prefix(config: Any) -> bool:
    """Whether the model keeps plain keys and values for every token: no sliding window, no recurrent layers."""
    kinds = getattr(config, "layer_types", None)
    if kinds is not None:
        return set(kinds) == {"full_attention"}
    return config.model_type in {"granite", "llama", "mistral", "qwen2", "qwen3", "smollm3"} and not getattr(
        config, "sliding_window", None
    )


def batch_loss(model: Any, batch: Batch, *, step_tokens: int | None = None) -> tuple[Tensor, int]:
    """The batch's part of its step's loss (a float32 scalar), and the number of tokens predicted correctly.

    It is the sum of the cross-entropies in nats over the batch's trained tokens, divided by `step_tokens`, the trained
    tokens of the whole step; by default the batch is the whole step, and the result its mean.
    """
    logits = _answer_logits(model, batch)
    loss: Tensor
    right: Tensor
    count = len(batch.targets) if step_tokens is None else step_tokens
    loss, right = _CrossEntropy.apply(logits, batch.targets, count)  # type: ignore[no-untyped-call]
    return loss, int(right)


def answer_logprobs(model: Any, rows: Sequence[TokenSequence], batch: Batch) -> Tensor:
    """The log-probability of each row's trained tokens together: [R] in nats, float32. `batch` is collated `rows`."""
    counts = torch.tensor([sum(row.trained) for row in rows], device=batch.targets.device)
    owners = torch.repeat_interleave(torch.arange(len(rows), device=counts.device), counts)
    sums: Tensor = _RowLogprobs.apply(_answer_logits(model, batch), batch.targets, owners, len(rows))  # type: ignore[no-untyped-call]
    return sums


def _answer_logits(model: Any, batch: Batch) -> Tensor:
    """The logits that predict the batch's trained tokens: [N, V].

    With a shared prefix the model runs twice: over one copy of the prefix, then over the rest of every row with the
    prefix's keys and values. Under causal attention this is the same function, so the gradients are the same, too.
    """
    options: dict[str, Any] = {"use_cache": bool(batch.prefix)}
    if batch.prefix:
        cache = model(input_ids=batch.tokens[:1, : batch.prefix], use_cache=True, logits_to_keep=1).past_key_values
        if batch.tokens.shape[0] > 1:
            cache.batch_repeat_interleave(batch.tokens.shape[0])
        options["past_key_values"] = cache
    if batch.positions is not None:
        options["position_ids"] = batch.positions[:, batch.prefix :]
    if batch.attention.dim() == 4:
        options["attention_mask"] = _additive(batch.attention, model.get_input_embeddings().weight.dtype)
    elif batch.positions is None:
        options["attention_mask"] = batch.attention
    with _logits_at(model, batch.predicting[:, batch.prefix :]):
        logits: Tensor = model(input_ids=batch.tokens[:, batch.prefix :], **options).logits[0]
    return logits


def _additive(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """A mask to add to attention scores: 0 where `mask` is true."""
    return torch.zeros(mask.shape, dtype=dtype, device=mask.device).masked_fill_(~mask, torch.finfo(dtype).min)


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


class _CrossEntropy(torch.autograd.Function):
    """Sum of cross-entropies over a count, which overwrites the logits with their gradient, a few rows at a time.

    The standard one keeps a float32 copy of all logits and writes another in the backward pass: 13% of a step here.
    The gradient of the sum over the count is (softmax(z) - onehot) / count. Overwriting is safe because nothing else
    reads the logits; second derivatives become impossible, but nobody needs them.
    """

    @staticmethod
    def forward(ctx: Any, logits: Tensor, targets: Tensor, count: int) -> tuple[Tensor, Tensor]:
        """logits: [N, V] in any float type; targets: [N]. Returns loss and number of correct predictions (scalars)."""
        right = torch.zeros((), dtype=torch.long, device=logits.device)
        total = torch.zeros((), dtype=torch.float32, device=logits.device)
        gradient = logits.detach()
        for start in range(0, logits.shape[0], CHUNK_ROWS):
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
    def backward(ctx: Any, *outputs: Tensor) -> tuple[Tensor, None, None]:
        """The gradient for the logits; none for the targets and the count."""
        (gradient,) = ctx.saved_tensors
        return gradient.mul_(outputs[0]), None, None


class _RowLogprobs(torch.autograd.Function):
    """Sums of log-probabilities by row, which overwrites the logits with their gradient as _CrossEntropy does.

    The gradient of log softmax(z)[target] is onehot - softmax(z).
    """

    @staticmethod
    def forward(ctx: Any, logits: Tensor, targets: Tensor, owners: Tensor, rows: int) -> Tensor:
        """logits: [N, V] in any float type; targets: [N]; owners: [N], the row of each. Returns [rows], float32."""
        sums = torch.zeros(rows, dtype=torch.float32, device=logits.device)
        normalizers = torch.empty(len(targets), dtype=torch.float32, device=logits.device)
        for start in range(0, len(targets), CHUNK_ROWS):
            part = slice(start, start + CHUNK_ROWS)
            scores = logits[part].float()
            normalizers[part] = scores.logsumexp(dim=1)
            sums.index_add_(0, owners[part], scores.gather(1, targets[part].unsqueeze(1))[:, 0] - normalizers[part])
        ctx.save_for_backward(logits.detach(), targets, owners, normalizers)
        return sums

    @staticmethod
    def backward(ctx: Any, *outputs: Tensor) -> tuple[Tensor, None, None, None]:
        """The gradient for the logits; none for the others."""
        gradient, targets, owners, normalizers = ctx.saved_tensors
        weights = outputs[0][owners].unsqueeze(1)
        for start in range(0, len(targets), CHUNK_ROWS):
            part = slice(start, start + CHUNK_ROWS)
            probabilities = (gradient[part].float() - normalizers[part].unsqueeze(1)).exp_()
            probabilities.scatter_add_(1, targets[part].unsqueeze(1), torch.full_like(weights[part], -1.0))
            gradient[part] = probabilities.mul_(-weights[part])
        return gradient, None, None, None
