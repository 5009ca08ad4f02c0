"""Progress and result of a training. Imports no torch, so that callers need none."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


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

    def metrics(self) -> dict[str, Any]:
        """The data of the step's event, under the API's names (`trainer.runs.protocol.WorkerEvent`)."""
        metrics: dict[str, Any] = {
            "step": self.step,
            "total_steps": self.steps,
            "epoch": round(self.epoch, 4),
            "train_loss": self.loss,
            "train_mean_token_accuracy": self.accuracy,
            "learning_rate": self.learning_rate,
            "tokens_per_s": round(self.tokens_per_s, 1),
            "seconds_left": round(self.seconds_left, 1),
            "memory_bytes": self.memory_bytes,
        }
        if self.evaluation is not None:
            metrics["full_valid_loss"] = self.evaluation.loss
            metrics["full_valid_mean_token_accuracy"] = self.evaluation.accuracy
        return metrics


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
