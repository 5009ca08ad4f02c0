"""What becomes of each of OpenAI's jobs here, before anything is downloaded or created."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, Literal, get_type_hints

from adapters.features import FEATURES
from adapters.names import DEFAULT_ALIAS, suggest_name
from adapters.protocol.requests import MAX_METADATA, HyperparameterFields
from service.client.types.training import Hyperparameters
from service.client.wire import FINAL_STATUSES

if TYPE_CHECKING:
    from service.client.openai_account import OpenAIFile, OpenAIJob
    from service.client.types.adapters import Adapter
    from service.client.types.training import FineTuningJob

JOB: Final = "openai_job"
"""The key in a job's metadata that has the id of OpenAI's job; a second run finds by it what is here."""
MODEL: Final = "openai_model"
"""The key that has the name of OpenAI's fine-tuned model, for whoever must replace it in an application."""
RENAMED: Final = "openai_"
"""What stands before the name of a pair of metadata that would be an option of the job here."""
OPENAIS: Final = frozenset({"n_epochs", "batch_size", "learning_rate_multiplier"})
"""Hyperparameters that metadata cannot set."""
PEFTS: Final = frozenset({*FEATURES, "bias", "init_lora_weights", "peft_type", "task_type"})
"""Options of PEFT, which a gateway reads in metadata, too."""
OPTIONS: Final = (frozenset(get_type_hints(Hyperparameters)) - OPENAIS) | PEFTS
"""Keys that a job here reads in its metadata, instead of only keeping them."""
OWN: Final = frozenset({"adapter", JOB, MODEL, "hatrack_verdict"})
"""Keys whose pairs are made here."""
PROMOTE: Final = "promote"
"""The key that says whether a version that passes goes live by itself."""
MAX_SEED: Final = 2**32
JOB_ID_CHARS: Final = 12

Method = Literal["supervised", "dpo"]
METHODS: Final[Mapping[str, tuple[str, ...]]] = {
    "supervised": ("n_epochs", "batch_size", "learning_rate_multiplier"),
    "dpo": ("n_epochs", "batch_size", "learning_rate_multiplier", "beta"),
}


@dataclass(frozen=True, slots=True)
class PlannedJob:
    """One of OpenAI's jobs, and the job that it becomes.

    Attributes:
        adapter: The adapter that gets the version.
        training_file: None if OpenAI no longer has it.
        validation_file: None if there is none, or OpenAI no longer has it.
        hyperparameters: As they are requested here.
        metadata: All of the new job's but for `adapter`; with `promote`, where its version must not go live by itself.
        notes: What does not come along, and what is live under the adapter's name; a sentence each.
        obstacle: Why the job is not taken; None if it is.
        here: The job that an earlier run made of it.
    """

    source: OpenAIJob
    adapter: str
    method: Method = "supervised"
    training_file: OpenAIFile | None = None
    validation_file: OpenAIFile | None = None
    hyperparameters: Mapping[str, Any] = field(default_factory=dict)
    seed: int | None = None
    metadata: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    obstacle: str | None = None
    here: FineTuningJob | None = None

    @property
    def wanted(self) -> bool:
        """Whether a job is to be created."""
        return self.obstacle is None and self.here is None

    @property
    def files(self) -> tuple[OpenAIFile, ...]:
        """The files that the job needs."""
        return tuple(file for file in (self.training_file, self.validation_file) if file is not None)


def plan_job(
    job: OpenAIJob,
    files: Mapping[str, OpenAIFile | None],
    *,
    name: str | None = None,
    any_status: bool = False,
    automatic: bool = False,
    here: FineTuningJob | None = None,
    existing: Adapter | None = None,
    promote: bool = False,
) -> PlannedJob:
    """What becomes of a job.

    Args:
        files: Its files, by id; None for one that OpenAI no longer has.
        name: The adapter's name. None: the suffix of the fine-tuned model.
        any_status: Take it even if it did not succeed.
        automatic: Let the hyperparameters be chosen here.
        here: What an earlier run made of it.
        existing: The adapter of this name that the gateway had before the import; None if it had none.
        promote: Let a version that passes replace what is live there.
    """
    adapter = name or adapter_name(job)
    if here is not None:
        return PlannedJob(job, str(here["hatrack"]["adapter"]), here=here)
    described = job.get("method")
    kind = described["type"] if described else "supervised"
    training_file = files.get(job["training_file"])
    obstacle = _obstacle(job, kind, training_file, any_status=any_status)
    if obstacle is not None:
        return PlannedJob(job, adapter, training_file=training_file, obstacle=obstacle)
    notes: list[str] = []
    method: Method = "dpo" if kind == "dpo" else "supervised"
    options = {} if existing is None or promote or DEFAULT_ALIAS not in existing["aliases"] else {PROMOTE: "never"}
    return PlannedJob(
        source=job,
        adapter=adapter,
        method=method,
        training_file=training_file,
        validation_file=_validation_file(job, files, notes),
        hyperparameters={} if automatic else _hyperparameters(job, method, notes),
        seed=_seed(job, notes),
        metadata=options | _metadata(job, notes, MAX_METADATA - len({JOB, "adapter", *options})),
        notes=(*notes, *_left_behind(job), *(() if existing is None else (_on_existing(existing, promote=promote),))),
    )


def adapter_name(job: OpenAIJob) -> str:
    """The adapter's name: from the suffix that the job had, else from its id.

    >>> adapter_name({"id": "ftjob-Abc", "fine_tuned_model": "ft:gpt-4o-mini-2024-07-18:acme:Support Bot:9kLm"})
    'support-bot'
    """
    parts = (job.get("fine_tuned_model") or "").split(":")
    suffix = parts[3] if len(parts) >= 5 and parts[0] == "ft" else ""
    suffix = suffix or job.get("user_provided_suffix") or ""
    return suggest_name(suffix or f"openai-{job['id'].removeprefix('ftjob-')[:JOB_ID_CHARS]}")


def _obstacle(job: OpenAIJob, kind: str, training_file: OpenAIFile | None, *, any_status: bool) -> str | None:
    if kind not in METHODS:
        what = "reinforcement fine-tuning" if kind == "reinforcement" else f"the method {kind!r}"
        return f"{what} has no counterpart here"
    if job["status"] != "succeeded" and not any_status:
        ended = job["status"] in FINAL_STATUSES
        return f"it {job['status'] if ended else 'has not ended'} at OpenAI; `--job {job['id']}` takes it nevertheless"
    if training_file is None:
        return (
            f"OpenAI no longer has its training file {job['training_file']}; if you have it, "
            f"`hatrack train FILE --name {adapter_name(job)}`"
        )
    return None


def _validation_file(job: OpenAIJob, files: Mapping[str, OpenAIFile | None], notes: list[str]) -> OpenAIFile | None:
    file_id = job.get("validation_file")
    if not file_id:
        return None
    file = files.get(file_id)
    if file is None:
        notes.append(
            f"OpenAI no longer has the validation file {file_id}: some of the training file is held out instead"
        )
    return file


def _hyperparameters(job: OpenAIJob, method: Method, notes: list[str]) -> dict[str, Any]:
    """What OpenAI used, as far as a job here may ask for it; the rest is chosen from the data."""
    described = job.get("method")
    options: dict[str, Any] = (described.get(method) if described else None) or {}
    used: dict[str, Any] = {**(job.get("hyperparameters") or {}), **(options.get("hyperparameters") or {})}
    taken: dict[str, Any] = {}
    for name in METHODS[method]:
        value = used.get(name)
        if value is None or value == "auto":
            continue
        if _allowed(name, value):
            taken[name] = value
        else:
            notes.append(f"{name} {value!r} is not allowed here: it is chosen from the data")
    return taken


def _allowed(name: str, value: object) -> bool:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    try:
        HyperparameterFields.model_validate({name: value})
    except ValueError:
        return False
    return True


def _seed(job: OpenAIJob, notes: list[str]) -> int | None:
    seed = job.get("seed")
    if seed is None or (isinstance(seed, int) and 0 <= seed < MAX_SEED):
        return seed
    notes.append(f"seed {seed!r} is not allowed here: another one is chosen")
    return None


def _metadata(job: OpenAIJob, notes: list[str], room: int) -> dict[str, str]:
    """The client's own pairs beside `openai_job`, as many as there is ``room`` for."""
    carried: dict[str, str] = {}
    for name, value in (job.get("metadata") or {}).items():
        new = f"{RENAMED}{name}" if name in OPTIONS | OWN else name
        if new in OWN:  # `openai_job`, of a job named `job` there
            new = f"{RENAMED}{new}"
        if new != name:
            notes.append(f"metadata `{name}` is kept as `{new}`: to a job here the former has a meaning of its own")
        carried[new] = value
    dropped = list(carried)[room:]
    if dropped:
        notes.append(f"metadata {', '.join(f'`{name}`' for name in dropped)} has no room beside the pairs made here")
    pairs = {JOB: job["id"]} | {name: carried[name] for name in list(carried)[:room]}
    model = job.get("fine_tuned_model")
    return pairs | ({MODEL: model} if model and len(carried) < room else {})


def _left_behind(job: OpenAIJob) -> list[str]:
    """What a job here cannot have, as sentences."""
    notes = []
    if job["model"].startswith("ft:"):
        notes.append(
            f"it continued from {job['model']}, whose weights cannot be exported: it is trained from the base, on this "
            "job's data alone"
        )
    for integration in job.get("integrations") or []:
        project = (integration.get("wandb") or {}).get("project", "")
        notes.append(f"its integration {integration.get('type')} ({project}) is not taken: OpenAI has the key for it")
    return notes


def _on_existing(adapter: Adapter, *, promote: bool) -> str:
    """What a version that passes does to an adapter that is on the gateway."""
    name = f"`{adapter['name']}`"
    if DEFAULT_ALIAS not in adapter["aliases"]:
        return f"{name} exists, and nothing of it is live: a version that passes goes live"
    live = adapter["aliases"][DEFAULT_ALIAS]
    if live is None:
        numbers = " and ".join(f"@{number}" for number in sorted(map(int, adapter["splits"][DEFAULT_ALIAS])))
        return f"{name} exists, and `live` is a split over {numbers}: only `hatrack promote` ends it"
    if promote:
        return f"{name} exists: a version that passes replaces @{live}, which is live"
    return f"{name} exists: a version that passes becomes a candidate, and @{live} stays live; --promote replaces it"
