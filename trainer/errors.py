"""All exceptions of the trainer; each class has the `code` that a job or a script reports.

Exception
├── SettingsError                    an invalid setting or argument; never reaches a client
└── TrainerError
    ├── RequestError                 an error that a client of the API sees, with its `status` and `type`
    │   ├── InvalidField             400 a field's value is not allowed
    │   ├── UnknownParameter         400 an unknown field
    │   ├── UnsupportedValue         400 a feature that the engine or the trainer does not support
    │   ├── MemoryTooSmall           400 the job does not fit into memory beside the engine
    │   ├── InvalidState             400 the job's state does not allow the action
    │   ├── Unauthenticated          401 the request is not from the gateway
    │   ├── NotFound                 404
    │   ├── MethodNotAllowed         405
    │   ├── IdempotencyKeyReused     409 an Idempotency-Key was reused with another body
    │   ├── NotFinished              409 the run has no report yet
    │   ├── …                        409 those of reviews: `trainer.reviews.errors`
    │   ├── TeacherRefused           422 a teacher refuses a prompt
    │   ├── TeacherBusyNow           429 a teacher has too many requests
    │   ├── TeacherFailed            502 a teacher gives no answer
    │   ├── BodyTooLarge             413
    │   ├── TooManyRequests          429 too many unfinished jobs, open event streams or waiting data checks
    │   │   ├── TooManyEvaluations   429 too many unfinished evaluations
    │   │   └── TooManyLadders       429 too many unfinished ladders
    │   ├── InternalError            500
    │   ├── DatabaseUnavailable      503 the database server cannot be reached
    │   ├── DataCheckTimeout         504
    │   └── DiskFull                 507
    ├── BaseModelError
    │   ├── BaseModelUnknown         not a directory, a hub id or the default
    │   ├── BaseModelUnavailable     the package is missing or the download failed
    │   └── BaseModelIncomplete      a directory without the files that serving or training needs
    ├── DataError
    │   ├── DataInvalid              invalid lines, each with its number and the reason
    │   │   └── ExampleTooLong       an example that `max_length` would truncate
    │   ├── DataRefused              the quality report refuses the data
    │   ├── DataTooSmall             too few examples
    │   └── TemplateUnsupported      the base's chat template does not allow exact training
    ├── InvalidHyperparameter        a hyperparameter that engine, base or parent does not allow; `param` names it
    ├── TrainingError
    │   ├── NothingTrainable         no module of the base matches the recipe's target modules
    │   ├── ParentUnsupported        the parent version's modules differ in rank or alpha
    │   ├── LossNotFinite
    │   ├── OutOfMemory
    │   └── CheckpointUnusable       the checkpoint belongs to another training run
    ├── EvaluationError              the evaluation cannot produce a verdict
    │   ├── EvaluationInvalid        arms, examples or a metric that do not allow a comparison
    │   ├── HeldOutInTraining        the candidate was trained on held-out examples
    │   ├── EndpointUnknown          an external endpoint that is not in the settings
    │   ├── AnswerRefused            an arm permanently refuses an example; see `status` and `answer_code`
    │   │   └── ArmUnservable        the version was deleted, or this engine cannot serve it
    │   ├── EngineChanged            the engine's fingerprint kept changing during the evaluation
    │   ├── ArmVersionChanged        an alias moved to another version during the evaluation
    │   ├── AnswerUnreadable         a response without the requested content
    │   └── SuiteUnavailable         a suite's data or libraries are missing
    │       └── SandboxUnavailable   no sandbox, or none that isolates: nothing is run
    ├── RunDirectoryBusy             another worker uses the run's directory
    ├── BaseGone                     a run's base is not served any more: `trainer.installation`
    ├── GatewayUnreachable
    ├── GatewayRefused               the gateway refused a request; see `status` and `gateway_code`
    ├── TrackerFailed                an experiment tracker did not take something
    └── ExportRefused                the trained adapter could not be served
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar

from adapters.dataset.lines import Problem as Problem
from adapters.dataset.lines import describe_problems

if TYPE_CHECKING:
    from trainer.data.report import Report


class SettingsError(Exception):
    """An invalid setting or argument; the message is for the operator."""


class TrainerError(Exception):
    """Base class of the trainer's errors.

    Args:
        message: What is wrong and what to do, in one or two sentences.
    """

    code: ClassVar[str] = "trainer_error"

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message


class RequestError(TrainerError):
    """An error that a client of the API sees.

    Args:
        message: The field, what was given and what is allowed.
        param: The field at fault, dotted, or None.
        code: Overrides the class's code.
        retry_after_s: When a retry makes sense, s.
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


class InvalidField(RequestError):
    pass


class UnknownParameter(RequestError):
    code = "unknown_parameter"


class UnsupportedValue(RequestError):
    code = "unsupported_value"


class MemoryTooSmall(RequestError):
    code = "insufficient_memory"


class InvalidState(RequestError):
    code = "invalid_state"


class Unauthenticated(RequestError):
    status, type, code = 401, "authentication_error", "invalid_trainer_secret"


class NotFound(RequestError):
    status, code = 404, "not_found"


class MethodNotAllowed(RequestError):
    status, code = 405, "method_not_allowed"


class IdempotencyKeyReused(RequestError):
    status, code = 409, "idempotency_key_reused"


class NotFinished(RequestError):
    status, code = 409, "not_finished"


class BodyTooLarge(RequestError):
    status, code = 413, "request_too_large"


class TooManyRequests(RequestError):
    status, type, code = 429, "rate_limit_error", "too_many_jobs"


class TooManyEvaluations(TooManyRequests):
    code = "too_many_evaluations"


class TooManyLadders(TooManyRequests):
    code = "too_many_ladders"


class TeacherBusyNow(RequestError):
    status, type, code = 429, "rate_limit_error", "teacher_busy"


class TeacherRefused(RequestError):
    status, code = 422, "teacher_refused"


class TeacherFailed(RequestError):
    status, type, code = 502, "server_error", "teacher_failed"


class InternalError(RequestError):
    status, type, code = 500, "server_error", "internal_error"


class DatabaseUnavailable(RequestError):
    status, type, code = 503, "server_error", "unavailable"


class DataCheckTimeout(RequestError):
    status, type, code = 504, "server_error", "data_check_timeout"


class DiskFull(RequestError):
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
    """Data that cannot be used for training or evaluation.

    Attributes:
        param: The request's field of the file at fault.
    """

    code = "data_error"
    param = "training_file"

    def blame_validation_file(self, name: str) -> None:
        """Attribute the error to the client's validation file, called ``name``."""
        self.param = "validation_file"
        self.message = f"{name}: {self.message}"


class DataInvalid(DataError):
    """Raised once per file; `problems` has every invalid line in file order, up to MAX_PROBLEMS."""

    code = "invalid_training_file"

    def __init__(self, problems: Sequence[Problem]) -> None:
        self.problems = tuple(problems)
        super().__init__(describe_problems(self.problems))


class ExampleTooLong(DataInvalid):
    """An example has more tokens than `max_length`."""

    def __init__(self, line: int, tokens: int, max_length: int) -> None:
        super().__init__([Problem(line, f"{tokens} tokens, but `max_length` is {max_length}")])
        self.tokens = tokens


class DataRefused(DataError):
    """The data are readable, but the quality `report` refuses them."""

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


class TemplateUnsupported(DataError):  # keep: earlier workers import modules late that use it
    code = "chat_template_unsupported"


class InvalidHyperparameter(TrainerError):
    """A hyperparameter that the engine, the base or the parent does not allow."""

    code = "invalid_hyperparameter"

    def __init__(self, param: str, message: str) -> None:
        super().__init__(f"`{param}`: {message}")
        self.param = param


class TrainingError(TrainerError):
    code = "training_failed"


class NothingTrainable(TrainingError):  # keep, as TemplateUnsupported
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


class HeldOutInTraining(EvaluationError):
    code = "held_out_in_training"


class EndpointUnknown(EvaluationError):
    code = "endpoint_unknown"


class AnswerRefused(EvaluationError):
    """One refusal ends the evaluation: a comparison must cover every held-out example."""

    code = "answer_refused"

    def __init__(self, status: int, answer_code: str, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.answer_code = answer_code
        self.retry_after_s: float | None = None
        """When the endpoint asks to come back, s; None if it does not say."""


class ArmUnservable(AnswerRefused):
    code = "arm_unservable"


class EngineChanged(EvaluationError):
    code = "engine_moved"


class ArmVersionChanged(EvaluationError):
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
    """An error response of the gateway; ``gateway_code`` is its code."""

    code = "gateway_refused"

    def __init__(self, status: int, gateway_code: str, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.gateway_code = gateway_code


class TrackerFailed(TrainerError):
    """An experiment tracker did not take something; never ends a job."""

    code = "tracker_failed"


class ExportRefused(TrainerError):
    code = "export_refused"
