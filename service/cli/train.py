"""`train`: from a data file to an adapter that answers."""

from __future__ import annotations

import json
from collections.abc import Collection
from dataclasses import replace
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal

import typer

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
from service.cli.completion import complete_store
from service.cli.cost import print_estimate
from service.cli.datasets import data_argument, find_source
from service.cli.evaluate import Suites, suite_names
from service.cli.grounding import InsertAs, RequiredFilters, set_grounding
from service.cli.jobs import Follow, finish, follow_job
from service.cli.recipe import Recipe, read_recipe, recipe_text, require_same_data, write_recipe
from service.cli.terminal import AsJson
from service.client import HatrackClient
from service.client.output import check_writable

if TYPE_CHECKING:
    from service.client.types.training import FineTuningJob, Integration


class Promote(StrEnum):
    """What becomes of a version that passes."""

    AUTO = "auto"
    NEVER = "never"


BESIDE_RECIPE: Final = frozenset({"recipe", "save_recipe", "estimate", "track", "follow", "as_json"})
"""Options of `train` that may be given with `--recipe`."""
BESIDE_AGAIN: Final = frozenset({"again", "follow", "as_json"})


def _optional_name(text: str | None) -> str | None:
    return None if text is None else terminal.name_argument(text)


Examples = Annotated[
    str | None,
    typer.Argument(
        metavar="[FILE|DATASET]",
        help="Examples: a JSONL file, or a dataset (NAME@VERSION).",
        callback=data_argument,
    ),
]
HeldOut = Annotated[
    str | None,
    typer.Option(
        metavar="FILE|DATASET", help="Held-out examples. [default: split from the examples]", callback=data_argument
    ),
]
HeldOutShare = Annotated[
    float | None,
    typer.Option(
        min=MIN_SHARE, max=MAX_SHARE, help=f"Share of FILE that is held out, without --held-out. [default: {SHARE}]"
    ),
]
Hyperparameters = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="FIELD=VALUE", help="A hyperparameter: n_epochs, batch_size, learning_rate …"),
]
Method = Annotated[Literal["supervised", "dpo"], typer.Option(help="dpo: on pairs of a better and a worse answer.")]
Metric = Annotated[
    str | None, typer.Option(help="Metric: exact_match, similarity, json_exact … [default: chosen from the data]")
]
Start = Annotated[str | None, typer.Option("--from", help="Continue training from NAME@VERSION. [default: the base]")]
Base = Annotated[
    str | None, typer.Option(metavar="NAME", help="The base to train for, of several. [default: the first]")
]
Stores = Annotated[
    list[str] | None,
    typer.Option(
        "--kb",
        metavar="STORE",
        help="Train and serve with passages of a knowledge base; repeatable.",
        autocompletion=complete_store,
    ),
]
SavedRecipe = Annotated[
    Path | None,
    typer.Option(metavar="FILE", exists=True, dir_okay=False, help="Train as a saved recipe says, and nothing else."),
]
Again = Annotated[
    str | None,
    typer.Option(metavar="NAME@VERSION", help="Repeat a version's training: its data, hyperparameters and seed."),
]
RecipeToSave = Annotated[
    Path | None,
    typer.Option(metavar="FILE", dir_okay=False, writable=True, help="Save all that makes the job, as TOML."),
]
OnlyEstimate = Annotated[
    bool, typer.Option("--estimate", help="Only tell what the job would take and cost; FILE is uploaded.")
]
Track = Annotated[
    list[str] | None,
    typer.Option(metavar="TRACKER:NAME", help="Follow the job in mlflow:EXPERIMENT or wandb:PROJECT, too."),
]


def train(
    context: typer.Context,
    file: Examples = None,
    name: Annotated[str | None, typer.Option(help="The adapter's name.", callback=_optional_name)] = None,
    held_out: HeldOut = None,
    start: Start = None,
    base: Base = None,
    options: Hyperparameters = None,
    system_prompt: Annotated[str | None, typer.Option(help="System prompt for training and serving.")] = None,
    kb: Stores = None,
    kb_as: InsertAs = None,
    required_filter: RequiredFilters = None,
    method: Method = "supervised",
    strict: Annotated[bool, typer.Option("--strict", help="Treat warnings of the data check as errors.")] = False,
    drop_long: Annotated[bool, typer.Option("--drop-long", help="Drop examples that are too long.")] = False,
    held_out_share: HeldOutShare = None,
    seed: Annotated[int | None, typer.Option(help="Seed for example order, sampling and initial weights.")] = None,
    promote: Annotated[Promote, typer.Option(help="Whether a passing version goes live automatically.")] = Promote.AUTO,
    metric: Metric = None,
    suites: Suites = None,
    judge: Annotated[str | None, typer.Option(help="A judge configured by the operator.")] = None,
    recipe: SavedRecipe = None,
    again: Again = None,
    save_recipe: RecipeToSave = None,
    estimate: OnlyEstimate = False,
    track: Track = None,
    follow: Follow = True,
    as_json: AsJson = False,
) -> None:
    """Train an adapter on examples and evaluate it. It is served as NAME:candidate, and goes live if it passes."""
    if again is not None:
        _repeat(context, again, follow=follow, as_json=as_json)
        return
    _check_source(context, recipe, complete=file is not None and name is not None)
    _check_options(save_recipe, stores=bool(kb), of_stores=bool(kb_as or required_filter))
    _check_start(start, base)
    integrations = [_integration(text) for text in track or []]
    hyperparameters = _hyperparameters(options, held_out, held_out_share)
    judging: dict[str, Any] = {"promote": promote.value, "metric": metric, "suites": _suites(suites), "judge": judge}
    prepared: dict[str, Any] = {"strict": strict, "drop_long": drop_long, "system_prompt": system_prompt}
    with terminal.reporting(as_json), HatrackClient() as client:
        set_grounding(hyperparameters, client, kb, kb_as, required_filter)
        if recipe is not None:
            requested = _read_recipe(client, recipe)
        else:
            requested = Recipe(
                adapter=str(name),
                model=start or base or str(client.ready().get("base")),
                data=find_source(client, str(file)),
                held_out=find_source(client, held_out) if held_out else None,
                hyperparameters=hyperparameters,
                seed=seed,
                method=method,
                **prepared,
                **judging,
            )
        if estimate:
            print_estimate(client.fine_tuning.jobs.estimate(**_arguments(client, requested)), as_json)
            return
        job = _start(client, requested, save_recipe, integrations, follow=follow, quiet=as_json)
    finish(job, as_json, followed=follow)


def _check_source(context: typer.Context, recipe: Path | None, *, complete: bool) -> None:
    """Fail unless the options say what is trained; ``complete``: they name the data and the adapter."""
    if recipe is not None:
        _refuse_options(context, "recipe", BESIDE_RECIPE, "edit the recipe's file instead")
    elif not complete:
        raise typer.BadParameter("give FILE (or a dataset) and --name, or --recipe, or --again.")


def _check_options(recipe: Path | None, *, stores: bool, of_stores: bool) -> None:
    """Fail if ``recipe`` cannot be written, or if there are options of stores without any."""
    if recipe is not None and not recipe.absolute().parent.is_dir():
        raise typer.BadParameter(f"--save-recipe: {recipe.absolute().parent} is not a directory.")
    if of_stores and not stores:
        raise typer.BadParameter("--kb-as and --required-filter need --kb.")


def _check_start(start: str | None, base: str | None) -> None:
    """Fail if a version and a base are named to start from."""
    if start is not None and base is not None:
        raise typer.BadParameter("--from and --base cannot be combined: a version is trained on for its own base.")


def _hyperparameters(options: list[str] | None, held_out: str | None, held_out_share: float | None) -> dict[str, Any]:
    """The hyperparameters that the options give; a mistake is a usage error."""
    if held_out is not None and held_out_share is not None:
        raise typer.BadParameter("--held-out and --held-out-share cannot be combined.")
    hyperparameters = {field: _value(text) for field, text in map(_pair, options or [])}
    return hyperparameters if held_out_share is None else hyperparameters | {"held_out_share": held_out_share}


def _suites(given: list[str] | None) -> str | None:
    """The suites as a job's metadata and a recipe name them."""
    names = suite_names(given)
    return None if names is None else ",".join(names) or "none"


def _read_recipe(client: HatrackClient, path: Path) -> Recipe:
    """A saved recipe, if its data are still the same."""
    recipe = read_recipe(path)
    for source in filter(None, (recipe.data, recipe.held_out)):
        require_same_data(client, source)
    return recipe


def _start(
    client: HatrackClient,
    recipe: Recipe,
    save_recipe: Path | None,
    integrations: list[Integration],
    *,
    follow: bool,
    quiet: bool,
) -> FineTuningJob:
    """Create the job of a recipe, say so, and follow it if that was requested; returns the job as it then is."""
    _warn_of_too_few(recipe)
    job = _create(client, recipe, save_recipe, integrations)
    if not quiet:
        typer.echo(
            f"{job['id']} trains {recipe.adapter} on {recipe.data.shown}; "
            f"follow it with `hatrack job {job['id']} --follow`"
        )
    return follow_job(client, job["id"], quiet=quiet) if follow else job


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


def _create(
    client: HatrackClient, recipe: Recipe, target: Path | None, integrations: list[Integration]
) -> FineTuningJob:
    """Create a recipe's job, and save the recipe in ``target`` with the seed that the job has got."""
    if target is not None:
        check_writable(target)  # refused before there is a job
        recipe_text(recipe, target.parent, "")
    job = client.fine_tuning.jobs.create(**_arguments(client, recipe), integrations=integrations or None)
    if target is not None:
        chosen = job.get("seed") if recipe.seed is None else recipe.seed
        write_recipe(target, replace(recipe, seed=chosen), job["id"])
    return job


def _arguments(client: HatrackClient, recipe: Recipe) -> dict[str, Any]:
    """The arguments of a recipe's job; its files are uploaded."""
    # a text of metadata has 512 characters at most, which a prompt or a schema may exceed
    metric = None if recipe.metric is None else _metric(recipe.metric)
    long_values = {"system_prompt": recipe.system_prompt, "metric": metric}
    hyperparameters = {field: value for field, value in long_values.items() if value is not None}
    metadata = {"strict": "true" if recipe.strict else None, "drop_long": "true" if recipe.drop_long else None}
    promote = None if recipe.promote == Promote.AUTO else recipe.promote
    metadata |= {"suites": recipe.suites, "judge": recipe.judge, "promote": promote}
    return {
        "training_file": recipe.data.sent(client),
        "model": recipe.model,
        "adapter": recipe.adapter,
        "validation_file": recipe.held_out.sent(client) if recipe.held_out is not None else None,
        "method": recipe.method,
        "hyperparameters": {**recipe.hyperparameters, **hyperparameters},
        "metadata": {key: value for key, value in metadata.items() if value is not None},
        "seed": recipe.seed,
    }


def _repeat(context: typer.Context, version: str, *, follow: bool, as_json: bool) -> None:
    """Train a version's recipe again, which no option may change."""
    _refuse_options(context, "again", BESIDE_AGAIN, "a repetition changes nothing")
    reference = terminal.reference_argument(version)
    if reference.version is None:
        raise typer.BadParameter(f"--again: name a version, such as {reference.name}@1; got {version}.")
    with terminal.reporting(as_json), HatrackClient() as client:
        job = client.fine_tuning.jobs.repeat(version)
        if not as_json:
            typer.echo(
                f"{job['id']} repeats the training of {version}; follow it with `hatrack job {job['id']} --follow`"
            )
        if follow:
            job = follow_job(client, job["id"], quiet=as_json)
    finish(job, as_json, followed=follow)


def _refuse_options(context: typer.Context, option: str, allowed: Collection[str], instead: str) -> None:
    """Refuse what would change a job that is given as a whole."""
    for parameter in context.command.params:
        source = context.get_parameter_source(str(parameter.name))
        if parameter.name not in allowed and source is not None and source.name == "COMMANDLINE":
            shown = parameter.opts[0] if parameter.opts[0].startswith("-") else "FILE"
            raise typer.BadParameter(f"{shown} cannot be combined with --{option}; {instead}.")


def _integration(text: str) -> Integration:
    """A tracker as `--track` names it."""
    tracker, _, name = text.partition(":")
    if tracker == "mlflow" and name:
        return {"type": "mlflow", "mlflow": {"experiment": name}}
    if tracker == "wandb" and name:
        return {"type": "wandb", "wandb": {"project": name}}
    raise typer.BadParameter(f"--track: {text!r}: expected mlflow:EXPERIMENT or wandb:PROJECT.")


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
