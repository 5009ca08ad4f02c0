"""What a client asks for when it makes an evaluation."""

from __future__ import annotations

from typing import Annotated, Any, Final, Literal, Self

from pydantic import Field, StringConstraints, model_validator

from adapters.protocol.runs import EvaluationContext
from trainer.errors import Invalid
from trainer.evaluate.arms import MAX_LABEL_CHARS, Frozen
from trainer.validation import validated

MAX_ARMS: Final = 9
"""One less than a comparison takes: what serves now may be put beside them."""
MAX_SUITES: Final = 8
MAX_ANSWERS: Final = 1_000
GENERAL: Final = "general"

Label = Annotated[str, StringConstraints(min_length=1, max_length=MAX_LABEL_CHARS)]
Name = Annotated[str, StringConstraints(min_length=1, max_length=200)]
Text = Annotated[str, StringConstraints(min_length=1, max_length=100_000)]


class PromptBody(Frozen):
    """How an arm's questions become messages; ``answers`` are told to it as all that there are."""

    system: Text | None = None
    answers: Annotated[
        tuple[Annotated[str, StringConstraints(min_length=1, max_length=1_000)], ...], Field(max_length=MAX_ANSWERS)
    ] = ()


class ArmBody(Frozen):
    """One side of a comparison, as a client names it."""

    label: Label
    model: Name
    endpoint: Annotated[str, StringConstraints(min_length=1, max_length=64)] | None = None
    prompt: PromptBody = PromptBody()
    grounding: dict[str, Any] | bool | None = None

    @model_validator(mode="after")
    def _grounded_here(self) -> Self:
        if self.endpoint is not None and self.grounding is not None:
            raise ValueError("`grounding` belongs to the gateway: an outside endpoint has none")
        return self


class EvaluationBody(Frozen):
    """Body of ``POST /v1/evaluations``: either ``model``, the candidate, or ``arms``."""

    model: Name | None = None
    arms: Annotated[tuple[ArmBody, ...], Field(min_length=1, max_length=MAX_ARMS)] | None = None
    candidate: Label | None = None
    bases: Annotated[tuple[Label, ...], Field(max_length=MAX_ARMS)] = ()
    held_out: Annotated[str, StringConstraints(min_length=1, max_length=64)]
    metric: Annotated[str, StringConstraints(min_length=1, max_length=40)] | dict[str, Any] = "auto"
    suites: Annotated[
        tuple[Annotated[str, StringConstraints(min_length=1, max_length=40)], ...], Field(max_length=MAX_SUITES)
    ] = (GENERAL,)
    promote: Literal["auto", "never"] = "never"
    judge: Annotated[str, StringConstraints(min_length=1, max_length=64)] | None = None
    max_tokens: Annotated[int, Field(strict=True, ge=1, le=8_192)] | None = None
    repeats: Annotated[int, Field(strict=True, ge=1, le=5)] | None = None
    metadata: (
        Annotated[
            dict[
                Annotated[str, StringConstraints(min_length=1, max_length=64)],
                Annotated[str, StringConstraints(max_length=512)],
            ],
            Field(max_length=16),
        ]
        | None
    ) = None
    kind: Literal["evaluation", "revalidation"] = "evaluation"
    """The gateway's word: no client's body has it."""


def adds_bases(body: EvaluationBody, context: EvaluationContext) -> bool:
    """Whether the base at its best is compared with, whatever arms a client names.

    It is wherever the verdict will stand on a version: a pass means the same on each. What is judged again has the
    arms that it had.
    """
    return body.arms is None or (context.candidate is not None and context.records and body.kind != "revalidation")


def read_request(content: dict[str, Any]) -> EvaluationBody:
    """Understand a client's body. Raises Invalid, UnknownParameter, with the dotted name of the field."""
    body = validated(EvaluationBody, content)
    if (body.model is None) == (body.arms is None):
        found = "neither" if body.model is None else "both"
        raise Invalid(f"send either `model` or `arms`, found {found}", param="model" if body.model is None else "arms")
    if body.arms is None:
        for name in ("candidate", "bases"):
            if name in body.model_fields_set:
                raise Invalid(f"`{name}` goes with `arms`; with `model` that is the candidate", param=name)
        return body
    _check_labels(body, [arm.label for arm in body.arms])
    return body


def _check_labels(body: EvaluationBody, labels: list[str]) -> None:
    listed = ", ".join(repr(label) for label in labels)
    for index, label in enumerate(labels):
        if label in labels[:index]:
            raise Invalid(f"`arms.{index}.label` is {label!r}, which another arm has too", param=f"arms.{index}.label")
    named = {f"bases.{at}": label for at, label in enumerate(body.bases)}
    if body.candidate is not None:
        named["candidate"] = body.candidate
    for param, wanted in named.items():
        if wanted not in labels:
            raise Invalid(f"`{param}` is {wanted!r}, which no arm is labelled; there are {listed}", param=param)
    if body.candidate is None:
        for name, said in (("bases", bool(body.bases)), ("promote", body.promote == "auto")):
            if said:
                raise Invalid(f"`{name}` goes with `candidate`: without one there is no verdict", param=name)
    elif not body.bases or body.candidate in body.bases:
        raise Invalid("`bases` must name at least one arm that is not the candidate's", param="bases")
