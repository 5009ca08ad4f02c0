"""What a file is for, and who may have to do with it."""

from __future__ import annotations

from enum import StrEnum
from typing import Final

from service.access.caller import Caller, Scope
from service.errors import BadRequest, Forbidden


class Purpose(StrEnum):
    """The purposes of files, under OpenAI's names."""

    FINE_TUNE = "fine-tune"
    EVALS = "evals"
    RESULTS = "fine-tune-results"
    ASSISTANTS = "assistants"
    USER_DATA = "user_data"
    BATCH = "batch"
    BATCH_OUTPUT = "batch_output"


UPLOADED: Final = (Purpose.FINE_TUNE, Purpose.ASSISTANTS, Purpose.USER_DATA, Purpose.EVALS, Purpose.BATCH)
"""What people upload; `fine-tune-results` is written by jobs, `batch_output` by batches."""
DOCUMENTS: Final = frozenset({Purpose.ASSISTANTS, Purpose.USER_DATA})
BATCH_FILES: Final = frozenset({Purpose.BATCH, Purpose.BATCH_OUTPUT})
_BY_SCOPE: Final = (
    (Scope.TRAIN, frozenset(Purpose) - BATCH_FILES),
    (Scope.KNOWLEDGE, DOCUMENTS),
    (Scope.INFER, BATCH_FILES),
)


def visible(caller: Caller) -> frozenset[Purpose]:
    """The purposes whose files the caller may see: those of batches with the scope ``infer``, documents with
    ``knowledge``, and all but those of batches with ``train``.

    Raises:
        Forbidden: The key has none of these scopes.
    """
    purposes = frozenset[Purpose]().union(*(purposes for scope, purposes in _BY_SCOPE if caller.may(scope)))
    if not purposes:
        raise Forbidden("files need the scope `train`, `knowledge` or `infer`; the API key has none of them")
    return purposes


def demand(caller: Caller, purpose: Purpose) -> None:
    """Raise Forbidden, naming the missing scope, if the caller may not see files of this purpose."""
    if purpose not in visible(caller):
        scope = Scope.INFER if purpose in BATCH_FILES else Scope.TRAIN
        raise Forbidden(f"the API key is missing the scope `{scope}`, which files with the purpose `{purpose}` need")


def parse_purpose(text: str, allowed: tuple[Purpose, ...] = tuple(Purpose)) -> Purpose:
    """The purpose of that name. Raises BadRequest if it is not one of ``allowed``."""
    parsed = next((purpose for purpose in allowed if purpose == text), None)
    if parsed is None:
        raise BadRequest(
            f"`purpose` must be one of {', '.join(f'`{purpose}`' for purpose in allowed)}; got {text[:64]!r}",
            param="purpose",
        )
    return parsed


def parse_upload_purpose(caller: Caller, text: str) -> Purpose:
    """The purpose that the caller gives to a new file.

    Raises:
        BadRequest: There is no such purpose.
        Forbidden: The key's scopes do not cover it, or it is for jobs only.
    """
    if text == Purpose.RESULTS:
        demand(caller, Purpose.RESULTS)
        if not caller.background:
            raise Forbidden(
                f"files with the purpose `{Purpose.RESULTS}` can only be created by jobs",
                param="purpose",
                code="purpose_not_allowed",
            )
        return Purpose.RESULTS
    purpose = parse_purpose(text, UPLOADED)
    demand(caller, purpose)
    return purpose
