"""`batch batches`: inference requests in a file, answered in the background."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final, cast

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from service.cli import terminal
from service.cli.terminal import AsJson
from service.client import ClientError, HatrackClient
from service.client.output import check_writable

if TYPE_CHECKING:
    from service.client.types.batches import Batch, BatchEndpoint

MAX_SHOWN_ERRORS: Final = 20


def batch(
    target: Annotated[
        str, typer.Argument(metavar="FILE|ID", help="A file of requests to start a batch, or the id of a batch.")
    ],
    wait: Annotated[bool, typer.Option("--wait", help="Wait until it has ended, and write the answers.")] = False,
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", dir_okay=False, help="Where to write the answers. [default: FILE.answers.jsonl or ID.…]"
        ),
    ] = None,
    endpoint: Annotated[
        str | None, typer.Option(metavar="URL", help="The route of the requests. [default: the first line's `url`]")
    ] = None,
    cancel: Annotated[bool, typer.Option("--cancel", help="Cancel the batch; its answers so far are kept.")] = False,
    as_json: AsJson = False,
) -> None:
    """Answer a file of requests in the background (OpenAI's batch format), or show, wait for or cancel a batch.

    With --wait, the answers are in --out and the requests that failed beside it, in …errors.jsonl.
    """
    is_id = target.startswith("batch_") and not Path(target).exists()
    if not is_id and cancel:
        raise typer.BadParameter("--cancel needs the id of a batch.")
    if is_id and endpoint is not None:
        raise typer.BadParameter("--endpoint needs a file.")
    answers = out or Path(f"{target.removesuffix('.jsonl')}.answers.jsonl")
    with terminal.reporting(as_json), HatrackClient() as client:
        if wait:
            check_writable(answers, replaces=True)
        if not is_id:
            result = _start(client, Path(target), endpoint)
        elif cancel:
            result = client.batches.cancel(target)
        else:
            result = client.batches.retrieve(target)
        written: list[Path] = []
        if wait:
            result = _follow(client, result, quiet=as_json)
            written = _write(client, result, answers)
    if as_json:
        terminal.print_json(result)
    else:
        _print(result, written, waited=wait)
    if wait and (result["status"] != "completed" or result["request_counts"]["failed"]):
        raise typer.Exit(terminal.FAILED)


def _start(client: HatrackClient, file: Path, endpoint: str | None) -> Batch:
    if not file.is_file():
        raise typer.BadParameter(f"{file} is neither a file nor the id of a batch.")
    url = endpoint or _first_url(file)
    uploaded = client.files.create(file, "batch")
    return client.batches.create(uploaded["id"], cast("BatchEndpoint", url))


def _first_url(file: Path) -> str:
    """The `url` of the first line. Raises ClientError if it has none."""
    with file.open("rb") as lines:
        first = next((line for line in lines if line.strip()), b"")
    try:
        url = json.loads(first)["url"]
    except (ValueError, KeyError, TypeError):
        url = None
    if not isinstance(url, str):
        message = (
            f"The first line of {file} has no `url`. A line is a JSON object with custom_id, method, url and body, "
            "such as url /v1/chat/completions."
        )
        raise ClientError(0, "not_a_batch_file", message)
    return url


def _follow(client: HatrackClient, batch: Batch, *, quiet: bool) -> Batch:
    """Show a bar until the batch has ended."""
    console = Console(stderr=True, quiet=quiet, highlight=False)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    if not quiet:
        console.print(f"{batch['id']}; `hatrack batch {batch['id']} --wait` waits for it again", markup=False)
    with Progress(*columns, console=console, disable=quiet or not console.is_terminal) as bar:
        task = bar.add_task("validating", total=None)
        for current in client.batches.poll(batch["id"]):
            counts, waiting = current["request_counts"], current["waiting"]
            doing = current["status"].replace("_", " ")
            bar.update(
                task,
                description=terminal.clean(f"waiting: {waiting['message']}" if waiting else doing),
                completed=counts["completed"] + counts["failed"],
                total=counts["total"] or None,
            )
            batch = current
    return batch


def _write(client: HatrackClient, batch: Batch, out: Path) -> list[Path]:
    """Save the batch's result files; returns where."""
    errors = out.with_name(f"{out.name.removesuffix('.jsonl')}.errors.jsonl")
    written = []
    for file_id, path in ((batch["output_file_id"], out), (batch["error_file_id"], errors)):
        if file_id is not None:
            client.files.download(file_id, path)
            written.append(path)
    return written


def _print(batch: Batch, written: list[Path], *, waited: bool) -> None:
    counts, usage = batch["request_counts"], batch["usage"]
    lines = [f"{batch['id']}  {batch['status']}"]
    if counts["total"]:
        lines.append(f"requests   {counts['completed']} of {counts['total']} answered, {counts['failed']} failed")
    if usage["total_tokens"]:
        lines.append(f"tokens     {usage['input_tokens']:,} in, {usage['output_tokens']:,} out")
    if batch["waiting"]:
        lines.append(f"waiting    {batch['waiting']['message']}")
    errors = batch["errors"]["data"] if batch["errors"] else []
    for error in errors[:MAX_SHOWN_ERRORS]:
        where = f"line {error['line']}: " if error["line"] else ""
        lines.append(f"error      {where}{error['message']} [{error['code']}]")
    if len(errors) > MAX_SHOWN_ERRORS:
        lines.append(f"           and {len(errors) - MAX_SHOWN_ERRORS} more; --json shows them")
    lines += [f"written    {path}" for path in written]
    if not waited and batch["status"] not in ("failed", "cancelled"):
        lines.append(f"get the answers with `hatrack batch {batch['id']} --wait`")
    typer.echo(terminal.clean("\n".join(lines)))


def batches(as_json: AsJson = False) -> None:
    """List the batches, newest first."""
    with terminal.reporting(as_json), HatrackClient() as client:
        listed = list(client.batches.list())
    if as_json:
        terminal.print_json(listed)
    elif listed:
        columns = ["BATCH", "STATUS", "ANSWERED", "FAILED", "TOTAL", "MODEL", "CREATED"]
        terminal.print_table(columns, [_row(each) for each in listed])
    else:
        typer.echo("No batches. Run `hatrack batch FILE` to start one.")


def _row(batch: Batch) -> list[str]:
    counts = batch["request_counts"]
    numbers = [str(counts["completed"]), str(counts["failed"]), str(counts["total"])]
    return [batch["id"], batch["status"], *numbers, batch["model"] or "-", terminal.when(batch["created_at"])]
