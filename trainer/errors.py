"""One exception tree; `code` stands on the class and is what a job or a script reports.

Exception
├── SettingsError                  a start-up mistake; never reaches a client
└── TrainerError
    ├── RequestError               what a client of the API sees; `status` and `type` stand on the class
    │   ├── Invalid            400 a field's value is not allowed
    │   ├── UnknownParameter   400 a field that nobody knows
    │   ├── Unsupported        400 a field that could not be served, or is not done here
    │   ├── MemoryTooSmall     400 it cannot fit beside the engine
    │   ├── WrongState         400 a job that is over cannot be paused
    │   ├── UnknownCaller      401 the request does not come from the gateway
    │   ├── Missing            404
    │   ├── NotAllowed         405
    │   ├── KeyReused          409 an Idempotency-Key with another body
    │   ├── NotFinished        409 an evaluation that has no report yet
    │   ├── ReviewFinal        409 every pair of the evaluation has been looked at
    │   ├── BodyTooLarge       413
    │   ├── TooMany            429
    │   ├── Broken             500
    │   ├── CheckTimedOut      504
    │   └── NoSpace            507
    ├── BaseModelError
    │   ├── BaseModelUnknown       neither a directory nor a hub id nor the default
    │   ├── BaseModelUnavailable   the package or the hub could not give it
    │   └── BaseModelIncomplete    a directory that lacks what serving or training needs
    ├── DataError
    │   ├── DataInvalid            lines that cannot be trained on, each with its number and reason
    │   │   └── ExampleTooLong     one that `max_length` would cut
    │   ├── DataRefused            the quality report forbids training
    │   ├── DataTooSmall
    │   └── TemplateUnsupported    the base's chat template cannot be trained on exactly
    ├── InvalidHyperparameter                a hyperparameter that cannot be had; `param` names it
    ├── TrainingError
    │   ├── NothingTrainable       no module of the base matches the recipe
    │   ├── ParentUnsupported      the version to train on from differs in what a recipe has one of
    │   ├── LossNotFinite
    │   ├── OutOfMemory
    │   └── CheckpointUnusable     it belongs to another training
    ├── EvaluationError            no verdict can be had
    │   ├── EvaluationInvalid      arms, examples or a metric that cannot be compared
    │   ├── HeldOutTaught          the candidate was trained on what it should be judged by
    │   ├── EndpointUnknown        an outside endpoint that the settings do not name
    │   ├── AnswerRefused          an arm will not answer an example, now or ever; `status` and `answer_code` say why
    │   │   └── ArmUnservable      the version went away, or cannot be served by this engine
    │   ├── EngineMoved            the base was served in another way each time that it was asked
    │   ├── ArmMoved               an alias pointed to another version while it was asked
    │   ├── AnswerUnreadable       an answer that lacks what was asked for
    │   └── SuiteUnavailable       a suite whose data or libraries are not here
    │       └── SandboxUnavailable the machine gives none, or one that does not hold: nothing is run
    ├── RunDirectoryBusy                 another worker is at the job
    ├── GatewayUnreachable
    ├── GatewayRefused             the gateway said no; `status` and `code` are its
    └── ExportRefused              the adapter that came out could not be served
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Final

if TYPE_CHECKING:
    from trainer.data.report import Report

SHOWN_PROBLEMS: Final = 5


class SettingsError(Exception):
    """A setting is wrong; the message is for the person at the terminal."""


class TrainerError(Exception):
    """Anything that the trainer refuses or fails at.

    Args:
        message: One or two sentences for the person who can do something about it.
    """

    code: ClassVar[str] = "trainer_error"

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message


class RequestError(TrainerError):
    """An error as a client of the API sees it.

    Args:
        message: The field, what was found, what is allowed.
        param: The field at fault, dotted, or None.
        code: Overrides the class's.
        retry_after_s: When asking again makes sense.
    """

    status: ClassVar[int] = 400
    type: ClassVar[str] = "invalid_request_error"
    code = "invalid_value"

    def __init__(
        self, message: str, *, param: str | None = None, code: str | None = None, retry_after_s: int | None = None
    ) -> None:
        super().__init__(message)
        self.param = param
        self.shown_code = code or self.code
        self.retry_after_s = retry_after_s

    def payload(self) -> dict[str, dict[str, str | None]]:
        """The response's body, in OpenAI's shape."""
        return {
            "error": {"message": self.message, "type": self.type, "param": self.param, "code": self.shown_code},
        }


class Invalid(RequestError):
    pass


class UnknownParameter(RequestError):
    code = "unknown_parameter"


class Unsupported(RequestError):
    code = "unsupported_value"


class MemoryTooSmall(RequestError):
    code = "insufficient_memory"


class WrongState(RequestError):
    code = "invalid_state"


class UnknownCaller(RequestError):
    status, type, code = 401, "authentication_error", "invalid_trainer_secret"


class Missing(RequestError):
    status, code = 404, "not_found"


class NotAllowed(RequestError):
    status, code = 405, "method_not_allowed"


class KeyReused(RequestError):
    status, code = 409, "idempotency_key_reused"


class NotFinished(RequestError):
    status, code = 409, "not_finished"


class ReviewFinal(RequestError):
    status, code = 409, "review_final"


class BodyTooLarge(RequestError):
    status, code = 413, "request_too_large"


class TooMany(RequestError):
    status, type, code = 429, "rate_limit_error", "too_many_jobs"


class TooManyEvaluations(TooMany):
    code = "too_many_evaluations"


class Broken(RequestError):
    status, type, code = 500, "server_error", "internal_error"


class CheckTimedOut(RequestError):
    status, type, code = 504, "server_error", "data_check_timeout"


class NoSpace(RequestError):
    status, type, code = 507, "server_error", "disk_full"


class BaseModelError(TrainerError):
    code = "base_model_error"


class BaseModelUnknown(BaseModelError):
    code = "base_model_unknown"


class BaseModelUnavailable(BaseModelError):
    code = "base_model_unavailable"


class BaseModelIncomplete(BaseModelError):
    code = "base_model_incomplete"


class DataError(TrainerError):
    """Data that cannot be trained on, or judged by.

    Attributes:
        param: The field that names the file at fault.
    """

    code = "data_error"
    param = "training_file"

    def blame_validation_file(self, name: str) -> None:
        """The file at fault is the one that the client holds out, called ``name``."""
        self.param = "validation_file"
        self.message = f"{name}: {self.message}"


@dataclass(frozen=True, slots=True)
class Problem:
    """Why one line of a data file cannot be used; `line` counts from 1."""

    line: int
    reason: str

    def __str__(self) -> str:
        return f"line {self.line}: {self.reason}"


class DataInvalid(DataError):
    """Raised once for a whole file: `problems` holds every line at fault, in the order of the file."""

    code = "invalid_training_file"

    def __init__(self, problems: Sequence[Problem]) -> None:
        self.problems = tuple(problems)
        shown = "; ".join(str(problem) for problem in self.problems[:SHOWN_PROBLEMS])
        more = len(self.problems) - SHOWN_PROBLEMS
        super().__init__(shown + (f"; and {more} more" if more > 0 else ""))


class ExampleTooLong(DataInvalid):
    """One example is `tokens` long, above `max_length`."""

    def __init__(self, line: int, tokens: int, max_length: int) -> None:
        super().__init__([Problem(line, f"{tokens} tokens long, and max_length is {max_length}")])
        self.tokens = tokens


class DataRefused(DataError):
    """The data can be read and must not be trained on; `report` says why."""

    code = "training_data_refused"

    def __init__(self, report: Report) -> None:
        self.report = report
        reasons = [finding for finding in report.findings if finding.severity == "refused"]
        where = {"training": "", "held_out": "the validation file: "}
        super().__init__("; ".join(f"{where[finding.file]}{finding.message} ({finding.code})" for finding in reasons))
        if reasons and all(finding.file == "held_out" for finding in reasons):
            self.param = "validation_file"


class DataTooSmall(DataError):
    code = "training_file_too_small"


class TemplateUnsupported(DataError):
    code = "chat_template_unsupported"


class InvalidHyperparameter(TrainerError):
    """A hyperparameter that the engine, the base or the parent does not allow."""

    code = "invalid_hyperparameter"

    def __init__(self, param: str, message: str) -> None:
        super().__init__(f"`{param}`: {message}")
        self.param = param


class TrainingError(TrainerError):
    code = "training_failed"


class NothingTrainable(TrainingError):
    code = "nothing_trainable"


class ParentUnsupported(TrainingError):
    code = "parent_unsupported"


class LossNotFinite(TrainingError):
    code = "loss_not_finite"


class OutOfMemory(TrainingError):
    code = "out_of_memory"


class CheckpointUnusable(TrainingError):
    code = "checkpoint_unusable"


class EvaluationError(TrainerError):
    code = "evaluation_failed"


class EvaluationInvalid(EvaluationError):
    code = "invalid_evaluation"


class HeldOutTaught(EvaluationError):
    code = "held_out_in_training"


class EndpointUnknown(EvaluationError):
    code = "endpoint_unknown"


class AnswerRefused(EvaluationError):
    """A comparison over fewer examples than were held out is none, so that one refusal ends it."""

    code = "answer_refused"

    def __init__(self, status: int, answer_code: str, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.answer_code = answer_code


class ArmUnservable(AnswerRefused):
    code = "arm_unservable"


class EngineMoved(EvaluationError):
    code = "engine_moved"


class ArmMoved(EvaluationError):
    code = "arm_moved"


class AnswerUnreadable(EvaluationError):
    code = "answer_unreadable"


class SuiteUnavailable(EvaluationError):
    code = "suite_unavailable"


class SandboxUnavailable(SuiteUnavailable):
    code = "sandbox_unavailable"


class RunDirectoryBusy(TrainerError):
    code = "folder_busy"


class GatewayUnreachable(TrainerError):
    code = "gateway_unreachable"


class GatewayRefused(TrainerError):
    """The gateway's error; ``gateway_code`` is its code."""

    code = "gateway_refused"

    def __init__(self, status: int, gateway_code: str, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.gateway_code = gateway_code


class ExportRefused(TrainerError):
    code = "export_refused"
