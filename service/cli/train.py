"""`train jobs job`: from a data file to an adapter that answers, and what became of it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from enum import StrEnum
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from adapters.dataset.held_out import (
    DEFAULT_MIN_EXAMPLES,
    MAX_SHARE,
    MIN_SHARE,
    SHARE,
    describe_shortage,
    held_out_target,
    share_needed,
)
from service.cli import terminal
from service.cli.datasets import data_argument, find_source
from service.cli.recipe import Recipe, read_recipe, recipe_text, require_same_data, write_recipe
from service.cli.terminal import AsJson
from service.client import FINAL_STATUSES, HatrackClient

if TYPE_CHECKING:
    from service.client.types.training import FineTuningJob, FineTuningJobEvent

VERDICTS: Final = {"pass": "bold green", "fail": "bold red", "not_enough_evidence": "bold yellow"}
COLOURS: Final = {"warn": "yellow", "error": "red"}
EIGHTHS: Final = " ▁▂▃▄▅▆▇█"
"""Blocks of 0 to 8 eighths of a line's height."""


class Promote(StrEnum):
    """What becomes of a version that passes."""

    AUTO = "auto"
    NEVER = "never"


BESIDE_RECIPE: Final = frozenset({"recipe", "save_recipe", "follow", "as_json"})
"""Options of `train` that may be given with `--recipe`."""


def _optional_name(text: str | None) -> str | None:
    return None if text is None else terminal.name_argument(text)


Follow = Annotated[bool, typer.Option("--follow/--no-follow", help="Wait until it has finished.")]


def train(
    context: typer.Context,
    file: Annotated[
        str | None,
        typer.Argument(
            metavar="[FILE|DATASET]",
            help="Examples: a JSONL file, or a dataset (NAME@VERSION).",
            callback=data_argument,
        ),
    ] = None,
    name: Annotated[str | None, typer.Option(help="The adapter's name.", callback=_optional_name)] = None,
    held_out: Annotated[
        str | None,
        typer.Option(
            metavar="FILE|DATASET", help="Held-out examples. [default: split from the examples]", callback=data_argument
        ),
    ] = None,
    start: Annotated[
        str | None, typer.Option("--from", help="Continue training from NAME@VERSION. [default: the base]")
    ] = None,
    options: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="FIELD=VALUE", help="A hyperparameter: n_epochs, batch_size, learning_rate …"),
    ] = None,
    system_prompt: Annotated[str | None, typer.Option(help="System prompt for training and serving.")] = None,
    method: Annotated[
        Literal["supervised", "dpo"], typer.Option(help="dpo: on pairs of a better and a worse answer.")
    ] = "supervised",
    strict: Annotated[bool, typer.Option("--strict", help="Treat warnings of the data check as errors.")] = False,
    drop_long: Annotated[bool, typer.Option("--drop-long", help="Drop examples that are too long.")] = False,
    held_out_share: Annotated[
        float | None,
        typer.Option(
            min=MIN_SHARE, max=MAX_SHARE, help=f"Share of FILE that is held out, without --held-out. [default: {SHARE}]"
        ),
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Seed for example order, sampling and initial weights.")] = None,
    promote: Annotated[Promote, typer.Option(help="Whether a passing version goes live automatically.")] = Promote.AUTO,
    metric: Annotated[
        str | None, typer.Option(help="Metric: exact_match, similarity, json_exact … [default: chosen from the data]")
    ] = None,
    suites: Annotated[
        str | None, typer.Option(help="Suites that check for forgetting, separated by commas. [default: general]")
    ] = None,
    judge: Annotated[str | None, typer.Option(help="A judge configured by the operator.")] = None,
    recipe: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", exists=True, dir_okay=False, help="Train as a saved recipe says, and nothing else."
        ),
    ] = None,
    save_recipe: Annotated[
        Path | None,
        typer.Option(metavar="FILE", dir_okay=False, writable=True, help="Save all that makes the job, as TOML."),
    ] = None,
    follow: Follow = True,
    as_json: AsJson = False,
) -> None:
    """Train an adapter on examples and evaluate it. It is served as NAME:candidate, and goes live if it passes."""
    if recipe is not None:
        _refuse_options(context)
    elif file is None or name is None:
        raise typer.BadParameter("give FILE (or a dataset) and --name, or --recipe.")
    if save_recipe is not None and not save_recipe.absolute().parent.is_dir():
        raise typer.BadParameter(f"--save-recipe: {save_recipe.absolute().parent} is not a directory.")
    if held_out is not None and held_out_share is not None:
        raise typer.BadParameter("--held-out and --held-out-share cannot be combined.")
    hyperparameters = {field: _value(text) for field, text in map(_pair, options or [])}
    if held_out_share is not None:
        hyperparameters["held_out_share"] = held_out_share
    with terminal.reporting(as_json), HatrackClient() as client:
        if recipe is not None:
            wanted = read_recipe(recipe)
            for source in filter(None, (wanted.data, wanted.held_out)):
                require_same_data(client, source)
        else:
            wanted = Recipe(
                adapter=str(name),
                model=start or str(client.ready().get("base")),
                data=find_source(client, str(file)),
                held_out=find_source(client, held_out) if held_out else None,
                hyperparameters=hyperparameters,
                seed=seed,
                method=method,
                promote=promote.value,
                metric=metric,
                suites=suites,
                judge=judge,
                strict=strict,
                drop_long=drop_long,
                system_prompt=system_prompt,
            )
        _warn_of_too_few(wanted)
        job = _create(client, wanted, save_recipe)
        if not as_json:
            typer.echo(
                f"{job['id']} trains {wanted.adapter} on {wanted.data.shown}; "
                f"follow it with `hatrack job {job['id']} --follow`"
            )
        if follow:
            job = _follow(client, job["id"], quiet=as_json)
    _finish(job, as_json, followed=follow)


def _warn_of_too_few(recipe: Recipe) -> None:
    """Warn, before anything is sent, of files with too few lines for a pass; the job then tells the exact number.

    A dataset was checked when it was pushed, and its lines are not here to be counted.
    """
    share = recipe.hyperparameters.get("held_out_share", SHARE)
    path, held_out = recipe.data.path, recipe.held_out
    if path is None or not isinstance(share, int | float) or (held_out is not None and held_out.path is None):
        return
    examples = _count_lines(path)
    held = held_out_target(examples, share) if held_out is None else _count_lines(held_out.path or path)
    if held < DEFAULT_MIN_EXAMPLES:
        shortage = describe_shortage(
            held,
            DEFAULT_MIN_EXAMPLES,
            source="split" if held_out is None else "given",
            examples=examples,
            share=share,
            possible_share=share_needed(examples, DEFAULT_MIN_EXAMPLES),
        )
        operators = f"({DEFAULT_MIN_EXAMPLES} unless the operator has set HATRACK_TRAINER_MIN_EXAMPLES.)"
        typer.secho(f"{shortage} {operators}", fg="yellow", err=True)


def _count_lines(path: Path) -> int:
    with path.open("rb") as lines:
        return sum(1 for line in lines if line.strip())


def _create(client: HatrackClient, recipe: Recipe, target: Path | None) -> FineTuningJob:
    """Create a recipe's job, and save the recipe in ``target`` with the seed that the job has got."""
    if target is not None:
        recipe_text(recipe, target.parent, "")  # refused before there is a job
    # a text of metadata has 512 characters at most, which a prompt or a schema may exceed
    metric = None if recipe.metric is None else _metric(recipe.metric)
    long_values = {"system_prompt": recipe.system_prompt, "metric": metric}
    hyperparameters = {field: value for field, value in long_values.items() if value is not None}
    metadata = {"strict": "true" if recipe.strict else None, "drop_long": "true" if recipe.drop_long else None}
    promote = None if recipe.promote == Promote.AUTO else recipe.promote
    metadata |= {"suites": recipe.suites, "judge": recipe.judge, "promote": promote}
    job = client.fine_tuning.jobs.create(
        recipe.data.sent(client),
        model=recipe.model,
        adapter=recipe.adapter,
        validation_file=recipe.held_out.sent(client) if recipe.held_out is not None else None,
        method=recipe.method,
        hyperparameters={**recipe.hyperparameters, **hyperparameters},
        metadata={key: value for key, value in metadata.items() if value is not None},
        seed=recipe.seed,
    )
    if target is not None:
        chosen = job.get("seed") if recipe.seed is None else recipe.seed
        write_recipe(target, replace(recipe, seed=chosen), job["id"])
    return job


def _refuse_options(context: typer.Context) -> None:
    """Refuse what would change a recipe: the file is to say all that makes its job."""
    for parameter in context.command.params:
        source = context.get_parameter_source(str(parameter.name))
        if parameter.name not in BESIDE_RECIPE and source is not None and source.name == "COMMANDLINE":
            shown = parameter.opts[0] if parameter.opts[0].startswith("-") else "FILE"
            raise typer.BadParameter(f"{shown} cannot be combined with --recipe; edit the recipe's file instead.")


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
            ]
            for job in listed
        ]
        terminal.print_table(["JOB", "ADAPTER", "STATUS", "RESULT", "CREATED", "COST"], rows)
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
            result = _follow(client, job_id, quiet=as_json)
    _finish(result, as_json, followed=follow)


def _pair(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not equals or not name:
        raise typer.BadParameter(f"{text!r}: expected FIELD=VALUE, such as n_epochs=3.")
    return name.strip(), value.strip()


def _value(text: str) -> Any:
    """A hyperparameter as a person types it: JSON where it is JSON (`3`, `1e-3`, `true`), else the text."""
    try:
        return json.loads(text)
    except ValueError:
        return text


def _metric(text: str) -> Any:
    """A metric's name, or the object that `{"name": …}` is."""
    value = _value(text)
    return value if isinstance(value, dict) else text


def _follow(client: HatrackClient, job_id: str, *, quiet: bool) -> FineTuningJob:
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
        for event in client.fine_tuning.jobs.stream_events(job_id):
            data: dict[str, Any] = event.get("data") or {}
            if event.get("type") == "metrics" and "step" in data:
                losses.append(float(data["train_loss"]))
                pace = f"loss {data['train_loss']:.3f}, {data.get('tokens_per_s', 0):.0f} tokens/s"
                bar.update(
                    task, description="training", completed=data["step"], total=data["total_steps"], numbers=pace
                )
            elif "stage" in data:
                stage = terminal.clean(str(data["stage"]))
                bar.update(task, description="judging", completed=data["done"], total=data["total"], numbers=stage)
            else:
                _print_event(console, event)
    for line in draw_curve(losses):
        console.print(line, markup=False)
    return client.fine_tuning.jobs.retrieve(job_id)


def _print_event(console: Console, event: FineTuningJobEvent) -> None:
    text = terminal.clean(str(event.get("message", "")))
    verdict = (event.get("data") or {}).get("verdict")
    style = VERDICTS.get(str(verdict)) or COLOURS.get(str(event.get("level")))
    console.print(text, style=style, markup=False)


def _finish(job: FineTuningJob, as_json: bool, *, followed: bool) -> None:
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
    cost = (job.get("hatrack") or {}).get("cost")
    return f"{cost:.2f}" if isinstance(cost, int | float) and cost else "-"


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
