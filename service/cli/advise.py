"""`advise`: should we fine-tune at all? A measurement, rung by rung, instead of an opinion."""

from __future__ import annotations

import itertools
import sys
import time
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from http import HTTPStatus
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.text import Text

from adapters.costs import amount_text
from adapters.protocol.requests import MAX_INSTRUCTIONS
from adapters.wording import counted
from service.cli import kb, terminal
from service.cli.datasets import data_argument, find_source
from service.cli.evaluate import EXIT_NOT_ENOUGH_EVIDENCE, POLL_S
from service.cli.grounding import versions_served_with, what_breaks
from service.cli.terminal import AsJson
from service.client import FINAL_STATUSES, ClientError, HatrackClient
from service.client.output import check_writable, writing

if TYPE_CHECKING:
    from service.client.types.ladders import Ladder, LadderReport, ReportedRung

PURPOSES: Final = {
    "choose": "choosing instructions",
    "prompts": "comparing prompts",
    "job": "training a LoRA",
    "lora": "asking the LoRA",
    "job:lora_examples": "training a LoRA with retrieved examples",
    "lora_examples": "asking the LoRA with retrieved examples",
    "job:lora_documents": "training a LoRA with retrieved documents",
    "lora_documents": "asking the LoRA with retrieved documents",
    "job:distilled": "training a LoRA on the teacher's answers",
    "distilled": "asking the LoRA that learnt from the teacher",
    "job:half": "training a LoRA on half of the examples",
    "half": "asking the LoRA on half of the examples",
    "job:quarter": "training a LoRA on a quarter of the examples",
    "quarter": "asking the LoRA on a quarter of the examples",
    "job:cleanest_half": "training a LoRA on the cleanest half of the examples",
    "cleanest_half": "asking the LoRA on the cleanest half of the examples",
}
NEWEST_EVENTS: Final = 20
PROMPTS_PURPOSE: Final = "user_data"
"""A file to fine-tune on would have to have answers."""
STYLES: Final = {"cannot_tell": "yellow", "fine_tune": "bold"}


Examples = Annotated[
    str,
    typer.Argument(
        metavar="FILE|DATASET", help="Examples: a JSONL file, or a dataset (NAME@VERSION).", callback=data_argument
    ),
]
Instructions = Annotated[
    list[Path] | None,
    typer.Option(
        metavar="FILE", exists=True, dir_okay=False, help="A system prompt to try; repeatable, at most 4 times."
    ),
]

Teacher = Annotated[
    str | None,
    typer.Option(
        metavar="NAME", help="Who answers --unlabelled for a LoRA to learn from: a model, or an outside endpoint."
    ),
]
Unlabelled = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE",
        exists=True,
        dir_okay=False,
        readable=True,
        help="Prompts for --teacher: JSONL with `messages` or `prompt`, or a .txt file with a prompt on each line.",
    ),
]


def advise(
    data: Examples,
    name: Annotated[
        str, typer.Option(help="Adapter whose versions the rungs become.", callback=terminal.name_argument)
    ],
    docs: Annotated[
        str | None,
        typer.Option(metavar="DIR|STORE", help="Documents that answers may depend on: a directory, or a store."),
    ] = None,
    instructions: Instructions = None,
    target: Annotated[
        float | None, typer.Option(min=0, max=1, help="The score that is good enough, such as 0.9.")
    ] = None,
    quick: Annotated[bool, typer.Option("--quick", help="Fewer questions and at most 600 examples.")] = False,
    lora: Annotated[bool, typer.Option("--lora/--no-lora", help="Whether to train a LoRA.")] = True,
    teacher: Teacher = None,
    unlabelled: Unlabelled = None,
    requests_per_month: Annotated[
        int | None, typer.Option(min=0, help="Expected traffic, for the cost of a year. [default: the operator's]")
    ] = None,
    html: Annotated[Path | None, typer.Option(metavar="FILE", help="Write the report as a page.")] = None,
    wait: Annotated[bool, typer.Option("--wait/--no-wait", help="Wait until it has finished.")] = True,
    as_json: AsJson = False,
) -> None:
    """Measure whether fine-tuning is worth it: prompts, examples, retrieval, and only then a LoRA.

    Every rung becomes a version that can be promoted; nothing goes live by itself.

    Exit codes: 0 advice given, 1 failed, 4 the data cannot tell.
    """
    prompts = _prompts(instructions or ())
    if html is not None and not wait:
        raise typer.BadParameter(
            "--html needs the finished report: leave out --no-wait, or run `hatrack advice --html`."
        )
    if (teacher is None) != (unlabelled is None):
        raise typer.BadParameter("--teacher and --unlabelled need each other.")
    with terminal.reporting(as_json), HatrackClient() as client:
        if html is not None:
            check_writable(html)
        file_id = find_source(client, data).sent(client)
        prompts_id = None if unlabelled is None else client.files.create(unlabelled, PROMPTS_PURPOSE)["id"]
        with _documents(client, docs, name, without=[data, unlabelled], quiet=as_json) as stores:
            ladder = client.ladders.create(
                file_id,
                name,
                vector_store_ids=stores,
                instructions=prompts or None,
                target=target,
                quick=quick or None,
                lora=None if lora else False,
                teacher=teacher,
                unlabelled_file=prompts_id,
                requests_per_month=requests_per_month,
            )
        if not as_json:
            typer.echo(f"started {ladder['id']}; it goes on if you leave: `hatrack advice {ladder['id']}`")
        if wait:
            ladder = _follow(client, ladder["id"], quiet=as_json)
        _finish(client, ladder, html, as_json=as_json, waited=wait)


def advice(
    ladder_id: Annotated[str | None, typer.Argument(metavar="[LADDER]", help="ladder-…; default: the newest.")] = None,
    html: Annotated[Path | None, typer.Option(metavar="FILE", help="Write the report as a page.")] = None,
    follow: Annotated[bool, typer.Option("--follow", help="Wait until it has finished.")] = False,
    clean: Annotated[
        bool, typer.Option("--clean", help="Delete the store of retrieved examples that it made, and do nothing else.")
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="With --clean: skip the confirmation.")] = False,
    as_json: AsJson = False,
) -> None:
    """Show what a ladder has measured, and its advice."""
    if clean and (follow or html is not None):
        raise typer.BadParameter("--clean only deletes; leave out --follow and --html.")
    if clean and as_json and not yes:
        raise typer.BadParameter("--clean --json asks nothing: add --yes.")
    with terminal.reporting(as_json), HatrackClient() as client:
        if html is not None:
            check_writable(html)
        if ladder_id is None:
            newest = next(iter(client.ladders.list()), None)
            if newest is None:
                raise ClientError(404, "not_found", "No ladders. Run `hatrack advise FILE --name NAME` to start one.")
            ladder_id = newest["id"]
        if clean:
            _clean(client, client.ladders.retrieve(ladder_id), yes=yes, as_json=as_json)
            return
        ladder = _follow(client, ladder_id, quiet=as_json) if follow else client.ladders.retrieve(ladder_id)
        _finish(client, ladder, html, as_json=as_json, waited=follow)


def _clean(client: HatrackClient, ladder: Ladder, *, yes: bool, as_json: bool) -> None:
    """Delete the store that a ladder has made and the files in it; what that breaks is said before it is confirmed."""
    if ladder["status"] not in FINAL_STATUSES:
        message = f"{ladder['id']} is {ladder['status']} and needs its store: wait until it has ended, or cancel it."
        raise ClientError(0, "ladder_not_ended", message)
    store = ladder.get("vector_store_id")
    found = None if store is None else next((each for each in client.vector_stores.list() if each["id"] == store), None)
    if store is None or found is None:
        if as_json:
            none: dict[str, Any] = {"deleted": False, "broken": [], "files_left": []}
            terminal.print_json({"ladder": ladder["id"], "vector_store_id": store} | none)
        else:
            typer.echo(f"{ladder['id']} {'made no store' if store is None else 'has lost its store already'}.")
        return
    broken = versions_served_with(client, store)
    if not as_json:
        typer.echo(
            f"{ladder['id']} made the store {store} ({terminal.clean(found['name'] or '')}). {what_breaks(broken)}"
        )
    if not yes:
        typer.confirm("Delete it?", abort=True, err=True)
    files = [file["id"] for file in client.vector_stores.files.list(store)]
    client.vector_stores.delete(store)
    left = _delete_files(client, files)
    if as_json:
        done = {"deleted": True, "broken": broken, "files_left": list(left)}
        terminal.print_json({"ladder": ladder["id"], "vector_store_id": store} | done)
        return
    typer.echo(f"{store} deleted, with {counted(len(files) - len(left), 'file')}")
    for file_id, reason in left.items():
        typer.echo(terminal.clean(f"{file_id} stays: {reason}"))


def _delete_files(client: HatrackClient, files: Sequence[str]) -> dict[str, str]:
    """Delete files; returns why those stay that do, by id. One that is gone already is none of them."""
    left: dict[str, str] = {}
    for file_id in files:
        try:
            client.files.delete(file_id)
        except ClientError as error:
            if error.status == HTTPStatus.CONFLICT:
                left[file_id] = error.message
            elif error.status != HTTPStatus.NOT_FOUND:
                raise
    return left


def _prompts(paths: Sequence[Path]) -> list[str]:
    """The texts of the instructions to try; a mistake is a usage error."""
    prompts = [_prompt(path) for path in paths]
    if len(prompts) > MAX_INSTRUCTIONS:
        raise typer.BadParameter(f"--instructions may be given {MAX_INSTRUCTIONS} times at most; got {len(prompts)}.")
    return prompts


def _prompt(path: Path) -> str:
    try:
        return path.read_text("utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise typer.BadParameter(f"--instructions {path}: it must be a text file in UTF-8 ({error}).") from error


@contextmanager
def _documents(
    client: HatrackClient, docs: str | None, name: str, *, without: Collection[str | Path | None], quiet: bool
) -> Iterator[list[str] | None]:
    """The ids of the stores with documents. A directory's are put into a store of their own, which is deleted again if
    the ladder is refused; but for the files ``without``: the examples would be answered by their own copies."""
    if docs is None:
        yield None
        return
    path = Path(docs)
    if not path.exists():
        yield [str(client.vector_stores.find(docs)["id"])]
        return
    title = f"{name}-docs-{time.strftime('%Y%m%d-%H%M%S', time.gmtime())}"  # commands name stores, so each has its own
    store = client.vector_stores.create(title)["id"]
    try:
        left_out = [Path(file) for file in without if file is not None and Path(file).is_file()]
        indexed = kb.add_documents(client, store, [path], without=left_out, quiet=quiet)
        if not quiet:
            typer.echo(f"{counted(indexed, 'document is', 'documents are')} in the store {title} ({store})")
        yield [store]
    except BaseException:  # Ctrl-C, too: nobody else knows of it
        client.vector_stores.delete(store)
        raise


def _follow(client: HatrackClient, ladder_id: str, *, quiet: bool) -> Ladder:
    """Show each rung as it comes, and how far the child run is, until the ladder has ended."""
    console = Console(stderr=True, quiet=quiet, highlight=False)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    shown: set[tuple[str, bool]] = set()
    provisional: set[str] = set()
    with Progress(*columns, console=console, disable=quiet, transient=True) as bar:
        task = bar.add_task("checking the data", total=None)
        while True:
            ladder = client.ladders.retrieve(ladder_id)
            _print_provisional(console, ladder, provisional)
            for rung in ladder["rungs"]:
                mark = (rung["key"], rung["mean"] is not None)
                if rung["mean"] is not None and mark not in shown:
                    shown.add(mark)
                    console.print(f"{100 * rung['mean']:5.1f}  {terminal.clean(rung['title'])}  ({rung['model']})")
            if ladder["status"] in FINAL_STATUSES:
                return ladder
            description, done, total = _progress(client, ladder)
            bar.update(task, description=description, completed=done, total=total)
            time.sleep(POLL_S)


def _print_provisional(console: Console, ladder: Ladder, shown: set[str]) -> None:
    """Print what the rungs score so far, once, and add their keys to ``shown``."""
    scores = {rung["key"]: (rung, rung.get("provisional")) for rung in ladder["rungs"] if rung["key"] not in shown}
    for key, (rung, score) in scores.items():
        if score is None:
            continue
        if not shown:
            console.print(f"So far, on {score['questions']} of {score['of']} questions (this decides nothing yet):")
        shown.add(key)
        interval = f"{100 * score['low']:.0f} to {100 * score['high']:.0f}"
        console.print(f"{100 * score['mean']:5.0f}  ({interval})  {terminal.clean(rung['title'])}")


def _progress(client: HatrackClient, ladder: Ladder) -> tuple[str, int, int | None]:
    """What the ladder does now, and how far that is."""
    if not ladder["children"]:
        return "checking the data", 0, None
    labels = ladder["labels"]
    if labels is not None and labels["file"] is None and labels["error"] is None:
        done = labels["answered"] + labels["refused"] + labels["truncated"]
        return f"{terminal.clean(labels['teacher'])} answers prompts", done, labels["prompts"]
    child = ladder["children"][-1]
    what = PURPOSES[child["purpose"]]
    if child["purpose"].startswith("job"):
        newest = itertools.islice(client.fine_tuning.jobs.list_events(child["id"]), NEWEST_EVENTS)
        metrics = next((event for event in newest if event["type"] == "metrics"), None)
        data: dict[str, Any] = dict(metrics["data"] or {}) if metrics is not None else {}
        return what, int(data.get("step", 0)), data.get("total_steps")
    progress = client.evaluations.retrieve(child["id"]).get("progress")
    return what, progress["done"] if progress else 0, progress["total"] if progress else None


def _finish(client: HatrackClient, ladder: Ladder, html: Path | None, *, as_json: bool, waited: bool) -> None:
    """Print what came of a ladder, and leave with the exit code that says so."""
    report = client.ladders.report(ladder["id"]) if ladder["status"] == "succeeded" else None
    if as_json:
        terminal.print_json(ladder if report is None else report)
    elif report is not None:
        _print_report(report)
    else:
        error = ladder["error"]
        typer.echo(terminal.clean(f"{ladder['id']}  {ladder['status']}  {error['message'] if error else ''}".rstrip()))
    if html is not None and report is None:
        typer.echo(f"{html} was not written: the ladder has no report yet.", err=True)
    elif html is not None:
        page = client.ladders.report_html(ladder["id"])
        with writing(html):
            html.write_bytes(page)
        typer.echo(f"wrote {html}; it is self-contained", err=as_json)
    if waited and report is None:
        raise typer.Exit(terminal.FAILED)
    if report is not None and report["advice"]["word"] == "cannot_tell":
        raise typer.Exit(EXIT_NOT_ENOUGH_EVIDENCE)


def _print_report(report: LadderReport) -> None:
    console = Console(highlight=False, soft_wrap=not sys.stdout.isatty())
    advice = report["advice"]
    console.print(Text(terminal.clean(advice["sentence"]), style=STYLES.get(advice["word"], "green")))
    for reason in (*advice["reasons"], *advice["would_change"]):
        console.print(Text(f"  {terminal.clean(reason)}"))
    priced = all(rung["year"].get("total") is not None for rung in report["rungs"])
    terminal.print_table(
        ["", "RUNG", "VERSION", "SCORE", "INTERVAL", "TOKENS", "1ST TOKEN", "A YEAR"],
        [_row(rung, advice["rung"], priced=priced) for rung in report["rungs"]],
    )
    curve = report.get("curve")
    if curve:
        console.print(Text(terminal.clean(curve["sentence"])))
    labels = report.get("labels")
    if labels:
        console.print(
            Text(
                terminal.clean(
                    f"{labels['teacher']} answered {labels['answered']} of {labels['prompts']} prompts; "
                    f"{labels['refused']} refused and {labels['truncated']} cut answers are set aside"
                )
            )
        )
    for skipped in report["skipped"]:
        console.print(Text(terminal.clean(f"not measured: {skipped['title']} ({skipped['reason']})")))
    if advice["rung"] is not None:
        model = next(rung["model"] for rung in report["rungs"] if rung["key"] == advice["rung"])
        if "@" in model:
            console.print(Text(f"To ship it: hatrack promote {model}"))


def _row(rung: ReportedRung, chosen: str | None, *, priced: bool) -> list[str]:
    mean, request, year, first = rung["mean"], rung["request"], rung["year"], rung.get("first_token")
    return [
        ">" if rung["key"] == chosen else "",
        terminal.clean(rung["title"]),
        rung["model"] + (" (held back)" if rung.get("held_back") else ""),
        f"{100 * mean['mean']:.1f}",
        f"{100 * mean['low']:.1f} to {100 * mean['high']:.1f}",
        f"{request['prompt_tokens']:.0f} + {request['completion_tokens']:.0f}",
        "?" if first is None else _latency(first["median_seconds"]),
        amount_text(year["total"]) if priced else f"{year['device_hours']:.1f} h",
    ]


def _latency(seconds: float) -> str:
    return f"{1000 * seconds:.0f} ms" if seconds < 1 else f"{seconds:.1f} s"
