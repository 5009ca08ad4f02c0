"""`hatrack import openai`: shows what becomes of each of OpenAI's jobs, asks, and creates it here."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from service.cli import terminal
from service.cli.terminal import AsJson, examples
from service.cli.usage import moment
from service.client import ClientError, HatrackClient
from service.client.addresses import without_v1
from service.client.openai_account import NOT_FOUND, OPENAI_URL, OpenAIAccount, OpenAIFile, OpenAIJob
from service.client.output import writing
from service.client.settings import ClientSettings

if TYPE_CHECKING:
    from rich.progress import Progress

    from service.cli.from_openai.plan import PlannedJob
    from service.cli.from_openai.transfer import Bar, Outcome
    from service.client.types.training import FineTuningJob

JOB_PREFIX: Final = "ftjob-"
HATRACK_KEYS: Final = "hk_"
"""How a gateway's keys begin."""
ENDED_BADLY: Final = frozenset({"failed", "cancelled"})

app = typer.Typer(help="Import fine-tuning jobs from another service.", no_args_is_help=True)


@app.callback()
def root() -> None:
    """Import fine-tuning jobs from another service."""


@app.command(
    "openai",
    epilog=examples(
        "hatrack import openai --dry-run",
        "hatrack import openai --since 2026-01-01 --keep openai/",
        "hatrack import openai --job ftjob-1a2b=support --job ftjob-3c4d --yes",
    ),
)
def import_openai(
    since: Annotated[
        str | None, typer.Option(help="Only jobs created since: 90m, 12h, 7d or 4w ago, or a UTC date.")
    ] = None,
    jobs: Annotated[
        list[str] | None,
        typer.Option("--job", metavar="ID[=NAME]", help="Only this job, perhaps for this adapter; repeatable."),
    ] = None,
    auto: Annotated[bool, typer.Option("--auto", help="Choose all hyperparameters here, from the data.")] = False,
    retry: Annotated[
        bool, typer.Option("--retry", help="Create jobs again that failed or were cancelled here.")
    ] = False,
    keep: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR", file_okay=False, help="Keep OpenAI's jobs and files in DIR. [default: delete them]"
        ),
    ] = None,
    promote: Annotated[
        bool, typer.Option("--promote", help="Let versions that pass replace what is live now under their names.")
    ] = False,
    openai_url: Annotated[str, typer.Option(metavar="URL", help="OpenAI's address.")] = OPENAI_URL,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only show what would be done.")] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Skip the confirmation; needed in scripts.")] = False,
    as_json: AsJson = False,
) -> None:
    """Import fine-tuning jobs from OpenAI: files, method, hyperparameters, seed, name and metadata become jobs here.

    Shows what will be done and asks first. What is live stays live, unless --promote is given. Reads OPENAI_API_KEY,
    which goes to OpenAI and nowhere else; the gateway and its key are never taken from OPENAI_BASE_URL and
    OPENAI_API_KEY. Run again, it takes what is not here yet.
    """
    names = _names(jobs or [])
    start = None if since is None else moment(since, "--since")
    with terminal.reporting(as_json), _gateway() as client, _account(client, openai_url) as account:
        base = _base(client)
        plan = _plan(client, account, names, since=start, automatic=auto, retry=retry, promote=promote)
        if not as_json:
            _print_plan(plan, client.url, base)
        outcomes: Sequence[Outcome] = []
        if not dry_run and any(planned.wanted for planned in plan):
            _confirm(plan, yes=yes)
            outcomes = _transfer(client, account, plan, keep, base, as_json=as_json)
        elif as_json:
            terminal.print_json(_document(plan, outcomes))
    if any(outcome.result == "failed" for outcome in outcomes):
        raise typer.Exit(terminal.FAILED)


def _names(jobs: Sequence[str]) -> dict[str, str | None]:
    """The adapters' names by the ids of the jobs that were asked for; None for one that was not named."""
    names: dict[str, str | None] = {}
    for text in jobs:
        job_id, equals, name = text.partition("=")
        if not job_id.startswith(JOB_PREFIX):
            raise typer.BadParameter(f"--job needs the id of a job, such as {JOB_PREFIX}1a2b; got {job_id!r}.")
        names[job_id] = terminal.name_argument(name) if equals else None
    return names


def _gateway() -> HatrackClient:
    """A client of the gateway, whose address and key never come from the variables that are OpenAI's here."""
    return HatrackClient(settings=ClientSettings().without_openai())


def _account(client: HatrackClient, url: str) -> OpenAIAccount:
    """The account that OPENAI_API_KEY opens. Raises ClientError if the key or the address is the gateway's."""
    settings = ClientSettings()
    key = settings.openai_key.get_secret_value() if settings.openai_key is not None else None
    if key is None:
        message = "OPENAI_API_KEY is not set; it must be a key of your OpenAI account that may read its jobs and files."
        raise ClientError(0, "openai_key_missing", message)
    if without_v1(url) == client.url:
        message = f"{url} is the gateway, too; name the gateway with HATRACK_URL or `hatrack login`."
        raise ClientError(0, "openai_url_invalid", message)
    if key == settings.without_openai().gateway_key(client.url) or key.startswith(HATRACK_KEYS):
        message = (
            "OPENAI_API_KEY has a gateway's key. Set it to OpenAI's, and name the gateway and its key with "
            "HATRACK_URL and HATRACK_KEY, or `hatrack login`."
        )
        raise ClientError(0, "openai_key_invalid", message)

    def waiting(seconds: float, reason: str) -> None:
        typer.echo(f"OpenAI {reason}; asking again in {seconds:.0f} s", err=True)

    return OpenAIAccount(
        url, key, organization=settings.openai_organization, project=settings.openai_project, on_wait=waiting
    )


def _base(client: HatrackClient) -> str:
    base = client.ready().get("base")
    if not base:
        raise ClientError(503, "not_ready", f"{client.url} does not say what its base model is; see `hatrack status`.")
    return str(base)


def _plan(
    client: HatrackClient,
    account: OpenAIAccount,
    names: Mapping[str, str | None],
    *,
    since: int | None,
    automatic: bool,
    retry: bool,
    promote: bool,
) -> list[PlannedJob]:
    """What becomes of the jobs, oldest first."""
    from service.cli.from_openai.plan import adapter_name, plan_job

    found = [account.job(job_id) for job_id in names] if names else list(_jobs_since(account, since))
    found.sort(key=lambda job: job["created_at"])
    here = _jobs_here(client, retry=retry)
    adapters = {adapter["name"]: adapter for adapter in client.adapters.list()}
    files: dict[str, OpenAIFile | None] = {}
    for job in found:
        for file_id in filter(None, (job["training_file"], job.get("validation_file"))):
            if job["id"] not in here and file_id not in files:
                files[file_id] = _file(account, file_id)
    return [
        plan_job(
            job,
            files,
            name=names.get(job["id"]),
            any_status=job["id"] in names,
            automatic=automatic,
            here=here.get(job["id"]),
            existing=adapters.get(names.get(job["id"]) or adapter_name(job)),
            promote=promote,
        )
        for job in found
    ]


def _jobs_since(account: OpenAIAccount, since: int | None) -> Iterator[OpenAIJob]:
    for job in account.jobs():  # newest first
        if since is not None and job["created_at"] < since:
            return
        yield job


def _jobs_here(client: HatrackClient, *, retry: bool) -> dict[str, FineTuningJob]:
    """The gateway's jobs that were made of OpenAI's, by OpenAI's ids; the newest of each."""
    from service.cli.from_openai.plan import JOB

    here: dict[str, FineTuningJob] = {}
    for job in client.fine_tuning.jobs.list():
        source = (job.get("metadata") or {}).get(JOB)
        if source is not None and not (retry and job["status"] in ENDED_BADLY):
            here.setdefault(source, job)
    return here


def _file(account: OpenAIAccount, file_id: str) -> OpenAIFile | None:
    try:
        return account.file(file_id)
    except ClientError as error:
        if error.code == NOT_FOUND:
            return None
        raise


def _print_plan(plan: Sequence[PlannedJob], url: str, base: str) -> None:
    for planned in plan:
        for line in _lines(planned):
            typer.echo(terminal.clean(line))
    wanted = [planned for planned in plan if planned.wanted]
    files = {file["id"]: file["bytes"] for planned in wanted for file in planned.files}
    here, left = (
        sum(planned.here is not None for planned in plan),
        sum(planned.obstacle is not None for planned in plan),
    )
    noun = "file" if len(files) == 1 else "files"
    size = f" with {len(files)} {noun} ({terminal.size(sum(files.values()))})" if files else ""
    others = f"{here} already here, {left} not taken"
    typer.echo(terminal.clean(f"{_count(len(wanted))} to create at {url}{size}, {others}."))
    if wanted:
        typer.echo(
            terminal.clean(
                f"OpenAI's weights cannot be exported: each job trains the base here, {base}, on the same data, and "
                "its version is judged before it can go live."
            )
        )


def _lines(planned: PlannedJob) -> Iterator[str]:
    job = planned.source
    origin = f"{job['id']}  {terminal.when(job['created_at'])}  {job['model']}"
    if planned.here is not None:
        yield f"= {origin}  is here as {planned.here['id']} ({planned.here['status']}), adapter {planned.adapter}"
        return
    if planned.obstacle is not None:
        yield f"- {origin}  is not taken: {planned.obstacle}"
        return
    settings = [planned.method, *(f"{name} {value}" for name, value in planned.hyperparameters.items())]
    settings += [] if planned.seed is None else [f"seed {planned.seed}"]
    yield f"+ {origin}  → {planned.adapter}  ({', '.join(settings)})"
    for word, file in (("training", planned.training_file), ("validation", planned.validation_file)):
        if file is not None:
            yield f"    {word} file {file['id']}  {file['filename']}  {terminal.size(file['bytes'])}"
    for note in planned.notes:
        yield f"    {note}"


def _count(jobs: int) -> str:
    return f"{jobs} job{'' if jobs == 1 else 's'}"


def _confirm(plan: Sequence[PlannedJob], *, yes: bool) -> None:
    if yes:
        return
    if not sys.stdin.isatty():
        raise typer.BadParameter("stdin is not a terminal: give --yes to create the jobs, or --dry-run to see them.")
    count = sum(planned.wanted for planned in plan)
    typer.confirm(f"Create {'this job' if count == 1 else f'these {count} jobs'}?", abort=True, err=True)


def _transfer(
    client: HatrackClient,
    account: OpenAIAccount,
    plan: Sequence[PlannedJob],
    keep: Path | None,
    base: str,
    *,
    as_json: bool,
) -> Sequence[Outcome]:
    """Create the jobs of the plan, and say what became of each."""
    from service.cli.from_openai.transfer import Interrupted, Transfer

    def say(text: str) -> None:
        if not as_json:
            typer.echo(terminal.clean(text))

    outcomes: Sequence[Outcome] = []
    with ExitStack() as stack:
        folder = _folder(stack, keep)
        bars = stack.enter_context(_bars(quiet=as_json))
        try:
            outcomes = Transfer(client, account, folder, base, bar=_bar_of(bars), say=say).run(plan)
        except Interrupted as error:
            outcomes = error.outcomes
            raise
        finally:
            if as_json:
                terminal.print_json(_document(plan, outcomes))
    created = sum(outcome.result == "created" for outcome in outcomes)
    say(f"{_count(created)} created; `hatrack jobs` shows how far they are.")
    return outcomes


def _folder(stack: ExitStack, keep: Path | None) -> Path:
    if keep is None:
        return Path(stack.enter_context(TemporaryDirectory(prefix="hatrack-openai-")))
    with writing(keep):
        keep.mkdir(mode=0o700, parents=True, exist_ok=True)  # training data may be personal
    return keep


@contextmanager
def _bars(*, quiet: bool) -> Iterator[Progress]:
    """A bar for each file, on a terminal's stderr."""
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

    columns = (
        *(TextColumn("{task.description}", markup=False), BarColumn(), DownloadColumn()),
        *(TransferSpeedColumn(), TimeRemainingColumn()),
    )
    console = Console(stderr=True)
    with Progress(*columns, console=console, transient=True, disable=quiet or not console.is_terminal) as progress:
        yield progress


def _bar_of(progress: Progress) -> Callable[[str, int], Bar]:
    def begin(description: str, total: int) -> Bar:
        task = progress.add_task(terminal.clean(description), total=total)

        def show(done: int) -> None:
            progress.update(task, completed=done)

        return show

    return begin


def _document(plan: Sequence[PlannedJob], outcomes: Sequence[Outcome]) -> dict[str, Any]:
    """The plan and what became of it, for `--json`."""
    done = {outcome.planned.source["id"]: outcome for outcome in outcomes}
    return {"jobs": [_entry(planned, done.get(planned.source["id"])) for planned in plan]}


def _entry(planned: PlannedJob, outcome: Outcome | None) -> dict[str, Any]:
    state = "here" if planned.here is not None else "not_taken" if planned.obstacle is not None else "planned"
    here = planned.here["id"] if planned.here is not None else None
    return {
        "openai_job": planned.source["id"],
        "openai_model": planned.source.get("fine_tuned_model"),
        "adapter": planned.adapter,
        "method": planned.method,
        "hyperparameters": dict(planned.hyperparameters),
        "seed": planned.seed,
        "metadata": dict(planned.metadata),
        "files": [file["id"] for file in planned.files],
        "notes": list(planned.notes),
        "result": outcome.result if outcome is not None else state,
        "job": outcome.job if outcome is not None else here,
        "reason": outcome.reason if outcome is not None else planned.obstacle,
    }
