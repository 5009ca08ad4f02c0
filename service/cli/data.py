"""`data` and `lineage`: what an adapter is to learn from, and what it was made of."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer
from rich.console import Console
from rich.text import Text

from adapters.wording import counted
from service.cli import datasets, terminal
from service.cli import label as labelling
from service.cli.datasets import EXAMPLES
from service.cli.terminal import AsJson
from service.client import HatrackClient, JsonObject

if TYPE_CHECKING:
    from service.client.types.data import DataCheck, ShownExample

MARKS: Final = {"refused": ("✗", "red"), "warning": ("!", "yellow"), "note": ("-", "dim")}
app = typer.Typer(
    no_args_is_help=True, help="Check training data, and keep it as named, numbered versions.", rich_markup_mode=None
)


@app.command(
    epilog=terminal.examples("hatrack data check examples.jsonl", "hatrack data check examples.jsonl --strict --json")
)
def check(
    file: Annotated[Path, EXAMPLES],
    max_length: Annotated[
        int | None, typer.Option(min=8, help="Longest example in tokens. [default: the engine's]")
    ] = None,
    strict: Annotated[bool, typer.Option("--strict", help="Treat warnings as errors.")] = False,
    drop_long: Annotated[bool, typer.Option("--drop-long", help="Drop examples that are too long.")] = False,
    as_json: AsJson = False,
) -> None:
    """Report on a data file: format, lengths, duplicates, contradictions, personal data. The file is not stored."""
    with terminal.reporting(as_json), HatrackClient() as client:
        report = client.fine_tuning.check_data(file, max_length=max_length, strict=strict, drop_long=drop_long)
    if as_json:
        terminal.print_json(report)
    else:
        print_report(report)
    if any(finding.get("severity") == "refused" for finding in report.get("findings", [])):
        raise typer.Exit(terminal.FAILED)


app.command(
    epilog=terminal.examples(
        "hatrack data push support examples.jsonl",
        'hatrack data push support examples.jsonl --note "200 tickets of May"',
    )
)(datasets.push)
app.command("list", epilog=terminal.examples("hatrack data list", "hatrack data list --json | jq '.[].name'"))(
    datasets.list_datasets
)
app.command(epilog=terminal.examples("hatrack data show support", "hatrack data show support@3"))(datasets.show)
app.command(epilog=terminal.examples("hatrack data diff support@2 support@3"))(datasets.diff)
app.command(
    epilog=terminal.examples(
        "hatrack data label prompts.jsonl --teacher support",
        "hatrack data label questions.txt --teacher big --system-prompt voice.md --out train.jsonl",
    )
)(labelling.label)
app.command(epilog=terminal.examples("hatrack data pull support@3 examples.jsonl"))(datasets.pull)
app.command(
    epilog=terminal.examples("hatrack data delete support@2", "hatrack data delete support --yes --keep-files")
)(datasets.delete)


def print_report(report: DataCheck) -> None:
    """Print the quality report for people."""
    console = Console(highlight=False)
    lengths, held = report.get("lengths"), report["held_out"]
    lines = [
        f"{report['file']}: {counted(report['examples'], 'example')}, format {report['format']}",
        f"{report['trained_on']} for training, {held['examples']} held out ({held['source']}), "
        f"{report['dropped']} left out as too long",
    ]
    if lengths:
        lines.append(
            f"tokens per example: {lengths['shortest']} to {lengths['longest']}, median {lengths['median']}, 95% up to "
            f"{lengths['p95']}; {lengths['total']:,} in total, {lengths['trained']:,} of them trained"
        )
    lines.append(report["size"])
    for line in lines:
        console.print(terminal.clean(line), markup=False)
    for finding in report["findings"]:
        mark, style = MARKS[finding["severity"]]
        at = ", ".join(map(str, finding["lines"])) + (" …" if finding["count"] > len(finding["lines"]) else "")
        where = f"{finding['code']}: lines {at}" if at else finding["code"]
        console.print(Text(terminal.clean(f"{mark} {finding['message']} [{where}]"), style=style))
    if not report["findings"]:
        console.print("no problems found", style="green")
    for shown in report["shown"]:
        _show(console, shown)


def _show(console: Console, shown: ShownExample) -> None:
    text = Text(f"\nline {shown['line']} (trained text is highlighted)\n", style="dim")
    for piece in shown["pieces"]:
        text.append(terminal.clean(piece["text"]), style="bold green" if piece["trained"] else "dim")
    console.print(text)


def lineage(
    version: Annotated[str, typer.Argument(metavar="NAME@VERSION", help="brand-voice@3")],
    as_json: AsJson = False,
) -> None:
    """Show where a version comes from: data, recipe, base, packages, cost."""
    reference = terminal.reference_argument(version)
    if reference.version is None:
        raise typer.BadParameter(f"name a version, such as {reference.name}@1; got {version}.")
    with terminal.reporting(as_json), HatrackClient() as client:
        version_object = client.adapters.versions.retrieve(reference.name, reference.version).get("metadata") or {}
    if as_json:
        terminal.print_json(version_object)
    elif facts := [*_source_facts(version_object), *(_facts(version_object) if "lineage" in version_object else [])]:
        terminal.print_table(["", version], [[name, value] for name, value in facts])
    else:
        typer.echo(f"{version} was uploaded without a lineage.")


def _source_facts(metadata: JsonObject) -> list[tuple[str, str]]:
    """Where the gateway fetched the files from; nothing where they were uploaded."""
    source = metadata.get("source")
    if not isinstance(source, dict):
        return []
    shown = ("url", "revision", "sha256", "checked_by")
    facts = [(f"source: {name}", str(source[name])) for name in shown if source.get(name)]
    return [*facts, ("source: fetched", terminal.when(source.get("fetched_at")))]


def _facts(metadata: JsonObject) -> list[tuple[str, str]]:
    made: dict[str, Any] = metadata["lineage"]
    cost: dict[str, Any] = metadata.get("training") or {}
    facts = [
        ("data", f"{file['name']}: {counted(file['examples'], 'example')}, sha256 {file['sha256']}")
        for file in made["data"]
    ]
    named = made.get("datasets") or {}
    facts += [(f"dataset: {field}", version) for field, version in named.items()]
    facts += [("files", ", ".join(made.get("files") or []) or "-"), ("job", made.get("job") or "-")]
    facts += [("parent", made.get("parent") or "-"), ("system prompt", made.get("system_prompt") or "-")]
    facts += [(f"recipe: {name}", str(value)) for name, value in made["recipe"].items()]
    base = made["base"]
    facts += [("base", made["base_name"]), *((f"base: {name}", str(value)) for name, value in base.items())]
    facts += [(f"training: {name}", str(value)) for name, value in cost.items() if value is not None]
    facts += [("python", made["python"])]
    return facts + [(f"package: {name}", number) for name, number in sorted(made["packages"].items())]
