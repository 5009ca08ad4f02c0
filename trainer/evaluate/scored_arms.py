"""What a ladder keeps of a comparison: every arm's scores, question by question. Plain data, without statistics."""

from __future__ import annotations

from trainer.runs.protocol import Frozen


class ScoredArm(Frozen):
    """One arm of a comparison.

    Attributes:
        label, model: Of the arm.
        scores: Of the first run, one per question.
        control: The mean score of the same answers, each at another question: what the form alone earns.
        answers: As they were scored.
        noise, degrees: The variance between runs, and its degrees of freedom (`RunNoise`).
        prompt_tokens, completion_tokens: Means per request.
        seconds: Mean seconds from a request to its complete answer, in the evaluation's own load.
        slot_share: This arm's part of the time that all requests of the comparison took, 0 to 1.
        cut: Number of answers that reached the length limit.
    """

    label: str
    model: str
    scores: tuple[float, ...]
    control: float
    answers: tuple[str, ...]
    noise: float = 0.0
    degrees: float = 0.0
    prompt_tokens: float
    completion_tokens: float
    seconds: float
    slot_share: float
    requests: int
    cut: int = 0


class ArmScores(Frozen):
    """The arms of one comparison.

    Attributes:
        questions: A key per question (`revalidation.question_key`); ``asked`` and ``references`` are their texts.
        units: See `Comparison.units`.
        wall_seconds: How long the asking took: the time of all requests, divided by how many were under way at a time.
    """

    metric: str
    binary: bool
    questions: tuple[str, ...]
    asked: tuple[str, ...]
    references: tuple[str, ...]
    units: tuple[int, ...] | None = None
    arms: tuple[ScoredArm, ...]
    wall_seconds: float = 0.0

    def arm(self, label: str) -> ScoredArm:
        """The arm with this label. Raises KeyError."""
        for arm in self.arms:
            if arm.label == label:
                return arm
        raise KeyError(label)
