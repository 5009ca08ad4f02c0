"""What a training says while it runs and when it has ended. Imports no torch, so that callers need none."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Evaluation:
    """Loss (nats per trained token) and token accuracy on examples that are not trained on, over ``tokens`` of them."""

    loss: float
    accuracy: float
    tokens: int


@dataclass(frozen=True, slots=True)
class Progress:
    """Where a training stands after a step (from 1). `loss` is that batch's, in nats per trained token.

    tokens_per_s: Tokens of the data (padding not counted) over all steps so far. memory_bytes: What the process holds
    resident on a CPU, the most that was allocated on a GPU.
    """

    step: int
    steps: int
    epoch: float
    loss: float
    learning_rate: float
    tokens_per_s: float
    seconds_left: float
    memory_bytes: int
    accuracy: float
    """Share of the batch's trained tokens that were the likeliest."""
    evaluation: Evaluation | None = None
    """On the held-out examples, after an epoch's last step."""


@dataclass(frozen=True, slots=True)
class Training:
    """What a finished training was. `final_loss` is the mean over the steps of the last epoch."""

    steps: int
    tokens: int
    trained_tokens: int
    seconds: float
    final_loss: float
    losses: tuple[float, ...]
    evaluations: tuple[Evaluation, ...] = ()
    """One an epoch, where something is held out; after a resume, those since."""


def nothing() -> None:
    """What is done between two batches where nobody wants anything done."""
