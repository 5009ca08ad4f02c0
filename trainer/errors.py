"""One exception tree; `code` stands on the class and is what a job or a script reports.

Exception
└── TrainerError
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
    ├── WishRefused                a hyperparameter that cannot be had; `param` names it
    ├── TrainingError
    │   ├── NothingTrainable       no module of the base matches the recipe
    │   ├── LossNotFinite
    │   ├── OutOfMemory
    │   └── CheckpointUnusable     it belongs to another training
    ├── FolderBusy                 another worker is at the job
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


class TrainerError(Exception):
    """Anything that the trainer refuses or fails at.

    Args:
        message: One or two sentences for the person who can do something about it.
    """

    code: ClassVar[str] = "trainer_error"

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message


class BaseModelError(TrainerError):
    code = "base_model_error"


class BaseModelUnknown(BaseModelError):
    code = "base_model_unknown"


class BaseModelUnavailable(BaseModelError):
    code = "base_model_unavailable"


class BaseModelIncomplete(BaseModelError):
    code = "base_model_incomplete"


class DataError(TrainerError):
    code = "data_error"


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
        super().__init__("; ".join(f"{finding.message} ({finding.code})" for finding in reasons))


class DataTooSmall(DataError):
    code = "training_file_too_small"


class TemplateUnsupported(DataError):
    code = "chat_template_unsupported"


class WishRefused(TrainerError):
    """A hyperparameter that the engine, the base or the parent does not allow."""

    code = "invalid_hyperparameter"

    def __init__(self, param: str, message: str) -> None:
        super().__init__(f"`{param}`: {message}")
        self.param = param


class TrainingError(TrainerError):
    code = "training_failed"


class NothingTrainable(TrainingError):
    code = "nothing_trainable"


class LossNotFinite(TrainingError):
    code = "loss_not_finite"


class OutOfMemory(TrainingError):
    code = "out_of_memory"


class CheckpointUnusable(TrainingError):
    code = "checkpoint_unusable"


class FolderBusy(TrainerError):
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
