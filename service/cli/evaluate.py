"""`evaluate evaluations report`: is a version better than the base and what serves, and what did it forget?"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.text import Text

from service.cli import terminal
from service.cli.datasets import data_argument
from service.cli.terminal import AsJson
from service.client import FINAL_STATUSES, ClientError, HatrackClient, JsonObject
from service.client.output import check_writable, writing

if TYPE_CHECKING:
    from service.client.types.evaluations import ArmDifference, ArmMean, Evaluation, EvaluationReport

EXIT_NOT_ENOUGH_EVIDENCE: Final = 4
"""Exit code where there is not enough evidence; 3 says already that nobody answers."""
POLL_S: Final = 1.0
CHECK_MARKS: Final = {"kept": ("✓", "green"), "broken": ("✗", "red"), "open": ("?", "yellow")}
VERDICT_STYLES: Final = {"pass": "green", "fail": "red", "not_enough_evidence": "yellow"}

HeldOut = Annotated[
    str,
    typer.Option(
        "--held-out",
        metavar="FILE|DATASET",
        help="Examples not used for training: a JSONL file, the id of an uploaded file, or a dataset (NAME@VERSION).",
    ),
]

Suites = Annotated[
    list[str] | None,
    typer.Option(
        "--suite",
        "--suites",
        metavar="NAME[,NAME]",
        help="Suites that check for forgetting; repeatable. `none`: none. [default: general]",
    ),
]


def suite_names(given: list[str] | None) -> list[str] | None:
    """The names in the values of `--suite`: each a name, names with commas, a JSON list, or `none`. None: no value."""
    if not given:
        return None
    names: list[str] = []
    for text in given:
        if text.startswith("["):
            try:
                names += map(str, json.loads(text))
            except ValueError as error:
                raise typer.BadParameter(f"--suite is not valid JSON: {error}.") from error
        else:
            names += [name.strip() for name in text.split(",") if name.strip() not in ("", "none")]
    return names


def evaluate(
    held_out: HeldOut,
    name: Annotated[
        str | None,
        typer.Argument(metavar="[NAME[@VERSION]]", help="The version to judge; leave out to compare --arm options."),
    ] = None,
    metric: Annotated[
        str | None,
        typer.Option(help="exact_match, similarity …, or JSON with name and pattern or schema. [default: auto]"),
    ] = None,
    suites: Suites = None,
    promote: Annotated[
        str, typer.Option(help="auto: make a passing version live; never: leave `live` as it is.")
    ] = "never",
    arms: Annotated[
        list[str] | None,
        typer.Option("--arm", metavar="LABEL=MODEL[,endpoint=NAME]", help="One arm of a comparison; repeatable."),
    ] = None,
    candidate: Annotated[str | None, typer.Option(metavar="LABEL", help="The arm to judge against --base.")] = None,
    bases: Annotated[
        list[str] | None,
        typer.Option("--base", metavar="LABEL", help="An arm that the candidate must beat; repeatable."),
    ] = None,
    judge: Annotated[str | None, typer.Option(help="A judge configured by the operator.")] = None,
    max_tokens: Annotated[
        int | None, typer.Option(min=1, help="Maximum length of an answer, tokens. [default: automatic]")
    ] = None,
    wait: Annotated[bool, typer.Option("--wait/--no-wait", help="Wait until it has finished.")] = True,
    as_json: AsJson = False,
) -> None:
    """Evaluate a version on examples that it has not seen: pass, fail, or not enough evidence.

    Exit codes: 0 pass (or a finished comparison), 1 fail or no result, 4 not enough evidence.
    """
    if (name is None) == (not arms):
        raise typer.BadParameter("give either a version to judge or at least two --arm options, not both.")
    if promote not in ("auto", "never"):
        raise typer.BadParameter(f"--promote must be auto or never; got {promote!r}.")
    options: JsonObject = {
        "metric": _metric(metric),
        "suites": suite_names(suites),
        "promote": promote,
        "judge": judge,
        "max_tokens": max_tokens,
        "candidate": candidate,
        "bases": bases or None,
    }
    with terminal.reporting(as_json), HatrackClient() as client:
        arm_bodies = [_arm(text) for text in arms] if arms else None
        file_id = _held_out_file(client, held_out)
        evaluation = client.evaluations.create(file_id, model=name, arms=arm_bodies, **options)
        if not as_json:
            typer.echo(f"started {evaluation['id']} on {held_out}; see `hatrack report {evaluation['id']}`")
        if wait:
            evaluation = _follow(client, evaluation["id"], quiet=as_json)
        report = client.evaluations.report(evaluation["id"]) if evaluation.get("status") == "succeeded" else None
    _finish(evaluation, report, as_json, waited=wait)


def evaluations(as_json: AsJson = False) -> None:
    """List the evaluations, newest first."""
    with terminal.reporting(as_json), HatrackClient() as client:
        listed = list(client.evaluations.list())
    if as_json:
        terminal.print_json(listed)
    elif listed:
        rows = [
            [
                evaluation["id"],
                evaluation.get("candidate")
                or evaluation.get("model")
                or " / ".join(arm["label"] for arm in evaluation["arms"]),
                evaluation["status"],
                (evaluation.get("verdict") or "-").replace("_", " "),
                _metric_name(evaluation["metric"]),
                terminal.when(evaluation.get("created_at")),
                terminal.waiting(evaluation.get("waiting")),
            ]
            for evaluation in listed
        ]
        columns = ["EVALUATION", "OF", "STATUS", "VERDICT", "METRIC", "CREATED", "WAITS FOR"]
        waits = any(row[-1] for row in rows)
        terminal.print_table(columns if waits else columns[:-1], rows if waits else [row[:-1] for row in rows])
    else:
        typer.echo("No evaluations. Run `hatrack evaluate NAME@VERSION --held-out FILE` to start one.")


def report(
    target: Annotated[str, typer.Argument(metavar="ID|NAME@VERSION", help="eval-…, or a version: its latest verdict.")],
    html: Annotated[Path | None, typer.Option(metavar="FILE", help="Write the HTML report to this file.")] = None,
    as_json: AsJson = False,
) -> None:
    """Show the report of an evaluation, or of a version's latest verdict."""
    with terminal.reporting(as_json), HatrackClient() as client:
        if html is not None:
            check_writable(html)
        if target.startswith("eval-") and "@" not in target:
            shown = client.evaluations.report(target)
            page = client.evaluations.report_html(target) if html is not None else b""
        else:
            shown, page = _version_report(client, target, with_page=html is not None)
        if html is not None:
            with writing(html):
                html.write_bytes(page)
    if html is not None and not as_json:
        typer.echo(f"wrote {html} ({terminal.size(len(page))}); it is self-contained")
    if as_json:
        terminal.print_json(shown)
    elif html is None:
        _print_report(shown)


def _version_report(client: HatrackClient, target: str, *, with_page: bool) -> tuple[EvaluationReport, bytes]:
    reference = terminal.reference_argument(target)
    if reference.version is None:
        raise typer.BadParameter(f"name a version, such as {reference.name}@1; got {target}.")
    verdict = client.adapters.versions.retrieve(reference.name, reference.version).get("verdict")
    if verdict is None:
        raise ClientError(404, "never_judged", f"{target} has no verdict yet.")
    files = verdict.get("files") or {}
    if "report" not in files:
        raise typer.BadParameter(f"the latest verdict on {target} has no report.")
    report: EvaluationReport = json.loads(client.files.content(files["report"]))
    return report, client.files.content(files["page"]) if with_page and "page" in files else b""


def _held_out_file(client: HatrackClient, held_out: str) -> str:
    """What a request names the data to judge on by: one of this machine's files is uploaded."""
    path = Path(held_out)
    if path.is_file():
        return str(client.files.create(path, "evals")["id"])
    if held_out.startswith("file-"):
        return held_out
    return str(data_argument(held_out))


def _metric(text: str | None) -> Any:
    if text is None or not text.lstrip().startswith("{"):
        return text
    try:
        return json.loads(text)
    except ValueError as error:
        raise typer.BadParameter(f"--metric is not valid JSON: {error}.") from error


def _metric_name(metric: str | Mapping[str, Any]) -> str:
    return metric if isinstance(metric, str) else str(metric.get("name"))


def _arm(text: str) -> JsonObject:
    label, equals, model = text.partition("=")
    model, _, endpoint = model.partition(",endpoint=")
    if not equals or not label or not model:
        raise typer.BadParameter(f"{text!r}: expected LABEL=MODEL, such as new=brand-voice@3.")
    return {"label": label, "model": model} | ({"endpoint": endpoint} if endpoint else {})


def _follow(client: HatrackClient, evaluation_id: str, *, quiet: bool) -> Evaluation:
    """Show how far an evaluation is until it has ended."""
    console = Console(stderr=True, quiet=quiet, highlight=False)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, disable=quiet, transient=True) as bar:
        task = bar.add_task("queued", total=None)
        while True:
            evaluation = client.evaluations.retrieve(evaluation_id)
            if evaluation.get("status") in FINAL_STATUSES:
                return evaluation
            if waiting := terminal.waiting(evaluation.get("waiting")):
                bar.update(task, description=waiting, completed=0, total=None)
            elif progress := evaluation.get("progress"):
                stage = terminal.clean(progress["stage"])
                bar.update(task, description=stage, completed=progress["done"], total=progress["total"] or None)
            else:
                bar.update(task, description=evaluation["status"])
            time.sleep(POLL_S)


def _finish(evaluation: Evaluation, report: EvaluationReport | None, as_json: bool, *, waited: bool) -> None:
    """Print what came of an evaluation, and leave with the verdict's exit code."""
    if as_json:
        terminal.print_json(evaluation)
    elif report is not None:
        _print_report(report)
        if evaluation.get("note"):
            typer.echo(terminal.clean(str(evaluation["note"])))
    elif evaluation.get("status") in FINAL_STATUSES:
        error = evaluation.get("error")
        reason = error["message"] if error else ""
        typer.echo(terminal.clean(f"{evaluation['id']}  {evaluation['status']}  {reason}".rstrip()))
    if not waited:
        return
    if evaluation.get("status") != "succeeded" or evaluation.get("verdict") == "fail":
        raise typer.Exit(terminal.FAILED)
    if evaluation.get("verdict") == "not_enough_evidence":
        raise typer.Exit(EXIT_NOT_ENOUGH_EVIDENCE)


def _print_report(report: EvaluationReport) -> None:
    """A report for a person: the verdict in a sentence, its checks, and the arms."""
    console = Console(highlight=False, soft_wrap=not sys.stdout.isatty())  # a pipe gets each sentence in one line
    verdict = report.get("verdict")
    if verdict is not None:
        console.print(
            Text(terminal.clean(str(verdict["sentence"])), style=VERDICT_STYLES.get(str(verdict["word"]), ""))
        )
        for check in verdict["checks"]:
            mark, style = CHECK_MARKS.get(str(check["state"]), ("-", ""))
            console.print(Text(f"{mark} ", style=style) + Text(terminal.clean(str(check["sentence"]))))
    else:
        console.print(Text(terminal.clean(f"{report['adapter']}, by {report['metric']}, without a verdict")))
    served = report.get("served") or {}
    rows = [
        [str(mean["label"]), str(served.get(mean["label"], "-")), _points(mean["mean"]), _span(mean)]
        for mean in report.get("means") or ()
    ]
    terminal.print_table(["ARM", "ANSWERED BY", f"{report['metric']}".upper(), "INTERVAL"], rows)
    differences = report.get("differences") or ()
    if differences:
        pairs = [
            [
                f"{difference['of']} against {difference['against']}",
                _points(difference["estimate"], signed=True),
                _span(difference, signed=True),
            ]
            for difference in differences
        ]
        terminal.print_table(["DIFFERENCE", "POINTS", "INTERVAL"], pairs)
    people = report.get("people")
    if people is not None:
        console.print(Text(terminal.clean(people["sentence"])))


def _points(share: Any, *, signed: bool = False) -> str:
    return f"{100 * float(share):{'+' if signed else ''}.1f}"


def _span(interval: ArmMean | ArmDifference, *, signed: bool = False) -> str:
    return f"{_points(interval['low'], signed=signed)} to {_points(interval['high'], signed=signed)}"
