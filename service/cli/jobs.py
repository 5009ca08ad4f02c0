"""`jobs job`: what becomes of training jobs, and what they wait for."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from itertools import pairwise
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from adapters.costs import amount_text
from service.cli import terminal
from service.cli.terminal import AsJson
from service.client import FINAL_STATUSES, ClientError, HatrackClient

if TYPE_CHECKING:
    from service.client.types.training import FineTuningJob, FineTuningJobEvent

VERDICTS: Final = {"pass": "bold green", "fail": "bold red", "not_enough_evidence": "bold yellow"}
COLOURS: Final = {"warn": "yellow", "error": "red"}
EIGHTHS: Final = " ▁▂▃▄▅▆▇█"
"""Blocks of 0 to 8 eighths of a line's height."""
WAITING_POLL_S: Final = 5.0
"""How often it is asked what a job that is followed waits for."""
Follow = Annotated[bool, typer.Option("--follow/--no-follow", help="Wait until it has finished.")]


def jobs(as_json: AsJson = False) -> None:
    """List the jobs, newest first."""
    with terminal.reporting(as_json), HatrackClient() as client:
        listed = list(client.fine_tuning.jobs.list())
    if as_json:
        terminal.print_json(listed)
    elif listed:
        rows = [
            [
                str(job["id"]),
                str((job.get("hatrack") or {}).get("adapter") or "-"),
                str(job["status"]),
                str(job.get("fine_tuned_model") or "-"),
                terminal.when(job.get("created_at")),
                _money(job),
                terminal.waiting(job["hatrack"].get("waiting")),
            ]
            for job in listed
        ]
        columns = ["JOB", "ADAPTER", "STATUS", "RESULT", "CREATED", "COST", "WAITS FOR"]
        waits = any(row[-1] for row in rows)
        terminal.print_table(columns if waits else columns[:-1], rows if waits else [row[:-1] for row in rows])
    else:
        typer.echo("No jobs. Run `hatrack train FILE --name NAME` to start one.")


def job(
    job_id: Annotated[str, typer.Argument(metavar="ID", help="ftjob-…")],
    follow: Follow = False,
    cancel: Annotated[bool, typer.Option("--cancel", help="Cancel the job; no version is registered.")] = False,
    pause: Annotated[bool, typer.Option("--pause", help="Pause the job after a step, with a checkpoint.")] = False,
    resume: Annotated[bool, typer.Option("--resume", help="Resume the job from its checkpoint.")] = False,
    as_json: AsJson = False,
) -> None:
    """Show a job, follow it, or change it."""
    verbs = [verb for verb, is_set in (("cancel", cancel), ("pause", pause), ("resume", resume)) if is_set]
    if len(verbs) > 1:
        raise typer.BadParameter(f"--{verbs[0]} and --{verbs[1]} cannot be combined.")
    with terminal.reporting(as_json), HatrackClient() as client:
        jobs = client.fine_tuning.jobs
        call = {"cancel": jobs.cancel, "pause": jobs.pause, "resume": jobs.resume}[verbs[0]] if verbs else jobs.retrieve
        result = call(job_id)
        if follow:
            result = follow_job(client, job_id, quiet=as_json)
    finish(result, as_json, followed=follow)


def follow_job(client: HatrackClient, job_id: str, *, quiet: bool) -> FineTuningJob:
    """Show a job's events until it has ended, with a bar; the loss as a curve at the end."""
    console = Console(stderr=True, quiet=quiet, highlight=False)
    losses: list[float] = []
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[numbers]}"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, disable=quiet) as bar:
        task = bar.add_task("waiting", total=None, numbers="")
        with _waiting_shown(client, job_id, lambda text: bar.update(task, description=text), quiet=quiet) as resume:
            for event in client.fine_tuning.jobs.stream_events(job_id):
                data: dict[str, Any] = event.get("data") or {}
                if event.get("type") == "metrics" and "step" in data:
                    losses.append(float(data["train_loss"]))
                    pace = f"loss {data['train_loss']:.3f}, {data.get('tokens_per_s', 0):.0f} tokens/s"
                    resume("training")
                    bar.update(task, completed=data["step"], total=data["total_steps"], numbers=pace)
                elif "stage" in data:
                    stage = terminal.clean(str(data["stage"]))
                    resume("judging")
                    bar.update(task, completed=data["done"], total=data["total"], numbers=stage)
                else:
                    _print_event(console, event)
    for line in draw_curve(losses):
        console.print(line, markup=False)
    return client.fine_tuning.jobs.retrieve(job_id)


@contextmanager
def _waiting_shown(
    client: HatrackClient, job_id: str, show: Callable[[str], None], *, quiet: bool
) -> Iterator[Callable[[str], None]]:
    """Show what a job waits for while its events are read, as they may not come for long.

    Yields:
        To be called with what the job does when an event has told it.
    """
    doing, ended = ["waiting"], threading.Event()

    def poll() -> None:
        while not ended.is_set():
            with suppress(ClientError):  # the stream of events tells of an outage
                waiting = client.fine_tuning.jobs.retrieve(job_id)["hatrack"].get("waiting")
                if not ended.is_set():
                    show(terminal.waiting(waiting) or doing[0])
            ended.wait(WAITING_POLL_S)

    def resume(text: str) -> None:
        doing[0] = text
        show(text)

    thread = threading.Thread(target=poll, name="waiting", daemon=True)
    if not quiet:
        thread.start()
    try:
        yield resume
    finally:
        ended.set()


def _print_event(console: Console, event: FineTuningJobEvent) -> None:
    text = terminal.clean(str(event.get("message", "")))
    verdict = (event.get("data") or {}).get("verdict")
    style = VERDICTS.get(str(verdict)) or COLOURS.get(str(event.get("level")))
    console.print(text, style=style, markup=False)


def finish(job: FineTuningJob, as_json: bool, *, followed: bool) -> None:
    """Print the job; where it was followed and did not succeed, leave with exit code 1."""
    if as_json:
        terminal.print_json(job)
    else:
        _print(job)
    if followed and job.get("status") != "succeeded":
        raise typer.Exit(terminal.FAILED)


def _print(job: FineTuningJob) -> None:
    details = job["hatrack"]
    lines = [f"{job['id']}  {job['status']}"]
    if job.get("fine_tuned_model"):
        lines.append(f"result     {job['fine_tuned_model']}")
    if text := terminal.waiting(details.get("waiting")):
        lines.append(f"waiting    {text}")
    if job.get("estimated_finish"):
        lines.append(f"training   ends about {terminal.when(job['estimated_finish'])}, and the judging follows")
    if details.get("adapter"):
        lines.append(f"adapter    {details['adapter']}")
    if job.get("trained_tokens"):
        lines.append(f"trained    {job['trained_tokens']:,} tokens")
    if verdict := details.get("verdict"):
        lines.append(f"verdict    {verdict['sentence']}")
        lines.append(f"live       {'yes' if verdict['live'] else 'no'}")
    if seconds := details.get("seconds"):
        lines.append(f"took       {seconds:.0f} s on {details.get('device') or 'its device'}{_cost(job)}")
    error = job.get("error")
    if error and error.get("code"):
        lines.append(f"error      {error.get('message')} [{error['code']}]")
    if job["status"] not in FINAL_STATUSES:
        lines.append(f"follow it with `hatrack job {job['id']} --follow`")
    typer.echo(terminal.clean("\n".join(lines)))


def _cost(job: FineTuningJob) -> str:
    cost = _money(job)
    return "" if cost == "-" else f", cost {cost}"


def _money(job: FineTuningJob) -> str:
    ours = job.get("hatrack") or {}
    cost, currency = ours.get("cost"), ours.get("currency")
    if not isinstance(cost, int | float):
        return "-"
    return f"{amount_text(cost)} {currency}" if currency else amount_text(cost)


def draw_curve(values: Sequence[float], *, width: int = 60, height: int = 6) -> list[str]:
    """A curve as lines of text, the highest values at the top, labelled with the largest and the smallest mean.

    Each column shows the mean of the values that fall into it.

    Args:
        values: In order; none gives no lines.
        width: Columns of the curve; fewer values take as many columns.
    """
    if not values:
        return []
    columns = _columns(values, width)
    low, high = min(columns), max(columns)
    span = (high - low) or 1.0
    levels = [round((value - low) / span * (height * 8 - 1)) + 1 for value in columns]
    lines = []
    for row in reversed(range(height)):
        line = "".join(EIGHTHS[max(0, min(8, level - 8 * row))] for level in levels)
        label = f"{high:8.3f}" if row == height - 1 else f"{low:8.3f}" if row == 0 else " " * 8
        lines.append(f"{label} │{line}")
    return lines


def _columns(values: Sequence[float], width: int) -> list[float]:
    many = min(width, len(values))
    edges = [round(column * len(values) / many) for column in range(many + 1)]
    return [sum(values[start:end]) / (end - start) for start, end in pairwise(edges)]
