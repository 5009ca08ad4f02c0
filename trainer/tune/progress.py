"""Progress and result of a training. Imports no torch, so that callers need none."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Evaluation:
    """Loss and accuracy over ``tokens`` tokens of examples that are not trained on, after ``step`` steps.

    The loss is in nats per trained token, and the accuracy the share of these that the model predicts. Of DPO: the mean
    loss of ``tokens`` pairs, and the share of them whose preferred answer gained more.
    """

    loss: float
    accuracy: float
    tokens: int
    step: int = 0


@dataclass(frozen=True, slots=True)
class TrainingProgress:
    """The progress of a training after a step (from 1). `loss` is the batch's, in nats per trained token.

    tokens_per_s: Tokens without padding, over all steps so far. memory_bytes: On a CPU the resident memory of the
    process, on a GPU the peak of allocated memory.
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
    """Share of the batch's trained tokens to which the model gave the highest probability."""
    evaluation: Evaluation | None = None
    """On the validation part at its measured points; without one, on the held-out examples after each epoch."""
    ends_epoch: bool = False


@dataclass(frozen=True, slots=True)
class Training:
    """The result of a finished training. `final_loss` is the mean over the steps of the last epoch."""

    steps: int
    tokens: int
    trained_tokens: int
    seconds: float
    final_loss: float
    losses: tuple[float, ...]
    evaluations: tuple[Evaluation, ...] = ()
    """See TrainingProgress."""
    held_out: Evaluation | None = None
    """Of the held-out examples, after the last step of a training with a validation part."""
    best: Evaluation | None = None
    """The evaluation of the weights that the model has now, if a validation part chose them."""
    stopped_early: bool = False


def no_op() -> None:
    """Do nothing."""
