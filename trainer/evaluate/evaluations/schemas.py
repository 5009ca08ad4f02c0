"""What a client asks for when it makes an evaluation."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Final, Literal, Self

from pydantic import ConfigDict, Field, model_validator

from adapters.protocol.requests import MAX_ARMS, MAX_SUITES, ArmFields, ArmPrompt, EvaluationFields, Label, OptionName
from adapters.protocol.runs import EvaluationContext
from trainer.errors import InvalidField
from trainer.validation import validated

GENERAL: Final = "general"


class ArmBody(ArmFields):
    """One side of a comparison, as a client names it."""

    model_config: ClassVar[ConfigDict] = ConfigDict(allow_inf_nan=False)

    prompt: ArmPrompt = ArmPrompt()

    @model_validator(mode="after")
    def _grounded_here(self) -> Self:
        if self.endpoint is not None and self.grounding is not None:
            raise ValueError("`grounding` belongs to the gateway: an outside endpoint has none")
        return self


class EvaluationBody(EvaluationFields):
    """Body of ``POST /v1/evaluations``: either ``model``, the candidate, or ``arms``."""

    model_config: ClassVar[ConfigDict] = ConfigDict(allow_inf_nan=False)

    arms: Annotated[tuple[ArmBody, ...], Field(min_length=1, max_length=MAX_ARMS)] | None = None
    bases: Annotated[tuple[Label, ...], Field(max_length=MAX_ARMS)] = ()
    metric: OptionName | dict[str, Any] = "auto"
    suites: Annotated[tuple[OptionName, ...], Field(max_length=MAX_SUITES)] = (GENERAL,)
    kind: Literal["evaluation", "revalidation"] = "evaluation"
    """The gateway's word: no client's body has it."""


def adds_bases(body: EvaluationBody, context: EvaluationContext) -> bool:
    """Whether the base at its best is compared with, whatever arms a client names.

    It is wherever the verdict will stand on a version: a pass means the same on each. What is judged again has the
    arms that it had.
    """
    return body.arms is None or (context.candidate is not None and context.records and body.kind != "revalidation")


def read_request(content: dict[str, Any]) -> EvaluationBody:
    """Understand a client's body. Raises InvalidField, UnknownParameter, with the dotted name of the field."""
    body = validated(EvaluationBody, content)
    if (body.model is None) == (body.arms is None):
        given = "neither" if body.model is None else "both"
        raise InvalidField(
            f"send either `model` or `arms`, found {given}", param="model" if body.model is None else "arms"
        )
    if body.arms is None:
        for name in ("candidate", "bases"):
            if name in body.model_fields_set:
                raise InvalidField(f"`{name}` goes with `arms`; with `model` that is the candidate", param=name)
        return body
    _check_labels(body, [arm.label for arm in body.arms])
    return body


def _check_labels(body: EvaluationBody, labels: list[str]) -> None:
    listed = ", ".join(repr(label) for label in labels)
    for index, label in enumerate(labels):
        if label in labels[:index]:
            raise InvalidField(
                f"`arms.{index}.label` is {label!r}, which another arm has too", param=f"arms.{index}.label"
            )
    named = {f"bases.{at}": label for at, label in enumerate(body.bases)}
    if body.candidate is not None:
        named["candidate"] = body.candidate
    for param, label in named.items():
        if label not in labels:
            raise InvalidField(f"`{param}` is {label!r}, which no arm is labelled; there are {listed}", param=param)
    if body.candidate is None:
        for name, is_set in (("bases", bool(body.bases)), ("promote", body.promote == "auto")):
            if is_set:
                raise InvalidField(f"`{name}` goes with `candidate`: without one there is no verdict", param=name)
    elif not body.bases or body.candidate in body.bases:
        raise InvalidField("`bases` must name at least one arm that is not the candidate's", param="bases")
