"""What a training minimises: the cross-entropy of the answers, or DPO's loss on pairs of them.

DPO (Rafailov et al. 2023, "Direct Preference Optimization", equation 7) raises the preferred answer's likelihood over
the other one's, both relative to the model before the training:

    -log σ(β (log π(y_w|x) / π_ref(y_w|x)  -  log π(y_l|x) / π_ref(y_l|x)))

The reference π_ref is the model as the training finds it: the base (a fresh LoRA changes nothing), or the version that
is trained further. Its log-probabilities are computed once, before the first step, so that no second model is needed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from trainer.data.render import TokenSequence
from trainer.tune.loss import Collator, answer_logprobs, batch_loss
from trainer.tune.model import evaluating
from trainer.tune.recipe import Recipe

Rows = Sequence[TokenSequence]


class Objective(Protocol):
    """A loss that is a mean over what `count` counts, computed in micro-batches."""

    def count(self, rows: Rows) -> int:
        """What the loss of these examples is a mean over: their trained tokens, or the pairs."""
        ...

    def micro_batches(self, rows: Rows, *, max_tokens: int) -> list[list[TokenSequence]]:
        """Divide the examples of a step; a micro-batch has at most `max_tokens` tokens, or one example."""
        ...

    def loss(self, rows: Rows, *, count: int) -> tuple[Tensor, int]:
        """The part of a micro-batch in the loss of a step with this `count`, and how many of it are right."""
        ...


class AnswerLikelihood:
    """The mean cross-entropy of the trained tokens; right is a token that the model would choose."""

    def __init__(self, model: Any, recipe: Recipe, *, training: bool) -> None:
        self._model = model
        self._collator = Collator(model, recipe, training=training)

    def count(self, rows: Rows) -> int:
        """See Objective."""
        return sum(sum(row.trained) for row in rows)

    def micro_batches(self, rows: Rows, *, max_tokens: int) -> list[list[TokenSequence]]:
        """See Objective."""
        return self._collator.micro_batches(rows, max_tokens=max_tokens)

    def loss(self, rows: Rows, *, count: int) -> tuple[Tensor, int]:
        """See Objective."""
        return batch_loss(self._model, self._collator.collate(rows), step_tokens=count)


class PairPreference:
    """The mean of DPO's loss over pairs with a `reference`; right is a pair whose preferred answer gained more."""

    def __init__(self, model: Any, recipe: Recipe, *, training: bool) -> None:
        self._model = model
        self._beta = recipe.beta
        self._collator = Collator(model, recipe, training=training)

    def count(self, rows: Rows) -> int:
        """See Objective."""
        return len(rows)

    def micro_batches(self, rows: Rows, *, max_tokens: int) -> list[list[TokenSequence]]:
        """See Objective."""
        return self._collator.pair_micro_batches(rows, max_tokens=max_tokens)

    def loss(self, rows: Rows, *, count: int) -> tuple[Tensor, int]:
        """See Objective."""
        logprobs = self.logprobs(rows)
        reference = torch.tensor([row.reference for row in rows], device=logprobs.device)
        gains = logprobs - reference
        margins = self._beta * (gains[:, 0] - gains[:, 1])
        return -logsigmoid(margins).sum() / count, int((margins > 0).sum())

    def logprobs(self, rows: Rows) -> Tensor:
        """The log-probabilities of the preferred and of the other answer of each pair: [P, 2] in nats."""
        both = [row for pair in rows for row in (pair, pair.rejected) if row is not None]
        return answer_logprobs(self._model, both, self._collator.collate(both)).view(-1, 2)


def make_objective(model: Any, recipe: Recipe, *, training: bool) -> Objective:
    """The recipe's objective. `training` is false for an evaluation (`loss.Collator`)."""
    kind = PairPreference if recipe.objective == "dpo" else AnswerLikelihood
    return kind(model, recipe, training=training)


@torch.no_grad()
def reference_logprobs(
    model: Any, pairs: Rows, recipe: Recipe, *, before_batch: Callable[[], None]
) -> list[tuple[float, float]]:
    """The log-probabilities (nats) of both answers of each pair under `model` as it is, in order, without dropout.

    `before_batch` is called before each batch; an exception from it propagates.
    """
    objective = PairPreference(model, recipe, training=False)
    numbered = [replace(pair, line=number) for number, pair in enumerate(pairs)]
    values: dict[int, tuple[float, float]] = {}
    with evaluating(model):
        for part in objective.micro_batches(numbered, max_tokens=recipe.micro_batch_tokens):
            before_batch()
            for pair, (preferred, other) in zip(part, objective.logprobs(part).tolist(), strict=True):
                values[pair.line] = (preferred, other)
    return [values[number] for number in range(len(pairs))]
